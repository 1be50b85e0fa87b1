"""Small sound files in every format that is read, and changes of them that know how the format is built."""

import io
import itertools
import json
import pickle
import pickletools
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.convert.test_torch_file import ORDERED_DICT, Call, Global, Opcodes, encode, pickled, storage, tensor

Random = random.Random
Arrays = dict[str, np.ndarray]

MAGIC = 0x1950A86A20F9469CFC6C


@dataclass(frozen=True)
class Mutant:
    """A file that is to be read or refused.

    Attributes:
        container: its format.
        content: its bytes.
        suffix: of its name.
        expected: the arrays, where checksums tell whether they are the same.
    """

    container: str
    content: bytes
    suffix: str = ""
    expected: Arrays | None = None


ARRAYS: Arrays = {
    "blocks.0.weight": np.arange(24, dtype=np.float32).reshape(4, 6),
    "blocks.0.bias": np.array([0.1, -2.0, 3e8]),
    "half": np.arange(5, dtype=np.float16),
    "count": np.array(7),
    "flags": np.array([True, False]),
}

NUMBERS = [
    0,
    1,
    -1,
    2,
    255,
    256,
    65535,
    1 << 20,
    1 << 30,
    (1 << 31) - 1,
    -(1 << 31),
    1 << 40,
    (1 << 63) - 1,
    1 << 63,
]
NAMES = ["", "a", "blocks.0.weight", "__class__", "\x1b[31m", "é", "\ud800", "x" * 2000, "../../a", "0", "model"]
HOSTILE = [
    "os system", "posix system", "subprocess Popen", "builtins eval", "builtins exec", "builtins getattr",
    "builtins __import__", "importlib import_module", "torch load", "torch.storage _load_from_bytes",
    "pickle loads", "numpy load", "functools partial", "operator attrgetter", "copyreg _reconstructor",
    "webbrowser open", "socket create_connection", "runpy run_path", "yacs.config CfgNode",
    "pathlib PosixPath", "datetime datetime", "collections defaultdict", "collections OrderedDict",
    "torch.nn.modules.loss CrossEntropyLoss", "builtins bytes", "builtins bytearray", "builtins set",
    "builtins frozenset", "builtins complex", "builtins dict", "torch device", "torch Size",
    "torch FloatStorage", "torch.storage UntypedStorage", "torch Tensor", "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3", "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_parameter_with_state", "torch._tensor _rebuild_from_type_v2", "numpy dtype",
    "torch._utils _rebuild_device_tensor_from_numpy", "numpy ndarray", "numpy.core.multiarray _reconstruct",
    "numpy.core.multiarray scalar", "numpy._core.numeric _frombuffer", "_codecs encode", "argparse Namespace",
    "collections Counter", "torch bfloat16", "torch uint16", "torch float8_e4m3fn",
]  # fmt: skip


# --- Pickles ---


def tokens_of(pickle_: bytes) -> list[bytes]:
    """The opcodes of a pickle, each with its argument."""
    places = [place for _, _, place in pickletools.genops(pickle_)] + [len(pickle_)]
    return [pickle_[start:end] for start, end in itertools.pairwise(places)]


