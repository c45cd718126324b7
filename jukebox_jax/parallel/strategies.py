"""Strategies: a mesh shape and rules from logical axes to mesh axes, one row each, and the resolver of the rules.

A model names the axes of its arrays with words (`batch time rows width heads hidden vocab layers codes`); a strategy
says over which mesh axes each word is sharded. A new strategy is a new row; no model changes.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
from flax import linen as nn
from flax.core import meta
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jukebox_jax.config import nearest
from jukebox_jax.errors import UserError

Rules = tuple[tuple[str, str | tuple[str, ...] | None], ...]

_BATCH = ("replica", "fsdp")


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A row of the table.

    Attributes:
      mesh_shape: sizes of (replica, fsdp, sequence, tensor); -1 takes all remaining devices.
      rules: (logical axis, mesh axis or axes or None), in order of precedence: in an activation whose dimensions ask
        for the same mesh axis, the earlier rule has it (Linen's reading); for a parameter that is an error.
    """

    mesh_shape: tuple[int, int, int, int]
    rules: Rules


def _rules(**sharded: str | tuple[str, ...]) -> Rules:
    """Every logical axis has a rule, so that a misspelt one in a model is found."""
    words = ("batch", "time", "rows", "width", "heads", "hidden", "vocab", "layers", "codes")
    unknown = sharded.keys() - set(words)
    assert not unknown, unknown
    return tuple((word, sharded.get(word)) for word in words)


STRATEGIES: dict[str, Strategy] = {
    # One device, whatever the machine has.
    "single": Strategy((1, 1, 1, 1), _rules(batch=_BATCH)),
    # Every device holds all parameters and a part of the batch.
    "dp": Strategy((-1, 1, 1, 1), _rules(batch=_BATCH)),
    # Every device holds a part of the batch and a part of each parameter, optimizer moment and average.
    "fsdp": Strategy((1, -1, 1, 1), _rules(batch=_BATCH, width="fsdp")),
}


def get_strategy(name: str) -> Strategy:
    """Looks a row up.

    Raises:
      UserError: there is no such row; names the nearest one.
    """
    if name not in STRATEGIES:
        raise UserError(f"Unknown strategy {name!r}: {nearest(name, STRATEGIES)}")
    return STRATEGIES[name]


def resolve(boxed: Any, mesh: Mesh | AbstractMesh, rules: Rules) -> Any:
    """Shardings of a tree whose leaves may carry Linen's partitioning metadata.

    Args:
      boxed: arrays or ShapeDtypeStructs, some boxed in `nn.LogicallyPartitioned`; an unboxed leaf is replicated.

    Returns:
      The unboxed tree's structure with a NamedSharding for every leaf.

    Raises:
      UserError: two dimensions of a leaf want the same mesh axis, or a mesh axis does not divide a dimension; names
        leaf, dimension and mesh axis.
      ValueError: a logical axis without a rule (a mistake in the model).
    """
    shapes = meta.unbox(boxed)
    specs = nn.get_partition_spec(boxed)

    def one(path: tuple, leaf: Any, spec: PartitionSpec) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, _resolve_leaf(name, tuple(leaf.shape), tuple(spec), mesh, rules))

    return jax.tree_util.tree_map_with_path(one, shapes, specs)


def batch_sharding(mesh: Mesh | AbstractMesh, rules: Rules, batch_size: int) -> NamedSharding:
    """The sharding of every array of a batch: its first axis, `batch_size` long, over the rule for `batch`.

    Raises:
      UserError: the mesh does not divide the batch.
    """
    spec = _resolve_leaf("the batch (batch_size)", (batch_size,), ("batch",), mesh, rules)
    return NamedSharding(mesh, spec)


def _resolve_leaf(
    name: str, shape: tuple[int, ...], logical: tuple, mesh: Mesh | AbstractMesh, rules: Rules
) -> PartitionSpec:
    table = dict(rules)
    taken: dict[str, int] = {}
    spec: list[str | tuple[str, ...] | None] = []
    for dimension, word in enumerate(logical):
        if word is None:
            spec.append(None)
            continue
        if word not in table:
            raise ValueError(f"{name}: logical axis {word!r} has no rule; {nearest(word, table)}")
        axes = table[word]
        spec.append(axes)
        for axis in (axes,) if isinstance(axes, str) else axes or ():
            if axis in taken:
                raise UserError(
                    f"{name}: dimensions {taken[axis]} ({logical[taken[axis]]}) and {dimension} ({word}) both want "
                    f"mesh axis {axis!r}: choose another strategy."
                )
            taken[axis] = dimension
        parts = math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ()))
        if shape[dimension] % parts:
            raise UserError(
                f"{name}: dimension {dimension} ({word}) of size {shape[dimension]} is not divisible by mesh axis "
                f"{_text(axes)} of size {parts}: change the size, the mesh or the strategy."
            )
    return PartitionSpec(*spec)


def _text(axes: str | tuple[str, ...]) -> str:
    return axes if isinstance(axes, str) else "×".join(axes)
