"""Records the calls of a pickle without executing any.

A pickle is a program for a stack machine. This machine has all opcodes (CPython, `Lib/pickletools.py`), but records
a `Call` where the pickle calls something. Nothing is imported, called or hashed, and nested containers need no
recursion.
"""

import struct
from collections.abc import Callable
from typing import Any

from checkpoints_convert.budget import Budget, exceeded
from checkpoints_convert.errors import CheckpointError, check, unexpected

_LONGEST_LINE = 1 << 16
_LONGEST_INTEGER = 128
"""Bytes."""


class Global:
    """The name of a global. `is_object` says that it stands for something that is never built."""

    __slots__ = ("is_object", "name")

    def __init__(self, name: str, is_object: bool):
        self.name, self.is_object = name, is_object

    def __repr__(self) -> str:
        return self.name[:150]


class Call:
    """A call of a global, or of what another call would have made, with what the pickle put into the result.

    `name` and `is_object` are those of the global.
    """

    __slots__ = ("args", "function", "is_object", "items", "name", "pairs", "state")

    def __init__(self, function: "Global | Call", args: tuple[Any, ...]):
        self.function, self.args = function, args
        self.name, self.is_object = function.name, function.is_object
        self.state: Any = None
        self.pairs: list[Any] = []
        self.items: list[Any] = []


class Map:
    """A dict: its keys and values in turn."""

    __slots__ = ("pairs",)

    def __init__(self, pairs: list[Any]):
        self.pairs = pairs


class Bag:
    """A set or frozenset."""

    __slots__ = ("is_frozen", "items")

    def __init__(self, items: list[Any], is_frozen: bool):
        self.items, self.is_frozen = items, is_frozen


class Raw:
    """Bytes of the file, where they stand; `is_text` says that Python 2 wrote them, perhaps as a text."""

    __slots__ = ("data", "is_text")

    def __init__(self, data: memoryview, is_text: bool = False):
        self.data, self.is_text = data, is_text

    def __repr__(self) -> str:
        return f"{len(self.data)} bytes"

    def plain(self) -> bytes | str:
        """A copy."""
        return str(self.data, "latin1") if self.is_text else bytes(self.data)


class Storage:
    """A persistent id of torch.save. `view` is the legacy format's (key, offset, size)."""

    __slots__ = ("key", "kind", "numel", "view")

    def __init__(self, key: str, kind: Global, numel: int, view: tuple[str, int, int] | None):
        self.key, self.kind, self.numel, self.view = key, kind, numel, view


