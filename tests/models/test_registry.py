"""Models as single files: what is saved is what is loaded, and nothing else is."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import platformdirs
import pytest
import safetensors
import safetensors.flax
import safetensors.numpy
from flax import nnx

import hourglass_jax as hj
from checkpoints_convert.convert import convert
from hourglass_jax.backbones.vit import ViTConfig
from hourglass_jax.imaging.images import Preprocessing
from hourglass_jax.models.registry import flat_parameters
from hourglass_jax.models.saliency import Saliency, SaliencyConfig
from tests.convert.checkpoints import timm_vit

CONFIG = SaliencyConfig(
    ViTConfig(patch_size=4, width=16, heads=2, depth=1, position_grid=(3, 2), position_offset=0.1),
    decoder_widths=(8, 4),
    preprocessing=Preprocessing(size=24, multiple=4, resize="square", mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3)),
)
NAME = "backbone.blocks.0.norm2.bias"
Parameters = dict[str, jax.Array]


def random_model(dtype: jnp.dtype = jnp.float32) -> Saliency:
    """Every parameter has values of its own."""
    model = nnx.eval_shape(lambda: Saliency(CONFIG, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    for _, parameter in nnx.to_flat_state(nnx.state(model)):
        parameter.set_value(jnp.asarray(rng.normal(size=parameter.shape), dtype))
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return hj.save(random_model(), tmp_path / "model.safetensors", notes={"source": "a test"})


def metadata_of(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, framework="flax") as file:
        return file.metadata()


def rewrite(
    path: Path,
    *,
    parameters: Callable[[Parameters], Parameters] = lambda parameters: parameters,
    metadata: dict[str, str] | None = None,
) -> None:
    """Changes a file's parameters, and replaces entries of its metadata."""
    changed = parameters(safetensors.flax.load_file(path))
    safetensors.flax.save_file(changed, path, {**metadata_of(path), **(metadata or {})})


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_round_trip_keeps_every_bit(tmp_path: Path, dtype: jnp.dtype) -> None:
    model = random_model(dtype)
    loaded = hj.load(hj.save(model, tmp_path / "new" / "model.safetensors"))
    assert type(loaded) is Saliency
    assert loaded.config == CONFIG and hash(loaded.config) == hash(CONFIG)
    expected, found = flat_parameters(model), flat_parameters(loaded)
    assert list(found) == list(expected)
    for name in expected:
        assert found[name].dtype == dtype
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_a_loaded_model_computes_the_same(saved: Path) -> None:
    images = jnp.asarray(np.random.default_rng(1).normal(size=(1, 24, 24, 3)), jnp.float32)
    run = nnx.jit(lambda model: model(images))
    np.testing.assert_array_equal(run(hj.load(saved)), run(random_model()))
    assert hj.load(str(saved), dtype=jnp.bfloat16).backbone.dtype == jnp.bfloat16


def test_the_plan_is_no_part_of_the_file(saved: Path, tmp_path: Path) -> None:
    fast = hj.expedite(random_model(), hj.Hourglass(0, (2, 2)))
    again = hj.save(fast, tmp_path / "fast.safetensors", notes={"source": "a test"})
    assert hj.load(again).backbone.plan is None
    assert metadata_of(again) == metadata_of(saved)


def test_the_metadata_says_what_the_file_holds(saved: Path) -> None:
    metadata = metadata_of(saved)
    assert metadata.keys() == {"format", "format_version", "model", "config", "source"}
    assert (metadata["format"], metadata["model"], metadata["source"]) == ("hourglass_jax", "saliency", "a test")
    config = json.loads(metadata["config"])
    assert config["backbone"]["kind"] == "ViTConfig"
    assert config["backbone"]["position_grid"] == [3, 2]
    assert config["preprocessing"]["mean"] == [0.5, 0.4, 0.3]


def test_no_such_file_or_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.safetensors: no such file.* models: dinov2-vits14-saliency"):
        hj.load(tmp_path / "absent.safetensors")
    with pytest.raises(ValueError, match=r"^no-such-model: no such file.*dinov2-vits14-saliency"):
        hj.load("no-such-model")


