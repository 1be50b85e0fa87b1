"""The command line, `hourglass`: every command by its name."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro
from rich.table import Column, Table
from tqdm import tqdm

import hourglass_jax as hj
from hourglass_jax.options import (
    Methods,
    ModelOptions,
    Models,
    Output,
    Photos,
    PlanOptions,
    Plans,
    by,
    check_folder,
    check_paths,
    console,
    describe,
    load_model,
    naming,
    print_json,
    quiet,
)
from hourglass_jax.plans import plan_fields


def models(json: tyro.conf.FlagCreatePairsOff[bool] = False) -> None:
    """Lists the models that can be loaded by name, and the presets.

    Example: hourglass models

    Args:
        json: Print machine-readable results.
    """
    from hourglass_jax.models.registry import PRETRAINED
    from hourglass_jax.presets import PRESETS

    if json:
        print_json(
            {
                "models": PRETRAINED,
                "presets": {name: dataclasses.asdict(each) for name, each in PRESETS.items()},
            }
        )
        return
    table = Table("model", "what it is", title="Models")
    for name, what in PRETRAINED.items():
        table.add_row(name, what)
    console().print(table)
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
            by(plan.clusters),
            str(plan.window),
            str(plan.iterations),
            str(plan.temperature),
            str(plan.neighbors),
            by(each.size),
            each.source,
        )
    console().print(table)


def predict(
    photos: Photos,
    output: Output = Path("out"),
    model: Models = ModelOptions(),
    plan: Plans = PlanOptions(),
    whole: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> None:
    """Predicts photographs and writes what the model says of each; without a plan unless one is given.

    Labels, saliency and features are PNG files. Depth is a PNG in 16 bits, a .npy file in the unit that its name
    tells (metres, or relative inverse depth), and a PNG in colours with a bar that tells them.

    What a classifier says is printed, too: the five most probable classes.

    Example: hourglass predict photo.jpg -o out/ --preset dinov2-vits14-saliency

    Args:
        photos: Image files.
        output: Folder to write to.
        whole: Run on whole images, even if the model is one that sees windows.
    """
    from hourglass_jax.inference.images import read_image, write_array, write_image
    from hourglass_jax.inference.predictor import Predictor

    check_paths(photos, output)
    loaded, preprocessing, chosen = load_model(model, plan, default_preset=False)
    predictor = Predictor(hj.expedite(loaded, chosen), preprocessing=preprocessing, whole=whole)
    written = []
    for photo in tqdm(photos, desc="photographs", disable=quiet(photos)):
        image = read_image(photo)
        with naming(photo):
            result = predictor(image)
        files = {}
        for kind, picture in loaded.pictures(image, result).items():
            files[kind] = str(output / f"{photo.stem}_{kind}.png")
            write_image(files[kind], picture)
        for kind, values in loaded.arrays(result).items() if hasattr(loaded, "arrays") else ():
            files[f"{kind}_npy"] = str(output / f"{photo.stem}_{kind}.npy")
            write_array(files[f"{kind}_npy"], values)
        written.append({"photo": str(photo), "files": files})
        if hasattr(loaded, "top"):
            written[-1]["top"] = [each._asdict() for each in loaded.top(result)]
    if model.json:
        units = {"units": loaded.units} if hasattr(loaded, "units") else {}
        print_json({"images": written, **units})
    else:
        for row in written:
            print(f"{row['photo']}: {', '.join(row['files'].values())}")
            for guess in row.get("top", ()):
                print(f"  {guess['probability']:6.1%}  {guess['name']}")
        if hasattr(loaded, "units"):
            print(f"_depth.png: {loaded.units}")


def compare(
    photos: Photos,
    output: Output = Path("out"),
    model: Models = ModelOptions(),
    plan: Plans = PlanOptions(),
    methods: Methods = (),
    budget: tuple[float, ...] = (),
    repeats: int = 5,
) -> None:
    """Runs the model with and without a plan: a table, and a picture for each photograph.

    With --method it is several plans side by side: each method's own at a common cost, and the plan where one is
    given. Then the largest square in the middle of each photograph counts, by default of those of `hourglass demo`,
    and a plot shows fidelity over cost.

    Example: hourglass compare photo.jpg --alpha 4 --clusters 26 26

    Example: hourglass compare -o out/ --method TokenMerging --method StagedMerging --budget 0.5 0.6 0.75

    Args:
        photos: Image files.
        output: Folder to write the pictures to.
        methods: A reduction to compare; may be given several times.
        budget: Shares of the encoder's multiply-accumulates, for the methods; by default what the plan costs.
        repeats: Timed runs of each; the median counts.
    """
    from hourglass_jax.analysis.methods_command import compare_methods
    from hourglass_jax.inference.images import read_image
    from hourglass_jax.inference.photographs import photographs

    if budget and not methods:
        raise ValueError("--budget is for methods: expected --method, got none")
    if photos or not methods:
        check_paths(photos, output)
    if methods:
        check_folder(output)
        paths = {photo.stem: photo for photo in photos} or photographs()
        compare_methods(paths, output, model, plan, methods, budget, repeats)
        return
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

    check_folder(output)
    squares = {name: center_crop_square(read_image(path)) for name, path in photographs().items()}
    _compare(squares, output, model, plan, repeats)


def flops(model: Models = ModelOptions(), plan: Plans = PlanOptions()) -> None:
    """Counts the multiply-accumulates that are really executed, by part, for an image of the model's input size.

    Example: hourglass flops --alpha 4 --clusters 26 26 --size 518
    """
    from hourglass_jax.analysis.flops import count_macs

    loaded, preprocessing, chosen = load_model(model, plan)
    size = preprocessing.shape
    original, expedited = count_macs(loaded, size), count_macs(hj.expedite(loaded, chosen), size)
    if model.json:
        print_json({"size": size, "plan": plan_fields(chosen), "original": original, "expedited": expedited})
        return
    table = Table("part", "original", "expedited", "ratio", title=f"GFLOPs at {by(size)}, {describe(chosen)}")
    for part, macs in original.items():
        ratio = f"{expedited[part] / macs:.3f}" if macs else ""
        table.add_row(part, f"{macs / 1e9:.2f}", f"{expedited[part] / 1e9:.2f}", ratio)
    console().print(table)
    console().print("GFLOPs are 10^9 multiply-accumulates, as in the paper.")


def bench(
    model: Models = ModelOptions(),
    plan: Plans = PlanOptions(),
    batch: int = 1,
    repeats: int = 10,
) -> None:
    """Measures the latency with and without the hourglass on noise of the model's input size.

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
    loaded, preprocessing, chosen = load_model(model, plan)
    fast = hj.expedite(loaded, chosen)
    size = preprocessing.shape
    macs = [count_macs(each, size)["total"] for each in (loaded, fast)]
    run = jax.jit(lambda model, images: model(images))
    images = jax.numpy.asarray(np.random.default_rng(0).standard_normal((batch, *size, 3)), "float32")
    with tqdm(total=2 * (repeats + 1), desc="runs", disable=quiet()) as bar:
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
        print_json({"size": size, "batch": batch, "plan": plan_fields(chosen), **rows, **ratios})
        return
    table = Table("", *rows, title=f"{by(size)}, batch {batch}, {describe(chosen)}, {jax.devices()[0]}")
    for figure in rows["original"]:
        table.add_row(figure, *(f"{row[figure]:.2f}" for row in rows.values()))
    console().print(table)
    console().print(f"speed-up {ratios['speedup']:.2f}, of the GFLOPs {ratios['flops_ratio']:.2f}")


