"""Saves and restores one state in any number of processes, under any strategy; run as a program.

    python processes.py RUN STRATEGY MESH COUNT INDEX PORT VERB...

Each VERB is one of `save:STEP:METRIC`, `restore` (or `restore:STRATEGY:MESH`), `forget:STEP`, `flip:STEP:INDEX`
(process 0 flips a bit in the data file that process INDEX verifies). Adds a line to RUN.INDEX.jsonl per `restore`: its
step, whether every bit is right, the steps that are there, the shapes of the shards.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import meta
from jax.experimental import multihost_utils

from jukebox_jax.checkpoint import runs
from jukebox_jax.errors import UserError
from jukebox_jax.parallel.mesh import make_mesh
from jukebox_jax.parallel.strategies import get_strategy, resolve


def boxed(step: int):
    rng = np.random.default_rng(step)
    kernel = nn.LogicallyPartitioned(jnp.asarray(rng.standard_normal((64, 24)), jnp.float32), ("width", "hidden"))
    half = nn.LogicallyPartitioned(jnp.asarray(rng.standard_normal((24, 64)), jnp.bfloat16), ("hidden", "width"))
    return {
        "params": {"in": kernel, "out": half, "bias": jnp.asarray(rng.standard_normal(5), jnp.float32)},
        "trainer": {"step": jnp.int32(step), "scale": jnp.float32(0.5)},
        "model_state": {},
    }


def flip_a_bit(folder: Path, part: int, parts: int) -> None:
    """In the middle of the largest file of arrays that this process is to verify."""
    lines = [line for sums in folder.glob("SHA256SUMS.*") for line in sums.read_text().splitlines()]
    data = [line for line in lines if "ocdbt.process" in line and "/d/" in line]
    mine = [line for line in data if int(line[:64], 16) % parts == part]
    path = max((folder / line[66:] for line in mine or data), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def main(run: str, strategy: str, mesh: str, count: str, index: str, port: str, *verbs: str) -> None:
    if int(count) > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", int(count), int(index))

    def layout(strategy: str, mesh: str):
        row = get_strategy(strategy)
        devices = make_mesh(json.loads(mesh) or row.mesh_shape)
        return devices, resolve(boxed(0), devices, row.rules)

    def abstract(shardings):
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            meta.unbox(boxed(0)),
            shardings,
        )

    devices, shardings = layout(strategy, mesh)

    def put(leaf, sharding):
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])

    def right(leaf, wanted):
        wanted = np.asarray(wanted)
        return leaf.dtype == wanted.dtype and all(
            np.asarray(shard.data).tobytes() == wanted[shard.index].tobytes() for shard in leaf.addressable_shards
        )

    with jax.set_mesh(devices), runs.TrainingCheckpoints(run, 2, keep_best=1) as checkpoints:
        for verb in verbs:
            what, *values = verb.split(":")
            if what == "save":
                parts = jax.tree.map(put, meta.unbox(boxed(int(values[0]))), shardings)
                checkpoints.save(int(values[0]), parts, {"eval_loss": float(values[1]), "eval_other": 0.0})
            if what == "forget":
                checkpoints.forget_after(int(values[0]))
            if what == "flip":
                checkpoints.wait()
                if jax.process_index() == 0:
                    flip_a_bit(Path(run) / "checkpoints" / values[0], int(values[1]), int(count))
                if int(count) > 1:
                    multihost_utils.sync_global_devices(verb)
            if what == "restore":
                checkpoints.wait()
                found = runs.restore_latest(run, abstract(layout(*values)[1] if values else shardings))
                assert found is not None
                step, parts = found
                same = jax.tree.map(right, parts, meta.unbox(boxed(step)))
                shapes = [list(leaf.addressable_shards[0].data.shape) for leaf in jax.tree.leaves(parts["params"])]
                with open(f"{run}.{index}.jsonl", "a") as rows:
                    rows.write(json.dumps([step, all(jax.tree.leaves(same)), runs.steps(run), shapes]) + "\n")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
