"""Plain values of YAML and JSON texts of limited size."""

import json
from collections.abc import Hashable
from typing import Any

import yaml

from checkpoints_convert.budget import Budget, exceeded
from checkpoints_convert.errors import CheckpointError, check, printable

LONGEST_YAML = 1 << 18
LONGEST_JSON = 1 << 24
"""Bytes."""

_MOST_VALUES = 100_000
"""In a YAML text, with its anchors written out."""

_LONGEST_NUMBER = 100
_EXPECTED = "YAML or JSON with plain values"


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which builds plain values only, and the tuples that Segmenter's variant.yml has."""


def _tuple(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node, deep=True))


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)


def parse_yaml(content: bytes) -> Any:
    """The value of a YAML document.

    Anchors are allowed as long as their values are few when they are all written out.

    Args:
        content: the text, in UTF-8 or UTF-16 with a mark.

    Raises:
        CheckpointError: it is no YAML, asks for anything but plain values, names one twice, or is too large.
    """
    if len(content) > LONGEST_YAML:
        raise exceeded("bytes of YAML", LONGEST_YAML)
    loader = None
    try:
        loader = _Loader(content)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_nodes(node, Budget(len(content)))
        return loader.construct_document(node)
    except CheckpointError:
        raise
    except Exception as error:  # PyYAML's constructors raise whatever Python's own raise
        said = " ".join(str(each) for name in ("context", "problem") if (each := getattr(error, name, None)))
        raise _other(said or f"{type(error).__name__}: {error}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _other(got: str) -> CheckpointError:
    return CheckpointError(f"expected {_EXPECTED}, got {printable(' '.join(got.split()), 200)}")


def _check_nodes(root: yaml.Node, budget: Budget) -> None:
    """Counts the values of a document as if every anchor were written out, without doing so."""
    sizes: dict[int, int] = {}
    depths: dict[int, int] = {}
    open_nodes = {id(root)}
    path = [(root, iter(_children(root)))]
    while path:
        node, children = path[-1]
        for child in children:
            if id(child) not in sizes:
                check(id(child) not in open_nodes, _EXPECTED, "an anchor that holds itself")
                open_nodes.add(id(child))
                path.append((child, iter(_children(child))))
                budget.check_depth(len(path))
                break
        else:
            path.pop()
            open_nodes.discard(id(node))
            inside = _children(node)
            sizes[id(node)] = 1 + sum(sizes[id(child)] for child in inside)
            depths[id(node)] = 1 + max((depths[id(child)] for child in inside), default=0)
            budget.check_depth(depths[id(node)])
            if sizes[id(node)] > _MOST_VALUES:
                raise exceeded("values of YAML", _MOST_VALUES)
            _check_node(node)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _check_node(node: yaml.Node) -> None:
    if isinstance(node, yaml.ScalarNode):
        is_short = node.tag == "tag:yaml.org,2002:str" or len(node.value) <= _LONGEST_NUMBER
        is_short |= node.tag == "tag:yaml.org,2002:binary"
        check(is_short, _EXPECTED, f"a number of {len(node.value)} characters")
    elif isinstance(node, yaml.MappingNode):
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key.value, Hashable)]
        keys = [key for key in keys if key[0] != "tag:yaml.org,2002:merge"]
        check(
            len(keys) == len(set(keys)), "YAML that says everything once", "a name that stands twice in a mapping"
        )


def parse_json(content: bytes | memoryview, *, longest: int = LONGEST_JSON) -> Any:
    """The value of a JSON text.

    Args:
        content: in UTF-8.
        longest: number of bytes that are allowed.

    Raises:
        CheckpointError: it is no JSON, names a value twice in an object, or is too large.
    """
    if len(content) > longest:
        raise exceeded("bytes of JSON", longest)
    content = bytes(content)
    budget = Budget(len(content))
    budget.spend("objects", sum(content.count(mark) for mark in (b"[", b"{", b",")))
    try:
        value = json.loads(str(content.removeprefix(b"\xef\xbb\xbf"), "utf-8"), object_pairs_hook=_object)
    except CheckpointError:
        raise
    except RecursionError:
        raise exceeded("levels of containers", 200) from None
    except ValueError as error:
        raise _other(f"{type(error).__name__}: {error}") from None
    pending = [(value, 1)]
    while pending:
        each, depth = pending.pop()
        if isinstance(each, dict | list):
            budget.check_depth(depth)
            pending += [(part, depth + 1) for part in (each.values() if isinstance(each, dict) else each)]
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    check(len(found) == len(pairs), "JSON that says everything once", "a name that stands twice in an object")
    return found
