"""Builds the values of a recorded pickle, by rules for the few globals that checkpoints need."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from checkpoints_convert.budget import Budget
from checkpoints_convert.errors import CheckpointError, brief, check, unexpected
from checkpoints_convert.pickle_reader import MEMBER, Bag, Call, Global, Map, Raw, Storage, refused

LOAD_FROM_BYTES = "torch.storage._load_from_bytes"
"""How a plain pickle holds a tensor: this function, with a file of the legacy format inside. It is never called."""

_HASH_MODULUS = 1 << 60


class Skipped:
    """Stands in a checkpoint for an object that was not built.

    Attributes:
        name: of the global that made it.
    """

    def __init__(self, name: str, node: Call | None = None, harmless: dict[int, Any] | None = None):
        self.name, self._node = name, node
        self._harmless = {} if harmless is None else harmless

    def __repr__(self) -> str:
        return f"an object of {self.name[:150]!r}"

    def holds_tensors(self) -> bool:
        """Whether there is a tensor somewhere in what it was to be made of.

        What was looked through for one object of a file is not looked through again for another.
        """
        pending = [self._node]
        while pending:
            node = pending.pop()
            if isinstance(node, Storage) or (isinstance(node, Call) and node.name == LOAD_FROM_BYTES):
                self._harmless.clear()
                return True
            if id(node) not in self._harmless and isinstance(node, list | tuple | Map | Bag | Call):
                self._harmless[id(node)] = node
                pending += _inside(node)
                pending += [node.function] if isinstance(node, Call) else []
        return False


def _inside(node: Any) -> Iterable[Any]:
    """What a node holds directly. An array's state is looked into, as its bytes must not be copied."""
    if isinstance(node, Map):
        return node.pairs
    if isinstance(node, Bag):
        return node.items
    if isinstance(node, Call):
        state = node.state if isinstance(node.state, tuple) else (node.state,)
        return [*node.args, *node.pairs, *node.items, *state]
    return node


class Made:
    """A call whose parts are built: what its rule gets."""

    def __init__(self, call: Call, values: "Values"):
        self.name, self.values = call.name, values
        self.args = [values.of_call(node) for node in call.args]
        self.keys = [values.of_container(node) for node in call.pairs[::2]]
        self.pair_values = [values.of_container(node) for node in call.pairs[1::2]]
        self.has_items = bool(call.items)
        is_tuple = isinstance(call.state, tuple)
        self.state = [values.of_call(node) for node in call.state] if is_tuple else values.of_call(call.state)

    def number_of_args(self, *numbers: int) -> list[Any]:
        """The arguments, of which there must be one of these numbers."""
        check(len(self.args) in numbers, f"{numbers[0]} arguments for {self.name}", f"{len(self.args)}")
        return self.args


class Rules(NamedTuple):
    """What a pickle may name.

    Attributes:
        calls: name of a global -> what is made of a call of it.
        mappings: those of the calls that may be given keys and values afterwards.
        values: name of a global -> the value that it stands for.
        types: names of classes that are no values, but may stand where one is told.
    """

    calls: Mapping[str, Callable[[Made], Any]]
    mappings: frozenset[str]
    values: Mapping[str, Any]
    types: frozenset[str]