def _token(rng: Random) -> bytes:
    """Any opcode, with a likely or an unlikely argument."""
    kind = rng.randrange(8)
    if kind == 0:
        return b"c" + rng.choice(HOSTILE).replace(" ", "\n").encode() + b"\n"
    if kind == 1:
        return rng.choice(
            [
                lambda n: b"J" + struct.pack("<i", max(min(n, (1 << 31) - 1), -(1 << 31))),
                lambda n: b"\x8a\x09" + n.to_bytes(9, "little", signed=True),
                lambda n: (
                    b"\x8b" + struct.pack("<i", rng.choice([-1, 9, 1 << 30])) + n.to_bytes(9, "little", signed=True)
                ),
                lambda n: b"I%d\n" % n,
                lambda n: b"G" + struct.pack(">d", float(n)),
            ]
        )(rng.choice(NUMBERS))
    if kind == 2:
        text = rng.choice(NAMES).encode("utf-8", "surrogatepass")
        return rng.choice([b"X", b"T", b"B"]) + struct.pack("<I", len(text)) + text
    if kind == 3:
        return rng.choice([b"h", b"q", b"K"]) + bytes([rng.randrange(40)])
    if kind == 4:
        return rng.choice([b"r", b"j", b"X", b"B", b"T"]) + struct.pack(
            "<I", rng.choice([0, 5, 1 << 20, (1 << 32) - 1])
        )
    if kind == 5:
        return rng.choice([b"\x95", b"\x8d", b"\x8e", b"\x96"]) + struct.pack("<Q", rng.choice([0, 3, 1 << 62]))
    if kind == 6:
        return bytes([rng.randrange(256)])
    return rng.choice([*b"()]}012Rbdeolastu.NQ\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94"]).to_bytes(
        1, "little"
    )


def _like(token: bytes, rng: Random) -> bytes:
    """Another value of the kind of a token: a number, a text, a constant or a global."""
    code = token[:1]
    if code in (b"K", b"M", b"J"):
        number = rng.choice([*NUMBERS[:12], rng.randrange(30), rng.randrange(30)])
        return b"J" + struct.pack("<i", max(min(number, (1 << 31) - 1), -(1 << 31)))
    if code in (b"N", b"\x88", b"\x89"):
        return rng.choice([b"N", b"\x88", b"\x89", b"K\1", b")", b"}"])
    if code in (b"X", b"\x8c"):
        text = rng.choice([*NAMES, *ARRAYS, "storage", "conj", "neg", "cpu", "f8", ">", "<", "O8"])
        return b"X" + struct.pack("<I", len(content := text.encode("utf-8", "surrogatepass"))) + content
    if code == b"c":
        return b"c" + rng.choice(HOSTILE).replace(" ", "\n").encode() + b"\n"
    return token


def exchange_tokens(tokens: list[bytes], rng: Random) -> list[bytes]:
    """Numbers, texts, constants and globals exchanged for others of their kind."""
    places = [place for place, token in enumerate(tokens) if token[:1] in b"KMJN\x88\x89X\x8cc"]
    tokens = list(tokens)
    for place in rng.choices(places, k=rng.choice([1, 1, 2, 4])) if places else []:
        tokens[place] = _like(tokens[place], rng)
    return tokens


def mutate_tokens(tokens: list[bytes], rng: Random) -> list[bytes]:
    """Opcodes left out, repeated, moved, exchanged, nested and added."""
    tokens = list(tokens)
    if rng.random() < 0.4:
        return exchange_tokens(tokens, rng)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
        place = rng.randrange(len(tokens) + 1)
        end = min(len(tokens), place + rng.choice([1, 1, 2, 5, 20]))
        kind = rng.randrange(9)
        if kind == 0:
            del tokens[place:end]
        elif kind == 1:
            tokens[place:place] = tokens[place:end]
        elif kind == 2:
            other = rng.randrange(len(tokens) + 1)
            tokens[other:other] = tokens[place:end]
        elif kind in (3, 4):
            tokens[place:place] = [_token(rng)]
        elif kind in (5, 6):
            tokens[place:end] = [_token(rng)]
        elif kind == 7:  # nested, or doubled again and again
            count = rng.choice([3, 50, 300, 3000, 30_000])
            opener, closer = rng.choice(
                [(b"", b"\x85"), (b"(", b"t"), (b"]", b"a"), (b"", b"2\x86"), (b"(", b"\x91")]
            )
            callee = b"c" + rng.choice(HOSTILE).replace(" ", "\n").encode() + b"\n"
            doubled = [callee, _token(rng)] + [b"q\x01", b"0", callee, b"h\x01", b"h\x01", b"\x86", b"R"] * min(
                count, 300
            )
            tokens[place:place] = doubled if rng.random() < 0.3 else [opener] * count + [b"N"] + [closer] * count
        else:
            tokens[place:place] = [rng.choice([b"}", b")", b"]", b"N0", b"]\x94", b"(", b"(l"])] * rng.choice(
                [10, 1000]
            )
    return tokens


