"""Regenerates stored outputs: `python -m tests.golden.make [MODEL | MODEL/PLAN | converted/FAMILY ...]`, or all.

Model and plan files are made only where there are none: they stand for what older versions wrote.

What plans decide (which tokens match, are kept, are medoids, share a hash) must not hang on rounding. So images are
chosen by their seed: outputs have to follow perturbations of the images smoothly, and label maps must not change
under those of the parameters. A model is regenerated with the seed that it has, if that still holds.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import replace

os.environ["JAX_COMPILATION_CACHE_DIR"] = ""

import jax
import numpy as np
from flax import nnx

import hourglass_jax as hj
from hourglass_jax.backbones.resnet import ResNetConfig
from hourglass_jax.backbones.swin import SwinConfig
from hourglass_jax.backbones.vit import ViTConfig
from hourglass_jax.imaging.images import Preprocessing
from hourglass_jax.imaging.windows import SlidingWindow
from hourglass_jax.models.dpt import DPTDepth, DPTDepthConfig, DPTSegmentation, DPTSegmentationConfig
from hourglass_jax.models.encoder import Encoder, EncoderConfig
from hourglass_jax.models.saliency import Saliency, SaliencyConfig
from hourglass_jax.models.segmenter import Segmenter, SegmenterConfig
from hourglass_jax.models.swag import Swag, SwagConfig
from tests.golden import cases

NOISE = 1e-4
"""Of images, in units of their standard deviation."""
DRAWS = 8
SMOOTH = 20
"""An output moves by less than this times the noise of images, both relative to the largest value."""
STEADY = 200
"""The same of predictions and the noise of parameters."""
SEEDS = 200
PHOTO = (33, 47)

PLANS = {
    "hourglass": hj.Hourglass(1, (3, 2), beta=1, window=3, iterations=2, neighbors=3),
    "hourglass-medoid": hj.Hourglass(1, (3, 2), beta=2, temperature=20.0, neighbors=4, representative="medoid"),
    "hourglass-logits": hj.Hourglass(1, (2, 3), window=3, neighbors=3, reconstruct="logits"),
    "merging": hj.TokenMerging(merged=4),
    "merging-keep": hj.TokenMerging(keep=0.8),
    "merging-decreasing": hj.TokenMerging(merged=4, schedule="decreasing", proportional=False),
    "staged": hj.StagedMerging(0.7),
    "staged-medoid": hj.StagedMerging(0.7, stages=(0, 2), value="medoid"),
    "evit": hj.EViT(0.7, stages=(1,), neighbors=4),
    "evit-reuse": hj.EViT(0.6, stages=(1,), fuse=True, restore="reuse"),
    "dynamic-vit": hj.DynamicViT(0.7, neighbors=4, temperature=20.0),
    "act": hj.ACT(9, hashes=6),
    "pooling": hj.Pooling(1, (3, 2)),
    "downsampling": hj.Downsampling(0.5),
    "swin-hourglass": hj.Hourglass(2, (2, 2), beta=2, window=3, iterations=2, neighbors=3),
    "swin-medoid": hj.Hourglass(1, (2, 2), window=3, temperature=20.0, neighbors=2, representative="medoid"),
}
IMAGES = {
    "saliency": (20, 28),
    "segmenter-masks": (14, 22),
    "segmenter-linear": (19, 27),
    "swag": (24, 16),
    "dpt-depth": (24, 32),
    "dpt-hybrid": (40, 24),
    "depth-anything": (20, 28),
    "dpt-segmentation": (24, 16),
    "encoder": (20, 28),
    "encoder-swin-v1": (25, 17),
    "encoder-swin-v2": (24, 24),
}
"""Their sizes in pixels: of 5 x 7, 4 x 6, 5 x 7, 6 x 4, 6 x 8, 5 x 3, 5 x 7, 6 x 4 and 5 x 7 tokens for ViTs."""
LARGE = {"segmenter-masks", "dpt-depth", "dpt-hybrid", "depth-anything", "dpt-segmentation", "encoder-swin-v2"}
"""Models whose kernels are stored in bfloat16."""
HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def build(name: str) -> nnx.Module:
    """A tiny model with random parameters, of which none is trivially 0 or 1."""
    vit = ViTConfig(patch_size=4, width=16, depth=4, heads=2, mlp_ratio=2.0, position_grid=(4, 4))
    bilinear = replace(vit, position_resize="bilinear")
    upstream = replace(bilinear, depth=3, norm_epsilon=1e-5)
    dpt = {
        "hooks": (0, 1, 2, 3),
        "widths": (8, 12, 16, 20),
        "fusion_width": 8,
        "preprocessing": Preprocessing((24, 32), 4, "minimal", interpolation="cubic", **HALF),
    }
    eights = replace(dpt["preprocessing"], multiple=8)
    windows = {"classes": 3, "preprocessing": Preprocessing(24, 1, "none", **HALF)}
    hybrid = replace(bilinear, patch_size=8, depth=3, stem=ResNetConfig((1, 1), (128, 128), 32))
    swin = SwinConfig(width=8, depths=(1, 4), head_width=4, window=3, patch_size=2, mlp_ratio=2.0)
    config = {
        "saliency": lambda: SaliencyConfig(
            replace(vit, depth=3, layer_scale=True, position_offset=0.1),
            decoder_widths=(8, 4),
            preprocessing=Preprocessing(28, 4),
        ),
        "segmenter-masks": lambda: SegmenterConfig(
            replace(upstream, width=64, mlp_ratio=0.5),
            decoder_depth=1,
            window=SlidingWindow(24, 16),
            **windows,
        ),
        "segmenter-linear": lambda: SegmenterConfig(
            replace(upstream, special_tokens=2), decoder="linear", window=SlidingWindow(20, 20), **windows
        ),
        "swag": lambda: SwagConfig(
            replace(vit, position_resize="bicubic-align-corners"),
            classes=9,
            preprocessing=Preprocessing(24, 4, "crop", interpolation="bicubic"),
        ),
        "dpt-depth": lambda: DPTDepthConfig(bilinear, **dpt),
        "dpt-hybrid": lambda: DPTDepthConfig(
            hybrid,
            **{**dpt, "hooks": (1, 2), "widths": (128, 128, 16, 20), "preprocessing": eights},
            inversion=(0.05, 0.1),
        ),
        "depth-anything": lambda: DPTDepthConfig(
            replace(vit, layer_scale=True, position_offset=0.1),
            **{**dpt, "preprocessing": Preprocessing(20, 4, "shortest", interpolation="cubic")},
            readout="ignore",
            norm_features=True,
            resampling="bilinear-align-corners",
            max_depth=20.0,
        ),
        "dpt-segmentation": lambda: DPTSegmentationConfig(bilinear, **dpt, classes=3),
        "encoder": lambda: EncoderConfig(
            replace(
                vit,
                special_tokens=5,
                layer_scale=True,
                mlp="swiglu",
                predictors=(1, 2, 3),
                position_grid=(5, 7),
                position_resize="bicubic-antialias",
            ),
            Preprocessing((20, 28), 4, "square", interpolation="bicubic"),
        ),
        "encoder-swin-v1": lambda: EncoderConfig(swin, Preprocessing((24, 24), 4, "minimal")),
        "encoder-swin-v2": lambda: EncoderConfig(
            replace(swin, version=2, shrink_windows=True, stage_norms=False), Preprocessing((24, 24), 4, "square")
        ),
    }[name]()
    kinds = {
        SaliencyConfig: Saliency,
        SegmenterConfig: Segmenter,
        SwagConfig: Swag,
        DPTDepthConfig: DPTDepth,
        DPTSegmentationConfig: DPTSegmentation,
        EncoderConfig: Encoder,
    }
    kind = kinds[type(config)]
    model = nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0)))
    random = np.random.default_rng(0)
    for path, parameter in nnx.to_flat_state(nnx.state(model)):
        noise = random.normal(size=parameter.shape)
        kind_of = str(path[-1])
        if kind_of == "kernel":
            noise *= 1.5 * np.prod(parameter.shape[:-1]) ** -0.5
            if "regression" in path:  # so that depths are positive, and not all the largest
                noise = {"depth-anything": 0.01, "dpt-hybrid": 0.1}.get(name, 1) * abs(noise)
        elif kind_of == "var":
            noise = 0.5 + noise**2
        elif parameter.ndim == 1:
            noise = 0.3 * noise + ("bias" not in kind_of and kind_of != "mean")
        dtype = jax.numpy.bfloat16 if name in LARGE and kind_of == "kernel" else np.float32
        parameter.set_value(jax.numpy.asarray(noise, dtype))
    # Photographs show more than one label.
    if name == "segmenter-masks":
        model.decoder.mask_norm.bias[...] += jax.numpy.asarray([0.78, -1.08, -0.1], jax.numpy.bfloat16)
    if name == "dpt-segmentation":
        model.classifier.bias[...] += jax.numpy.asarray([60, 0, -60], jax.numpy.bfloat16)
    return model


def random_images(name: str, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, 0]).integers(0, 256, (2, *IMAGES[name], 3), dtype=np.uint8)


def random_photo(seed: int) -> np.ndarray:
    """Noise of 8 x 8 pixels, in the middle between which it is interpolated."""
    from PIL import Image

    small = np.random.default_rng([seed, 1]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize(PHOTO[::-1], Image.Resampling.BICUBIC))


def roughness(name: str, plan: str, images: np.ndarray) -> str:
    """What is wrong with an output, in words; empty if it follows the images smoothly."""
    model = cases.load(name, plan)
    images = cases.normalised(images)
    output = np.asarray(cases.run(model, images))
    unit = np.abs(output).max()
    if not np.isfinite(output).all() or output.std() < 0.02 * unit:
        return f"spread {output.std() / unit:.1e}"
    if plan != cases.ORIGINAL:
        change = np.abs(output - np.asarray(cases.run(cases.load(name), images))).max() / unit
        if change < 0.02:
            return f"the plan changes {change:.1e}"
    random = np.random.default_rng(0)
    for _ in range(DRAWS):
        noise = NOISE * images.std() * random.normal(size=images.shape).astype(np.float32)
        near, far = ((np.asarray(cases.run(model, images + noise * share)) - output) / unit for share in (0.1, 1.0))
        move, bend = np.abs(far).max(), np.abs(far - 10 * near).max()
        if move > SMOOTH * NOISE:
            return f"moves by {move:.1e}"
        if bend > 0.5 * move + 5e-5:
            return f"jumps by {bend:.1e}, moves by {move:.1e}"
    return ""


def unsteadiness(name: str, plan: str, photo: np.ndarray) -> str:
    """What is wrong with a prediction, in words; empty if it follows the parameters smoothly."""
    model = cases.load(name, plan)
    result = cases.predict(model, photo)
    unit = np.abs(result).max()
    if result.dtype.kind != "f" and np.bincount(result.ravel()).max() > 0.9 * result.size:
        return "nearly all pixels have one label"
    noise = NOISE / (10 if result.dtype.kind == "f" else 100)
    random = np.random.default_rng(0)
    for _ in range(3):
        state = jax.tree.map(
            lambda each: each * (1 + noise * random.normal(size=each.shape)).astype(np.float32), nnx.state(model)
        )
        other = nnx.clone(model)
        nnx.update(other, state)
        moved = cases.predict(other, photo)
        if result.dtype.kind != "f":
            if (moved != result).any():
                return f"{(moved != result).sum()} labels change"
        elif np.abs(moved - result).max() > STEADY * noise * unit:
            return f"moves by {np.abs(moved - result).max() / unit:.1e}"
    return ""


def make_model(name: str, plans: Iterable[str]) -> None:
    """Regenerates the outputs, predictions and multiply-accumulates of a model, or those under some plans.

    Raises:
        ValueError: no images, or not those that are stored, give outputs that are smooth.
    """
    path = cases.model_file(name)
    path.parent.mkdir(exist_ok=True)
    if not path.is_file():
        hj.save(build(name), path)
    known = all_figures().get(name, {"images_seed": 0, "photo_seed": 0, "macs": {}})
    every = (cases.ORIGINAL, *cases.PLANS[name])
    chosen = tuple(plans) or every
    tries = 1 if plans else SEEDS
    predicted = [plan for plan in (cases.ORIGINAL, cases.PLANS[name][0]) if plan in chosen]

    for images_seed in range(known["images_seed"], known["images_seed"] + tries):
        images = random_images(name, images_seed)
        found = _first(lambda plan, images=images: roughness(name, plan, images), chosen)
        if not found:
            break
        print(f"{name}: images of seed {images_seed}: {found}", flush=True)
    else:
        raise ValueError(f"{name}: no images are smooth; name the model alone, so that others are chosen")
    for photo_seed in range(known["photo_seed"], known["photo_seed"] + tries):
        photo = random_photo(photo_seed)
        found = _first(lambda plan, photo=photo: unsteadiness(name, plan, photo), predicted)
        if not found:
            break
        print(f"{name}: photograph of seed {photo_seed}: {found}", flush=True)
    else:
        raise ValueError(f"{name}: no photograph is smooth; name the model alone, so that another is chosen")

    target = cases.output_file(name)
    target.parent.mkdir(exist_ok=True)
    arrays = dict(np.load(target)) if plans else {}
    arrays |= {"images": images, "photo": photo}
    for plan in chosen:
        arrays[f"output/{plan}"] = np.asarray(cases.run(cases.load(name, plan), cases.normalised(images)))
        if plan in predicted:
            arrays[f"prediction/{plan}"] = cases.predict(cases.load(name, plan), photo)
        if plan != cases.ORIGINAL:
            known["macs"] |= cases.macs(name, plan)
    np.savez_compressed(target, **arrays)
    figures = all_figures() | {name: known | {"images_seed": images_seed, "photo_seed": photo_seed}}
    write_json(cases.FIGURES, {each: figures[each] for each in cases.PLANS if each in figures})


def all_figures() -> dict[str, dict]:
    return cases.stored(cases.FIGURES) if cases.FIGURES.is_file() else {}


def _first(check, plans: Iterable[str]) -> str:
    """The first complaint about a plan, or nothing."""
    return next((f"{plan} {complaint}" for plan in plans if (complaint := check(plan))), "")


def make_converted(families: Iterable[str]) -> None:
    """Regenerates checksums of conversions."""
    kept = cases.stored(cases.CONVERTED) if cases.CONVERTED.is_file() else {}
    kept |= {family: cases.convert(family) for family in tuple(families) or cases.CHECKPOINTS}
    write_json(cases.CONVERTED, {family: kept[family] for family in cases.CHECKPOINTS if family in kept})


def write_json(path, values: object) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n")


def main(names: list[str]) -> None:
    """Regenerates what is named, or all.

    Raises:
        ValueError: a name is unknown, or no smooth outputs are found.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    wanted: dict[str, list[str]] = {}
    for name in names or (*cases.PLANS, "converted"):
        group, _, member = name.partition("/")
        known = cases.CHECKPOINTS if group == "converted" else (cases.ORIGINAL, *cases.PLANS.get(group, ()))
        if group not in (*cases.PLANS, "converted") or (member and member not in known):
            raise ValueError(f"expected MODEL, MODEL/PLAN or converted/FAMILY, got {name}")
        wanted.setdefault(group, []).extend([member] if member else [])
    for name, plan in PLANS.items():
        if not cases.plan_file(name).is_file():
            hj.save_plan(plan, cases.plan_file(name))
    for group, members in wanted.items():
        make_converted(members) if group == "converted" else make_model(group, members)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Regenerates stored outputs.")
    parser.add_argument("names", nargs="*", help="MODEL, MODEL/PLAN or converted/FAMILY; all by default")
    try:
        main(parser.parse_args().names)
    except ValueError as problem:
        sys.exit(f"error: {problem}")
