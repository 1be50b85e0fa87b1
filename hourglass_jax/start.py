"""Settings that must be made before JAX starts."""

import os
import sys
import warnings

from jaxlib.version import __version_info__ as JAXLIB

FUSIONS = "--xla_cpu_experimental_ynn_fusion_type"
FIRST_WRONG, FIRST_RIGHT = (0, 10, 2), (0, 12)


def prepare_jax(jaxlib: tuple[int, ...] = JAXLIB) -> None:
    """Prevents XLA's CPU backend from fusing reductions into YNNPACK, in versions where that is broken.

    From 0.10.2 on some sums have wrong values, and up to 0.11.0 products of seven dimensions crash when they are
    summed; 0.11.2 has wrong gradients. XLA reads its flags when the first backend of JAX starts, so that `import
    jax` may come before. It aborts at a flag that it does not know: versions that need none get none.

    Args:
        jaxlib: the version of jaxlib as numbers.

    Warns:
        RuntimeWarning: JAX runs on the CPU already, so that the flag comes too late.

    Source: jax-ml/jax issues 39103 (sums), 40412 and 39257 (crashes).
    """
    flags = _xla_flags()
    if not FIRST_WRONG <= jaxlib < FIRST_RIGHT or FUSIONS in flags:
        return
    bridge = sys.modules.get("jax._src.xla_bridge")
    if bridge is None or not bridge.backends_are_initialized():
        os.environ["XLA_FLAGS"] = f"{FUSIONS}=-reduce {flags}".strip()
    elif bridge.default_backend() == "cpu":
        warnings.warn(
            f"jaxlib {'.'.join(map(str, jaxlib))} computes some sums wrongly on the CPU, and JAX started before "
            f"hourglass_jax could prevent it: import hourglass_jax first, or set XLA_FLAGS={FUSIONS}=-reduce",
            RuntimeWarning,
            stacklevel=3,
        )


def _xla_flags() -> str:
    """XLA_FLAGS, or what the file holds that it names: XLA takes a value without a leading dash as a name."""
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if flags.startswith("-") or not os.path.isfile(flags):
        return flags
    with open(flags) as file:
        return file.read()
