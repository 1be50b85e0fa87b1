"""python -m hourglass_jax.cli"""

from hourglass_jax.cli import main

main()