def mutate_pickle(content: bytes, rng: Random) -> bytes:
    """A pickle with other opcodes."""
    return b"".join(mutate_tokens(tokens_of(content), rng))


def training_state(arrays: Arrays) -> dict[str, object]:
    """A checkpoint with weights, views, and objects beside them."""
    weight = arrays["blocks.0.weight"]
    history = Opcodes(
        encode(Global("mmengine.logging.history_buffer", "HistoryBuffer")) + b")\x81" + encode({"n": 1}) + b"b"
    )
    factory = Opcodes(
        encode(Global("collections", "defaultdict")) + b"(" + encode(Global("builtins", "list")) + b"tR"
    )
    parameter = Call(Global("torch._utils", "_rebuild_parameter"), (tensor("half", arrays["half"]), True, None))
    negated = Call(
        Global("torch._utils", "_rebuild_tensor_v2"),
        (storage("blocks.0.weight", weight), 1, (2, 3), (3, 1), False, Call(ORDERED_DICT, ()), {"neg": True}),
    )
    return {
        "state_dict": {name: tensor(name, array) for name, array in arrays.items()}
        | {"parameter": parameter, "negated": negated},
        "epoch": 3,
        "meta": {"history": history, "more": factory, "device": Call(Global("torch", "device"), ("cuda", 0))},
        "optimizer": {"state": {0: {"step": 5, "exp_avg": tensor("half", arrays["half"])}}, ("a", 1): {1, 2}},
    }


def zip_of(members: dict[str, bytes], rng: Random | None = None) -> bytes:
    """An archive; with `rng` one that says something else of its members than is true."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive, warnings.catch_warnings(action="ignore"):
        for name, content in members.items():
            deflated = rng is not None and rng.random() < 0.2
            archive.writestr(name, content, zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED)
            if rng is not None and rng.random() < 0.03:
                archive.writestr(rng.choice([name, name + "/", name.upper()]), content[::-1])
    content = bytearray(stream.getvalue())
    if rng is not None and rng.random() < 0.3:
        marks = [b"PK\1\2", b"PK\3\4", b"PK\5\6"]
        places = [place for mark in marks for place in range(len(content)) if content[place : place + 4] == mark]
        place = rng.choice(places) + rng.randrange(4, 40)
        value = rng.choice([b"\0", b"\1", b"\xff", b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\x7f"])
        content[place : place + len(value)] = value
    return bytes(content)


def torch_members(arrays: Arrays) -> dict[str, bytes]:
    """The members of an archive by torch.save."""
    return {
        "archive/data.pkl": pickled(training_state(arrays)),
        "archive/byteorder": b"little",
        "archive/version": b"3\n",
        **{f"archive/data/{name}": array.tobytes() for name, array in arrays.items()},
    }


def torch_zip(rng: Random) -> bytes:
    """A PyTorch archive with another pickle, other records or another directory."""
    members = torch_members(ARRAYS)
    if rng.random() < 0.8:
        members["archive/data.pkl"] = mutate_pickle(members["archive/data.pkl"], rng)
    else:
        name = rng.choice([*members])
        content = members[name]
        change = rng.randrange(5)
        if change == 0:
            del members[name]
        elif change == 1:
            members[name] = content[: rng.randrange(len(content) + 1)]
        elif change == 2:
            members[name] = content + bytes(rng.choice([1, 8, 100_000]))
        elif change == 3:
            members[rng.choice(["archive/code/x.py", "archive/constants.pkl", "other/data.pkl", "a.npy"])] = content
        else:
            members["archive/byteorder"] = rng.choice([b"big", b"middle", b"", b"x" * 1000])
    return zip_of(members, rng)


def legacy_parts(tree: object, keys: dict[str, np.ndarray]) -> tuple[list[bytes], list[bytes]]:
    """The pickles and the storages of a file of the legacy format."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    pickles = [pickled(node) for node in (MAGIC, 1001, system, tree, [*keys])]
    return pickles, [array.size.to_bytes(8, "little") + array.tobytes() for array in keys.values()]


