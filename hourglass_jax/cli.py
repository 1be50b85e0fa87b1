"""The command line: hourglass models | predict | compare | flops | bench | ablate | convert | eval | demo."""

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Column, Table
from tqdm import tqdm

DEFAULT_MODEL = "dinov2-vits14-saliency"


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Which model, and how large its input is."""

    model: str = DEFAULT_MODEL
    """A converted file (.safetensors) or a name that `hourglass models` lists."""
    size: int | None = None
    """Side of the model's input in pixels: the longer one, or the shorter one of a model that sees windows of an
    image. By default the model's own."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print machine-readable results."""


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """The plan: a preset, its fields, or both (fields win)."""

    preset: Annotated[str | None, tyro.conf.arg(aliases=["--plan"])] = None
    """A plan by name; `hourglass models` lists them."""
    alpha: int | None = None
    """Blocks before the clustering."""
    beta: int | None = None
    """Blocks on the clusters; by default all that remain."""
    clusters: Annotated[tuple[int, int] | None, tyro.conf.arg(metavar="H W")] = None
    """Rows and columns of the cluster grid."""
    window: int | None = None
    """Side of the square of clusters that a token may join; odd."""
    iterations: int | None = None
    """k-means iterations (kappa)."""
    temperature: float | Literal["auto"] | None = None
    """tau, in units of squared feature distance, or auto."""
    neighbors: int | None = None
    """Clusters that a token is reconstructed from (k)."""
    representative: Literal["mean", "medoid"] | None = None
    """What stands for a cluster: its mean, or the real token nearest to it."""
    reconstruct: Literal["tokens", "logits"] | None = None
    """Where the full grid comes back: after the blocks, or in the head."""


Photos = tyro.conf.Positional[tuple[Path, ...]]
Output = Annotated[Path, tyro.conf.arg(name="output", aliases=["-o"])]
Models = tyro.conf.OmitArgPrefixes[ModelOptions]
Plans = tyro.conf.OmitArgPrefixes[PlanOptions]


def models(json: tyro.conf.FlagCreatePairsOff[bool] = False) -> None:
    """Lists the models that can be loaded by name, and the presets.

    Example: hourglass models

    Args:
        json: Print machine-readable results.
    """
    from hourglass_jax.models.registry import PRETRAINED
    from hourglass_jax.presets import PRESETS

    if json:
        _print_json(
            {
                "models": PRETRAINED,
                "presets": {name: dataclasses.asdict(each) for name, each in PRESETS.items()},
            }
        )
        return
    table = Table("model", "what it is", title="Models")
    for name, what in PRETRAINED.items():
        table.add_row(name, what)
    _console().print(table)
    table = Table(
        Column("preset", no_wrap=True),
        "alpha",
        "clusters",
        "window",
        "kappa",
        "tau",
        "k",
        "image",
        "source",
        title="Presets",
    )
    for name, each in PRESETS.items():
        plan = each.plan
        table.add_row(
            name,
            str(plan.alpha),
            _by(plan.clusters),
            str(plan.window),
            str(plan.iterations),
            str(plan.temperature),
            str(plan.neighbors),
            _by(each.size),
            each.source,
        )
    _console().print(table)


