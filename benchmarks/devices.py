"""Compiles the encoder for a TPU v5e and an H100 on a machine with neither, and prints what the plans cost there.

    make devices

XLA's own counts of the compiled program: floating point operations, bytes that pass through memory, and its peak.
The time is the larger of what the two take at the chip's published rates: a bound, and no measurement. Kernels are
counted as they say themselves (Pallas), or not at all (cuDNN).
"""

import argparse
import os
import sys
from dataclasses import dataclass

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table

import hourglass_jax as hj
from hourglass_jax.backbones.vit import ViTConfig
from hourglass_jax.models.encoder import Encoder, EncoderConfig

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84929347584
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 7 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
BLOCKS = 4


@dataclass(frozen=True)
class Chip:
    """A chip, how JAX names it, and its published rates in bfloat16.

    Attributes:
        topology: arguments of `topologies.get_topology_desc`.
        flops: operations a second.
        bytes: of memory a second.
        package: whose compiler it needs.
    """

    topology: dict[str, object]
    flops: float
    bytes: float
    package: str


CHIPS = {
    "TPU v5e": Chip(
        {"topology_name": "v5e:1x1", "platform": "tpu", "chips_per_host_bounds": (1, 1, 1)}, 197e12, 819e9, "libtpu"
    ),
    "H100": Chip(
        {"platform": "cuda", "target_config": H100, "topology": "1x1x1"}, 989e12, 3352e9, "jax-cuda12-plugin"
    ),
}
MODELS = {
    "ViT-S/14, 8 x 518": (ViTConfig.sized("small", patch_size=14, depth=BLOCKS, position_grid=(37, 37)), 518),
    "ViT-L/16, 8 x 640": (ViTConfig.sized("large", depth=BLOCKS), 640),
}
PLANS = {
    "none": None,
    "StagedMerging 0.87 at 0, 2": hj.StagedMerging(0.87, (0, 2)),
    "StagedMerging, medoid": hj.StagedMerging(0.87, (0, 2), value="medoid"),
    "Hourglass 2, 24 x 24": hj.Hourglass(2, (24, 24), iterations=2),
    "Hourglass, medoid": hj.Hourglass(2, (24, 24), iterations=2, representative="medoid"),
}


@jax.jit
def run(model: Encoder, images: jax.Array) -> jax.Array:
    """The encoder."""
    return model(images)


def main() -> int:
    """Prints a table for every chip whose compiler is installed; exit status 1 if there is none."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=8)
    batch, done = parser.parse_args().batch, 0
    for name, chip in CHIPS.items():
        try:
            [device] = topologies.get_topology_desc(**chip.topology).devices
        except Exception as problem:
            reason = str(problem).partition("\n")[0]
            print(f"{name}: no compiler for it here, which needs {chip.package}: pip install "
                  f"'hourglass-jax[devices]' ({reason})", file=sys.stderr)  # fmt: skip
            continue
        for title, (config, side) in MODELS.items():
            show(f"{name}, {title}, {BLOCKS} blocks, bfloat16", chip, device, config, (batch, side, side, 3))
        done += 1
    return int(not done)


def show(title: str, chip: Chip, device: jax.Device, config: ViTConfig, shape: tuple[int, ...]) -> None:
    """Compiles a model under every plan and prints the table."""
    place = NamedSharding(jax.sharding.Mesh([device], ("x",)), PartitionSpec())
    model = nnx.eval_shape(lambda: Encoder(EncoderConfig(config), dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    images = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place)
    table = Table("plan", "GFLOP", "", "GB moved", "", "peak GB", "bound, ms", "", title=title)
    first = None
    for name, plan in PLANS.items():
        fast = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), hj.expedite(model, plan)
        )
        compiled = run.lower(fast, images).compile()
        cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
        peak = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
        figures = cost["flops"] / 1e9, cost["bytes accessed"] / 1e9
        bound = 1e12 * max(figures[0] / chip.flops, figures[1] / chip.bytes)
        first = first or (*figures, bound)
        flops, moved, time = (each / base for each, base in zip((*figures, bound), first, strict=True))
        table.add_row(
            name,
            *(f"{figures[0]:.1f}", f"{flops:.2f}", f"{figures[1]:.2f}", f"{moved:.2f}"),
            *(f"{peak / 1e9:.2f}", f"{bound:.2f}", f"{time:.2f}"),
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    sys.exit(main())
