"""The command line, in this process: what it writes and prints, and one line for every wrong input."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from PIL import Image

import hourglass_jax as hj
from hourglass_jax.backbones.swin import SwinConfig
from hourglass_jax.backbones.vit import ViTConfig
from hourglass_jax.cli import main
from hourglass_jax.hub import PRETRAINED
from hourglass_jax.imaging.images import Preprocessing
from hourglass_jax.imaging.labels import labels_of
from hourglass_jax.imaging.photographs import photographs
from hourglass_jax.imaging.windows import SlidingWindow
from hourglass_jax.models.encoder import Encoder, EncoderConfig
from hourglass_jax.models.segmenter import Segmenter, SegmenterConfig
from hourglass_jax.models.swag import Swag, SwagConfig
from hourglass_jax.plans.files import plan_fields, plan_of
from hourglass_jax.plans.presets import PRESETS

pytestmark = pytest.mark.usefixtures("quick_compilation")

COMMANDS = [
    "models",
    "predict",
    "compare",
    "features",
    "flops",
    "bench",
    "tune",
    "visualize",
    "ablate",
    "convert",
    "eval",
    "export",
    "demo",
]
PLAN = ["--alpha", "1", "--clusters", "3", "3"]
FIGURES = "tokens clusters gflops gflops_expedited latency_ms latency_ms_expedited speedup cosine mae agreement"

Run = Callable[..., str]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def run(tiny_file: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command with the tiny model; returns what it prints."""

    def run(command: str, *arguments: object) -> str:
        main([command, "--size", "70", "--model", str(tiny_file), *map(str, arguments)])
        return capsys.readouterr().out

    return run


