"""The settings that mmcv and mmengine save as the text of a Python file: plain values are read, nothing is run."""

import ast
from collections.abc import Mapping

LONGEST = 1 << 20
"""Characters of a text."""
DEEPEST = 60
"""Containers inside one another."""


class _NotPlain(Exception):
    """A value that only running the file would tell."""


def parse_python(text: str) -> dict[str, object]:
    """The names that a text gives plain values to, at its top level; in containers, too, only plain ones are kept.

    `dict(a=1)` is as plain as {"a": 1}. Tuples and lists are both tuples.

    Raises:
        ValueError: it is no Python, or too long.
    """
    if len(text) > LONGEST:
        raise ValueError(f"expected a text of at most {LONGEST} characters, got {len(text)}")
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"expected the text of a Python file, got {type(error).__name__}") from None
    found = {}
    for node in module.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            _keep(found, node.targets[0].id, node.value, 0)
    return found


def _keep(found: dict[str, object], name: str, node: ast.expr, depth: int) -> None:
    """Adds what a name stands for, or forgets it where that is not plain."""
    try:
        found[name] = _value(node, depth)
    except _NotPlain:
        found.pop(name, None)


def _value(node: ast.expr, depth: int) -> object:
    if depth > DEEPEST:
        raise _NotPlain
    match node:
        case ast.Constant(value=str() | int() | float() | bool() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return tuple(_value(each, depth + 1) for each in elements)
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords):
            pairs = [(each.arg, each.value) for each in keywords]
        case ast.Dict(keys=keys, values=values):
            pairs = [(getattr(key, "value", None), value) for key, value in zip(keys, values, strict=True)]
        case _:
            raise _NotPlain
    found: dict[str, object] = {}
    for name, value in pairs:
        if isinstance(name, str):
            _keep(found, name, value, depth + 1)
    return found


def at(settings: object, *path: str | int) -> object:
    """What stands at a path of names and numbers, or None."""
    for step in path:
        if isinstance(settings, Mapping):
            settings = settings.get(step)
        elif isinstance(settings, tuple) and isinstance(step, int):
            settings = settings[step] if step < len(settings) else None
        else:
            return None
    return settings
