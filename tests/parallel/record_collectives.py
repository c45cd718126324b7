"""What the train step asks to be sent, by model, strategy, kind of collective and mesh axes, on eight devices.

`python -m tests.parallel.record_collectives` writes it to collectives.json beside this file; do so after a change that
is meant to send more or less, and look at the difference. `--print` writes it to standard output instead.

Counted after SPMD partitioning, which asks for a sum into shards as an all-reduce and a slice of it: there are no
reduce-scatters yet.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

# Before jax is imported. What is compiled is not run, and a program from the cache would not be partitioned again.
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true",
}

import jax

from jukebox_jax.parallel.collectives import messages
from jukebox_jax.parallel.hlo import partitioned
from jukebox_jax.parallel.mesh import make_mesh
from jukebox_jax.parallel.strategies import STRATEGIES, batch_sharding
from jukebox_jax.training.state import abstract_state
from jukebox_jax.training.step import make_train_step
from tests.training.models_on_eight_devices import BATCH, CONFIG, make_task

FILE = Path(__file__).with_name("collectives.json")
#: A top prior with labels, lyrics and their encoder, and attention within rows, along columns and to the previous row.
MODELS = {"top": "lyric_encoder", "upsampler": "upsampler"}
SHARDED = ("dp", "fsdp", "hsdp", "fsdp_tp", "fsdp_sp")


def count(family: str, name: str) -> dict[str, float]:
    """Bytes that a device sends in one step, by "kind over axes"."""
    strategy, task = STRATEGIES[name], make_task(family)
    mesh = make_mesh(strategy.mesh_shape)
    sharding = batch_sharding(mesh, strategy.rules, BATCH)
    with jax.set_mesh(mesh):
        abstract = abstract_state(task, CONFIG, mesh, strategy.rules)
        batch = {
            key: jax.ShapeDtypeStruct((BATCH, *spec.shape), spec.dtype, sharding=sharding)
            for key, spec in task.batch_spec.items()
        }
        hlo = partitioned(make_train_step(task, CONFIG, mesh, strategy.rules, abstract).lower(abstract, batch))
    found = messages(hlo, mesh.axis_sizes)
    return {f"{message.kind} over {'×'.join(message.axes)}": message.bytes_sent for message in found}


def main() -> None:
    counts = {model: {name: count(family, name) for name in SHARDED} for model, family in MODELS.items()}
    text = json.dumps(counts, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    if "--print" in sys.argv:
        sys.stdout.write(text)
    else:
        FILE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