class Values:
    """Builds one tree.

    Args:
        rules: for its globals.
        read_storage: gives the elements of a storage.
        read_bytes: gives the storage that a file inside of the pickle holds; None inside of such a file.
        budget: of the file.
        is_big_endian: whether the storages were swapped to little-endian when they were read.

    Attributes:
        skipped: how many objects were left out, by the names of their globals.
    """

    def __init__(
        self,
        rules: Rules,
        read_storage: Callable[[Storage], np.ndarray],
        read_bytes: Callable[[Raw | bytes], np.ndarray] | None,
        budget: Budget,
        *,
        is_big_endian: bool = False,
    ):
        self._rules, self._read_storage = rules, read_storage
        self.read_bytes, self.budget = read_bytes, budget
        self.is_big_endian = is_big_endian
        self.skipped: Counter[str] = Counter()
        self._built: dict[int, Any] = {}
        self._harmless: dict[int, Any] = {}
        self._depths: dict[int, int] = {}

    def build(self, tree: Any) -> Any:
        """The value of a tree of nodes. A node that stands in several places is built once, after its parts.

        Raises:
            CheckpointError: a part is of the wrong kind, holds itself, or asks for more than the budget.
        """
        if not self._has_parts(tree):
            return self.of_container(tree)
        open_nodes = {id(tree)}
        path = [(tree, iter(_inside(tree)))]
        while path:
            node, parts = path[-1]
            for part in parts:
                if self._has_parts(part) and id(part) not in self._depths:
                    check(id(part) not in open_nodes, "a tree", "a container that holds itself")
                    open_nodes.add(id(part))
                    path.append((part, iter(_inside(part))))
                    self.budget.check_depth(len(path))
                    break
            else:
                path.pop()
                open_nodes.discard(id(node))
                depth = 1 + max((self._depths.get(id(part), 0) for part in _inside(node)), default=0)
                self.budget.check_depth(depth)
                self._built[id(node)] = self._make(node)
                self._depths[id(node)] = depth
        return self._built[id(tree)]

    def _has_parts(self, node: Any) -> bool:
        if isinstance(node, Call):
            return not node.is_object
        return isinstance(node, list | tuple | Map | Bag)

    def of_call(self, node: Any) -> Any:
        """A node as a call gets it: the bytes of the file stay where they are, names stay names."""
        if isinstance(node, Storage):
            return self._read_storage(node)
        if isinstance(node, Global):
            return self._rules.values.get(node.name, node)
        if isinstance(node, Call) and node.is_object:
            if id(node) not in self._built:
                self._built[id(node)] = Skipped(node.name, node, self._harmless)
                self.skipped[node.name] += 1
            return self._built[id(node)]
        return self._built[id(node)] if self._has_parts(node) else node

    def of_container(self, node: Any) -> Any:
        if isinstance(node, Raw):
            self.budget.spend("bytes", len(node.data))
            return node.plain()
        value = self.of_call(node)
        if isinstance(value, Global):
            check(value.name not in MEMBER, *refused(value.name))
            check(value.is_object or value.name in self._rules.types, "a value", f"the global {value.name}")
            return Skipped(value.name)
        return value

    def _make(self, node: Any) -> Any:
        if isinstance(node, list | tuple):
            return type(node)([self.of_container(part) for part in node])
        if isinstance(node, Bag):
            return self.set_of([self.of_container(part) for part in node.items], node.is_frozen)
        if isinstance(node, Map):
            parts = [self.of_container(part) for part in node.pairs]
            return self.dict_of(parts[::2], parts[1::2])
        rule = self._rules.calls.get(node.name)
        if rule is None or not isinstance(node.function, Global):
            raise unexpected("a value", f"a call of {node.name}")
        made = Made(node, self)
        is_mapping = node.name in self._rules.mappings
        check(not made.has_items and (is_mapping or not made.keys), f"a plain {node.name}", "one with items")
        return rule(made)

    def dict_of(self, keys: list[Any], values: list[Any]) -> dict[Any, Any]:
        """A dict, if no key is there twice and their hashes are cheap."""
        found: dict[Any, Any] = {}
        for key, value in zip(keys, values, strict=True):
            key = self._key(key)
            if key in found:
                raise CheckpointError(f"expected names that stand once in their mapping, got {brief(key)} twice")
            found[key] = value
        return found

    def set_of(self, items: Iterable[Any], is_frozen: bool) -> set[Any] | frozenset[Any]:
        """A set, if the hashes of its items are cheap."""
        items = [self._key(item) for item in items]
        return frozenset(items) if is_frozen else set(items)

    def _key(self, key: Any, depth: int = 0) -> Any:
        if isinstance(key, Raw):
            return key.plain()
        if isinstance(key, np.ndarray):  # PyTorch before 0.4 saved the state of an optimizer by its parameters
            return Skipped("a tensor as a key")
        if isinstance(key, tuple) and len(key) <= 16 and depth < 3:
            self.budget.spend("keys that are tuples or no plain numbers")
            return tuple(self._key(part, depth + 1) for part in key)
        is_huge = type(key) is int and abs(key) >= _HASH_MODULUS
        if is_huge or isinstance(key, np.complexfloating):  # a file can choose many of these with one hash
            self.budget.spend("keys that are tuples or no plain numbers")
        elif not isinstance(key, str | bytes | int | float | None | Skipped | np.generic | np.dtype):
            raise CheckpointError(f"expected keys that are texts or numbers, got a {type(key).__name__}")
        return key

    def copied(self, array: np.ndarray, made: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """An array made from another one of the same size, counted before it is made."""
        self.budget.spend("bytes", array.nbytes)
        return made(array)
