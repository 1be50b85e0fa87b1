"""Files that exceed the budget of their reader: refused in one sentence, before the work is done."""

import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from checkpoints_convert.budget import LIMITS
from checkpoints_convert.errors import CheckpointError, in_one_sentence
from checkpoints_convert.files import read
from checkpoints_convert.rules import Recipe, build_parameter, special_tokens, without_batch
from checkpoints_convert.settings import read_settings
from tests.convert.test_files import npy
from tests.convert.test_torch_file import Call, Global, encode, tensor, write_zip

HEAD, NAME = b"\x80\x02", b"X\x01\0\0\0w"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint"


def refusal(path: Path, text: str, **options: bool) -> None:
    with pytest.raises(CheckpointError, match=text) as error:
        read(path, **options)
    assert str(error.value).isprintable() and len(str(error.value)) < 1500


def function(module: str, name: str) -> bytes:
    return encode(Global(module, name))


def integer(number: int) -> bytes:
    return b"J" + struct.pack("<i", number)


LIMIT = "expected a file within the limits of its reader, got more than [0-9,]+ "
SMALL_LIMITS = {"steps": 400_000, "objects": 30_000, "keys that are tuples or no plain numbers": 1000}
"""The limits of most tests here: what passes them is the same, but quick."""

SHARED = 200
"""Times that a value of as many parts is used."""
PARTS = b"".join(integer(number) for number in range(SHARED))
ITEMS = b"".join(integer(number) + b"N" for number in range(SHARED))
PAIRS = b"".join(b"]q\2(" + integer(number) + b"Ne" for number in range(SHARED))


def used(value: bytes, use: bytes) -> bytes:
    """A mapping of what is made of a shared value, again and again."""
    uses = b"".join(integer(number) + use for number in range(SHARED))
    return HEAD + b"}(" + value + b"q\1" + b"0" + uses + b"u."


REBUILD = function("torch._utils", "_rebuild_tensor_v2")
EMPTY = encode(
    Call(Global("numpy._core.numeric", "_frombuffer"), (b"", Call(Global("numpy", "dtype"), ("f4",)), (0,), "C"))
)
MEGABYTE = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20)
LATIN = b"X\6\0\0\0latin1"
ORDERED, SET = function("collections", "OrderedDict"), function("builtins", "set")
ENCODE = function("_codecs", "encode")
LONG = b"\x8b" + struct.pack("<i", 1 << 20) + b"\1" * (1 << 20)

SCALAR = Global("numpy._core.multiarray", "scalar")
C16 = Call(Global("numpy", "dtype"), ("c16", False, True))
COLLIDING = b"".join(b"\x8a\x0a" + (((1 << 61) - 1) * n).to_bytes(10, "little") + b"N" for n in range(1, 2000))
COMPLEX = b"".join(
    encode(SCALAR) + encode((C16, np.complex128(complex(-1000003 * n, n)).tobytes())) + b"RN"
    for n in range(1, 1500)
)

