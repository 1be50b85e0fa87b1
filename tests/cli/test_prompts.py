"""The commands with a model that answers prompts: what they write and print, and one line for what does not fit."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hourglass_jax as hj
from hourglass_jax.cli import main
from tests.models.tiny import build_sam

pytestmark = pytest.mark.usefixtures("quick_compilation")

Run = Callable[..., str]
PLAN = ["--alpha", "1", "--clusters", "2", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hj.save(build_sam(), tmp_path_factory.mktemp("model") / "sam.safetensors")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def run(model: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(command: str, *arguments: object) -> str:
        main([command, "--model", str(model), *map(str, arguments)])
        return capsys.readouterr().out

    return run


@pytest.fixture
def complaint(run: Run, capsys: pytest.CaptureFixture[str]) -> Run:
    def complaint(*arguments: object) -> str:
        with pytest.raises(SystemExit) as ended:
            run(*arguments)
        assert ended.value.code == 2
        return capsys.readouterr().err

    return complaint


def test_the_best_mask_of_a_point_is_written(run: Run, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    [image] = json.loads(run("predict", photo, "-o", out, "--point", 20, 30, "--json"))["images"]
    assert sorted(path.name for path in out.iterdir()) == [
        "photo_mask_0.png",
        "photo_masks.json",
        "photo_overlay.png",
    ]
    mask = np.asarray(Image.open(out / "photo_mask_0.png")) == 255
    [annotation] = json.loads((out / "photo_masks.json").read_text())
    assert mask.shape == (60, 80)
    assert (annotation["area"], annotation["image_id"]) == (mask.sum(), "photo")
    assert annotation["segmentation"]["size"] == [60, 80]
    assert image["masks"][0]["area"] == mask.sum()
    picture = np.asarray(Image.open(out / "photo_overlay.png"))
    assert picture[30, 20].tolist() == [30, 200, 60]


def test_points_with_labels_and_boxes(run: Run, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    printed = run(
        *("predict", photo, "-o", out, "--point", 20, 30, "--point", 60, 10, "--label", 1, 0),
        *("--box", 5, 5, 70, 50, "--multimask", *PLAN),
    )
    assert len(list(out.glob("photo_mask_*.png"))) == 3
    assert "mask 2: quality" in printed
    picture = np.asarray(Image.open(out / "photo_overlay.png"))
    assert picture[10, 60].tolist() == [230, 40, 40]
    run("predict", photo, "-o", out, "--box", 5, 5, 70, 50, "--box", 1, 1, 9, 9)
    assert len(json.loads((out / "photo_masks.json").read_text())) == 2


def test_everything_is_one_json_file_and_a_picture(run: Run, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    loose = ["--automatic.points", 2, "--automatic.quality", 0, "--automatic.stability", 0]
    printed = run("predict", photo, "-o", out, "--everything", *loose)
    found = json.loads((out / "photo_everything.json").read_text())
    assert f"{len(found)} masks" in printed
    assert {"segmentation", "area", "bbox", "predicted_iou", "stability_score", "point_coords", "crop_box"} <= {
        key for each in found for key in each
    }
    assert (out / "photo_everything.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a Sam answers prompts: expected --point, --box or --everything"),
        (["--everything", "--point", "1", "2"], "expected no --point and no --box beside it"),
        (
            ["--point", "1", "2", "--box", "1", "2", "3", "4", "--box", "1", "2", "3", "4"],
            "expected one --box, got 2",
        ),
        (["--point", "1", "2", "--label", "1", "1"], "--label must have a number for each point, 1, got 2"),
        (["--point", "nan", "2"], "points must be finite numbers of at most 1e+06 pixels, got nan"),
        (["--point", "1", "2", "--task", "depth"], "Sam has the tasks masks, and not 'depth'"),
        (["--point", "1", "2", "--size", "35"], "size must be a multiple of the patch size, 8, got 35"),
        (["--point", "1", "2", "--method", "StagedMerging", "--keep", "0.8"], "takes an Hourglass"),
        (["--everything", "--automatic.points", "0"], "points must be an integer in 1..1024, got 0"),
    ],
)
def test_what_does_not_fit_is_one_line(
    complaint: Run, photo: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    said = complaint("predict", photo, "-o", tmp_path / "out", *arguments)
    assert message in said
    assert said.count("\n") == 1


def test_other_models_answer_no_prompts(
    photo: Path, tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["predict", str(photo), "-o", str(tmp_path), "--model", str(tiny_file), "--point", "1", "2"])
    assert "a Saliency answers no prompts" in capsys.readouterr().err


def test_flops_are_told_by_part(run: Run) -> None:
    found = json.loads(run("flops", *PLAN, "--json"))
    assert {"blocks", "neck", "prompts", "head"} <= found["original"].keys()


@pytest.mark.slow
def test_a_comparison_tells_the_overlap_of_masks_and_both_latencies(run: Run, photo: Path, tmp_path: Path) -> None:
    found = json.loads(run("compare", photo, "-o", tmp_path, *PLAN, "--repeats", 1, "--json"))
    [image] = found["images"]
    assert 0 <= image["agreement"] <= 1
    assert -1 <= image["cosine"] < 1
    assert image["decode_ms"] > 0
    assert (image["tokens"], image["clusters"]) == (16, 16)
    assert Path(image["picture"]).is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--point 20 30 --threshold 0.3", "takes prompts: expected no --threshold and no --whole"),
        ("--point 20 30 --whole", "takes prompts: expected no --threshold and no --whole"),
        ("--multimask", "expected --point, --box or --everything"),
        ("--everything --multimask", "expected no --multimask beside it"),
        ("--point 20 30 --automatic.points 4", "--automatic says how --everything asks"),
    ],
)
def test_no_option_is_passed_over(options: str, message: str, complaint: Run, photo: Path, tmp_path: Path) -> None:
    assert message in complaint("predict", photo, "-o", tmp_path / "out", *options.split())
