"""Properties of a ViT that no tensor shows: the number of heads, and the shape of the position grid.

Settings or the user give them. Otherwise they are known only for published shapes with a unique number of heads.
"""

from math import isqrt

from checkpoints_convert.rules import Given

HEADS = {
    (192, 12): (3, (16,)),
    (384, 12): (6, (8, 14, 16, 32)),
    (768, 12): (12, (8, 14, 16, 32)),
    (1024, 24): (16, (14, 16, 32)),
    (1280, 32): (16, (14, 16)),
    (1408, 40): (16, (14,)),
    (1536, 40): (24, (14, 16)),
    (1664, 48): (16, (14,)),
    (64, 6): (2, (16,)),
    (64, 8): (2, (16,)),
    (96, 9): (3, (16,)),
}
"""Width and depth -> heads, and the patch sizes that the shape was published with.

Source: timm/models/vision_transformer.py and deit.py (ViT and DeiT Ti, S, B, L, H, g, G and the models for tests);
facebookresearch/dinov2, dinov2/models/vision_transformer.py (S, B, L, g); facebookresearch/SWAG (B/16, L/16, H/14);
rstrudel/segmenter (Ti/16, S/16, B/16, L/16); tue-mps/eomt (S/16, B/16, L/16, g/16). Not here: 1152 channels (16
heads in SigLIP's SO400M) and 768 with 8 blocks (8 heads in timm's ViT-S of 2020, and another scale).
"""
NARROWEST = 64
"""Channels of the narrowest head outside `HEADS`: no narrower token is cut into several."""


def heads_of(width: int, depth: int, patch_size: int, given: Given, said: int | None) -> int:
    """The number of heads of a ViT.

    Args:
        width: channels of a token.
        depth: number of blocks.
        patch_size: side of a patch in pixels.
        given: what the user says of it.
        said: the settings' number.

    Raises:
        ValueError: nothing says it.
    """
    heads, patch_sizes = HEADS.get((width, depth), (None, ()))
    known = given.heads or said or (heads if patch_size in patch_sizes else None)
    if known is None and width <= NARROWEST:
        known = 1
        given.say(f"1 head: no settings say how many, and tokens of {width} channels are taken whole")
    if known is None:
        raise ValueError(
            f"no tensor shows how many heads a ViT of {depth} blocks and {width} channels has: give --heads, or "
            "with --config the settings that say num_heads"
        )
    if width % known:
        raise ValueError(f"width must be a multiple of heads, got width {width} and {known} heads")
    return known


def grid_of(
    positions: int, special: tuple[int, ...], patch_size: int, given: Given, said: tuple[int, int] | None
) -> tuple[int, int]:
    """The (rows, columns) of a position embedding.

    Args:
        positions: how many it has.
        special: how many of them may be special tokens', the likeliest first.
        patch_size: side of a patch in pixels.
        given: what the user says of it.
        said: (rows, columns) of the images, in pixels, in the settings.

    Raises:
        ValueError: it has another number of positions than is said, or the grid is not square and nothing is said.
    """
    grid, source = given.grid, "--grid says"
    if not grid and said:
        grid = said[0] // patch_size, said[1] // patch_size
        source = f"the settings say images of {said[0]} x {said[1]} pixels, so"
    if grid:
        if positions - grid[0] * grid[1] not in special:
            raise ValueError(
                f"{source} {grid[0]} x {grid[1]} positions, but the checkpoint has {positions}, of which "
                f"{' or '.join(map(str, special))} may be special tokens': name the grid with --grid ROWS COLUMNS"
            )
        return grid
    squares = [isqrt(positions - count) for count in special if positions > count]
    side = next((side for side in squares if any(positions - count == side * side for count in special)), None)
    if side is None:
        raise ValueError(
            f"expected position embeddings of a square grid and {' or '.join(map(str, special))} special tokens, "
            f"got {positions} positions: name the grid with --grid ROWS COLUMNS, or with --config the settings "
            "that say img_size"
        )
    return side, side
