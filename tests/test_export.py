"""Files that run without this library: what they compute, what they say of themselves, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hourglass_jax as hj
from hourglass_jax.cli import main
from hourglass_jax.export import Export, prepare, write_onnx, write_stablehlo
from hourglass_jax.imaging.images import Preprocessing
from hourglass_jax.models.saliency import Saliency
from tests.models.tiny import MODELS, build, build_prompted

pytestmark = pytest.mark.usefixtures("quick_compilation")

PLAN = hj.StagedMerging(0.8)
WITHOUT_LIBRARY = """
import sys
import jax, numpy
[file, images, output] = sys.argv[1:]
exported = jax.export.deserialize(bytearray(open(file, "rb").read()))
numpy.savez(output, **exported.call(numpy.load(images)))
assert not {"flax", "hourglass_jax"} & sys.modules.keys()
"""


def normalised(batch: int, rows: int = 70, columns: int = 70) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, rows, columns, 3), np.float32)


def read(path: Path) -> jax.export.Exported:
    return jax.export.deserialize(bytearray(path.read_bytes()))


def test_a_file_computes_what_the_model_does_where_this_library_is_not(
    tiny_model: Saliency, tmp_path: Path
) -> None:
    fast = hj.expedite(tiny_model, PLAN)
    file, images = tmp_path / "model.stablehlo", normalised(2)
    write_stablehlo(Export(fast, (70, 70), batch=2), file)
    np.save(tmp_path / "images.npy", images)
    arguments = [str(file), str(tmp_path / "images.npy"), str(tmp_path / "output.npz")]
    subprocess.run([sys.executable, "-c", WITHOUT_LIBRARY, *arguments], check=True, cwd=tmp_path)
    with np.load(tmp_path / "output.npz") as found:
        np.testing.assert_allclose(found["saliency"], jax.jit(fast.__call__)(images), rtol=0, atol=1e-5)


def test_what_is_in_a_file_is_said_beside_it(tiny_model: Saliency, tmp_path: Path) -> None:
    file = tmp_path / "model.stablehlo"
    described = write_stablehlo(Export(hj.expedite(tiny_model, PLAN), (70, 84)), file)
    assert described == json.loads((tmp_path / "model.stablehlo.json").read_text())
    assert described["model"] == "saliency"
    assert described["plan"]["method"] == "StagedMerging"
    assert described["inputs"] == {"images": {"shape": [1, 70, 84, 3], "dtype": "float32"}}
    assert described["outputs"] == {"saliency": {"shape": [1, 70, 84], "dtype": "float32"}}
    assert read(file).platforms == tuple(described["platforms"]) == ("cpu", "cuda", "tpu")


def test_a_file_for_one_platform_has_its_fused_attention(tmp_path: Path) -> None:
    half = build("encoder", dtype=jnp.bfloat16)
    for platforms, fused in ((["cuda"], True), (["cuda", "cpu"], False)):
        file = tmp_path / f"{len(platforms)}.stablehlo"
        write_stablehlo(Export(half, (32, 32)), file, platforms)
        assert ("__cudnn$fmhaSoftmax" in read(file).mlir_module()) == fused


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_exported_for_batches_of_any_size(name: str) -> None:
    export = Export(build(name), (64, 64), batch=None)
    outputs = jax.eval_shape(export, export.images)
    assert all(str(each.shape[0]) == "batch" for each in outputs.values())


@pytest.mark.slow
def test_a_batch_of_any_size_runs(tiny_model: Saliency, tmp_path: Path) -> None:
    fast, file = hj.expedite(tiny_model, PLAN), tmp_path / "model.stablehlo"
    write_stablehlo(Export(fast, (70, 70), batch=None), file, ["cpu"])
    exported = read(file)
    for batch in (1, 3):
        found = exported.call(normalised(batch))["saliency"]
        np.testing.assert_allclose(found, jax.jit(fast.__call__)(normalised(batch)), rtol=0, atol=1e-5)


def test_a_file_that_prepares_photographs_does_what_the_predictor_does(
    tiny_model: Saliency, tmp_path: Path
) -> None:
    small = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    photo = small.repeat(20, axis=0).repeat(20, axis=1)
    preprocessing = tiny_model.config.preprocessing
    size = preprocessing.target_size(100, 120)
    file = tmp_path / "model.stablehlo"
    write_stablehlo(Export(tiny_model, size, photo=(100, 120)), file, ["cpu"])
    found = read(file).call(photo[None])["saliency"]
    expected = jax.jit(tiny_model.__call__)(preprocessing(photo)[None])
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "cubic", "linear"])
@pytest.mark.parametrize("resize", ["longest", "square", "crop", "none"])
@pytest.mark.parametrize("photo", [(60, 81), (28, 30)])
def test_photographs_are_prepared_as_by_pillow(photo: tuple[int, int], resize: str, interpolation: str) -> None:
    preprocessing = Preprocessing(42, 14, resize, interpolation=interpolation)
    image = np.random.default_rng(0).integers(0, 256, (*photo, 3), np.uint8)
    expected = preprocessing(image)
    found = prepare(jnp.asarray(image[None]), preprocessing, expected.shape[:2])
    levels = np.abs(found[0] - expected) * 255 * np.asarray(preprocessing.std)
    assert levels.max() < 1.01


def test_of_a_model_that_takes_prompts_the_encoder_is_exported() -> None:
    toy = build_prompted()
    export = Export(toy, (32, 32))
    [found] = jax.jit(export.__call__)(normalised(1, 32, 32)).values()
    np.testing.assert_array_equal(found, jax.jit(toy.features)(normalised(1, 32, 32)))


def test_parameters_beyond_what_a_file_holds_are_refused(
    tiny_model: Saliency, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hourglass_jax.export.LARGEST", 1000)
    with pytest.raises(ValueError, match=r"the parameters take .* GB, and a file holds at most"):
        write_stablehlo(Export(tiny_model, (70, 70)), tmp_path / "model.stablehlo")
    assert list(tmp_path.iterdir()) == []


def test_plans_without_a_form_in_onnx_are_named(tmp_path: Path) -> None:
    fast = hj.expedite(build("encoder"), hj.ACT(9))
    with pytest.raises(ValueError, match="plans of ACT have no form in ONNX"):
        write_onnx(Export(fast, (32, 32)), tmp_path / "model.onnx")


def test_photographs_that_become_another_size_are_refused(tiny_model: Saliency) -> None:
    wanted = "must become as large as the model's input, 70 x 70 pixels: those of 100 x 50 become 70 x 42"
    with pytest.raises(ValueError, match=wanted):
        Export(tiny_model, (70, 70), photo=(100, 50))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("-o model.pb", "output must end in .onnx or .stablehlo, got model.pb"),
        ("-o model.onnx", "pip install 'hourglass-jax[export]', or export to .stablehlo"),
        ("-o model.stablehlo --batch 0", "batch must be at least 1, got 0"),
        ("-o model.stablehlo --preset dpt-hybrid-nyu", "the preset is for a backbone of 12 blocks, 768 channels"),
        ("-o model.stablehlo --share 0.01", "StagedMerging cannot do with 0.01 of the encoder's cost"),
        ("-o model.stablehlo --photo-size 80", "--photo-size needs --with-preprocessing"),
        ("-o model.stablehlo --size 71x70", "must be positive multiples of 14 pixels, got 71 x 70"),
    ],
)
def test_wrong_options_are_one_line_and_exit_status_2(
    options: str, message: str, tiny_file: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(SystemExit) as exited:
        main(["export", "--model", str(tiny_file), *options.split()])
    assert exited.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_a_file(tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "folder" / "model.stablehlo"
    arguments = ["--model", str(tiny_file), "--method", "staged", "--keep", "0.8", "--platforms", "cpu"]
    main(["export", "-o", str(file), *arguments, "--with-preprocessing", "--photo-size", "100x120", "--batch", "2"])
    assert f"{file}: saliency of images [2, 100, 120, 3]" in capsys.readouterr().out
    assert read(file).in_avals[0].shape == (2, 100, 120, 3)
    assert json.loads(Path(f"{file}.json").read_text())["plan"]["keep"] == 0.8


def test_the_recommended_plan_is_exported(tiny_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.stablehlo"
    main(["export", "-o", str(file), "--model", str(tiny_file), "--fast", "--size", "70", "--platforms", "cpu"])
    assert json.loads(Path(f"{file}.json").read_text())["plan"]["method"] == "StagedMerging"