def torch_legacy(rng: Random) -> bytes:
    """A legacy file with other pickles or storages."""
    pickles, storages = legacy_parts(training_state(ARRAYS), ARRAYS)
    if rng.random() < 0.8:
        place = rng.choice([0, 1, 2, 3, 3, 3, 3, 3, 4, 4])
        pickles[place] = mutate_pickle(pickles[place], rng)
    else:
        place = rng.randrange(len(storages))
        size = rng.choice(NUMBERS) & ((1 << 64) - 1)
        storages[place] = rng.choice([b"", size.to_bytes(8, "little") + storages[place][8:], storages[place] * 2])
    return b"".join(pickles + storages)


def plain_pickle(rng: Random) -> bytes:
    """A plain pickle of arrays, or of tensors, with other opcodes."""
    if rng.random() < 0.5:
        return mutate_pickle(pickle.dumps({"model": ARRAYS, "epoch": 3}, protocol=rng.choice([2, 3, 4, 5])), rng)
    array = ARRAYS["blocks.0.weight"]
    inner = legacy_parts(storage("0", array), {"0": array})
    if rng.random() < 0.5:
        inner[0][3] = mutate_pickle(inner[0][3], rng)
    content = b"".join([*inner[0], *inner[1]])
    raw = Opcodes(b"B" + struct.pack("<I", len(content)) + content)
    loaded = Call(Global("torch.storage", "_load_from_bytes"), (raw,))
    rebuilt = Call(
        Global("torch._utils", "_rebuild_tensor_v2"), (loaded, 0, (4, 6), (6, 1), False, Call(ORDERED_DICT, ()))
    )
    return mutate_pickle(pickled({"model": {"w": rebuilt}}), rng)


# --- Texts ---

_YAML = """net_kwargs: &net {n_heads: 1, n_layers: 1, d_model: 64, patch_size: 2, image_size: !!python/tuple [6, 6]}
dataset_kwargs: {dataset: ade20k, normalization: vit}
inference_kwargs: {<<: *net, window_size: 6}
mean: [0.5, 0.5, .nan]
"""
_PIECES = [
    "&a ", "*a", "<<: *net", "!!int ''", "!!bool x", "!!timestamp x", "!!python/tuple [[1]]", "!!binary x",
    "!!python/object/apply:os.system ['true']", "!!set {a, a}", "!!omap [a: 1]", "!!pairs [a: 1]", "? ", "- ", ": ",
    "[", "]", "{", "}", "'", '"', "\n", "  ", "#", "|", ">", "%YAML 1.1", "---", "...", "1:1:1", ".inf", ".nan",
    "0x" + "f" * 50, "9" * 5000, "1e999", "\t", "\x00", "\x1b", "\ufeff", "é", "null", "~", "{a: 1, a: 2}",
    "NaN", "Infinity", "-", '"\\ud800"', "[" * 300, "[" * 20_000, "{a: " * 300, "1" + ":1" * 300 + ".5",
]  # fmt: skip


def laughs(rng: Random) -> str:
    """Anchors of anchors."""
    depth, width = rng.randrange(2, 12), rng.randrange(2, 9)
    lists = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]\n" for i in range(1, depth)]
    return f"a0: &a0 [{', '.join('x' * width)}]\n" + "".join(lists)