HUGE = {
    "a deep tuple as a key": (HEAD + b"}" + b")" + b"\x85" * 20_000 + b"Ns.", LIMIT + "levels"),
    "a deep tuple in a set": (HEAD + b"\x8f(" + b")" + b"\x85" * 20_000 + b"\x90.", LIMIT + "levels"),
    "a deep list": (HEAD + b"}" + NAME + b"]" * 20_000 + b"a" * 19_999 + b"s.", LIMIT + "levels"),
    "deep mappings": (HEAD + b"}" + (NAME + b"}") * 300 + b"s" * 300 + b".", LIMIT + "levels"),
    "deep arguments": (HEAD + b"}" + NAME + ORDERED * 300 + b")R" + b"\x85R" * 299 + b"s.", LIMIT + "levels"),
    "calls of calls": (HEAD + b"}" + NAME + ORDERED + b")R" * 20_000 + b"s.", "expected a value"),
    "a key of doubled tuples": (HEAD + b"}" + b")" + b"2\x86" * 60 + b"Ns.", "keys that are texts or numbers"),
    "a set of doubled tuples": (HEAD + b"}" + NAME + b"\x8f(" + b")" + b"2\x86" * 60 + b"\x90s.", "keys that are"),
    "keys of one hash": (HEAD + b"}(" + COLLIDING + b"u.", LIMIT + "keys"),
    "complex keys of one hash": (HEAD + b"}(" + COMPLEX + b"u.", LIMIT + "keys"),
    "tuples as keys": (HEAD + b"}(" + b"".join(integer(n) + b"\x85N" for n in range(2000)) + b"u.", LIMIT + "keys"),
    "a text encoded often": (used(MEGABYTE, ENCODE + b"h\1" + LATIN + b"\x86R"), LIMIT + "bytes"),
    "bytes copied often": (used(b"B" + MEGABYTE[1:], b"h\1"), LIMIT + "bytes"),
    "pairs copied often": (used(b"](" + PAIRS + b"e", ORDERED + b"h\1\x85R"), LIMIT + "objects"),
    "arguments used often": (used(b"(" + PARTS * 30 + b"t", ORDERED + b"h\1R"), LIMIT + "steps"),
    "a state used often": (
        used(b"(" + PARTS * 30 + b"t", function("argparse", "Namespace") + b")\x81h\1b"),
        LIMIT + "steps",
    ),
    "arguments of objects used often": (
        used(b"(" + PARTS * 30 + b"t", function("pathlib", "Path") + b"h\1R"),
        LIMIT + "steps",
    ),
    "a size used often": (
        used(b"(" + PARTS * 30 + b"t", REBUILD + b"(" + EMPTY + b"K\0h\1h\1\x89NtR"),
        "a tensor's size and strides",
    ),
    "a set copied often": (used(b"](" + PARTS + b"e", SET + b"h\1\x85R"), LIMIT + "objects"),
    "a state copied often": (
        used(b"}(" + ITEMS + b"u", function("argparse", "Namespace") + b")\x81h\1b"),
        LIMIT + "objects",
    ),
    "bytes of bytes": (
        HEAD + b"}" + NAME + b"C\1aq\1" + (b"0" + function("builtins", "bytes") + b"h\1h\1\x86Rq\1") * 50 + b"s.",
        "expected bytes",
    ),
    "a device of devices": (
        HEAD + b"}" + NAME + NAME + b"q\1" + (b"0" + function("torch", "device") + b"h\1h\1\x86Rq\1") * 50 + b"s.",
        "the name of a device",
    ),
    "marks": (HEAD + b"(" * 40_000 + b".", LIMIT + "objects"),
    "empty mappings": (HEAD + b"}" * 40_000 + b".", LIMIT + "objects"),
    "a memo": (HEAD + b"N" + b"\x94" * 40_000 + b".", LIMIT + "objects"),
    "steps": (HEAD + b"}" + b"N0" * 200_000 + b".", LIMIT + "steps"),
    "a huge number": (HEAD + b"}" + NAME + LONG + b"s.", "damaged"),
    "a number of many digits": (HEAD + b"}" + NAME + b"L" + b"9" * 5000 + b"L\ns.", "damaged"),
    "a long name of a global": (HEAD + b"c" + b"x" * (1 << 20) + b"\ny\n.", "damaged"),
    "a name with escapes": (HEAD + b"c\x1b[2J\x07\nsystem\n.", r"the global '.x1b\[2J.x07\.system', which is"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "text"), HUGE.values(), ids=HUGE)
def test_pickles_that_ask_for_too_much(
    path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, text: str
) -> None:
    for what, limit in SMALL_LIMITS.items():
        monkeypatch.setitem(LIMITS, what, limit)
    path.write_bytes(content)
    refusal(path, text)


def test_the_limits_hold_for_files_of_millions_of_steps(path: Path) -> None:
    assert {name: limit for name, limit in LIMITS.items() if name in SMALL_LIMITS} == {
        "steps": 5_000_000,
        "objects": 1_000_000,
        "keys that are tuples or no plain numbers": 10_000,
    }
    path.write_bytes(HEAD + b"(" * 1_100_000 + b".")
    refusal(path, LIMIT + "objects")


def test_objects_that_are_left_out_may_be_deep_and_hold_themselves(path: Path) -> None:
    thing = function("my", "Thing")
    deep = (thing + b")R") * 100_000 + b"b" * 99_999
    around = thing + b")\x81q\1" + b"}" + NAME + b"h\1s" + b"b"
    weight = np.ones(2, np.float32)
    array = encode(Call(Global("torch", "Size"), ((1,),)))
    for node in (deep, around):
        path.write_bytes(HEAD + b"}" + b"(" + NAME + array + b"X\1\0\0\0x" + node + b"u.")
        refusal(path, "tensors by name", skip_objects=True)
    assert weight.size == 2


