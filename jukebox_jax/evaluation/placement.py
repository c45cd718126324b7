"""Batches of an evaluation on the mesh of the training around it, on any number of hosts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec


def placed(batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Puts a batch on the devices of the current mesh (`jax.set_mesh`); without a mesh it stays as it is.

    The current rules (`nn.logical_axis_rules`) say over which of them it is divided; without rules each has all of it.

    Args:
      batch: the whole one, the same on every host, of which each puts its part on its devices.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return dict(batch)
    spec = nn.logical_to_mesh_axes(("batch",)) if nn.get_logical_axis_rules() else PartitionSpec()
    sharding = NamedSharding(mesh, spec)
    return {
        name: jax.make_array_from_callback(array.shape, sharding, lambda index, array=array: array[index])
        for name, array in batch.items()
    }


def everywhere(tree: Any) -> Any:
    """Inside a jitted function: its result in full on every device, so that every host can read it."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, PartitionSpec()), tree)
