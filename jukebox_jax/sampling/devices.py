"""The devices that songs are sampled on, and how a prior lies on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from jukebox_jax.errors import UserError
from jukebox_jax.models.prior import PriorConfig, init_params
from jukebox_jax.parallel.mesh import make_mesh
from jukebox_jax.parallel.strategies import STRATEGIES, resolve

# As in training, but the small tables that tokens are looked up in are whole: devices would have to meet over them at
# every token, and XLA's partitioner ends the process over such a look-up on several replicas.
_RULES = tuple((word, None if word == "vocab" else axes) for word, axes in STRATEGIES["fsdp_tp"].rules)


def sampling_mesh(shape: Mapping[str, int] | Sequence[int] | None, work: int) -> Mesh:
    """The mesh to sample on.

    Args:
      shape: sizes of its axes (see `parallel.mesh.mesh_sizes`), of the first devices of this process if they are not
        for all of them. None: as many replicas as there are devices, but no more than there is work for.
      work: how many songs, or segments of them, there are to be sampled at once.

    Raises:
      UserError: a mesh for other devices than there are, or one that divides sequences.
    """
    devices = jax.local_devices()
    if shape is None:
        shape = (min(len(devices), work),)
    given = list(shape.values()) if isinstance(shape, Mapping) else list(shape)
    if min(given, default=1) > 0:
        devices = devices[: math.prod(given)]
    mesh = make_mesh(shape, devices)
    if mesh.shape["sequence"] > 1:
        raise UserError("A mesh to sample on divides no sequence, as tokens come one by one: leave `sequence` out.")
    return mesh


def divided(mesh: Mesh) -> dict[str, int]:
    """Into how many parts each replica divides its weights: all of a mesh that tokens depend on, by the order of
    sums."""
    return {axis: mesh.shape[axis] for axis in ("fsdp", "tensor")}


def weight_shardings(config: PriorConfig, mesh: Mesh) -> dict[str, Any]:
    """How a prior's parameters, as they are trained, lie on a mesh: whole on every `replica`, whose devices divide
    widths (`fsdp`) and heads and hidden features (`tensor`) among them. At a token only activations move.

    Raises:
      UserError: a mesh axis does not divide what it should; names level, parameter, dimension and axis.
    """
    level = f"level_{config.level}"
    boxed = jax.eval_shape(lambda: {level: init_params(config, jax.random.key(0))})
    return resolve(boxed, mesh, _RULES)[level]