def size(path: str | Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        return image.size


def test_importing_the_package_imports_nothing_large() -> None:
    large = {"jax", "flax", "torch", "onnx", "matplotlib", "skimage", "tyro"}
    code = f"import hourglass_jax, sys; print({large!r} & sys.modules.keys())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main([command, "--help"])
    assert exited.value.code == 0
    assert f"Example: hourglass {command}" in capsys.readouterr().out


def test_models_lists_models_and_presets(capsys: pytest.CaptureFixture[str]) -> None:
    main(["models"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*PRETRAINED, *PRESETS])


def test_models_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    main(["models", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["models"].keys() == PRETRAINED.keys()
    assert printed["presets"].keys() == PRESETS.keys()
    assert printed["presets"]["dpt-hybrid-nyu"]["plan"]["clusters"] == [16, 16]


def test_predict_writes_pictures_of_the_photographs_size(run: Run, photo: Path, out: Path) -> None:
    saliency = {}
    for name, plan in (("original", []), ("expedited", PLAN)):
        printed = run("predict", photo, "-o", out / name, *plan)
        files = [out / name / "photo_overlay.png", out / name / "photo_saliency.png"]
        assert sorted((out / name).iterdir()) == files
        assert [size(file) for file in files] == [(80, 60), (80, 60)]
        assert all(str(path) in printed for path in [photo, *files])
        saliency[name] = files[1].read_bytes()
    assert saliency["original"] != saliency["expedited"]


@pytest.fixture(scope="module")
def segmenter_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cityscapes' classes in windows of 32 pixels."""
    config = SegmenterConfig(
        ViTConfig(patch_size=8, width=64, depth=2, heads=1, position_grid=(4, 4), position_resize="bilinear"),
        classes=19,
        decoder="linear",
        window=SlidingWindow(32, 24),
        dataset="cityscapes",
        preprocessing=Preprocessing(size=32, multiple=1, resize="none"),
    )
    model = Segmenter(config, rngs=nnx.Rngs(0))
    return hj.save(model, tmp_path_factory.mktemp("model") / "segmenter.safetensors")


def test_a_segmenter_writes_labels_colours_and_a_legend(
    segmenter_file: Path, photo: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = {}
    for name, options in (("windows", []), ("whole", ["--whole"]), ("larger", ["--size", "90"])):
        main(["predict", str(photo), "-o", str(out / name), "--model", str(segmenter_file), "--json", *options])
        [row] = json.loads(capsys.readouterr().out)["images"]
        assert list(row["files"]) == ["labels", "colors", "overlay"]
        labels[name] = np.asarray(Image.open(row["files"]["labels"]))
        assert labels[name].shape == (60, 80) and labels[name].max() < 19
        colors = np.asarray(Image.open(row["files"]["colors"]))
        np.testing.assert_array_equal(colors, np.asarray(labels_of("cityscapes", 19).colors)[labels[name]])
        assert size(row["files"]["overlay"])[0] > 80
    assert (labels["windows"] != labels["whole"]).any() and (labels["windows"] != labels["larger"]).any()


def test_a_segmenter_is_compared_whole(
    segmenter_file: Path, photo: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*PLAN, "--reconstruct", "logits", "--repeats", "1", "--json"]
    main(["compare", str(photo), "-o", str(out), "--model", str(segmenter_file), *options])
    [image] = json.loads(capsys.readouterr().out)["images"]
    assert (image["tokens"], image["clusters"]) == (4 * 5, 9)
    assert image["mae"] == pytest.approx(1 - image["agreement"])
    assert min(size(image["picture"])) > 100


def test_an_encoder_writes_its_principal_components(
    photo: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = EncoderConfig(
        ViTConfig(patch_size=8, width=16, depth=2, heads=1, position_grid=(4, 4)),
        Preprocessing(size=32, multiple=8),
    )
    model = str(hj.save(Encoder(config, rngs=nnx.Rngs(0)), tmp_path / "encoder.safetensors"))
    main(["predict", str(photo), "-o", str(out), "--model", model])
    assert sorted(path.name for path in out.iterdir()) == ["photo_features.png", "photo_overlay.png"]
    main(["compare", str(photo), "-o", str(out), "--model", model, *PLAN, "--repeats", "1", "--json"])
    printed = capsys.readouterr().out
    mean = json.loads(printed[printed.index("{") :])["mean"]
    assert mean["agreement"] is None and mean["mae"] > 0
    main(["compare", str(photo), "-o", str(out), "--model", model, *PLAN, "--repeats", "1"])


@pytest.mark.parametrize("plan", [[], PLAN])
def test_features_of_a_vit(
    tiny_file: Path, photo: Path, out: Path, plan: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["features", str(photo), "-o", str(out), "--model", str(tiny_file), *plan, "--json"])
    [image] = json.loads(capsys.readouterr().out)["images"]
    assert (image["arrays"], image["picture"]) == (str(out / "photo.npz"), str(out / "photo_features.png"))
    with np.load(image["arrays"]) as arrays:
        assert {name: list(arrays[name].shape) for name in arrays} == image["maps"] == {"features": [4, 5, 32]}
        assert arrays["features"].dtype == np.float32 and np.ptp(arrays["features"]) > 0
    assert min(size(image["picture"])) > 300


def test_a_swin_is_run_and_compared(
    photo: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = EncoderConfig(
        SwinConfig(width=8, depths=(1, 2), head_width=4, window=3), Preprocessing(size=48, multiple=8)
    )
    model = str(hj.save(Encoder(config, rngs=nnx.Rngs(0)), tmp_path / "swin.safetensors"))
    options, plan = [str(photo), "-o", str(out), "--model", model], ["--alpha", "1", "--clusters", "2", "2"]
    maps = {}
    for name, chosen in (("original", []), ("expedited", plan)):
        main(["features", *options, *chosen, "--json"])
        [image] = json.loads(capsys.readouterr().out)["images"]
        assert image["maps"] == {"res2": [10, 12, 8], "res3": [5, 6, 16]}
        with np.load(image["arrays"]) as arrays:
            maps[name] = dict(arrays)
    np.testing.assert_array_equal(maps["original"]["res2"], maps["expedited"]["res2"])
    assert np.abs(maps["original"]["res3"] - maps["expedited"]["res3"]).max() > 0.01

    main(["compare", *options, *plan, "--repeats", "1", "--json"])
    [image] = json.loads(capsys.readouterr().out)["images"]
    assert (image["tokens"], image["clusters"]) == (5 * 6, 2 * 2 * 4)
    main(["flops", "--model", model, *plan, "--json"])
    counted = json.loads(capsys.readouterr().out)
    assert counted["expedited"]["clustering"] > 0 and counted["expedited"]["blocks"] < counted["original"]["blocks"]
    with pytest.raises(SystemExit):
        main(["ablate", *options, *plan])
    assert "an ablation takes a ViT apart, got a Swin" in capsys.readouterr().err


@pytest.fixture(scope="module")
def classifier_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet's classes, of the square in the middle."""
    config = SwagConfig(
        ViTConfig(patch_size=8, width=64, depth=2, heads=1, position_grid=(4, 4)),
        dataset="imagenet2012",
        preprocessing=Preprocessing(size=32, multiple=8, resize="crop"),
    )
    model = Swag(config, rngs=nnx.Rngs(0))
    return hj.save(model, tmp_path_factory.mktemp("model") / "classifier.safetensors")


def test_a_classifier_prints_five_classes_and_draws_them(
    classifier_file: Path, photo: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", str(photo), "-o", str(out), "--model", str(classifier_file)]
    main([*command, "--json"])
    [row] = json.loads(capsys.readouterr().out)["images"]
    names, probabilities = labels_of("imagenet2012", 1000).names, [each["probability"] for each in row["top"]]
    assert len(row["top"]) == 5
    assert all(each["name"] == names[each["label"]] for each in row["top"])
    assert probabilities == sorted(probabilities, reverse=True) and 1e-3 < sum(probabilities) < 1
    assert list(row["files"]) == ["overlay"]
    assert size(row["files"]["overlay"])[0] == 240
    main(command)
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{photo}: ")
    assert [line.split("%  ")[1] for line in lines] == [each["name"] for each in row["top"]]
    main([*command, *PLAN, "--json"])
    [other] = json.loads(capsys.readouterr().out)["images"]
    assert other["top"] != row["top"]


def test_a_classifier_is_compared_and_counted(
    classifier_file: Path, photo: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(classifier_file), *PLAN]
    main(["compare", str(photo), "-o", str(out), *options, "--repeats", "1", "--json"])
    [image] = json.loads(capsys.readouterr().out)["images"]
    assert (image["tokens"], image["clusters"]) == (16, 9)
    assert 0 < image["mae"] < 1 and image["agreement"] in (0, 1) and 0 < image["cosine"] < 1
    assert min(size(image["picture"])) > 100
    main(["flops", *options, "--json"])
    counted = json.loads(capsys.readouterr().out)["expedited"]
    assert counted["reconstruction"] == 0 < counted["clustering"]


def test_predict_prints_json(run: Run, photo: Path, out: Path) -> None:
    other = photo.with_name("other.png")
    other.write_bytes(photo.read_bytes())
    rows = json.loads(run("predict", photo, other, "-o", out, "--json"))["images"]
    assert [row["photo"] for row in rows] == [str(photo), str(other)]
    assert all(row["files"].keys() == {"saliency", "overlay"} for row in rows)
    assert all(size(path) == (80, 60) for row in rows for path in row["files"].values())


def test_compare_prints_json_and_writes_a_picture(run: Run, photo: Path, out: Path) -> None:
    printed = json.loads(run("compare", photo, "-o", out, *PLAN, "--repeats", 1, "--json"))
    [image] = printed["images"]
    assert image.keys() == {"name", "picture", *FIGURES.split()}
    assert list(printed["mean"]) == FIGURES.split()
    assert printed["plan"]["clusters"] == [3, 3]
    assert (image["tokens"], image["clusters"]) == (20, 9)
    assert 0 < image["gflops_expedited"] < image["gflops"]
    assert image["cosine"] < 1
    assert image["latency_ms"] / image["latency_ms_expedited"] == pytest.approx(image["speedup"])
    assert [Path(image["picture"])] == list(out.iterdir())
    assert min(size(image["picture"])) > 100


def test_compare_without_fewer_tokens_changes_nothing(run: Run, photo: Path, out: Path) -> None:
    """As many clusters as tokens and a window of one: every token is its own cluster."""
    plan = ["--alpha", "1", "--clusters", "4", "5", "--window", "1", "--neighbors", "1"]
    mean = json.loads(run("compare", photo, "-o", out, *plan, "--repeats", 1, "--json"))["mean"]
    assert mean["cosine"] == pytest.approx(1, abs=1e-6)
    assert mean["mae"] == pytest.approx(0, abs=1e-6)
    assert mean["agreement"] == 1


def test_compare_prints_a_table(run: Run, photo: Path, out: Path) -> None:
    bracketed = photo.rename(photo.with_name("[red]cat.png"))
    printed = run("compare", bracketed, "-o", out, *PLAN, "--repeats", 1)
    for word in ["[red]cat", "20 to 9", "GMACs", "faster", "features", "MAE", "pixels", "3 x 3 clusters"]:
        assert word in printed


@pytest.mark.slow
def test_compare_puts_methods_side_by_side(run: Run, photo: Path, out: Path) -> None:
    methods = ["--method", "StagedMerging", "--method", "Pooling", "--method", "DynamicViT"]
    methods += ["--share", 0.7, 0.9, "--repeats", 1]
    printed = json.loads(run("compare", photo, "-o", out, *PLAN, *methods, "--json"))
    rows = printed["methods"]
    named = [(row["method"], row["budget"]) for row in rows]
    assert named[0] == ("the plan given", None)
    assert named[1:] == [(name, budget) for budget in (0.7, 0.9) for name in ("StagedMerging", "Pooling")]
    for row in rows:
        assert row["share"] <= (row["budget"] or 1)
        assert 0 < row["gflops"] < printed["original"]["gflops"]
        assert row["latency_ms"] * row["speedup"] == pytest.approx(printed["original"]["latency_ms"])
        assert row["cosine"] == row["worst"] == row["cosines"]["photo"] < 1
        assert plan_fields(plan_of(row["plan"])) == row["plan"]
    assert len(printed["left_out"]) == 2 and "DynamicViT needs prediction modules" in printed["left_out"][0]
    shares = [row["share"] for row in rows]
    assert shares[1] < shares[3] and shares[2] < shares[4]
    files = {f"photo_methods_{budget}.png" for budget in (0.7, 0.9)}
    assert {path.name for path in out.iterdir()} == {*files, "methods.png"}
    assert {Path(each).name for each in printed["pictures"]} == files
    assert size(out / "methods.png")[0] > 1000


def test_methods_cost_what_the_plan_costs(run: Run, photo: Path, out: Path) -> None:
    table = run("compare", photo, "-o", out, *PLAN, "--method", "StagedMerging", "--repeats", 1)
    assert {path.name for path in out.iterdir()} == {"photo_methods.png", "methods.png"}
    for word in ["original", "the plan given", "StagedMerging", "worst", "MAE", "pixels", "StagedMerging(keep="]:
        assert word in table


def test_flops_counts_by_part(run: Run) -> None:
    printed = json.loads(run("flops", *PLAN, "--json"))
    assert printed["size"] == [70, 70]
    assert printed["original"].keys() == printed["expedited"].keys() >= {"blocks", "clustering", "total"}
    assert printed["expedited"]["blocks"] < printed["original"]["blocks"]
    table = run("flops", *PLAN)
    assert all(part in table for part in [*printed["original"], "3 x 3 clusters", "70 x 70"])


def test_bench_measures(run: Run) -> None:
    printed = json.loads(run("bench", *PLAN, "--repeats", 1, "--batch", 2, "--json"))
    assert printed["batch"] == 2
    for row in (printed["original"], printed["expedited"]):
        assert row["images_per_s"] == pytest.approx(2e3 / row["latency_ms"])
        assert row["first_s"] > row["fastest_ms"] / 1e3 > 0
    assert printed["flops_ratio"] > 1
    table = run("bench", *PLAN, "--repeats", 1)
    assert all(word in table for word in ["latency_ms", "original", "expedited", "speed-up", "batch 1"])


def test_demo_writes_a_picture_for_every_photograph(run: Run, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = dict(list(photographs().items())[:2])
    monkeypatch.setattr("hourglass_jax.imaging.photographs.photographs", lambda: paths)
    printed = run("demo", "-o", out, "--repeats", 1)
    assert {path.name for path in out.iterdir()} == {*(f"{name}.png" for name in paths), "summary.png"}
    for word in [*paths, "times as fast", "merging, 0.6 of the cost", "the paper's hourglass", "a smaller image"]:
        assert word in printed
    assert max(map(len, printed.splitlines())) <= 100


def test_another_models_preset_is_refused(run: Run, capsys) -> None:
    message = (
        "for a backbone of 12 blocks, 768 channels and stride 16, got one of 3 blocks, 32 channels and stride 14"
    )
    fails(lambda: run("flops", "--preset", "dpt-hybrid-nyu", "--alpha", "1"), message, capsys)


@pytest.mark.parametrize(
    ("options", "method", "share"),
    [
        ("--fast", "StagedMerging", 1),
        ("--share 0.7", "StagedMerging", 0.7),
        ("--budget 0.7", "StagedMerging", 0.7),
        ("--share 0.8 --method hourglass --iterations 1", "Hourglass", 0.8),
        ("--faster 1.1", "StagedMerging", 1),
    ],
)
def test_one_number_says_how_much_faster(options: str, method: str, share: float, run: Run) -> None:
    printed = json.loads(run("flops", *options.split(), "--json"))
    assert printed["plan"]["method"] == method
    encoder = [
        sum(each[part] for part in ("embedding", "blocks", "clustering", "reconstruction"))
        for each in (printed["original"], printed["expedited"])
    ]
    assert 0.85 * share < encoder[1] / encoder[0] + 0.4 * (share == 1) and encoder[1] <= share * encoder[0]
    if "--faster" in options:
        assert printed["original"]["total"] / printed["expedited"]["total"] == pytest.approx(1.1, rel=0.05)
    if "--iterations" in options:
        assert printed["plan"]["iterations"] == 1


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out.startswith("hourglass_jax 0.")


def test_every_field_of_the_plan_is_an_option(run: Run) -> None:
    fields = {
        "alpha": 1,
        "clusters": [2, 3],
        "beta": 1,
        "window": 3,
        "iterations": 2,
        "temperature": 0.5,
        "neighbors": 4,
        "representative": "medoid",
        "reconstruct": "tokens",
    }
    options = [
        part
        for name, value in fields.items()
        for part in (f"--{name}", *(value if isinstance(value, list) else [value]))
    ]
    assert json.loads(run("flops", *options, "--json"))["plan"] == {"method": "Hourglass", **fields}


def test_a_plan_may_be_a_file_whose_fields_options_replace(run: Run, photo: Path, out: Path) -> None:
    plan = hj.StagedMerging(0.7, stages=(1, 2))
    path = hj.save_plan(plan, out / "plan.json")
    printed = json.loads(run("flops", "--plan", path, "--json"))
    assert printed["plan"] == plan_fields(plan)
    assert printed["expedited"]["blocks"] < printed["original"]["blocks"]
    hj.save_plan(hj.Hourglass(1, (3, 3), window=3), path)
    assert json.loads(run("flops", "--plan", path, "--window", 5, "--json"))["plan"]["window"] == 5
    assert "3 x 3 clusters" in run("flops", "--plan", path)


@pytest.mark.parametrize(
    ("options", "plan"),
    [
        ("--method StagedMerging --keep 0.87", hj.StagedMerging(0.87)),
        ("--method staged --keep 0.87 --stages 0 1 --value medoid", hj.StagedMerging(0.87, (0, 1), "medoid")),
        ("--method EViT --keep 0.7 --fuse --stages 1", hj.EViT(0.7, (1,), fuse=True)),
        ("--method evit --keep 0.7 --no-fuse --restore reuse", hj.EViT(0.7, restore="reuse")),
        ("--method tome --merged 2 --schedule decreasing", hj.TokenMerging(merged=2, schedule="decreasing")),
        ("--method tome --merged 2 1 --no-proportional", hj.TokenMerging(merged=(2, 1), proportional=False)),
        ("--method act --prototypes 9 --bucket 4", hj.ACT(9, bucket=4.0)),
        ("--method pooling --alpha 1 --clusters 3 2", hj.Pooling(1, (3, 2))),
        ("--method DOWNSAMPLING --keep 0.5", hj.Downsampling(0.5)),
        ("--method hourglass --alpha 0 --clusters 3 2", hj.Hourglass(0, (3, 2))),
    ],
)
def test_a_plan_of_any_method_is_given_by_its_fields(options: str, plan: hj.Plan, run: Run) -> None:
    printed = json.loads(run("flops", *options.split(), "--json"))
    assert plan_of(printed["plan"]) == plan


@pytest.mark.slow
def test_every_command_that_takes_a_plan_takes_a_method(run: Run, photo: Path, out: Path, tmp_path: Path) -> None:
    merging = ["--method", "staged", "--keep", "0.8"]
    saliency = {}
    for name, plan in (("original", []), ("expedited", merging)):
        run("predict", photo, "-o", out / name, *plan)
        saliency[name] = (out / name / "photo_saliency.png").read_bytes()
    assert saliency["original"] != saliency["expedited"]
    run("features", photo, "-o", out, *merging)
    assert json.loads(run("bench", *merging, "--repeats", 1, "--json"))["plan"]["method"] == "StagedMerging"
    plan = ["--plan", hj.save_plan(hj.StagedMerging(0.9), tmp_path / "plan.json")]
    compared = json.loads(run("compare", photo, "-o", out, *plan, "--keep", 0.7, "--repeats", 1, "--json"))
    assert compared["plan"]["keep"] == 0.7


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("flops --method Sandglass", "unknown method 'Sandglass'; known: Hourglass, TokenMerging"),
        ("flops --method staged", "StagedMerging needs --keep: --keep missing"),
        (
            "flops --method staged --keep 0.8 --alpha 1",
            "StagedMerging has no field 'alpha'; it has keep, stages",
        ),
        ("flops --method tome", "expected either keep or merged"),
        ("flops --method staged --keep 2", "keep must be a number above 0 and up to 1, got 2"),
        (
            "flops --keep 0.8",
            "a plan needs --plan, --method, or --alpha and --clusters: --alpha and",
        ),
        ("flops --plan @merging.json --method EViT", "is a plan of StagedMerging, and --method says EViT"),
        ("flops --method dynamicvit --keep 0.7", "DynamicViT needs prediction modules"),
        (
            "visualize @photo.png --method staged --keep 0.7",
            "clusters are drawn of an Hourglass, got a plan",
        ),
        (
            "ablate @photo.png --method staged --keep 0.7",
            "an ablation is of an Hourglass, got a plan",
        ),
        ("compare @photo.png --method Sandglass", "unknown method 'Sandglass'"),
        ("tune --method Sandglass", "unknown method 'Sandglass'"),
    ],
)
def test_a_wrong_method_or_field_is_one_line_and_exit_status_2(
    line: str, message: str, run: Run, folder: Path, out: Path, capsys
) -> None:
    command, *options = line.replace("@", f"{folder}/").split()
    output = [] if command == "flops" else ["-o", out]
    fails(lambda: run(command, *output, *options), message, capsys)
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--size abc", "--size"),
        ("--clusters 3", "--clusters"),
        ("--alpha one", "--alpha"),
        ("--temperature warm", "--temperature"),
        ("--representative median", "--representative"),
        ("--alhpa 1", "--alhpa"),
    ],
)
def test_an_option_that_cannot_be_read_exits_with_2(options: str, message: str, run: Run, capsys) -> None:
    with pytest.raises(SystemExit) as exited:
        run("flops", *PLAN, *options.split())
    assert exited.value.code == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def folder(tmp_path: Path, photo: Path, tiny_file: Path) -> Path:
    """A folder of right and wrong files."""
    contents = {
        "corrupt.png": photo.read_bytes()[:5000],
        "page.jpg": b"<!DOCTYPE html>\n<html>\n<body>Not found</body>\n</html>\n",
        "empty.png": b"",
        "other/photo.png": photo.read_bytes(),
        "truncated.safetensors": tiny_file.read_bytes()[: tiny_file.stat().st_size // 2],
        "empty.safetensors": b"",
        "merging.json": b'{"method": "StagedMerging", "keep": 0.8}',
    }
    (tmp_path / "other").mkdir()
    (tmp_path / "bare").mkdir()
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    Image.new("RGB", (10, 10)).save(tmp_path / "small.png")
    Image.new("RGB", (50, 50)).save(tmp_path / "square.png")
    safetensors.numpy.save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "foreign.safetensors")
    return tmp_path


# An @ stands for the folder of files.
ON_PHOTOS = [
    ("", "expected at least one image file"),
    ("@missing.png", "missing.png does not exist"),
    ("@bare", "bare holds no photograph: expected files that end in .avif, .bmp"),
    ("@bare/*.jpg", "holds no photograph"),
    ("https://example.com/a.jpg", "is an address, and addresses are not read"),
    ("@corrupt.png", "corrupt.png cannot be decoded"),
    ("@page.jpg", "page.jpg is not an image"),
    ("@empty.png", "empty.png is not an image"),
    ("@small.png", ": image must be at least 14 x 14 pixels, got 10 x 10"),
    ("@photo.png --output @page.jpg", "page.jpg is a file"),
    ("@photo.png --output @page.jpg/deeper", "page.jpg is a file"),
    ("@photo.png --strict-plan --clusters 5 5", ": clusters must not outnumber the image's tokens: got 5 x 5"),
]
ON_ANY_MODEL = [
    ("--alpha -1", "alpha must be"),
    ("--window 4", "window must be a positive odd integer, got 4"),
    ("--clusters 0 3", "clusters"),
    ("--temperature 0", "temperature must be a positive number or 'auto', got 0"),
    ("--temperature nan", "temperature must be a positive number or 'auto', got nan"),
    ("--neighbors 0", "neighbors must be"),
    ("--iterations -1", "iterations must be"),
    ("--beta 1 --reconstruct logits", "needs beta=None"),
    ("--alpha 3", "alpha must be less than the backbone's 3 blocks, got 3"),
    ("--beta 3", "alpha + beta must be at most the backbone's 3 blocks, got 1 + 3"),
    ("--clusters 6 6", "6 x 6 clusters for 5 x 5 tokens"),
    ("--preset unheard-of", "unknown preset 'unheard-of'"),
    ("--plan unheard-of.json", "unheard-of.json cannot be read: expected a plan file"),
    ("--plan @page.jpg", "page.jpg is no plan: expected JSON such as"),
    ("--plan @merging.json", "StagedMerging has no field 'alpha'; it has keep"),
    ("--size 71", "size must be a positive multiple of 14, got 71"),
    ("--size 0", "size must be a positive multiple of 14, got 0"),
    ("--size -70", "size must be an integer in 0..1048576"),
    ("--model unheard-of", "unheard-of: no such file, and not one of the known models: dinov2-vits14-saliency"),
    ("--model @other", "other is a folder: name the file in it, or convert official weights"),
    ("--model @photo.png", "not a readable safetensors file"),
    ("--model @foreign.safetensors", "no converted hourglass_jax model"),
    ("--model @truncated.safetensors", "not a readable safetensors file"),
    ("--model @empty.safetensors", "not a readable safetensors file"),
]
WRONG = [
    *((f"{command} {options}", message) for command in ("predict", "compare") for options, message in ON_PHOTOS),
    *((f"flops {options}", message) for options, message in ON_ANY_MODEL),
    ("predict @photo.png --clusters 6 6", "6 x 6 clusters"),
    ("predict @photo.png --model @truncated.safetensors", "not a readable safetensors file"),
    (
        "compare @square.png @photo.png --strict-plan --clusters 5 5",
        "photo: clusters must not outnumber the image's tokens",
    ),
    ("compare @photo.png --repeats 0", "repeats must be at least 1, got 0"),
    ("compare @photo.png --method Pooling --share 0", "a budget must be a share in (0, 1], got 0"),
    ("compare @photo.png --method Pooling --share 0.01", "Pooling cannot do with 0.01 of the encoder's cost"),
    ("compare @photo.png --method Pooling --repeats 0", "repeats must be at least 1, got 0"),
    ("compare @small.png --method Pooling", "small: image must be at least 14 x 14 pixels"),
    ("demo --repeats 0", "repeats must be at least 1, got 0"),
    ("demo --output @page.jpg", "page.jpg"),
    ("flops --fast --share 0.5", "expected one of --fast, --share, --faster and --plan, got --fast and --share"),
    ("flops --share 0.01", "StagedMerging cannot do with 0.01 of the encoder's cost"),
    ("flops --faster 0.5", "a model is made at least 1 times as fast, got 0.5"),
    ("flops --faster 100", "not 100 times in all"),
    ("bench --batch 0", "batch and repeats must be at least 1, got 0"),
    ("bench --repeats 0", "batch and repeats must be at least 1"),
    ("bench --clusters 6 6", "6 x 6 clusters for 5 x 5 tokens"),
]


@pytest.mark.parametrize(("line", "message"), WRONG, ids=[line for line, _ in WRONG])
def test_wrong_input_is_one_line_and_exit_status_2(line: str, message: str, run: Run, folder, out, capsys) -> None:
    command, *options = line.replace("@", f"{folder}/").split()
    # Where an option is given twice, the last one counts.
    output = ["--output", out] if command in ("predict", "compare", "demo") else []
    plan = [] if command == "demo" or {"--fast", "--share", "--faster"} & {*options} else PLAN
    before = sorted(folder.rglob("*"))
    fails(lambda: run(command, *plan, *output, *options), message, capsys)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--alpha 1", "--clusters missing"),
        ("--clusters 3 3", "--alpha missing"),
        ("--window 3", "--alpha and --clusters missing"),
    ],
)
def test_an_incomplete_plan_names_what_is_missing(options: str, message: str, run: Run, capsys) -> None:
    fails(lambda: run("flops", *options.split()), message, capsys)


def fails(call: Callable[[], object], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        call()
    printed = capsys.readouterr()
    assert exited.value.code == 2
    assert printed.out == ""
    [line] = printed.err.splitlines()
    assert line.startswith("error: ")
    assert message in line