class Pickle:
    """Reads one pickle.

    Args:
        data: the file.
        start: where the pickle begins in it.
        budget: of the file.
        find: gives the `Global` of a name, or refuses it.

    Attributes:
        tree: what the pickle noted, of scalars, lists, tuples and the classes above.
        storages: the first mention of each.
        end: the place behind it in the file.

    Raises:
        CheckpointError: the pickle is cut short or damaged, or asks for what is refused or over the budget.
    """

    def __init__(self, data: memoryview, start: int, budget: Budget, find: Callable[[str], Global]):
        self._data, self.end, self._budget, self._find = data, start, budget, find
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._globals: dict[str, Global] = {}
        self._views: dict[str | int, tuple[str, int, int]] = {}
        self.storages: dict[str, Storage] = {}
        try:
            self._run()
            self.tree = self._stack[-1]
        except CheckpointError:
            raise
        except (IndexError, KeyError, ValueError, TypeError, struct.error) as error:
            raise CheckpointError(
                f"expected a pickle, got one that is cut short or damaged ({error} at byte {self.end})"
            ) from error
        finally:
            self._memo.clear()
            self._below.clear()

    def _run(self) -> None:
        limit = left = self._budget.left("steps")
        while True:
            code = self._data[self.end]
            self.end += 1
            left -= 1
            if code == _STOP:
                self._budget.spend("steps", limit - left)
                return
            if left < 0:
                raise exceeded("steps", limit)
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise ValueError(f"the opcode {code:#04x}")
            operation(self)

    def _take(self, size: int) -> memoryview:
        found = self._data[self.end : self.end + size]
        if size < 0 or len(found) != size:
            raise ValueError(f"{size} bytes expected, {len(found)} found")
        self.end += size
        return found

    def _number(self, code: str) -> int:
        return struct.unpack(code, self._take(struct.calcsize(code)))[0]

    def _line(self) -> bytes:
        size = 256
        while True:
            head = bytes(self._data[self.end : self.end + size])
            line, found, _ = head.partition(b"\n")
            if found:
                self.end += len(line) + 1
                return line
            if size > _LONGEST_LINE or len(head) < size:
                raise ValueError("a line without an end")
            size *= 2

    def _push(self, node: Any) -> None:
        self._budget.spend("objects")
        self._stack.append(node)

    def _marked(self) -> list[Any]:
        found, self._stack = self._stack, self._below.pop()
        return found

    def _global(self, name: str) -> Global:
        found = self._globals.get(name)
        if found is None:
            self._budget.spend("objects")
            found = self._globals[name] = self._find(name)
        return found

    # --- Opcodes ---

    def mark(self) -> None:
        self._budget.spend("objects")
        self._below.append(self._stack)
        self._stack = []

    def pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._marked()

    def dup(self) -> None:
        self._stack.append(self._stack[-1])

    def protocol(self) -> None:
        version = self._number("B")
        if version > 5:
            raise ValueError(f"version {version} of pickle")

    def integer_line(self) -> None:
        line = self._line()
        constants = {b"00": False, b"01": True}
        self._stack.append(constants[line] if line in constants else self._integer_of(line))

    def long_line(self) -> None:
        self._stack.append(self._integer_of(self._line().removesuffix(b"L")))

    def _integer_of(self, line: bytes) -> int:
        if len(line) > 2 * _LONGEST_INTEGER:
            raise ValueError(f"a number of {len(line)} digits")
        return int(line)

    def long(self, code: str) -> None:
        size = self._number(code)
        if size > _LONGEST_INTEGER:
            raise ValueError(f"a number of {size} bytes")
        self._stack.append(int.from_bytes(self._take(size), "little", signed=True))

    def text(self, code: str) -> None:
        self._stack.append(str(self._take(self._number(code)), "utf-8", "surrogatepass"))

    def raw(self, code: str, is_text: bool = False) -> None:
        self._push(Raw(self._take(self._number(code)), is_text))

    def tuple_of(self, size: int) -> None:
        if len(self._stack) < size:
            raise ValueError("a tuple of more than there is")
        items = tuple(self._stack[len(self._stack) - size :])
        del self._stack[len(self._stack) - size :]
        self._push(items)

    def append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Call) or (isinstance(target, Bag) and not target.is_frozen):
            target.items.extend(items)
        else:
            raise ValueError(f"items for a {type(target).__name__}")

    def set_items(self, pairs: list[Any]) -> None:
        target = self._stack[-1]
        if len(pairs) % 2 or not isinstance(target, Map | Call):
            raise ValueError(f"{len(pairs)} keys and values for a {type(target).__name__}")
        target.pairs.extend(pairs)

    def map_of(self) -> None:
        pairs = self._marked()
        self._push(Map([]))
        self.set_items(pairs)

    def put(self, index: int) -> None:
        if not 0 <= index <= self.end:
            raise ValueError(f"the memo index {index}")
        if index not in self._memo:
            self._budget.spend("objects")
        self._memo[index] = self._stack[-1]

    def get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def global_lines(self) -> Global:
        module, name = (self._line().decode() for _ in range(2))
        return self._global(f"{module}.{name}")

    def stack_global(self) -> None:
        name, module = [
            node.plain() if isinstance(node, Raw) else node for node in (self._stack.pop(), self._stack.pop())
        ]
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a global whose name is no text")
        self._stack.append(self._global(f"{module}.{name}"))

    def call(self, function: Any, args: Any) -> None:
        """REDUCE, NEWOBJ, INST and OBJ are all noted alike: none of them is done."""
        if not isinstance(args, tuple):
            raise ValueError("a call without arguments")
        is_member = isinstance(function, Global) and function.name in MEMBER and not function.is_object
        if is_member:
            of_object = len(args) == 2 and isinstance(args[0], Global | Call) and args[0].is_object
            check(of_object and isinstance(args[1], str), *refused(function.name))
        if not isinstance(function, Global | Call):
            raise ValueError(f"a call of a {type(function).__name__}")
        self._budget.spend("steps", len(args))  # of one tuple there may be many calls
        self._push(Call(args[0] if is_member else function, args))

    def call_marked(self) -> None:
        function, *args = self._marked()
        self.call(function, tuple(args))

    def new_with_names(self) -> None:
        names, args, function = self._stack.pop(), self._stack.pop(), self._stack.pop()
        self.call(function, args)
        made = self._stack[-1]
        if not made.is_object:
            raise ValueError("a call with named arguments")
        made.items.append(names)

    def build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if not isinstance(target, Call) or target.state is not None:
            raise ValueError(f"a state for a {type(target).__name__}")
        self._budget.spend("steps", len(state) if isinstance(state, tuple) else 0)
        target.state = state

    def persistent(self) -> None:
        pid = self._stack.pop()
        is_tuple = isinstance(pid, tuple) and len(pid) >= 5
        expected, got = "the persistent id of a storage", "another"
        check(is_tuple, expected, got)
        word, kind, key, _location, numel, *view = (
            node.plain() if isinstance(node, Raw) else node for node in pid[:6]
        )
        if word != "storage" or not isinstance(kind, Global) or type(numel) is not int:
            raise unexpected(expected, got)
        if not isinstance(key, str) or len(pid) > 6:
            raise unexpected(expected, got)
        part = _view(view[0]) if view and view[0] is not None else None
        found = Storage(key, kind, numel, part)
        first = self.storages.setdefault(key, found)
        is_same = (first.kind, first.numel) == (kind, numel)
        is_same &= part is None or self._views.setdefault(part[0], (key, *part[1:])) == (key, *part[1:])
        check(is_same, f"the storage {key[:50]!r} to be of one kind and size", "two that differ")
        self._push(found)


