"""Where a run computes: its devices, and which part of every batch lies where."""

from __future__ import annotations

from typing import NamedTuple

from jax.sharding import Mesh, NamedSharding

from jukebox_jax.parallel.hosts import Part, part_here
from jukebox_jax.parallel.mesh import make_mesh
from jukebox_jax.parallel.strategies import Rules, batch_sharding, get_strategy
from jukebox_jax.training.config import TrainConfig


class Devices(NamedTuple):
    """A run's mesh, its strategy's rules for logical axes, and the sharding of its batches."""

    mesh: Mesh
    rules: Rules
    batch: NamedSharding


def devices_of(config: TrainConfig) -> Devices:
    """The devices that the config asks for, of all hosts.

    Raises:
      UserError: there are too few or too many for its mesh, or the mesh does not divide its batches.
    """
    strategy = get_strategy(config.strategy)
    mesh = make_mesh(config.mesh or strategy.mesh_shape)
    return Devices(mesh, strategy.rules, batch_sharding(mesh, strategy.rules, config.batch_size, config.accumulate))


def part_of_this_host(config: TrainConfig) -> Part:
    """Which part of every batch this host reads."""
    return part_here(devices_of(config).batch, config.batch_size)
