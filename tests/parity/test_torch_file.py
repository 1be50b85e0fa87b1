"""`read_torch` against PyTorch itself: what `torch.save` writes is read with the same values."""

import argparse
import collections
import io
import pickle

import ml_dtypes
import numpy as np
import pytest

from checkpoints_convert.pickle_values import Skipped
from checkpoints_convert.torch_file import CheckpointError, read_torch, tensors
from tests.convert.test_torch_file import pickled
from tests.fuzz.mutants import (
    ARRAYS,
    Random,
    exchange_tokens,
    legacy_parts,
    tokens_of,
    torch_members,
    training_state,
    zip_of,
)

torch = pytest.importorskip("torch")

FORMATS = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
DTYPES = [
    "float16", "float32", "float64", "bfloat16", "bool", "int8", "int16", "int32", "int64", "complex64",
    "complex128", "uint8", "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2",
]  # fmt: skip


def save(tree, path, is_zip):
    torch.save(tree, path, _use_new_zipfile_serialization=is_zip)
    return path


def array_of(tensor):
    """The values of a tensor, by way of its bytes where NumPy has no such dtype."""
    tensor = tensor.detach().contiguous()
    name = str(tensor.dtype).removeprefix("torch.")
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    return np.frombuffer(bytes(tensor.reshape(-1).view(torch.uint8).tolist()), dtype).reshape(tensor.shape)


def assert_same(ours, theirs):
    if isinstance(theirs, torch.Tensor):
        expected = array_of(theirs)
        assert (ours.dtype, ours.shape) == (expected.dtype, expected.shape)
        assert ours.tobytes() == expected.tobytes()
    elif isinstance(theirs, dict):
        assert [*ours] == [*theirs]
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, list | tuple):
        assert isinstance(ours, type(theirs)) or isinstance(theirs, torch.Size)
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            assert_same(mine, other)
    else:
        assert type(ours) is type(theirs)
        np.testing.assert_array_equal(ours, theirs)


@FORMATS
@pytest.mark.parametrize("name", DTYPES)
def test_dtypes(tmp_path, name, is_zip):
    values = torch.arange(12).reshape(3, 4).to(getattr(torch, name))
    tree = {
        "a": values,
        "t": values.t(),
        "zero-dimensional": values[1, 2],
        "empty": values[:0],
        "dtype": values.dtype,
    }
    ours = read_torch(save(tree, tmp_path / "a.pt", is_zip))
    assert ours.pop("dtype") == np.dtype(getattr(ml_dtypes, name, name))
    del tree["dtype"]
    assert_same(ours, tree)


@FORMATS
def test_views(tmp_path, is_zip):
    base = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    tree = {
        "base": base,
        "slice": base[1:5:2, 3:7],
        "permuted": base.reshape(2, 3, 8).permute(2, 0, 1),
        "expanded": base[0].expand(5, 8),
        "diagonal": base.diagonal(),
        "alias": base.view(-1)[7:],
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
    }
    ours = read_torch(save(tree, tmp_path / "a.pt", is_zip))
    assert_same(ours, tree)
    assert np.shares_memory(ours["base"], ours["permuted"])
    assert not ours["base"].flags.writeable