def test_a_safetensors_file_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "theirs.safetensors"
    safetensors.flax.save_file({"weight": jnp.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"theirs\.safetensors is a safetensors file but no converted"):
        hj.load(path)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a readable safetensors file"):
        hj.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {k: v for k, v in p.items() if k != NAME}, rf"missing \['{NAME}'\], unexpected \[\]"),
        (lambda p: {**p, "extra": p[NAME]}, r"missing \[\], unexpected \['extra'\]"),
        (lambda p: {**p, NAME: p[NAME][:5]}, rf"{NAME} must have shape \(16,\), got \(5,\)"),
    ],
    ids=["missing", "extra", "misshapen"],
)
def test_parameters_that_do_not_fit(saved: Path, change: Callable[[Parameters], Parameters], message: str) -> None:
    rewrite(saved, parameters=change)
    with pytest.raises(ValueError, match=rf"model\.safetensors.*{message}"):
        hj.load(saved)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"model": "newer"}, "unknown model 'newer'; this version knows saliency"),
        ({"config": '{"scales": 3}'}, "SaliencyConfig has no field 'scales'; it knows backbone, decoder_widths"),
        ({"config": '{"backbone": {"experts": 3}}'}, "ViTConfig has no field 'experts'; it knows patch_size"),
        ({"config": '{"backbone": {"width": 10, "heads": 3}}'}, "got width 10 and 3 heads"),
        ({"config": '{"backbone": 3}'}, "no config of a saliency model"),
        ({"config": "{"}, "no config of a saliency model"),
        (
            {"config": '{"backbone": {"kind": "SwinConfig"}}'},
            "backbone must be a config of ViTConfig, got 'SwinConfig'",
        ),
        ({"format_version": "3"}, "is of version 3 of the format, which a newer hourglass_jax wrote"),
    ],
)
def test_metadata_that_does_not_fit(saved: Path, metadata: dict[str, str], message: str) -> None:
    rewrite(saved, metadata=metadata)
    with pytest.raises(ValueError, match=rf"model\.safetensors.*{message}"):
        hj.load(saved)


def test_a_failed_save_leaves_the_old_file_and_no_other(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def fail(source: Path, target: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        hj.save(random_model(), saved)
    assert list(saved.parent.iterdir()) == [saved]
    assert saved.read_bytes() == before


def test_only_models_can_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a model of Saliency, .*, got ViT"):
        hj.save(random_model().backbone, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_pretrained_model_is_converted_once_for_every_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted = []

    def convert(name: str, target: Path) -> None:
        converted.append((name, target.name))
        hj.save(random_model(), target)

    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda _: str(tmp_path))
    monkeypatch.setattr("hourglass_jax.hub.convert_pretrained", convert)
    name = "dinov2-vits14-saliency"
    for version in ("1.0", "1.0", "1.1"):
        monkeypatch.setattr("importlib.metadata.version", lambda _, version=version: version)
        assert hj.load(name).config == CONFIG
    assert converted == [(name, f"{name}-1.0.safetensors"), (name, f"{name}-1.1.safetensors")]


def test_without_a_writable_cache_a_pretrained_model_is_converted_for_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tiny_model: Saliency
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda _: str(tmp_path / "file"))
    monkeypatch.setattr("hourglass_jax.hub.convert_pretrained", lambda name, target: hj.save(tiny_model, target))
    assert hj.load("dinov2-vits14-saliency").config == tiny_model.config
    [record] = caplog.records
    assert "is converted for this process alone: nothing can be kept in" in record.getMessage()


def test_weights_from_memory_are_those_of_a_converted_file(tmp_path: Path) -> None:
    """By the same rules, and without memory in common."""
    arrays = dict(timm_vit().arrays)
    safetensors.numpy.save_file(arrays, tmp_path / "vit.safetensors")
    summary = convert(tmp_path / "vit.safetensors", tmp_path / "out.safetensors", family="vit-timm")
    expected = flat_parameters(hj.load(summary.target))
    model = hj.from_state_dict(arrays, family="vit-timm")
    for array in arrays.values():
        array[...] = 0
    found = flat_parameters(model)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], each) for name, each in expected.items())
    with pytest.raises(ValueError, match="may be one of several families"):
        hj.from_state_dict(timm_vit().arrays)


def test_what_numpy_cannot_view_is_refused_by_name() -> None:
    class Elsewhere:
        def __array__(self, *_, **__):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

    with pytest.raises(
        ValueError, match=r"head\.weight must be an array that NumPy can view, got .*: can't convert"
    ):
        hj.from_state_dict({"head.weight": Elsewhere()})