def mutate_text(text: str, rng: Random) -> str:
    """Pieces of syntax added, left out and exchanged."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        place = rng.randrange(len(text) + 1)
        end = min(len(text), place + rng.choice([0, 0, 1, 3, 20]))
        piece = rng.choice([*_PIECES, text[place:end], laughs(rng)])
        text = text[:place] + piece + text[end:]
    return text


def yaml_settings(rng: Random) -> bytes:
    """A variant.yml."""
    return mutate_text(laughs(rng) + _YAML if rng.random() < 0.2 else _YAML, rng).encode("utf-8", "surrogatepass")


def json_settings(rng: Random) -> bytes:
    """A config.json."""
    text = json.dumps(
        {"hidden_size": 64, "id2label": {"0": "a", "1": "b"}, "image_mean": [0.5, 0.5, 0.5], "eps": 1e-6}
    )
    return mutate_text(text, rng).encode("utf-8", "surrogatepass")


def python_config(rng: Random) -> bytes:
    """A config of mmsegmentation."""
    text = _PYTHON
    if rng.random() < 0.2:
        width = rng.randrange(2, 30)
        text += "".join(f"a{i} = [{', '.join([f'a{i - 1}'] * width)}]\n" for i in range(rng.randrange(2, 300)))
    for _ in range(rng.choice([1, 1, 2, 4])):
        place = rng.randrange(len(text) + 1)
        end = min(len(text), place + rng.choice([0, 0, 1, 3, 20]))
        piece = rng.choice([*_PYTHON_PIECES, text[place:end]]) * rng.choice([1, 1, 1, 3, 300, 20_000])
        text = text[:place] + piece[:100_000] + text[end:]
    return text.encode("utf-8", "surrogatepass")


_PYTHON = """
norm = dict(type="LN", eps=1e-6)
model = dict(
    backbone=dict(type="VisionTransformer", num_heads=4, patch_size=16, norm_cfg=norm, num_layers=12),
    test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(480, 480)),
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[1.0, 2.0, 3.0], bgr_to_rgb=True),
)
"""
_PYTHON_PIECES = (
    *(
        "[",
        "(",
        "{",
        "]",
        ")",
        "}",
        "-",
        "1+",
        "not ",
        "~",
        "**{}",
        "*[]",
        "lambda: ",
        "x.",
        "f'{",
        "'",
        '"""',
        "\\",
    ),
    *(
        "dict(",
        "dict(a=",
        "model",
        "norm",
        "a0",
        "0x",
        "1e999",
        "9" * 50,
        "None",
        "...",
        "b''",
        "1j",
        ":=",
        "\0",
        "\x1b",
    ),
    *("_base_ = '../x.py'\n", "_base_ = ['mutant.py']\n", "_base_ = norm\n", "_delete_=True, ", "__import__('os')"),
    *(
        "import os\n",
        "with read_base():\n    x\n",
        "eval('1')",
        "\n",
        ";",
        ",",
        "\ud800",
        "# -*- coding: utf_7 -*-\n",
    ),
)


# --- Other containers ---


