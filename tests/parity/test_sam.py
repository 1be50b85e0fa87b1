"""Segment Anything against transformers, converted from its folders and from the official names."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import hourglass_jax as hj
from checkpoints_convert.convert import convert
from hourglass_jax.models.sam import Sam
from hourglass_jax.models.sam_prompts import ABSENT, Prompts, check_prompts
from hourglass_jax.prompt_predictor import answer, encode
from hourglass_jax.tasks.prompted_masks import PromptOutputs
from tests.parity.vits import channels_first, random_images

pytest.importorskip("transformers")

from tests.parity.sams import DECODER, GLOBAL, HEADS, PATCH, WINDOW, build, official_names, saved_folder

pytestmark = pytest.mark.usefixtures("quick_compilation")

ATOL, QUALITY_ATOL = 1e-4, 1e-5
SIZES = [64, 72, 40]
"""Maps of 8, 9 and 5 tokens a side, in windows of 3."""


def pair(size: int, folder: Path) -> tuple[torch.nn.Module, Sam]:
    theirs = build(size)
    summary = convert(saved_folder(theirs, folder / str(size)))
    assert summary.family == "sam-transformers"
    return theirs, hj.load(summary.target)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[torch.nn.Module, Sam]]:
    folder = tmp_path_factory.mktemp("sam")
    return {size: pair(size, folder) for size in SIZES}


def embedding(model: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model.get_image_embeddings(channels_first(images)).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("size", SIZES)
def test_the_encoded_image(size: int, pairs: dict[int, tuple[torch.nn.Module, Sam]]) -> None:
    theirs, ours = pairs[size]
    assert ours.config.backbone.windows.side == WINDOW
    assert ours.config.backbone.windows.global_blocks == GLOBAL
    assert (ours.config.backbone.heads, ours.config.width, ours.config.norm_epsilon) == (HEADS, DECODER, 1e-5)
    images = random_images(size, size)
    np.testing.assert_allclose(encode(ours, images), embedding(theirs, images), rtol=0, atol=ATOL)


POINTS = [[[9.0, 20.5], [50, 41], [-7, 90]], [[3, 3], [60, 60], [31, 8]]]
BOXES = [[5.0, 7, 40, 50], [30, 2, 20, 2]]
PROMPTS = {
    "a point": {"points": POINTS[0][:1]},
    "points": {"points": POINTS[0], "labels": [1, 0, 1]},
    "no point among points": {"points": POINTS[0], "labels": [1, -1, 0]},
    "two prompts": {"points": POINTS, "labels": [[1, 0, 0], [0, 1, 1]]},
    "a box": {"boxes": BOXES[0]},
    "two boxes, one empty": {"boxes": BOXES},
    "points and boxes": {"points": POINTS, "boxes": BOXES},
    "a mask": {"mask": True},
    "a point and a mask": {"points": POINTS[0][:1], "mask": True},
    "everything": {"points": POINTS[0], "boxes": BOXES[0], "mask": True},
}


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("size", SIZES[:2])
def test_the_answers_to_prompts(prompt: str, size: int, pairs: dict[int, tuple[torch.nn.Module, Sam]]) -> None:
    theirs, ours = pairs[size]
    given = dict(PROMPTS[prompt])
    low = size // PATCH * 4
    if "mask" in given:
        given["mask"] = np.random.default_rng(3).normal(size=(low, low)).astype(np.float32)
    images = random_images(size, size)[:1]
    asked = check_prompts(
        given.get("points"), given.get("labels"), given.get("boxes"), given.get("mask"), (low, low)
    )
    found = answer(ours, encode(ours, np.repeat(images, 2, axis=0))[:1], filled(asked.prompts((1, 1), len(asked))))
    expected = answers(theirs, images, asked)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=ATOL)
    np.testing.assert_allclose(found.qualities, expected.qualities, rtol=0, atol=QUALITY_ATOL)
    assert np.std(found.logits) > 0.1


def filled(prompts: Prompts) -> Prompts:
    """With tokens that are not attended to, so that one function is compiled for all of them."""
    missing = 8 - prompts.kinds.shape[2]
    kinds = np.pad(prompts.kinds, ((0, 0), (0, 0), (0, missing)), constant_values=ABSENT)
    return Prompts(np.pad(prompts.places, ((0, 0), (0, 0), (0, missing), (0, 0))), kinds, prompts.masks)


def answers(model: torch.nn.Module, images: np.ndarray, asked) -> PromptOutputs:
    """All four masks of every prompt, by transformers."""

    def tensor(array: np.ndarray | None, dtype: torch.dtype = torch.float32) -> torch.Tensor | None:
        return None if array is None else torch.from_numpy(array)[None].to(dtype)

    masks = None if asked.masks is None else torch.from_numpy(asked.masks)[:, None].float()
    parts = []
    for multimask in (False, True):
        with torch.no_grad():
            found = model(
                channels_first(images),
                input_points=tensor(asked.points),
                input_labels=tensor(asked.labels, torch.int64),
                input_boxes=tensor(asked.boxes),
                input_masks=masks,
                multimask_output=multimask,
            )
        parts.append((found.pred_masks.numpy(), found.iou_scores.numpy()))
    return PromptOutputs(*(np.concatenate(each, axis=2) for each in zip(*parts, strict=True)))


def test_images_of_another_size_than_that_of_training(
    pairs: dict[int, tuple[torch.nn.Module, Sam]],
) -> None:
    """transformers resizes the tables itself; its positions are resized here, as timm does."""
    theirs, ours = pairs[64]
    larger = build(104)
    state = {name: tensor for name, tensor in theirs.state_dict().items() if "rel_pos" not in name}
    positions = state["vision_encoder.pos_embed"].permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        positions, (13, 13), mode="bicubic", antialias=True, align_corners=False
    )
    state["vision_encoder.pos_embed"] = resized.permute(0, 2, 3, 1)
    larger.load_state_dict(state, strict=False)
    for mine, other in zip(larger.vision_encoder.layers, theirs.vision_encoder.layers, strict=True):
        mine.attn.rel_pos_h, mine.attn.rel_pos_w = other.attn.rel_pos_h, other.attn.rel_pos_w
    images = random_images(104, 104)
    np.testing.assert_allclose(encode(ours, images), embedding(larger, images), rtol=0, atol=ATOL)


def test_official_files(pairs: dict[int, tuple[torch.nn.Module, Sam]], tmp_path: Path) -> None:
    """The heads of the decoder are not shown by tensors: the official code has eight."""
    theirs, ours = pairs[64]
    tensors = official_names(theirs)
    torch.save(tensors, tmp_path / "sam_vit_tiny.pth")
    summary = convert(tmp_path / "sam_vit_tiny.pth")
    assert summary.family == "sam"
    model = hj.load(summary.target)
    assert model.config.heads == 8
    images = random_images(64, 64)
    np.testing.assert_array_equal(encode(model, images), encode(ours, images))

    torch.save({**tensors, "mask_decoder.hf_token.weight": torch.zeros(1, DECODER)}, tmp_path / "sam_hq.pth")
    with pytest.raises(ValueError, match=r"sam_hq\.pth: this is a checkpoint of SAM-HQ, .* expected one of SAM"):
        convert(tmp_path / "sam_hq.pth")


def test_a_folder_with_the_epsilon_of_transformers(tmp_path: Path) -> None:
    summary = convert(saved_folder(build(epsilon=1e-6), tmp_path / "checkpoint"))
    assert hj.load(summary.target).config.norm_epsilon == 1e-6
    assert any("epsilon of 1e-06, as config.json says; the official model's have 1e-05" in n for n in summary.notes)
    config = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    config["vision_config"]["num_attention_heads"] = 3
    (tmp_path / "checkpoint" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"the settings ask for num_attention_heads 3, .* only 2"):
        convert(tmp_path / "checkpoint")


@pytest.mark.parametrize("count", [2, 8])
def test_prompts_are_answered_alike_filled_up_or_not(
    count: int, pairs: dict[int, tuple[torch.nn.Module, Sam]]
) -> None:
    """Two tokens are as they are, two prompts alone or filled up to eight."""
    theirs, ours = pairs[64]
    images = random_images(64, 64)
    asked = check_prompts(np.array(POINTS)[:, :1], None, None, None, (32, 32))
    found = answer(ours, encode(ours, images)[:1], asked.prompts((1, 1), count))
    expected = answers(theirs, images[:1], asked)
    np.testing.assert_allclose(found.logits[:, :2], expected.logits, rtol=0, atol=ATOL)
    np.testing.assert_array_equal(found.logits[:, 2:], np.repeat(found.logits[:, :1], count - 2, axis=1))


def test_postprocessing_is_two_bilinear_resizes(pairs: dict[int, tuple[torch.nn.Module, Sam]]) -> None:
    from hourglass_jax.tasks.prompted_masks import enlarged

    logits = np.random.default_rng(0).normal(size=(3, 32, 32)).astype(np.float32)
    whole = torch.nn.functional.interpolate(torch.from_numpy(logits)[None], (64, 64), mode="bilinear")
    inner = whole[..., : int(50 * 64 / 75 + 0.5), :64]
    expected = torch.nn.functional.interpolate(inner, (50, 75), mode="bilinear")[0].numpy()
    np.testing.assert_allclose(enlarged(logits, (64, 64), (50, 75)), expected, rtol=0, atol=1e-5)


def test_the_hourglass_of_the_reference_before_the_neck_of_transformers(
    pairs: dict[int, tuple[torch.nn.Module, Sam]],
) -> None:
    from hourglass_jax.models.registry import flat_parameters
    from tests.reference import sam as reference

    theirs, ours = pairs[64]
    plan = hj.Hourglass(1, (2, 2), window=3, temperature=30.0, neighbors=3)
    images = random_images(64, 64)[:1]
    with torch.no_grad():
        encoder = theirs.vision_encoder
        tokens = (encoder.patch_embed(channels_first(images)) + encoder.pos_embed)[0].double().numpy()
        parameters = {name: np.asarray(each, np.float64) for name, each in flat_parameters(ours.backbone).items()}
        options = {"heads": HEADS, "window": WINDOW, "global_blocks": GLOBAL}
        blocks = reference.encoder_blocks(tokens, parameters, **options, plan=plan)
        expected = encoder.neck(torch.from_numpy(blocks)[None].float()).permute(0, 2, 3, 1).numpy()
    found = encode(hj.expedite(ours, plan), images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2 * ATOL)
    assert np.abs(found - encode(ours, images)).max() > 0.01
