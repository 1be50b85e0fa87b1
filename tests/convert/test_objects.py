"""Objects in checkpoints: left out or refused beside the weights, refused under them, and never made."""

import io
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.files import read
from checkpoints_convert.pickle_values import Skipped
from checkpoints_convert.torch_file import read_torch
from tests.convert.test_torch_file import (
    ORDERED_DICT,
    REBUILD,
    Call,
    Global,
    Opcodes,
    Persistent,
    encode,
    pickled,
    storage,
    tensor,
    write_legacy,
    write_zip,
)

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.pth"


def made(module: str, name: str, state: object = None, items: dict | None = None) -> Opcodes:
    """An object as pickle's version 2 writes it: made without arguments, then given items and a state."""
    node = encode(Global(module, name)) + b")\x81"
    if items:
        node += b"(" + b"".join(encode(part) for pair in items.items() for part in pair) + b"u"
    return Opcodes(node + (b"" if state is None else encode(state) + b"b"))


def called(module: str, name: str, *args: object) -> Call:
    return Call(Global(module, name), args)


HARMLESS = {
    "history": made(
        "mmengine.logging.history_buffer", "HistoryBuffer", {"_log_history": called("numpy", "dtype", "f8")}
    ),
    "yacs": made("yacs.config", "CfgNode", {"__immutable__": True}, {"MODEL": made("yacs.config", "CfgNode")}),
    "lightning": made("pytorch_lightning.utilities.parsing", "AttributeDict", None, {"lr": 0.1}),
    "omegaconf": made(
        "omegaconf.dictconfig",
        "DictConfig",
        {"_metadata": made("omegaconf.base", "ContainerMetadata", {"ref_type": Global("typing", "Any")})},
    ),
    "path": called("pathlib", "PosixPath", "runs", "out"),
    "windows path": called("pathlib", "WindowsPath", "C:\\runs"),
    "date": called("datetime", "datetime", b"\x07\xe9\x01\x02\x03\x04\x05\x00\x00\x00"),
    "span": called("datetime", "timedelta", 1, 2, 3),
    "loss": made(
        "torch.nn.modules.loss", "CrossEntropyLoss", {"reduction": "mean", "_buffers": Call(ORDERED_DICT, ())}
    ),
    "schedule": made("torch.optim.lr_scheduler", "LambdaLR", {"last_epoch": 3}),
    "deque": Opcodes(encode(called("collections", "deque", [], 5)) + b"(K\1K\2e"),
    "class": Global("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
    "member": called("builtins", "getattr", Global("transformers.trainer_utils", "IntervalStrategy"), "STEPS"),
    "version": called("torch.torch_version", "TorchVersion", "2.4.0"),
    "random": called("numpy.random._pickle", "__randomstate_ctor", "MT19937"),
}


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("node", HARMLESS.values(), ids=HARMLESS)
def test_objects_of_training_frameworks_are_left_out(path: Path, node: object, is_zip: bool) -> None:
    tree = {"model": {"w": tensor("0", WEIGHT)}, "beside": node, "list": [node], "meta": {"deep": node}}
    (write_zip if is_zip else write_legacy)(path, tree, {"0": WEIGHT})
    before = {*sys.modules}
    found = read(path)
    assert found.keys() == {"w"}
    np.testing.assert_array_equal(found["w"], WEIGHT)
    assert not {name.partition(".")[0] for name in {*sys.modules} - before} & {
        "yacs",
        "omegaconf",
        "torch",
        "mmengine",
    }
    if not isinstance(node, Global):
        assert sum(found.skipped.values()) == 3
    beside = read_torch(path)["beside"]
    assert isinstance(beside, Skipped) and not beside.holds_tensors()


def test_default_dicts_are_dicts(path: Path) -> None:
    default = Opcodes(
        encode(called("collections", "defaultdict", Global("builtins", "list")))
        + encode("w")
        + encode(tensor("0", WEIGHT))
        + b"s"
    )
    found = read(write_zip(path, {"model": default}, {"0": WEIGHT}))
    np.testing.assert_array_equal(found["w"], WEIGHT)
    assert not found.skipped


def test_tensors_may_be_keys_beside_the_weights(path: Path) -> None:
    tree = {"model": {"w": tensor("0", WEIGHT)}}
    items = Opcodes(b"}(" + encode("state") + b"}(" + encode(tensor("0", WEIGHT)) + b"K\1u" + b"u")
    assert read(write_zip(path, {**tree, "optimizer": items}, {"0": WEIGHT})).keys() == {"w"}


def test_arrays_of_texts_are_left_out(path: Path) -> None:
    path.write_bytes(
        pickle.dumps({"model": {"w": WEIGHT}, "classes": np.array(["road", "sky"]), "name": np.str_("x")})
    )
    found = read(path)
    assert found.keys() == {"w"} and sum(found.skipped.values()) == 2


@pytest.mark.parametrize(("module", "name"), [("segm.optim", "Loss"), ("os", "system"), ("builtins", "eval")])
def test_other_objects_are_refused_by_name_with_the_way_out(path: Path, module: str, name: str) -> None:
    node = called(module, name, "touch executed")
    write_zip(path, {"model": {"w": tensor("0", WEIGHT)}, "loss": node}, {"0": WEIGHT})
    with pytest.raises(CheckpointError, match=rf"the global '{module}\.{name}', which is refused; --skip-objects"):
        read(path)
    found = read(path, skip_objects=True)
    assert found.keys() == {"w"} and found.skipped == {f"{module}.{name}": 1}
    np.testing.assert_array_equal(found["w"], WEIGHT)


HOLDERS = {
    "module": made("torch.nn.modules.linear", "Linear", {"_parameters": {"weight": tensor("0", WEIGHT)}}),
    "settings": made("yacs.config", "CfgNode", None, {"weight": tensor("0", WEIGHT)}),
    "argument": called("my.models", "Wrapped", [{"deep": (tensor("0", WEIGHT),)}]),
    "method": Call(called("my.models", "Wrapped", tensor("0", WEIGHT)), ()),
}


@pytest.mark.parametrize("node", HOLDERS.values(), ids=HOLDERS)
def test_weights_that_hang_on_an_object_are_refused(path: Path, node: object) -> None:
    for tree in ({"model": {"w": tensor("0", WEIGHT), "head": node}}, {"w": tensor("0", WEIGHT), "model": node}):
        write_zip(path, tree, {"0": WEIGHT})
        with pytest.raises(
            CheckpointError, match=r"nothing is read of objects, got '(head|model)' in an object of"
        ):
            read(path, skip_objects=True)
    write_zip(path, {"model": node}, {"0": WEIGHT})
    with pytest.raises(CheckpointError, match="got 'model' in an object of"):
        read(path, skip_objects=True)
    write_zip(path, node, {"0": WEIGHT})
    with pytest.raises(CheckpointError, match="a mapping such as a state dict, got an object of"):
        read(path, skip_objects=True)


def test_an_object_with_tensors_beside_the_weights_is_left_out(path: Path) -> None:
    tree = {"model": {"w": tensor("0", WEIGHT)}, "ema": HOLDERS["module"]}
    write_zip(path, tree, {"0": WEIGHT})
    assert read(path, skip_objects=True).keys() == {"w"}


@pytest.mark.parametrize("skip_objects", [False, True])
def test_nothing_is_executed_under_any_option(path: Path, tmp_path: Path, skip_objects: bool) -> None:
    victim = tmp_path / "executed"

    class Hostile:
        def __reduce__(self) -> tuple:
            return eval, (f"__import__('pathlib').Path({str(victim)!r}).touch()",)

    for protocol in (2, 3, 4, 5):
        path.write_bytes(
            pickle.dumps({"model": {"w": WEIGHT}, "x": Hostile(), "y": [Hostile()]}, protocol=protocol)
        )
        if skip_objects:
            assert read(path, skip_objects=True).keys() == {"w"}
        else:
            with pytest.raises(CheckpointError, match="which is refused"):
                read(path)
        assert not victim.exists()


# --- Tensors that are more than plain ---


def rebuilt(array: np.ndarray, metadata: object, key: str = "0") -> Call:
    stride = tuple(step // array.itemsize for step in array.strides)
    return Call(REBUILD, (storage(key, array), 0, array.shape, stride, False, Call(ORDERED_DICT, ()), metadata))


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_negated_and_conjugated_views(path: Path, is_zip: bool) -> None:
    real, imaginary = WEIGHT, (WEIGHT * (1 + 2j)).astype(np.complex64)
    tree = {
        "plain": rebuilt(real, {}),
        "neg": rebuilt(real, {"neg": True}),
        "conj": rebuilt(imaginary, {"conj": True}, "1"),
        "both": rebuilt(imaginary, {"conj": True, "neg": True}, "1"),
    }
    found = read_torch((write_zip if is_zip else write_legacy)(path, tree, {"0": real, "1": imaginary}))
    expected = {"plain": real, "neg": -real, "conj": imaginary.conj(), "both": -imaginary.conj()}
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


@pytest.mark.parametrize(
    "metadata", [{"conj": True}, {"other": True}, {"neg": 1}, {"neg": False}, [1], "neg"], ids=str
)
def test_other_metadata_are_refused(path: Path, metadata: object) -> None:
    with pytest.raises(CheckpointError, match="expected "):
        read_torch(write_zip(path, {"w": rebuilt(WEIGHT, metadata)}, {"0": WEIGHT}))


def from_type(kind: Global, state: object = None, rebuild: object = REBUILD) -> Call:
    _, *args = ("", *tensor("0", WEIGHT).args)
    return Call(
        Global("torch._tensor", "_rebuild_from_type_v2"), (rebuild, kind, tuple(args), state or {"note": 1})
    )


def test_tensors_with_attributes_and_of_subclasses(path: Path) -> None:
    tree = {
        "attribute": from_type(Global("torch", "Tensor")),
        "buffer": from_type(Global("torch.nn.parameter", "Buffer"), ({"a": 1}, {})),
        "negated": from_type(Global("torch", "Tensor")),
        "parameter": Call(
            Global("torch._utils", "_rebuild_parameter_with_state"), (tensor("0", WEIGHT), True, None, {"x": {}})
        ),
        "device": Call(
            Global("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"),
            (tensor("0", WEIGHT), Global("torch", "float32"), "xla:0", False),
        ),
    }
    for name, array in read_torch(write_zip(path, tree, {"0": WEIGHT})).items():
        np.testing.assert_array_equal(array, WEIGHT, err_msg=name)


@pytest.mark.parametrize(
    ("node", "text"),
    [
        (from_type(Global("my.tensors", "Scaled")), r"the global 'my\.tensors\.Scaled'"),
        (from_type(Global("torch", "Tensor"), ({}, {"data": tensor("0", WEIGHT)})), "sets parts of itself"),
        (
            from_type(Global("torch", "Tensor"), rebuild=Global("torch._utils", "_rebuild_qtensor")),
            "_rebuild_qtensor",
        ),
        (from_type(Global("torch", "Tensor"), rebuild=ORDERED_DICT), "OrderedDict makes"),
        (called("torch._utils", "_rebuild_sparse_tensor", 1), "_rebuild_sparse_tensor"),
        (called("torch._utils", "_rebuild_meta_tensor_no_storage", 1), "_rebuild_meta_tensor_no_storage"),
        (Persistent(("storage", Global("torch", "QInt8Storage"), "0", "cpu", 12)), "QInt8Storage"),
    ],
)
def test_tensors_whose_values_mean_something_else_are_refused_by_name(path: Path, node: object, text: str) -> None:
    with pytest.raises(CheckpointError, match=text):
        read(write_zip(path, {"w": node}, {"0": WEIGHT}))


def test_a_subclass_that_is_not_known_is_refused_with_skipped_objects_too(path: Path) -> None:
    write_zip(path, {"w": from_type(Global("my.tensors", "Scaled"))}, {"0": WEIGHT})
    with pytest.raises(CheckpointError, match="whose values may mean something else"):
        read(path, skip_objects=True)


# --- Plain pickles of tensors: a storage each, in a file of the legacy format ---


def inside(tmp_path: Path, node: object, arrays: dict[str, np.ndarray]) -> Call:
    content = write_legacy(tmp_path / "inside", node, arrays).read_bytes()
    return called("torch.storage", "_load_from_bytes", Opcodes(b"B" + len(content).to_bytes(4, "little") + content))


def pickled_tensor(content: object) -> bytes:
    return pickled({"model": {"w": Call(REBUILD, (content, 4, (2, 4), (4, 1), False, Call(ORDERED_DICT, ())))}})


def test_plain_pickles_of_tensors(path: Path, tmp_path: Path) -> None:
    path.write_bytes(pickled_tensor(inside(tmp_path, storage("7", WEIGHT, view=(None,)), {"7": WEIGHT})))
    found = read(path)
    np.testing.assert_array_equal(found["w"], WEIGHT[1:])


def test_files_inside_of_pickles_hold_a_storage_and_nothing_else(path: Path, tmp_path: Path) -> None:
    good = inside(tmp_path, storage("7", WEIGHT), {"7": WEIGHT})
    stream = io.BytesIO()
    np.savez(stream, a=WEIGHT)
    for node, text in (
        (inside(tmp_path, tensor("7", WEIGHT), {"7": WEIGHT}), "a storage"),
        (inside(tmp_path, {"a": 1}, {}), "a storage, got a dict"),
        (inside(tmp_path, good, {}), "'torch.storage._load_from_bytes', which is refused"),
        (inside(tmp_path, called("os", "system", "true"), {}), "'os.system', which is refused"),
        (called("torch.storage", "_load_from_bytes", pickled(called("os", "system", "true"))), "'os.system'"),
        (called("torch.storage", "_load_from_bytes", pickled([1])), "a storage in the legacy format"),
        (called("torch.storage", "_load_from_bytes", stream.getvalue()), "no storage|damaged"),
        (called("torch.storage", "_load_from_bytes", "text"), "the bytes of a storage, got a str"),
        (called("torch.storage", "_load_from_bytes"), "1 arguments"),
    ):
        path.write_bytes(pickled_tensor(node))
        with pytest.raises(CheckpointError, match=text):
            read(path)