def predict(
    photos: Photos,
    output: Output = Path("out"),
    model: Models = ModelOptions(),
    plan: Plans = PlanOptions(),
    whole: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> None:
    """Predicts photographs and writes what the model says of each as PNG; without a plan unless one is given.

    Example: hourglass predict photo.jpg -o out/ --preset dinov2-vits14-saliency

    Args:
        photos: Image files.
        output: Folder to write to.
        whole: Run on whole images, even if the model is one that sees windows.
    """
    from hourglass_jax.inference.images import read_image, write_image
    from hourglass_jax.inference.predictor import Predictor

    _check_paths(photos, output)
    loaded, preprocessing, chosen = _load(model, plan, default_preset=False)
    predictor = Predictor(_expedite(loaded, chosen), preprocessing=preprocessing, whole=whole)
    written = []
    for photo in tqdm(photos, desc="photographs", disable=_quiet(photos)):
        image = read_image(photo)
        with _naming(photo):
            result = predictor(image)
        files = {}
        for kind, picture in loaded.pictures(image, result).items():
            files[kind] = str(output / f"{photo.stem}_{kind}.png")
            write_image(files[kind], picture)
        written.append({"photo": str(photo), "files": files})
    if model.json:
        _print_json({"images": written})
    else:
        for row in written:
            print(f"{row['photo']}: {', '.join(row['files'].values())}")


def compare(
    photos: Photos,
    output: Output = Path("out"),
    model: Models = ModelOptions(),
    plan: Plans = PlanOptions(),
    repeats: int = 5,
) -> None:
    """Runs the model with and without the hourglass: a table, and a picture for each photograph.

    Example: hourglass compare photo.jpg --alpha 4 --clusters 26 26

    Args:
        photos: Image files.
        output: Folder to write the pictures to.
        repeats: Timed runs of each; the median counts.
    """
    from hourglass_jax.inference.images import read_image

    _check_paths(photos, output)
    _compare({photo.stem: read_image(photo) for photo in photos}, output, model, plan, repeats)


def demo(
    output: Output = Path("demo"),
    model: Models = ModelOptions(),
    plan: Plans = PlanOptions(),
    repeats: int = 5,
) -> None:
    """`hourglass compare` on photographs that come with scikit-image and scikit-learn, cropped to squares.

    Example: hourglass demo -o demo/

    Args:
        output: Folder to write the pictures to.
        repeats: Timed runs of each; the median counts.
    """
    from hourglass_jax.inference.images import center_crop_square, read_image
    from hourglass_jax.inference.photographs import photographs

    _check_folder(output)
    squares = {name: center_crop_square(read_image(path)) for name, path in photographs().items()}
    _compare(squares, output, model, plan, repeats)


def flops(model: Models = ModelOptions(), plan: Plans = PlanOptions()) -> None:
    """Counts the multiply-accumulates that are really executed, by part, for a square image.

    Example: hourglass flops --alpha 4 --clusters 26 26 --size 518
    """
    from hourglass_jax.analysis.flops import count_macs

    loaded, preprocessing, chosen = _load(model, plan)
    size = (preprocessing.size, preprocessing.size)
    original, expedited = count_macs(loaded, size), count_macs(_expedite(loaded, chosen), size)
    if model.json:
        _print_json(
            {"size": size, "plan": dataclasses.asdict(chosen), "original": original, "expedited": expedited}
        )
        return
    table = Table("part", "original", "expedited", "ratio", title=f"GFLOPs at {_by(size)}, {_describe(chosen)}")
    for part, macs in original.items():
        ratio = f"{expedited[part] / macs:.3f}" if macs else ""
        table.add_row(part, f"{macs / 1e9:.2f}", f"{expedited[part] / 1e9:.2f}", ratio)
    _console().print(table)
    _console().print("GFLOPs are 10^9 multiply-accumulates, as in the paper.")


def bench(
    model: Models = ModelOptions(),
    plan: Plans = PlanOptions(),
    batch: int = 1,
    repeats: int = 10,
) -> None:
    """Measures the latency with and without the hourglass on a square image of noise.

    Example: hourglass bench --alpha 4 --clusters 26 26 --size 518

    Args:
        batch: Images at once.
        repeats: Timed runs of each, in turn; the median counts.
    """
    import jax
    import numpy as np

    from hourglass_jax.analysis.flops import count_macs
    from hourglass_jax.analysis.latency import measure

    if batch < 1 or repeats < 1:
        raise ValueError(f"batch and repeats must be at least 1, got {batch} and {repeats}")
    loaded, preprocessing, chosen = _load(model, plan)
    fast = _expedite(loaded, chosen)
    size = (preprocessing.size, preprocessing.size)
    macs = [count_macs(each, size)["total"] for each in (loaded, fast)]
    run = jax.jit(lambda model, images: model(images))
    images = jax.numpy.asarray(np.random.default_rng(0).standard_normal((batch, *size, 3)), "float32")
    with tqdm(total=2 * (repeats + 1), desc="runs", disable=_quiet()) as bar:
        times = measure(
            [lambda: run(loaded, images), lambda: run(fast, images)], repeats=repeats, on_call=bar.update
        )
    rows = {
        name: {
            "gflops": cost / 1e9,
            "first_s": each.first,
            "latency_ms": 1e3 * each.median,
            "fastest_ms": 1e3 * min(each.calls),
            "images_per_s": batch / each.median,
        }
        for name, each, cost in zip(("original", "expedited"), times, macs, strict=True)
    }
    ratios = {"speedup": times[0].median / times[1].median, "flops_ratio": macs[0] / macs[1]}
    if model.json:
        _print_json({"size": size, "batch": batch, "plan": dataclasses.asdict(chosen), **rows, **ratios})
        return
    table = Table("", *rows, title=f"{_by(size)}, batch {batch}, {_describe(chosen)}, {jax.devices()[0]}")
    for figure in rows["original"]:
        table.add_row(figure, *(f"{row[figure]:.2f}" for row in rows.values()))
    _console().print(table)
    _console().print(f"speed-up {ratios['speedup']:.2f}, of the GFLOPs {ratios['flops_ratio']:.2f}")


def _compare(photos, output: Path, model: ModelOptions, plan: PlanOptions, repeats: int) -> None:
    import numpy as np

    from hourglass_jax.analysis.comparison import Figures
    from hourglass_jax.analysis.comparison import compare as run
    from hourglass_jax.inference.images import write_image
    from hourglass_jax.inference.pictures import comparison_picture, stretched

    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    loaded, preprocessing, chosen = _load(model, plan)
    preprocessing = dataclasses.replace(
        preprocessing.at(preprocessing.size), multiple=loaded.config.backbone.patch_size
    )
    prepared = []
    for name, photo in photos.items():
        with _naming(name):
            prepared.append(preprocessing(photo))
            chosen.check(loaded.backbone.depth, loaded.backbone.token_grid(*prepared[-1].shape[:2]))
    results, first = [], None
    with tqdm(total=len(photos) * 2 * (repeats + 1), desc="runs", disable=_quiet()) as bar:
        compared = run(loaded, chosen, prepared, repeats=repeats, on_call=bar.update)
        for (name, photo), result in zip(photos.items(), compared, strict=True):
            path = output / f"{name}_comparison.png"
            overlays = [
                loaded.pictures(photo, stretched(each, photo.shape[:2]))["overlay"]
                for each in (result.result, result.result_expedited)
            ]
            picture = comparison_picture(
                photo, *overlays, result.difference, result.assignment, result.figures.speedup
            )
            write_image(path, picture)
            results.append({"name": name, "picture": str(path), **dataclasses.asdict(result.figures)})
            first = first or result.first_seconds
    fields = [field.name for field in dataclasses.fields(Figures)]
    mean = {
        field: None if results[0][field] is None else float(np.mean([row[field] for row in results]))
        for field in fields
    }
    if model.json:
        _print_json({"plan": dataclasses.asdict(chosen), "images": results, "mean": mean})
        return
    table = Table(
        *("photograph", "tokens", "clusters", "GFLOPs", "expedited", "ms", "expedited"),
        *("speed-up", "cosine", "MAE", "agreement"),
        title=_describe(chosen),
    )
    digits = dict(zip(fields, (0, 0, 1, 1, 0, 0, 2, 4, 4, 4), strict=True))
    for row in [*results, {"name": "mean", **mean}]:
        shown = ("" if row[field] is None else f"{row[field]:.{digits[field]}f}" for field in fields)
        table.add_row(row["name"], *shown)
    _console().print(table)
    _console().print(
        f"First calls, with compilation: {first[0]:.1f} s and {first[1]:.1f} s. "
        f"GFLOPs are 10^9 multiply-accumulates, as in the paper. Pictures: {output}/"
    )


def _load(model: ModelOptions, plan: PlanOptions, *, default_preset: bool = True):
    """The unexpedited model, its preprocessing at the wanted size, and the plan (None only without a default)."""
    from hourglass_jax.models.registry import load

    _keep_compilations()
    loaded = load(model.model)
    chosen = _plan(plan, model.model if default_preset else None)
    preprocessing = loaded.config.preprocessing
    if model.size is not None:
        preprocessing = preprocessing.at(model.size)
    return loaded, preprocessing, chosen


def _keep_compilations() -> None:
    """Keeps compiled functions for later processes, unless the user's environment says where JAX keeps them."""
    import jax
    import platformdirs

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = Path(platformdirs.user_cache_dir("hourglass_jax")) / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _plan(options: PlanOptions, default_preset: str | None):
    from hourglass_jax.hourglass import Hourglass
    from hourglass_jax.presets import PRESETS, preset

    given = {name: value for name, value in dataclasses.asdict(options).items() if value is not None}
    name = given.pop("preset", None)
    if name is None and "alpha" not in given and default_preset in PRESETS:
        name = default_preset
    if name is not None:
        return dataclasses.replace(preset(name).plan, **given)
    if not given and default_preset is None:
        return None
    missing = [f"--{field}" for field in ("alpha", "clusters") if field not in given]
    if missing:
        raise ValueError(f"a plan needs --preset, or --alpha and --clusters: {' and '.join(missing)} missing")
    return Hourglass(**given)


def _expedite(model, plan):
    from hourglass_jax.hourglass import expedite

    return expedite(model, plan)


def _check_paths(photos: Sequence[Path], output: Path) -> None:
    """Finds what would go wrong when the results are written, before the long work."""
    if not photos:
        raise ValueError("expected at least one image file, got none")
    named: dict[str, Path] = {}
    for photo in photos:
        other = named.setdefault(photo.stem, photo)
        if other is not photo:
            raise ValueError(f"results are named after the photographs: {other} and {photo} would share theirs")
    _check_folder(output)


def _check_folder(output: Path) -> None:
    existing = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"output must be a folder, but {existing} is a file")


