"""What sampling a level needs of a device's memory, and how many songs at once fit into it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import meta
from jax.sharding import Mesh, NamedSharding

from jukebox_jax.errors import UserError
from jukebox_jax.models.prior import PriorConfig, init_params
from jukebox_jax.parallel.mesh import make_mesh
from jukebox_jax.parallel.plan import bytes_per_device, memory_limit, size_text
from jukebox_jax.sampling.devices import weight_shardings
from jukebox_jax.sampling.engine import empty_slots, prefill_rows, slot_shardings
from jukebox_jax.sampling.weights import Precision, decoding_config

#: More songs at once hardly make a token cheaper.
MOST_SLOTS = 64
# Of the free memory, what is left to the compiler, fragments and everything not counted here.
_RESERVED = 0.1


@dataclass(frozen=True)
class LevelPlan:
    """Bytes on one of so many `devices`.

    Attributes:
      weights: of the prior, in the precision it decodes in.
      slots: caches, conditioning and tokens of all songs at once.
      work: what taking in known tokens needs beside them.
    """

    level: int
    batch_size: int
    weights: int
    slots: int
    work: int
    devices: int = 1

    @property
    def total(self) -> int:
        return self.weights + self.slots + self.work

    def __str__(self) -> str:
        where = f", on each of {self.devices} devices" if self.devices > 1 else ""
        return (
            f"level {self.level}{where}: weights {size_text(self.weights)}, songs in batches of {self.batch_size} "
            f"{size_text(self.slots)}, work {size_text(self.work)}: {size_text(self.total)}"
        )


def plan_level(config: PriorConfig, precision: Precision, batch_size: int, mesh: Mesh | None = None) -> LevelPlan:
    """What a prior and so many songs on each device need, on a mesh, by default of one device.

    Raises:
      UserError: see `devices.weight_shardings`.
    """
    mesh = make_mesh() if mesh is None else mesh
    decoding = decoding_config(config, precision)
    width = {"float32": 4, "bfloat16": 2, "int8": 1}[precision]

    def weight(path: Any, leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> int:
        narrow = path[-1].key == "kernel" and any(getattr(key, "key", "") == "layers" for key in path)
        return math.prod(sharding.shard_shape(leaf.shape)) * (width if narrow else 4)

    shapes = meta.unbox(jax.eval_shape(lambda: init_params(config, jax.random.key(0))))
    shardings = weight_shardings(config, mesh)
    weights = sum(jax.tree.leaves(jax.tree_util.tree_map_with_path(weight, shapes, shardings)))
    one, all_slots = (_slot_bytes(decoding, n, mesh) for n in (1, batch_size))
    tokens = prefill_rows(decoding) * decoding.transformer.block_ctx
    activations = 6 * tokens * config.width * jnp.dtype(decoding.dtype).itemsize
    # A window is prepared beside the slots, in caches of its own; the conditioner computes all of it in float32.
    work = one + activations + (8 * config.n_ctx * config.width * 4 if config.conditioner else 0)
    return LevelPlan(config.level, batch_size, weights, all_slots, work, mesh.size)


def choose_batch_size(
    config: PriorConfig, precision: Precision, wanted: int, free: int | None, mesh: Mesh | None = None
) -> LevelPlan:
    """The plan with the smallest power of two that holds `wanted` songs at once, or the largest that fits.

    Raises:
      UserError: not even one song fits into `free` bytes; says what would.
    """
    size = 1
    while size < min(wanted, MOST_SLOTS):
        size *= 2
    while True:
        plan = plan_level(config, precision, size, mesh)
        if free is None or plan.total <= free * (1 - _RESERVED):
            return plan
        if size == 1:
            raise _does_not_fit(config, precision, plan, free, mesh)
        size //= 2


def check_fits(
    plan: LevelPlan, config: PriorConfig, precision: Precision, free: int | None, mesh: Mesh | None = None
) -> None:
    """Raises a UserError if a plan of a chosen batch size does not fit into `free` bytes; says what would."""
    if free is not None and plan.total > free:
        raise _does_not_fit(config, precision, plan, free, mesh)


def _does_not_fit(
    config: PriorConfig, precision: Precision, plan: LevelPlan, free: int, mesh: Mesh | None
) -> UserError:
    smaller = [("bfloat16", 1), ("int8", 1), *((precision, n) for n in (32, 16, 8, 4, 2, 1) if n < plan.batch_size)]
    remedies = [
        f"precision {name} with batch_size {size}" if name != precision else f"batch_size {size}"
        for name, size in smaller
        if (name, size) != (precision, plan.batch_size)
        and plan_level(config, name, size, mesh).total <= free * (1 - _RESERVED)
    ]
    larger = "use a larger device, or divide the weights over several (mesh fsdp=2)"
    advice = f"try {remedies[-1] if plan.batch_size > 1 else remedies[0]}" if remedies else larger
    return UserError(f"{plan} do not fit into the {size_text(free)} that are free: {advice}.")


def free_memory(device: jax.Device) -> int | None:
    """Bytes that can still be had on a device; None if the system does not say."""
    if device.platform != "cpu":
        limit = memory_limit(device)
        return None if limit is None else limit - (device.memory_stats() or {}).get("bytes_in_use", 0)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _slot_bytes(config: PriorConfig, batch_size: int, mesh: Mesh) -> int:
    """Of so many slots on one device."""
    slots = jax.eval_shape(lambda: empty_slots(config, batch_size * mesh.shape["replica"]))
    return bytes_per_device(jax.tree.map(_lying, slots, slot_shardings(slots, mesh)))


def _lying(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
