"""Photographs from the packages scikit-image and scikit-learn, for demonstrations and measurements."""

import importlib.util
from pathlib import Path

FILES = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
}
"""Name -> package and path inside it."""


def photographs() -> dict[str, Path]:
    """Finds the photographs, name -> path; nothing is imported or downloaded.

    Raises:
        ValueError: a package is not installed.
    """
    paths = {}
    for name, (package, file) in FILES.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ValueError(
                f"the photograph {name!r} comes with {package}, which is not installed: "
                'pip install "hourglass-jax[demo]"'
            )
        paths[name] = Path(spec.origin).parent / file
    return paths