def _compare(photos, output: Path, model: ModelOptions, plan: PlanOptions, repeats: int) -> None:
    import numpy as np

    from hourglass_jax.analysis.comparison import Figures
    from hourglass_jax.analysis.comparison import compare as run
    from hourglass_jax.inference.images import write_image
    from hourglass_jax.inference.pictures import comparison_picture, stretched

    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    loaded, preprocessing, chosen = load_model(model, plan)
    preprocessing = preprocessing.whole_patches(loaded.config.backbone.patch_size)
    prepared = []
    photos = {name: preprocessing.seen(photo) for name, photo in photos.items()}
    for name, photo in photos.items():
        with naming(name):
            prepared.append(preprocessing(photo))
            loaded.backbone.check_plan(chosen, prepared[-1].shape[:2])
    results, first = [], None
    with tqdm(total=len(photos) * 2 * (repeats + 1), desc="runs", disable=quiet()) as bar:
        compared = run(loaded, [chosen], prepared, repeats=repeats, on_call=bar.update)
        for (name, photo), [result] in zip(photos.items(), compared, strict=True):
            path = output / f"{name}_comparison.png"
            overlays = [
                [*loaded.pictures(photo, stretched(each, photo.shape[:2])).values()][-1]
                for each in (result.result, result.result_expedited)
            ]
            picture = comparison_picture(photo, *overlays, result.difference, result.groups, result.figures.speedup)
            write_image(path, picture)
            results.append({"name": name, "picture": str(path), **dataclasses.asdict(result.figures)})
            first = first or result.first_seconds
    fields = [field.name for field in dataclasses.fields(Figures)]
    mean = {
        field: None if results[0][field] is None else float(np.mean([row[field] for row in results]))
        for field in fields
    }
    if model.json:
        print_json({"plan": plan_fields(chosen), "images": results, "mean": mean})
        return
    table = Table(
        *("photograph", "tokens", "clusters", "GFLOPs", "expedited", "ms", "expedited"),
        *("speed-up", "cosine", "MAE", "agreement"),
        title=describe(chosen),
    )
    digits = dict(zip(fields, (0, 0, 1, 1, 0, 0, 2, 4, 4, 4), strict=True))
    for row in [*results, {"name": "mean", **mean}]:
        shown = ("" if row[field] is None else f"{row[field]:.{digits[field]}f}" for field in fields)
        table.add_row(row["name"], *shown)
    console().print(table)
    console().print(
        f"First calls, with compilation: {first[0]:.1f} s and {first[1]:.1f} s. "
        f"GFLOPs are 10^9 multiply-accumulates, as in the paper. Pictures: {output}/"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point of `hourglass`: errors are one line on stderr and exit status 2."""
    from checkpoints_convert.command import convert
    from hourglass_jax.analysis.command import ablate
    from hourglass_jax.analysis.tune_command import tune
    from hourglass_jax.analysis.visualize_command import visualize
    from hourglass_jax.evaluation.command import eval
    from hourglass_jax.inference.command import features

    functions = (
        *(models, predict, compare, features, flops, bench, tune),
        *(visualize, ablate, convert, eval, demo),
    )
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