@contextlib.contextmanager
def _naming(photo: object) -> Iterator[None]:
    """Says which photograph an error is about."""
    try:
        yield
    except ValueError as problem:
        raise ValueError(f"{photo}: {problem}") from problem


def _describe(plan) -> str:
    end = "the last block" if plan.beta is None else f"block {plan.alpha + plan.beta}"
    return f"{_by(plan.clusters)} clusters after block {plan.alpha}, to {end}"


def _by(pair: Sequence[int]) -> str:
    return " x ".join(map(str, pair))


def _quiet(items: Sequence[object] = (0, 0)) -> bool:
    return len(items) < 2 or not sys.stderr.isatty()


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 120, markup=False, emoji=False)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point of `hourglass`: errors are one line on stderr and exit status 2."""
    from checkpoints_convert.command import convert
    from hourglass_jax.analysis.command import ablate
    from hourglass_jax.evaluation.command import eval

    functions = (models, predict, compare, flops, bench, ablate, convert, eval, demo)
    commands = {each.__name__: each for each in functions}
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="hourglass",
            description="Trained vision transformers, faster with the same weights.",
            args=arguments,
            config=(tyro.conf.DisallowNone,),
        )
    except (ValueError, OSError) as problem:
        print("error:", " ".join(str(problem).split()), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