def _view(view: Any) -> tuple[str, int, int]:
    is_view = isinstance(view, tuple) and len(view) == 3 and all(type(number) is int for number in view[1:])
    check(
        is_view and isinstance(view[0], str | int),
        "a key, an offset and a size of a storage's view",
        "something else",
    )
    return view


MEMBER = ("builtins.getattr", "__builtin__.getattr")
"""How members of enumerations are pickled; refused on anything but an object that is not built."""


_NOT_DENSE = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor, to be saved with to_dense()",
    "torch._utils._rebuild_sparse_csr_tensor": "a sparse tensor, to be saved with to_dense()",
    "torch._utils._rebuild_nested_tensor": "a nested tensor, whose parts are to be saved",
    "torch._utils._rebuild_qtensor": "a quantized tensor, to be saved with dequantize()",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor on the device meta, which has no values",
}
"""What makes tensors of other kinds than dense ones."""


def refused(name: str) -> tuple[str, str]:
    """What was expected instead of this global, and what was got."""
    if name in _NOT_DENSE:
        return "dense tensors, numbers and plain containers", f"{_NOT_DENSE[name]} ({name})"
    return (
        "tensors, numbers and plain containers",
        f"a pickle that asks for the global {name[:150]!r}, which is refused; "
        "--skip-objects leaves out objects that stand beside the weights",
    )


def _refuse(reason: str) -> Callable[[Pickle], None]:
    def operation(_: Pickle) -> None:
        raise CheckpointError(f"expected tensors, numbers and plain containers, got a pickle with {reason}")

    return operation