@pytest.mark.filterwarnings("ignore::UserWarning")
@FORMATS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_training_checkpoint(tmp_path, protocol, is_zip):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5])
    model(torch.ones(1, 3, 4, 4)).sum().backward()
    optimizer.step()
    scaler = torch.amp.GradScaler("cpu")
    tree = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "scaler": scaler.state_dict(),
        "args": argparse.Namespace(lr=0.1, sizes=[1, 2], nested=argparse.Namespace(name="x", device=None)),
        "epoch": 3,
        "best": np.float64(0.25),
        "count": np.int64(7),
        "table": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "big-endian": np.arange(3, dtype=">i4"),
        "nothing": np.zeros((0, 2)),
        "flags": {"done": True, "set": {1, 2}, "frozen": frozenset({3}), "bytes": b"\x00\xff", "none": b""},
        "counter": collections.Counter("aab"),
        "size": torch.Size([1, 2]),
        "parameter": model[0].weight,
        "buffer": collections.OrderedDict(x=torch.nn.Parameter(torch.ones(2), requires_grad=False)),
    }
    tree["parameter"].note = "a parameter with a state"
    path = tmp_path / "a.pt"
    torch.save(tree, path, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    ours = read_torch(path)
    assert ours["args"] == {"lr": 0.1, "sizes": [1, 2], "nested": {"name": "x", "device": None}}
    tree["args"] = ours["args"]
    assert_same(ours, tree)
    found = tensors(ours)
    assert_same(found, tree["model"])


@pytest.mark.filterwarnings("ignore::UserWarning")
@FORMATS
def test_storages(tmp_path, is_zip):
    tree = {"typed": torch.arange(3.0).storage(), "untyped": torch.arange(3.0).untyped_storage()}
    ours = read_torch(save(tree, tmp_path / "a.pt", is_zip))
    np.testing.assert_array_equal(ours["typed"], np.arange(3, dtype=np.float32))
    assert ours["untyped"].tobytes() == np.arange(3, dtype=np.float32).tobytes()


@FORMATS
def test_devices_are_texts(tmp_path, is_zip):
    tree = {"cpu": torch.device("cpu"), "gpu": torch.device("cuda", 1)}
    assert read_torch(save(tree, tmp_path / "a.pt", is_zip)) == {"cpu": "cpu", "gpu": "cuda:1"}


@FORMATS
def test_modules_are_refused(tmp_path, is_zip):
    path = save({"model": torch.nn.Linear(2, 2)}, tmp_path / "a.pt", is_zip)
    with pytest.raises(CheckpointError, match=r"the global 'torch\.nn\.modules\.linear\.Linear', which is refused"):
        read_torch(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_pickles_of_tensors(tmp_path, protocol):
    """As tools/convert-pretrained-swin-model-to-d2.py of Mask2Former writes them; views share a storage."""
    base = torch.arange(12.0).reshape(3, 4)
    tree = {"model": {"a": base, "t": base.t(), "half": torch.ones(2, dtype=torch.bfloat16), "e": torch.zeros(0)}}
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(tree, protocol=protocol))
    assert_same(read_torch(path), tree)


@FORMATS
def test_views_to_be_negated_or_conjugated(tmp_path, is_zip):
    values = torch.complex(torch.arange(6.0).reshape(2, 3), torch.arange(6.0).reshape(2, 3) - 2)
    tree = {"conj": values.conj(), "neg": values.conj().imag, "both": torch._neg_view(values.conj())}
    assert tree["conj"].is_conj() and tree["neg"].is_neg() and tree["both"].is_neg()
    for tensor in tree.values():
        ours = read_torch(save({"w": tensor}, tmp_path / "a.pt", is_zip))["w"]
        np.testing.assert_array_equal(ours, tensor.resolve_neg().resolve_conj().numpy())


@FORMATS
def test_tensors_with_attributes_and_of_subclasses(tmp_path, is_zip):
    plain, parameter = torch.arange(3.0), torch.nn.Parameter(torch.arange(4.0))
    plain.note, parameter.note = "x", {"y": torch.ones(2)}
    tree = {"plain": plain, "parameter": parameter, "buffer": torch.nn.Buffer(torch.ones(2)), "neg": None}
    tree["neg"] = torch._neg_view(torch.arange(3.0))
    tree["neg"].note = 3
    ours = read_torch(save(tree, tmp_path / "a.pt", is_zip))
    for name, tensor in tree.items():
        np.testing.assert_array_equal(ours[name], tensor.detach().resolve_neg().numpy())


@pytest.mark.filterwarnings("ignore::UserWarning")
@FORMATS
@pytest.mark.parametrize("kind", ["sparse", "quantized", "nested", "meta"])
def test_tensors_that_are_not_dense_are_refused_by_name(tmp_path, kind, is_zip):
    make = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "meta": lambda: torch.ones(3, device="meta"),
    }[kind]
    path = save({"w": make()}, tmp_path / "a.pt", is_zip)
    with pytest.raises(
        CheckpointError,
        match=f"expected dense tensors, numbers and plain containers, got a( tensor on the device)? {kind}",
    ):
        read_torch(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_torch(path)


def test_saved_without_checksums(tmp_path):
    tree = {"a": torch.arange(5.0)}
    torch.serialization.set_crc32_options(False)
    try:
        path = save(tree, tmp_path / "a.pt", True)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read_torch(path), tree)


def drawn(number):
    """A checkpoint, zip or legacy, with a few numbers, texts and globals of its pickle exchanged."""
    rng, tree = Random(number), training_state(ARRAYS)
    del tree["meta"]

    def changed(content):
        return b"".join(exchange_tokens(tokens_of(content), rng))

    if number % 2:
        return zip_of(torch_members(ARRAYS) | {"archive/data.pkl": changed(pickled(tree))})
    pickles, storages = legacy_parts(tree, ARRAYS)
    return b"".join([*pickles[:3], changed(pickles[3]), pickles[4], *storages])


def found_tensors(ours, theirs):
    """How many tensors PyTorch has found, all with our values."""
    if isinstance(theirs, torch.Tensor) and not isinstance(ours, Skipped):
        assert_same(ours, theirs.resolve_conj().resolve_neg())
        return 1
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return sum(found_tensors(ours[key], theirs[key]) for key in theirs if isinstance(key, str))
    return 0


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_drawn_checkpoints_have_the_values_of_pytorch_or_are_refused(tmp_path):
    path, compared = tmp_path / "a.pt", 0
    for number in range(600):
        path.write_bytes(drawn(number))
        try:
            theirs = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
            ours = read_torch(path)
        except Exception:  # PyTorch or we refuse it
            continue
        compared += found_tensors(ours, theirs)
    assert compared > 200