def safetensors_file(rng: Random) -> bytes:
    """A safetensors file with another header."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    codes = {"float32": "F32", "float64": "F64", "float16": "F16", "int64": "I64", "bool": "BOOL"}
    for name, array in ARRAYS.items():
        end = len(data) + array.nbytes
        header[name] = {"dtype": codes[array.dtype.name], "shape": [*array.shape], "data_offsets": [len(data), end]}
        data += array.tobytes()
    kind = rng.randrange(6)
    entry = header[rng.choice([*ARRAYS])]
    if kind == 0:
        entry["shape"] = [rng.choice(NUMBERS) for _ in range(rng.randrange(5))]
    elif kind == 1:
        entry["data_offsets"] = [rng.choice([*NUMBERS, 0.5, None, "0"]) for _ in range(rng.randrange(4))]
    elif kind == 2:
        entry[rng.choice([*entry])] = rng.choice([None, "F32", "I8", "F6_E2M3", [], {}, 1, [[]], "\n"])
    elif kind == 3:
        header["__metadata__"] = rng.choice([None, 1, [], {"a": 1}, {"a": "b" * 10_000}, {"a": {}}])
    text = json.dumps(header, separators=(",", ":"))
    text = mutate_text(text, rng) if kind >= 4 else text
    encoded = text.encode("utf-8", "surrogatepass")
    size = rng.choice([len(encoded)] * 8 + [len(encoded) + 1, 0, 1 << 40, (1 << 64) - 1])
    return size.to_bytes(8, "little") + encoded + data[: rng.choice([len(data)] * 5 + [len(data) // 2])]


def npy_of(array: np.ndarray) -> bytes:
    """A .npy file."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz_file(rng: Random) -> bytes:
    """An archive of NumPy with other members."""
    members = {f"{name}.npy": npy_of(array) for name, array in ARRAYS.items()}
    name = rng.choice([*members])
    content = members[name]
    kind = rng.randrange(6)
    if kind == 0:
        shape = ", ".join(str(rng.choice(NUMBERS)) for _ in range(rng.randrange(5))).encode()
        members[name] = content.replace(b"'shape': (", b"'shape': (" + shape, 1)
    elif kind == 1:
        members[name] = content.replace(
            b"'<f4'", rng.choice([b"'|O'", b"'<U3'", b"'>f8'", b"[('a', '<f4')]", b"'c1'", b"'f9'"])
        )
    elif kind == 2:
        header = rng.choice([b"(" * 3000, b"__import__('os')", b"1" * 9000, b"{}", b"\xff", b"{'descr': 1}"])
        members[name] = content[:8] + struct.pack("<H", len(header)) + header + content[-24:]
    elif kind == 3:
        members[name] = content[: rng.randrange(len(content))]
    elif kind == 4:
        members[rng.choice([name.removesuffix(".npy"), "x.txt", "/" + name])] = content
    else:
        members[name] = bytes([*content[:6], rng.randrange(5), *content[7:]])
    return zip_of(members, rng)


def _varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    found = b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


Message = list[tuple[int, "int | bytes | Message"]]


def protobuf(message: Message) -> bytes:
    """A message, whose fields are numbers, bytes or messages."""
    found = b""
    for number, value in message:
        if isinstance(value, int):
            found += _varint(number << 3) + _varint(value)
        else:
            content = protobuf(value) if isinstance(value, list) else value
            found += _varint(number << 3 | 2) + _varint(len(content)) + content
    return found


def onnx_message(arrays: Arrays) -> Message:
    """A model of initializers and a node."""
    codes = {"float32": 1, "float64": 11, "float16": 10, "int64": 7, "bool": 9}
    tensors: Message = [
        (
            5,
            [
                *((1, n) for n in array.shape),
                (2, codes[array.dtype.name]),
                (8, name.encode()),
                (9, array.tobytes()),
            ],
        )
        for name, array in arrays.items()
    ]
    typed: Message = [(5, [(1, 2), (2, 1), (8, b"onnx::MatMul_3"), (4, np.ones(2, "<f4").tobytes())])]
    node: Message = [
        (1, [(1, b"x"), (1, b"onnx::MatMul_3"), (2, b"y"), (3, b"/blocks.0/fc/MatMul"), (4, b"MatMul")])
    ]
    return [(1, 8), (7, [*node, (2, b"main"), *tensors, *typed]), (8, [(2, 17)])]