_STOP = ord(".")
_OPERATIONS: dict[int, Callable[[Pickle], None]] = {
    ord(code): operation
    for code, operation in {
        "(": Pickle.mark,
        "0": Pickle.pop,
        "1": lambda self: self._marked() and None,
        "2": Pickle.dup,
        "\x80": Pickle.protocol,
        "\x95": lambda self: self._take(8) and None,
        "N": lambda self: self._stack.append(None),
        "\x88": lambda self: self._stack.append(True),
        "\x89": lambda self: self._stack.append(False),
        "I": Pickle.integer_line,
        "L": Pickle.long_line,
        "J": lambda self: self._stack.append(self._number("<i")),
        "K": lambda self: self._stack.append(self._number("B")),
        "M": lambda self: self._stack.append(self._number("<H")),
        "\x8a": lambda self: self.long("B"),
        "\x8b": lambda self: self.long("<i"),
        "F": lambda self: self._stack.append(float(self._line())),
        "G": lambda self: self._stack.append(self._number(">d")),
        "V": lambda self: self._stack.append(self._line().decode("raw-unicode-escape")),
        "X": lambda self: self.text("<I"),
        "\x8c": lambda self: self.text("B"),
        "\x8d": lambda self: self.text("<Q"),
        "T": lambda self: self.raw("<i", True),
        "U": lambda self: self.raw("B", True),
        "B": lambda self: self.raw("<I"),
        "C": lambda self: self.raw("B"),
        "\x8e": lambda self: self.raw("<Q"),
        "\x96": lambda self: self.raw("<Q"),
        ")": lambda self: self._stack.append(()),
        "\x85": lambda self: self.tuple_of(1),
        "\x86": lambda self: self.tuple_of(2),
        "\x87": lambda self: self.tuple_of(3),
        "t": lambda self: self._push(tuple(self._marked())),
        "]": lambda self: self._push([]),
        "l": lambda self: self._push(self._marked()),
        "a": lambda self: self.append([self._stack.pop()]),
        "e": lambda self: self.append(self._marked()),
        "}": lambda self: self._push(Map([])),
        "d": Pickle.map_of,
        "s": lambda self: self.set_items([self._stack.pop(), self._stack.pop()][::-1]),
        "u": lambda self: self.set_items(self._marked()),
        "\x8f": lambda self: self._push(Bag([], False)),
        "\x90": lambda self: self.append(self._marked()),
        "\x91": lambda self: self._push(Bag(self._marked(), True)),
        "p": lambda self: self.put(self._integer_of(self._line())),
        "q": lambda self: self.put(self._number("B")),
        "r": lambda self: self.put(self._number("<I")),
        "\x94": lambda self: self.put(len(self._memo)),
        "g": lambda self: self.get(self._integer_of(self._line())),
        "h": lambda self: self.get(self._number("B")),
        "j": lambda self: self.get(self._number("<I")),
        "c": lambda self: self._stack.append(self.global_lines()),
        "\x93": Pickle.stack_global,
        "R": lambda self: self.call(*[self._stack.pop(), self._stack.pop()][::-1]),
        "\x81": lambda self: self.call(*[self._stack.pop(), self._stack.pop()][::-1]),
        "\x92": Pickle.new_with_names,
        "i": lambda self: self.call(self.global_lines(), tuple(self._marked())),
        "o": Pickle.call_marked,
        "b": Pickle.build,
        "Q": Pickle.persistent,
        "P": _refuse("a persistent id that is no storage"),
        "\x82": _refuse("an extension code"),
        "\x83": _refuse("an extension code"),
        "\x84": _refuse("an extension code"),
        "\x97": _refuse("a buffer outside of the file"),
        "\x98": _refuse("a buffer outside of the file"),
        "S": _refuse("a text of pickle's version 0"),
    }.items()
}  # fmt: skip
