"""Which form an operator takes on which target."""

from collections.abc import Callable

import jax

attention_form = jax.make_user_context("auto")
"""The form that attention takes in what is traced: `with hj.attention_form("xla"): ...`, or
`hj.attention_form.set_global("xla")`. Functions that were compiled under another form are compiled anew.

"auto" is the form of the target that code is lowered for, also where `jax.export` lowers it for another machine:
"loop" for the CPU, "cudnn" for NVIDIA's GPUs, "flash" for TPUs, "xla" for others. JAX lowers fused kernels for one
target at a time: code for several at once takes "portable", which is "loop" for the CPU and "xla" for all others.
"cudnn" (16 bits, heads of at most 128 channels) and "flash" (more than 256 keys, which every query reads) are "xla"
where they do not fit, as for a batch of unknown size. What else has forms, such as the sums of merged tokens, has
"loop" and "xla".
"""
FORMS = ("auto", "portable", "loop", "xla", "cudnn", "flash")


def run_for_target(
    *arguments: jax.Array | None,
    loop: Callable[..., jax.Array],
    xla: Callable[..., jax.Array],
    cudnn: Callable[..., jax.Array] | None = None,
    flash: Callable[..., jax.Array] | None = None,
) -> jax.Array:
    """Runs the form that `attention_form` says, on the same arguments.

    Args:
        arguments: of the form.
        loop: for the CPU.
        xla: for every other target.
        cudnn: for NVIDIA's GPUs, where it fits.
        flash: for TPUs, where it fits.

    Raises:
        ValueError: there is no such form.
    """
    form = attention_form.value
    if form not in FORMS:
        raise ValueError(f"attention_form must be {', '.join(FORMS)}, got {form!r}")
    if form not in ("auto", "portable"):
        return {"loop": loop, "xla": xla, "cudnn": cudnn or xla, "flash": flash or xla}[form](*arguments)
    fused = {"cuda": cudnn, "tpu": flash} if form == "auto" else {}
    own = {target: each for target, each in fused.items() if each is not None}
    return jax.lax.platform_dependent(*arguments, cpu=loop, **own, default=xla)
