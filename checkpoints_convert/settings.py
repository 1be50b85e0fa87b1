"""The settings that lie beside a checkpoint: YAML or JSON, as plain values."""

import json
from pathlib import Path

import yaml

from checkpoints_convert.errors import CheckpointError


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which builds plain values only, and the tuples that Segmenter's variant.yml has."""


_Loader.add_constructor(
    "tag:yaml.org,2002:python/tuple", lambda loader, node: tuple(loader.construct_sequence(node, deep=True))
)


def read_settings(path: Path) -> dict[str, object]:
    """Reads a file of settings: JSON if it is called so, otherwise YAML.

    Raises:
        CheckpointError: there is no such file, it is neither, or it asks for anything but plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        content = path.read_bytes()
        settings = json.loads(content) if path.suffix == ".json" else yaml.load(content, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = getattr(error, "problem", None) or type(error).__name__
        raise CheckpointError(f"{path}: expected YAML or JSON with plain values, got {reason}") from None
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path}: expected named settings, got {type(settings).__name__}")
    return settings