def mutate_message(message: Message, rng: Random) -> Message:
    """Fields left out, repeated, exchanged, renumbered, nested and added, at any level."""
    message = list(message)
    place = rng.randrange(len(message)) if message else 0
    if message and isinstance(message[place][1], list) and rng.random() < 0.8:
        message[place] = (message[place][0], mutate_message(message[place][1], rng))
        return message
    kind = rng.randrange(7)
    if kind == 0 and message:
        del message[place]
    elif kind == 1 and message:
        message[place:place] = [message[place]] * rng.choice([1, 2, 100])
    elif kind == 2 and message:
        message[place] = (rng.randrange(1, 20), message[place][1])
    elif kind == 3 and message:
        number = message[place][0]
        message[place] = (number, rng.choice([*NUMBERS, b"", b"x", b"\xff" * 9, rng.randbytes(20), [(1, 1)]]))
    elif kind == 4:
        message.append(
            rng.choice([(13, [(1, b"location"), (2, b"/dev/zero")]), (14, 1), (6, b"text"), (2, 8), (3, [(1, 0)])])
        )
    elif kind == 5:
        deep: Message = [(7, b"")]
        for _ in range(rng.choice([10, 1000])):
            deep = [(rng.choice([1, 5, 7]), protobuf(deep))]
        message += deep
    else:
        message += [(rng.choice([1, 4, 5, 7, 9]), rng.choice([0, b""]))] * rng.choice([100, 10_000])
    return message


def onnx_file(rng: Random) -> bytes:
    """An ONNX model with other fields."""
    return protobuf(mutate_message(onnx_message(ARRAYS), rng))


def flipped(content: bytes, rng: Random) -> bytes:
    """Bytes flipped, cut off, left out, doubled or overwritten, by no knowledge of the format."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        place = rng.randrange(len(changed) + 1)
        kind = rng.randrange(5)
        if kind <= 1 and place < len(changed):
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del changed[place : place + rng.choice([1, 4, 100])]
        elif kind == 3:
            changed[place:place] = changed[place : place + rng.choice([1, 4, 100])]
        else:
            value = rng.choice(
                [b"\0", b"\xff", b"\0" * 8, b"\xff" * 8, zlib.crc32(bytes(changed)).to_bytes(4, "little")]
            )
            changed[place : place + len(value)] = value
    return bytes(changed)


BUILDERS: dict[str, Callable[[Random], bytes]] = {
    "torch zip": torch_zip,
    "torch legacy": torch_legacy,
    "plain pickle": plain_pickle,
    "safetensors": safetensors_file,
    "npz": npz_file,
    "onnx": onnx_file,
    "yaml": yaml_settings,
    "json": json_settings,
    "python": python_config,
}
SUFFIXES = {"yaml": ".yml", "json": ".json", "python": ".py"}
"""Of the files of settings."""


def sound(container: str) -> bytes:
    """A file of a container as it should be."""
    if container == "torch zip":
        members = torch_members(ARRAYS)
        members["archive/data.pkl"] = pickled({"state_dict": {n: tensor(n, a) for n, a in ARRAYS.items()}})
        return zip_of(members)
    if container == "npz":
        return zip_of({f"{name}.npy": npy_of(array) for name, array in ARRAYS.items()})
    if container == "onnx":
        return protobuf(onnx_message(ARRAYS))
    if container == "plain pickle":
        return pickle.dumps({"model": ARRAYS}, protocol=4)
    if container == "torch legacy":
        pickles, storages = legacy_parts(training_state(ARRAYS), ARRAYS)
        return b"".join(pickles + storages)
    texts = {"yaml": _YAML.encode(), "json": b'{"a": [1, {"b": null}]}', "python": _PYTHON.encode()}
    return texts[container] if container in texts else _sound_safetensors()


def _sound_safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).replace(" ", "").encode()
    return len(header).to_bytes(8, "little") + header + np.arange(6, dtype="<f4").tobytes()


def mutant(seed: int, number: int) -> Mutant:
    """The mutant of a number, always the same of the same seed."""
    rng = Random(f"{seed}/{number}")
    container = [*BUILDERS][number % len(BUILDERS)]
    suffix = SUFFIXES.get(container, "")
    if rng.random() < 0.2:
        has_checksums = container in ("torch zip", "npz")
        return Mutant(container, flipped(sound(container), rng), suffix, ARRAYS if has_checksums else None)
    return Mutant(container, BUILDERS[container](rng), suffix)
