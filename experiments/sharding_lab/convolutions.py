"""The codec's convolutions as XLA's library call and as shifted products, compiled for a TPU that is not there.

    pip install -c constraints.txt -e ".[tpu]"
    python -m experiments.sharding_lab.convolutions v5e:2x2 v5p:2x2x1 v6e:2x2

Prints, for four residual blocks and their derivatives (two examples of 98,304 positions, 32 channels): the cycles that
the compiler estimates for the program's instructions, the most memory in use, and how long it took to compile.
"""

from __future__ import annotations

import argparse
import os
import re
import time

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from jukebox_jax.models import convolution

EXAMPLES, POSITIONS, CHANNELS, DILATIONS = 2, 98_304, 32, (1, 3, 9, 27)
WAYS = {"library": convolution.by_library, "products": convolution.by_products}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topology", nargs="+", help="as v5e:2x2")
    for topology in parser.parse_args().topology:
        device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
        for name, way in WAYS.items():
            print(f"{topology} {name}: {compiled(way, jax.sharding.SingleDeviceSharding(device))}", flush=True)


def compiled(way, sharding: jax.sharding.Sharding) -> str:
    """What the compiler says of the blocks' derivatives by their input and kernels."""

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    def loss(x, dilated, pointwise):
        for dilation, three, one in zip(DILATIONS, dilated, pointwise, strict=True):
            h = way(jax.nn.relu(x), three, 1, dilation, dilation)
            x = x + jax.nn.relu(h) @ one
        return jnp.sum(jnp.tanh(x))

    kernels = [array(3, CHANNELS, CHANNELS)] * len(DILATIONS), [array(CHANNELS, CHANNELS)] * len(DILATIONS)
    lowered = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(array(EXAMPLES, POSITIONS, CHANNELS), *kernels)
    started = time.monotonic()
    program = lowered.compile()
    seconds = time.monotonic() - started
    _, _, entry = program.as_text().partition("ENTRY")
    cycles = sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', entry)))
    peak = program.memory_analysis().peak_memory_in_bytes
    return f"{cycles / 1e6:.2f} million cycles, {peak / 2**20:.0f} MiB, compiled in {seconds:.0f} s"


if __name__ == "__main__":
    main()