def test_what_many_objects_share_is_looked_through_once(path: Path) -> None:
    """Ten thousand objects of ten thousand parts."""
    array = np.ones(2, np.float32)
    node = function("yacs.config", "CfgNode")
    shared = b"](" + b"]" * 10_000 + b"eq\1" + b"0"
    objects = b"".join(b"X\6\0\0\0%06d" % number + node + b")\x81h\1b" for number in range(10_000))
    weight = NAME + encode(tensor("0", array))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", HEAD + shared + b"}(" + weight + objects + b"u.")
        archive.writestr("a/data/0", array.tobytes())
    assert read(path).skipped == {"yacs.config.CfgNode": 10_000}
    last = b"X\1\0\0\0z" + node + b")\x81" + encode([tensor("0", array)]) + b"b"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", HEAD + shared + b"}(" + weight + objects + last + b"u.")
        archive.writestr("a/data/0", array.tobytes())
    refusal(path, "nothing is read of objects, got 'z'")


def test_a_tuple_of_a_few_numbers_may_be_a_key(path: Path) -> None:
    array = np.ones(2, np.float32)
    write_zip(path, {"model": {"w": tensor("0", array)}, "state": {("a", (1, 2)): 3, 1 << 62: 4}}, {"0": array})
    assert read(path).keys() == {"w"}


def test_expanded_tensors_do_not_become_much_larger_than_the_file(path: Path) -> None:
    array = np.ones(1, np.float32)
    for size in ((1 << 40,), (1 << 15,)):
        write_zip(path, {"w": tensor("0", array, size, (0,))}, {"0": array})
        refusal(path, LIMIT + "bytes")
    write_zip(path, {str(n): tensor("0", array, (1 << 12,), (0,)) for n in range(30)}, {"0": array})
    refusal(path, LIMIT + "bytes")
    write_zip(path, {"w": tensor("0", array, (10, 10), (0, 0))}, {"0": array})
    np.testing.assert_array_equal(read(path)["w"], np.ones((10, 10)))


def test_negated_views_of_one_storage_are_counted(path: Path) -> None:
    array = np.ones(1 << 18, np.float32)
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    view = Call(rebuild, (*tensor("0", array).args[:6], {"neg": True}))
    write_zip(path, {str(number): view for number in range(80)}, {"0": array})
    refusal(path, LIMIT + "bytes")


def test_a_hundred_thousand_tensors(path: Path) -> None:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"w{number}": entry for number in range(100_000)}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    refusal(path, "300001 lists and objects in its header")
    pid = encode(("storage", Global("torch", "FloatStorage"), "0", "cpu", 0)) + b"Q"
    first = NAME + REBUILD + b"(" + pid + b"K\0" + b"K\0\x85" + b"K\1\x85" + b"\x89NtRq\1"
    others = b"".join(b"X\6\0\0\0%06d" % number + b"h\1" for number in range(60_000))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", HEAD + b"}(" + first + others + b"u.")
        archive.writestr("a/data/0", b"")
    refusal(path, LIMIT + "tensors")


def test_long_names_of_tensors(path: Path) -> None:
    array = np.ones(2, np.float32)
    write_zip(path, {"x" * 5_000_000: tensor("0", array)}, {"0": array})
    refusal(path, "names of tensors of up to 1000 characters")
    write_zip(path, {"x" * 600: {"y" * 600: tensor("0", array)}}, {"0": array})
    refusal(path, "names of tensors of up to 1000 characters")


# --- One name, one value ---


def members(path: Path, *pairs: tuple[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive, pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)
        for name, content in pairs:
            archive.writestr(name, content)


def test_two_tensors_of_one_name_are_refused_in_every_container(path: Path) -> None:
    array = np.ones(2, np.float32)
    item = NAME + encode(Call(Global("torch", "Size"), ((1,),)))
    path.write_bytes(HEAD + b"}(" + item + item + b"u.")
    refusal(path, "names that stand once in their mapping, got 'w' twice")
    path.write_bytes(HEAD + b"}" + item + b"s" + item + b"s.")
    refusal(path, "'w' twice")
    members(path, ("w.npy", npy(array)), ("w.npy", npy(array + 1)))
    refusal(path, "two called 'w.npy'")
    members(path, ("w.npy", npy(array)), ("w", npy(array + 1)))
    refusal(path, "two called 'w'")
    content = write_zip(path, {"w": tensor("0", array)}, {"0": array}).read_bytes()
    members(
        path, *[(info.filename, zipfile.ZipFile(path).read(info)) for info in zipfile.ZipFile(path).infolist()] * 2
    )
    assert path.read_bytes() != content
    refusal(path, "members of different names")
    entry = b'"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    header = b"{" + entry + b"," + entry + b"}"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\1")
    refusal(path, "a name that stands twice")
    nested = {"a.b": tensor("0", array), "a": {"b": tensor("0", array)}}
    write_zip(path, nested, {"0": array})
    refusal(path, "two called 'a.b'")


def test_one_storage_is_of_one_kind(path: Path) -> None:
    """`torch.load` reads all by the first mention."""
    array = np.ones(2, np.float32)
    double = Call(
        Global("torch._utils", "_rebuild_tensor_v2"),
        (encode_storage("0", "DoubleStorage", 1), 0, (1,), (1,), False, None),
    )
    write_zip(path, {"a": tensor("0", array), "b": double}, {"0": array})
    refusal(path, "the storage '0' to be of one kind and size")


def encode_storage(key: str, kind: str, numel: int) -> object:
    from tests.convert.test_torch_file import Persistent

    return Persistent(("storage", Global("torch", kind), key, "cpu", numel))


# --- Settings ---

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 60))
TEXTS = {
    "laughs": (LAUGHS + "net: *a11\n", LIMIT + "values"),
    "merges": (MERGES, LIMIT + "values"),
    "itself": ("a: &a [*a]", "an anchor that holds itself"),
    "deep": ("a: " + "[" * 100_000, "RecursionError"),
    "not quite as deep": ("a: " + "[" * 250 + "]" * 250, LIMIT + "levels|RecursionError"),
    "long": ("a: [" + "1, " * 100_000 + "1]", LIMIT + "bytes of YAML"),
    "twice": ("a: 1\nb: 2\na: 3", "a name that stands twice in a mapping"),
    "no integer": ("a: !!int ''", "ValueError|IndexError"),
    "no boolean": ("a: !!bool x", "KeyError"),
    "no date": ("a: !!timestamp x", "AttributeError|got"),
    "no float": ("a: 1" + ":1" * 300 + ".5", "a number of"),
    "digits": ("a: " + "9" * 5000, "a number of"),
    "a list in a tuple as a key": ("a: {? !!python/tuple [[1]] : 2}", "unhashable|TypeError|got"),
    "an object": ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
    "a name": ("a: !!python/name:os.system", "could not determine a constructor"),
    "escapes": ("a: !<\x85\u2028> 1", "got"),
}


