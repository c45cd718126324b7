"""Factored attention: each layer lets a token see its row, its column, or the row before (spec: priors, section 4).

A sequence of D tokens is laid out as `blocks` rows of block_ctx = D / blocks columns. Every pattern is then a
reshape and one small dense `attend`. This file holds, for each pattern, what a query sees in a full forward pass and
what has to be kept to continue token by token: the two must agree, and a test holds them to it.
"""

from __future__ import annotations

from enum import IntEnum

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jukebox_jax.errors import UserError


class Pattern(IntEnum):
    """Which keys a query sees. The numbers are those of the released configurations."""

    DENSE = 0  # every position up to its own
    ROW = 1  # its own row, up to its own position
    COLUMN = 2  # its own column, up to its own row
    PREVIOUS_ROW = 3  # the whole previous row; in the first row nothing, and attention returns zero


_ORDERS: dict[int, tuple[int, ...]] = {0: (0,), 1: (1, 2), 2: (1, 2, 3), 9: (1, 2, 3, 0)}


def attention_patterns(order: int, depth: int) -> tuple[Pattern, ...]:
    """The pattern of every layer for an attention order of the spec.

    Raises:
      UserError: an order that is not one of the implemented ones.
    """
    if order not in _ORDERS:
        known = ", ".join(map(str, sorted(_ORDERS)))
        raise UserError(f"model.attention_order={order} is unknown: choose one of {known}.")
    cycle = _ORDERS[order]
    return tuple(Pattern(cycle[layer % len(cycle)]) for layer in range(depth))


def attend(
    q: Float[Array, "*b q h k"],
    k: Float[Array, "*b s h k"],
    v: Float[Array, "*b s h k"],
    visible: Bool[Array, "#q #s"] | None = None,
) -> Float[Array, "*b q h k"]:
    """Softmax attention of q queries over s keys; softmax in float32, products in the dtype of the arguments."""
    # Both factors take half the scale, so that half-precision products stay in range.
    scale = jnp.asarray(q.shape[-1] ** -0.25, q.dtype)
    weights = jnp.einsum("...qhk,...shk->...hqs", q * scale, k * scale).astype(jnp.float32)
    if visible is not None:
        weights = jnp.where(visible, weights, -1e9)
    weights = jax.nn.softmax(weights, axis=-1).astype(v.dtype)
    return jnp.einsum("...hqs,...shk->...qhk", weights, v)


def causal(length: int) -> Bool[Array, "q s"]:
    """Position i sees positions up to i."""
    return jnp.tril(jnp.ones((length, length), bool))


def attend_all(
    pattern: Pattern,
    q: Float[Array, "b t h k"],
    k: Float[Array, "b t h k"],
    v: Float[Array, "b t h k"],
    blocks: int,
) -> Float[Array, "b t h k"]:
    """Attention of every position of a full sequence."""
    batch, length, heads, head_dim = q.shape
    if pattern == Pattern.DENSE:
        return attend(q, k, v, causal(length))
    block_ctx = length // blocks
    q, k, v = (x.reshape(batch, blocks, block_ctx, heads, head_dim) for x in (q, k, v))
    if pattern == Pattern.ROW:
        out = attend(q, k, v, causal(block_ctx))
    elif pattern == Pattern.COLUMN:
        q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
        out = attend(q, k, v, causal(blocks)).swapaxes(1, 2)
    else:  # Pattern.PREVIOUS_ROW
        k, v = (jnp.pad(x[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0))) for x in (k, v))
        out = attend(q, k, v)
    return out.reshape(batch, length, heads, head_dim)


@struct.dataclass
class LayerCache:
    """Keys and values that later queries of one layer still need; their shape depends on the pattern:

    DENSE (b, t, h, k); ROW (b, block_ctx, h, k), the current row; COLUMN (b, blocks, block_ctx, h, k);
    PREVIOUS_ROW (b, 2, block_ctx, h, k), the current row in slot row % 2 and the previous one in the other.
    """

    k: Array
    v: Array


def empty_cache(
    pattern: Pattern, batch: int, length: int, blocks: int, heads: int, head_dim: int, dtype: DTypeLike
) -> LayerCache:
    """The cache before the first token. Zeros matter: the first row sees a previous row of zeros."""
    block_ctx = length // blocks
    shape = {
        Pattern.DENSE: (length,),
        Pattern.ROW: (block_ctx,),
        Pattern.COLUMN: (blocks, block_ctx),
        Pattern.PREVIOUS_ROW: (2, block_ctx),
    }[pattern]
    zeros = jnp.zeros((batch, *shape, heads, head_dim), dtype)
    return LayerCache(zeros, zeros)


def fill_cache(
    pattern: Pattern, k: Float[Array, "b t h k"], v: Float[Array, "b t h k"], blocks: int, position: Int[Array, ""]
) -> LayerCache:
    """The cache as it stands before `position`, from the keys and values of a full sequence.

    Entries at `position` and after are not yet valid; `attend_next` hides or overwrites them before they are seen.
    """
    batch, length, heads, head_dim = k.shape
    block_ctx = length // blocks
    row = position // block_ctx

    def select(x: Array) -> Array:
        if pattern == Pattern.DENSE:
            return x
        table = x.reshape(batch, blocks, block_ctx, heads, head_dim)
        if pattern == Pattern.COLUMN:
            return table
        current = jax.lax.dynamic_index_in_dim(table, row, axis=1, keepdims=False)
        if pattern == Pattern.ROW:
            return current
        previous = jax.lax.dynamic_index_in_dim(table, jnp.maximum(row - 1, 0), axis=1, keepdims=False)
        previous = jnp.where(row > 0, previous, 0)
        first_is_current = row % 2 == 0
        return jnp.stack(
            [jnp.where(first_is_current, current, previous), jnp.where(first_is_current, previous, current)], axis=1
        )

    return LayerCache(select(k), select(v))


def attend_next(
    pattern: Pattern,
    cache: LayerCache,
    q: Float[Array, "b h k"],
    k: Float[Array, "b h k"],
    v: Float[Array, "b h k"],
    blocks: int,
    block_ctx: int,
    position: Int[Array, ""],
) -> tuple[Float[Array, "b h k"], LayerCache]:
    """Attention of the one query at `position`, after its own key and value have entered the cache."""
    row, column = position // block_ctx, position % block_ctx
    slot = {
        Pattern.DENSE: (position,),
        Pattern.ROW: (column,),
        Pattern.COLUMN: (row, column),
        Pattern.PREVIOUS_ROW: (row % 2, column),
    }[pattern]
    cache = LayerCache(_write(cache.k, k, slot), _write(cache.v, v, slot))
    if pattern == Pattern.COLUMN:
        read, last = lambda x: jax.lax.dynamic_index_in_dim(x, column, axis=2, keepdims=False), row
    elif pattern == Pattern.PREVIOUS_ROW:
        read, last = lambda x: jax.lax.dynamic_index_in_dim(x, (row + 1) % 2, axis=1, keepdims=False), block_ctx
    else:
        read, last = lambda x: x, slot[0]
    keys, values = read(cache.k), read(cache.v)
    visible = (jnp.arange(keys.shape[1]) <= last)[None, :]
    return attend(q[:, None], keys, values, visible)[:, 0], cache


def _write(buffer: Array, value: Float[Array, "b h k"], slot: tuple[Array, ...]) -> Array:
    update = jnp.expand_dims(value, tuple(range(1, 1 + len(slot)))).astype(buffer.dtype)
    return jax.lax.dynamic_update_slice(buffer, update, (0, *slot, 0, 0))
