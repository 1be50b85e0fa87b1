"""Configs of mmsegmentation, mmdetection and the like: Python, of which plain values are read and nothing is run.

A file is parsed, not executed. Of its assignments those to plain names are read: numbers, texts, lists, tuples,
dictionaries, `dict(...)`, and names that were assigned before. Whatever else stands in it is an `Unread`, which no
setting that is asked for may be.

Source: open-mmlab/mmengine, mmengine/config/config.py (`_base_`, `_delete_`, `{{_base_.name}}`).
"""

import ast
import warnings
from collections.abc import Mapping
from pathlib import Path

from checkpoints_convert.budget import Budget, exceeded
from checkpoints_convert.errors import CheckpointError

LONGEST = 1 << 18
"""Bytes of a config."""
_MOST_VALUES = 100_000
"""In a config, with the names that stand in it written out."""
_MOST_FILES = 32
"""That one config builds on."""
_FOR_OTHERS = "name the whole one with --config, which is written into the folder of a training run"


class Unread:
    """A value that only Python would know, or a name that was never assigned."""

    def __repr__(self) -> str:
        return "no plain value"


class _Values:
    """Makes plain values of expressions, and counts them as if no two of them were shared."""

    def __init__(self, names: Mapping[str, object], budget: Budget) -> None:
        self._names, self._budget = names, budget
        self.left = _MOST_VALUES

    def value(self, node: ast.expr, depth: int = 1) -> object:
        self._budget.check_depth(depth)
        found = self._value(node, depth + 1)
        self.left -= _size(found, depth, self._budget) if isinstance(node, ast.Name) else 1
        if self.left < 0:
            raise exceeded("values of a config", _MOST_VALUES)
        return found

    def _value(self, node: ast.expr, depth: int) -> object:
        if isinstance(node, ast.Constant):
            return node.value if isinstance(node.value, bool | int | float | str | None) else Unread()
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            number = self.value(node.operand, depth)
            return -number if type(number) is int or type(number) is float else Unread()
        if isinstance(node, ast.Name):
            return self._names.get(node.id, Unread())
        if isinstance(node, ast.List | ast.Tuple):
            items = [self.value(each, depth) for each in node.elts]
            return items if isinstance(node, ast.List) else tuple(items)
        if isinstance(node, ast.Dict):
            keys = [self.value(key, depth) if key is not None else Unread() for key in node.keys]
            pairs = zip(keys, node.values, strict=True)
            return {key: self.value(each, depth) for key, each in pairs if isinstance(key, str | int)}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and _is_dict(node, node.func):
            return {each.arg: self.value(each.value, depth) for each in node.keywords}
        return Unread()


def _is_dict(node: ast.Call, called: ast.Name) -> bool:
    return called.id == "dict" and not node.args and all(each.arg for each in node.keywords)


def read_python(path: Path) -> dict[str, object]:
    """The plain values that a config assigns, with those of the configs that it builds on.

    Args:
        path: the file.

    Raises:
        CheckpointError: it is no Python, is too large, or builds on a file that is not there.
    """
    return _read(path, Budget(LONGEST), [])


def parse_python(content: bytes) -> dict[str, object]:
    """The plain values that a text assigns.

    Args:
        content: the text, in UTF-8.

    Raises:
        CheckpointError: it is no Python or too large.
    """
    if len(content) > LONGEST:
        raise exceeded("bytes of a config", LONGEST)
    return _assigned(_statements(content), {}, Budget(LONGEST))


def _read(path: Path, budget: Budget, opened: list[Path]) -> dict[str, object]:
    opened.append(path)
    if len(opened) > _MOST_FILES:
        raise exceeded("configs that one builds on", _MOST_FILES)
    with path.open("rb") as file:
        content = file.read(LONGEST + 1)
    if len(content) > LONGEST:
        raise exceeded("bytes of a config", LONGEST)
    statements = _statements(content)
    merged: dict[str, object] = {}
    for name in _bases(statements):
        base = path.parent / name
        if base.suffix != ".py" or not base.is_file():
            raise CheckpointError(f"the config builds on {name}, which is not there: {_FOR_OTHERS}")
        merged = _merged(merged, _read(base, budget, opened))
    return _assigned(statements, merged, budget)


def _statements(content: bytes) -> list[tuple[str, ast.expr]]:
    """The assignments of a module to plain names."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of doubtful escapes in texts
            module = ast.parse(content, "<config>")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise CheckpointError(f"expected a config in Python, got {type(error).__name__}: {error}") from None
    found = []
    for statement in module.body:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            [target] = statement.targets
            if isinstance(target, ast.Name):
                found.append((target.id, statement.value))
        elif isinstance(statement, ast.With) and any(map(_reads_base, statement.items)):
            raise CheckpointError(f"the config builds on imports, which are not read: {_FOR_OTHERS}")
    return found


def _reads_base(item: ast.withitem) -> bool:
    """Whether this is how mmengine's newer configs import what they build on."""
    call = item.context_expr
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "read_base"


def _bases(statements: list[tuple[str, ast.expr]]) -> list[str]:
    nodes = [node for name, node in statements if name == "_base_"]
    if not nodes:
        return []
    value = _Values({}, Budget(LONGEST)).value(nodes[-1])
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"the config builds on {value!r:.100}, which is no name of a file: {_FOR_OTHERS}")
    for name in names:
        if "::" in name or "://" in name:
            raise CheckpointError(f"the config builds on {name:.100}, which is not read: {_FOR_OTHERS}")
    return [*names]


def _assigned(
    statements: list[tuple[str, ast.expr]], base: Mapping[str, object], budget: Budget
) -> dict[str, object]:
    own: dict[str, object] = {}
    values = _Values(own, budget)
    for name, node in statements:
        if name != "_base_":
            own[name] = values.value(node)
    return _merged(base, own)


def _merged(base: Mapping[str, object], own: Mapping[str, object]) -> dict[str, object]:
    """Dictionaries are merged, name by name, unless `_delete_` says otherwise; of other values the later counts."""
    found = dict(base)
    for name, value in own.items():
        below = found.get(name)
        if isinstance(value, dict):
            is_new = value.get("_delete_") is True or not isinstance(below, dict)
            value = _merged({} if is_new or not isinstance(below, dict) else below, value)
            value.pop("_delete_", None)
        found[name] = value
    return found


def _size(value: object, depth: int, budget: Budget) -> int:
    """How many values there are in a value, which may be nested only so deep."""
    budget.check_depth(depth)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return 1 + sum(_size(part, depth + 1, budget) for part in parts)
