"""What the chips send one another in a training step, by the model: one formula for each thing that moves.

Parameters and gradients are counted leaf by leaf, from the shardings that the strategy resolves them to; activations
from the attention patterns of the layers. `parallel.strategies` says in words what moves over which mesh axis. Sizes
are those that a ring sends (see `parallel.collectives`): of n chips and an array of B bytes in all, (n - 1) / n · B for
a gather, a scatter or an exchange, twice that for a sum that all of them get.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding

from jukebox_jax.models.attention import Layout, Pattern
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.models.transformer import TransformerConfig
from jukebox_jax.parallel.collectives import Kind, Message
from jukebox_jax.parallel.mesh import AXES

#: Mesh axes over which examples, or the tokens of one, are divided: their chips have different parts of each gradient.
_DATA = ("replica", "fsdp", "sequence")
_FULL = 4  # bytes of a float32


def merged(messages: Sequence[Message]) -> list[Message]:
    """One message for each kind and axes, the largest first; empty ones dropped."""
    sums: dict[tuple[Kind, tuple[str, ...]], float] = {}
    for message in messages:
        key = (message.kind, message.axes)
        sums[key] = sums.get(key, 0.0) + message.bytes_sent
    found = [Message(kind, axes, size) for (kind, axes), size in sums.items() if size > 0]
    return sorted(found, key=lambda message: -message.bytes_sent)


def parameter_messages(params: Any, itemsize: int, mesh: Mapping[str, int], passes: int) -> list[Message]:
    """Gathers of parameters and sums of their gradients, in one microbatch.

    A leaf of B bytes (matrices in the dtype that they are used in, everything else in float32) that lies over g chips
    of a data axis is gathered before each use and its gradient summed into shards: `passes` · (g - 1) / g · B and
    (g - 1) / g · B. Over the r chips that hold the same shard, gradients are summed: 2 · (r - 1) / r · B / g. What is
    divided over `tensor` is smaller by that factor in all of these.

    Args:
      params: ShapeDtypeStructs with NamedShardings.
      itemsize: bytes of a number in the layers' matrix products.
      passes: how often a microbatch needs the parameters of a layer: 2, in the forward and in the backward pass.
    """
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        axes = _axes(leaf.sharding)
        layer = "layers" in jax.tree_util.keystr(path)
        matrix = leaf.ndim >= 3  # kernels of layers (stacked) and of convolutions; not tables
        size = math.prod(leaf.shape) * (itemsize if matrix else _FULL) / _count(mesh, axes & {"tensor"})
        shard_axes = _ordered(mesh, axes & set(_DATA))
        same_axes = _ordered(mesh, set(_DATA) - axes)
        shards, same = _count(mesh, shard_axes), _count(mesh, same_axes)
        uses = passes if layer else 1  # outside the loop over layers, the backward pass finds them where they were
        found.append(Message("all-gather", shard_axes, uses * _part(shards) * size))
        found.append(Message("reduce-scatter", shard_axes, _part(shards) * size))
        found.append(Message("all-reduce", same_axes, 2 * _part(same) * size / shards))
    return merged(found)


def activation_messages(model: PriorConfig, examples: float, mesh: Mapping[str, int]) -> list[Message]:
    """What moves of the activations of a prior in one microbatch, of `examples` for each group of chips that share
    them."""
    found = list(_transformer_messages(model.transformer, examples, mesh))
    if model.lyrics is not None and model.lyrics.encoder is not None:
        encoder = model.lyrics.encoder.transformer(model.lyrics.tokens, model.dtype, model.remat)
        found += _transformer_messages(encoder, examples, mesh)
    # Rows of embeddings that other chips hold, and the states' gradient from logits that each has a part of.
    tensor = mesh["tensor"]
    if (model.shift + model.codes) % tensor == 0:
        states = examples * model.transformer.context * model.width * _FULL / mesh["sequence"]
        found.append(Message("all-reduce", ("tensor",), 2 * _part(tensor) * states))
    return merged(found)


def _transformer_messages(t: TransformerConfig, examples: float, mesh: Mapping[str, int]) -> Iterator[Message]:
    item = 4 if t.dtype == "float32" else 2
    tokens = examples * t.context / mesh["sequence"]
    # How often a layer computes its forward pass, and with it what that moves; the backward pass moves the same once.
    passes = 2 if t.remat == "none" else 3
    tensor, sequence = mesh["tensor"], mesh["sequence"]
    # Behind the attention and behind the MLP, forwards and backwards. Of what is computed again, the MLP's output is
    # not wanted, and the attention's only if it was not kept.
    sums = 4 + (t.remat == "block")
    yield Message("all-reduce", ("tensor",), t.depth * sums * 2 * _part(tensor) * tokens * t.width * item)
    for pattern in t.patterns:
        state = t.state * item / tensor
        if pattern == Pattern.PREVIOUS_ROW and sequence > 1:  # keys and values of the neighbour's last row
            yield Message("collective-permute", ("sequence",), passes * 2 * examples * t.block_ctx * state)
        elif pattern == Pattern.COLUMN:  # queries, keys, values, and back what was attended
            yield Message("all-to-all", ("sequence",), passes * 4 * _part(sequence) * tokens * state)
        else:
            keys = 2 * examples * _keys_gathered(pattern, t.layout) * state
            yield Message("all-gather", ("sequence",), (passes - 1) * _part(sequence) * keys)
            yield Message("reduce-scatter", ("sequence",), _part(sequence) * keys)


def _keys_gathered(pattern: Pattern, layout: Layout) -> int:
    """Keys that every chip needs of all of an example's rows."""
    return {
        Pattern.DENSE: layout.length,
        Pattern.SUMMARY: layout.blocks - 1,
        Pattern.SUMMARY_SPREAD: (layout.blocks - 1) * layout.spread,
        Pattern.ENCODER: layout.encoded,
        Pattern.PRIME: layout.prime_keys,
    }.get(pattern, 0)


def _axes(sharding: NamedSharding) -> set[str]:
    """Mesh axes that divide an array."""
    return {axis for entry in sharding.spec if entry for axis in ((entry,) if isinstance(entry, str) else entry)}


def _ordered(mesh: Mapping[str, int], axes: set[str]) -> tuple[str, ...]:
    return tuple(axis for axis in AXES if axis in axes and mesh[axis] > 1)


def _count(mesh: Mapping[str, int], axes: set[str] | tuple[str, ...]) -> int:
    return math.prod(mesh[axis] for axis in axes)


def _part(count: int) -> float:
    return (count - 1) / count
