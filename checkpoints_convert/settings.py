"""The settings that lie beside a checkpoint: YAML or JSON, as plain values."""

from pathlib import Path

from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.plain_text import LONGEST_JSON, parse_json, parse_yaml


def read_settings(path: Path) -> dict[str, object]:
    """Reads a file of settings: JSON if it is called so, otherwise YAML.

    Raises:
        CheckpointError: there is no such file, it is neither, or it asks for anything but plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            content = file.read(LONGEST_JSON + 1)
        settings = parse_json(content) if path.suffix == ".json" else parse_yaml(content)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path}: expected named settings, got {type(settings).__name__}")
    return settings