@pytest.mark.parametrize(("text", "message"), TEXTS.values(), ids=TEXTS)
def test_settings_that_ask_for_too_much(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "variant.yml"
    path.write_text(text, "utf-8")
    with pytest.raises(CheckpointError, match=message) as error:
        read_settings(path)
    assert str(error.value).isprintable() and len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "a name that stands twice in an object"),
        ('{"a": ' + "[" * 100_000, "levels"),
        ('{"a": ' + "[" * 250 + "]" * 250 + "}", "levels"),
        ('{"a": ' + "9" * 5000 + "}", "ValueError"),
        ('{"a": [' + "[]," * 600_000 + "1]}", "objects"),
        ("[1]", "named settings"),
        ('{"a": "\x1b', "JSONDecodeError"),
    ],
    ids=["twice", "deep", "not quite as deep", "digits", "many", "list", "escape"],
)
def test_json_that_asks_for_too_much(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, "utf-8")
    with pytest.raises(CheckpointError, match=message) as error:
        read_settings(path)
    assert str(error.value).isprintable() and len(str(error.value)) < 1000


def test_anchors_are_allowed_where_they_are_small(tmp_path: Path) -> None:
    path = tmp_path / "variant.yml"
    path.write_text("a: &a {x: 1, y: [1, 2]}\nb: {<<: *a, x: 2}\nc: *a\nd: !!python/tuple [1, 2]\n")
    assert read_settings(path) == {
        "a": {"x": 1, "y": [1, 2]},
        "b": {"x": 2, "y": [1, 2]},
        "c": {"x": 1, "y": [1, 2]},
        "d": (1, 2),
    }


# --- From the file to the model ---


def test_no_parameter_is_made_from_complex_numbers() -> None:
    tensors = {"a": np.ones((1, 2, 3), np.complex64), "b": np.ones((1, 1, 3), np.float32)}
    for recipe in (Recipe((2, 3), ("a",), without_batch), Recipe((1, 3), ("a", "b"), special_tokens)):
        with pytest.raises(ValueError, match="a must hold floating-point numbers, got complex64"):
            build_parameter("w", recipe, tensors)


def test_what_python_raises_for_odd_shapes_becomes_one_sentence() -> None:
    @in_one_sentence
    def convert(source: str, number: object) -> float:
        return 1 / number

    assert convert("a.pth", 2) == 0.5

    @in_one_sentence
    def refuse(source: str) -> None:
        raise ValueError("not \x1b this")

    with pytest.raises(CheckpointError, match=r"^not .x1b this$"):
        refuse("a.pth")
    for number in (0, "x\x1b"):
        with pytest.raises(
            CheckpointError, match=r"^a\.pth: expected shapes and settings that make a model"
        ) as error:
            convert("a.pth", number)
        assert str(error.value).isprintable()
