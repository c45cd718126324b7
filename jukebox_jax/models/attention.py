"""Factored attention: each layer lets a token see its row, its column, the row before, … (spec: priors, section 4).

A sequence of D tokens is laid out as `blocks` rows of block_ctx = D / blocks columns. `visible` is the definition of
every pattern: which keys a query sees. The rest is how to compute it: a whole sequence as a reshape and one small dense
`attend`, whole rows or one token from a cache of just the keys that later queries still need. Tests hold them equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from jukebox_jax.errors import UserError


class Pattern(IntEnum):
    """Which keys a query sees. The numbers are those of the released configurations."""

    DENSE = 0  # every position up to its own
    ROW = 1  # its own row, up to its own position
    COLUMN = 2  # its own column, up to its own row
    PREVIOUS_ROW = 3  # the whole previous row; in the first row nothing, and attention returns zero
    SUMMARY = 4  # the last position of every earlier row, and a blank
    SUMMARY_SPREAD = 5  # the last `spread` positions of every earlier row, and as many blanks
    ENCODER = 6  # every state of the lyric encoder
    PRIME = 7  # the first positions of the sequence (the lyrics and a little more), up to its own


def _cycle(*runs: tuple[tuple[int, ...], int]) -> tuple[int, ...]:
    return tuple(pattern for run, repeats in runs for pattern in run * repeats)


def _sixteenths(last: tuple[int, int, int]) -> tuple[int, ...]:
    """Rows, columns, previous rows, but every 16th layer taken from `last`."""
    return tuple(last[d % 3] if d % 16 == 15 else (1, 2, 3)[d % 3] for d in range(48))


# The patterns of the layers from the first on; a deeper stack starts again.
_FACTORED = (1, 2, 3)
_ORDERS: dict[int, tuple[int, ...]] = {
    0: (0,),
    1: (1, 2),
    2: _FACTORED,
    3: (1, 4),
    4: (1, 5),
    5: (1, 4, 1, 1),
    6: (1, 2, 3, 6),
    7: _cycle((_FACTORED, 5), ((6,), 1)),
    8: _cycle((_FACTORED, 3), ((6,), 1)),
    9: (1, 2, 3, 0),
    10: _cycle((_FACTORED, 3), ((*_FACTORED, *_FACTORED, *_FACTORED, 6), 7)),
    11: _sixteenths((6, 6, 0)),
    12: _sixteenths((7, 7, 0)),
}


def attention_patterns(order: int, depth: int) -> tuple[Pattern, ...]:
    """The pattern of every layer for an attention order of the spec.

    Raises:
      UserError: an order that is not one of 0 to 12.
    """
    if order not in _ORDERS:
        raise UserError(f"model.attention_order={order} is unknown: choose one of 0 to {max(_ORDERS)}.")
    cycle = _ORDERS[order]
    return tuple(Pattern(cycle[layer % len(cycle)]) for layer in range(depth))


@dataclass(frozen=True)
class Layout:
    """How a sequence of `length` tokens is laid out for attention.

    Attributes:
      blocks: rows; they divide the length.
      spread: positions at the end of each row that SUMMARY_SPREAD sees.
      prime: tokens at the start that PRIME is about (the lyrics of a single sequence).
      encoded: states of the lyric encoder that ENCODER sees.
    """

    length: int
    blocks: int
    spread: int = 0
    prime: int = 0
    encoded: int = 0

    @property
    def block_ctx(self) -> int:
        """Length of a row: the number of columns."""
        return self.length // self.blocks

    @property
    def prime_keys(self) -> int:
        """Positions PRIME sees: always more than `prime`, rounded up by the number of rows (not by their length)."""
        return min(self.length, (self.prime // self.blocks + 1) * self.blocks)

    def summary(self, pattern: Pattern) -> int:
        """Positions per row, and blanks, that a summary pattern sees; no blanks for the others."""
        return {Pattern.SUMMARY: 1, Pattern.SUMMARY_SPREAD: self.spread}.get(pattern, 0)


Positions = Int[Array, "..."] | Int[np.ndarray, "..."]


def visible(
    pattern: Pattern, layout: Layout, query: Positions, key: Positions
) -> Bool[Array, ...] | Bool[np.ndarray, ...]:
    """Whether the query at one position sees the key at another (arrays that broadcast); negative keys are no keys.

    ENCODER is not among them: its keys are not positions of the sequence, and all are seen.
    """
    width, causal_ = layout.block_ctx, (key <= query) & (key >= 0)
    query_row, key_row = query // width, key // width
    if pattern == Pattern.DENSE:
        return causal_
    if pattern == Pattern.ROW:
        return causal_ & (key_row == query_row)
    if pattern == Pattern.COLUMN:
        return causal_ & (key % width == query % width)
    if pattern == Pattern.PREVIOUS_ROW:
        return (key >= 0) & (key_row == query_row - 1)
    if pattern in (Pattern.SUMMARY, Pattern.SUMMARY_SPREAD):
        at_the_end = key % width >= width - layout.summary(pattern)
        return causal_ & at_the_end & (key_row < layout.blocks - 1)
    if pattern == Pattern.PRIME:
        return causal_ & (key < layout.prime_keys)
    raise ValueError(f"{pattern!r} has no keys in the sequence")


def attention_weights(
    q: Float[Array, "*b q h k"],
    k: Float[Array, "*b s h k"],
    seen: Bool[
        Array,
        (
            ...  # q #s
        ),
    ]
    | None = None,
    blanks: int = 0,
) -> Float[Array, "*b h q _"]:
    """Softmax over keys, in float32; products in the dtype of the arguments.

    Args:
      seen: which key each query sees, the same for all or not; None: all.
      blanks: zero keys, seen by all, that stand before the others and take their share of the weight.
    """
    # Both factors take half the scale, so that half-precision products stay in range.
    scale = jnp.asarray(q.shape[-1] ** -0.25, q.dtype)
    return _softmax(jnp.einsum("...qhk,...shk->...hqs", q * scale, k * scale), seen, blanks)


def _softmax(logits: Float[Array, "... s"], seen: Bool[Array, ...] | None, blanks: int) -> Float[Array, "... _"]:
    logits = logits.astype(jnp.float32)
    if seen is not None:
        logits = jnp.where(seen, logits, -1e9)
    if blanks:
        logits = jnp.pad(logits, [(0, 0)] * (logits.ndim - 1) + [(blanks, 0)])
    return jax.nn.softmax(logits, axis=-1)


def attend(
    q: Float[Array, "*b q h k"],
    k: Float[Array, "*b s h k"],
    v: Float[Array, "*b s h k"],
    seen: Bool[
        Array,
        (
            ...  # q #s
        ),
    ]
    | None = None,
    blanks: int = 0,
) -> Float[Array, "*b q h k"]:
    """Attention of q queries over s keys and `blanks` blank ones; see `attention_weights`."""
    weights = attention_weights(q, k, seen, blanks)[..., blanks:].astype(v.dtype)
    return jnp.einsum("...hqs,...shk->...qhk", weights, v)


# ---- A whole sequence -------------------------------------------------------------------------------------------


# Where the tokens of a sequence lie on several devices, each has some of its rows. Constraints say so before and after
# whatever moves between devices, so that nothing else does.
_TOKENS = ("batch", "time", "heads", None)
_KEYS = ("batch", None, "heads", None)  # all of them on every device
_ROWS = ("batch", "rows", None, "heads", None)
_COLUMNS = ("batch", None, "columns", "heads", None)


class _Arranged(NamedTuple):
    """Queries, keys and values cut into independent small attentions, as arguments of `attend`."""

    q: Array
    k: Array
    v: Array
    seen: Array | None
    blanks: int


def _arrange(pattern: Pattern, q: Array, k: Array, v: Array, layout: Layout) -> _Arranged:
    if pattern in (Pattern.ROW, Pattern.COLUMN, Pattern.PREVIOUS_ROW):
        q, k, v = (_in_rows(x, layout) for x in (q, k, v))
        if pattern == Pattern.ROW:
            return _Arranged(q, k, v, _causal(layout.block_ctx), 0)
        if pattern == Pattern.COLUMN:
            # Devices exchange rows for columns.
            q, k, v = (nn.with_logical_constraint(x, _COLUMNS).swapaxes(1, 2) for x in (q, k, v))
            return _Arranged(q, k, v, _causal(layout.blocks), 0)
        # Keys and values side by side, so that a device gets its neighbour's last row in one message.
        kv = jnp.pad(jnp.stack([k, v])[:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))
        k, v = nn.with_logical_constraint(kv, (None, *_ROWS))
        return _Arranged(q, k, v, None, 0)
    q = nn.with_logical_constraint(q, _TOKENS)
    seen, positions = None, np.arange(layout.length)
    if pattern == Pattern.DENSE:
        seen = _causal(layout.length)
    elif pattern == Pattern.PRIME:
        keys = positions[: layout.prime_keys]
        k, v = k[:, : layout.prime_keys], v[:, : layout.prime_keys]
    elif pattern != Pattern.ENCODER:  # the summaries: what the last query would see, were its row not the last
        spread = layout.summary(pattern)
        keys = positions.reshape(layout.blocks, layout.block_ctx)[:-1, -spread:].ravel()
        k, v = (_in_rows(x, layout)[:, :-1, -spread:].reshape(x.shape[0], -1, *x.shape[2:]) for x in (k, v))
    if pattern not in (Pattern.DENSE, Pattern.ENCODER):
        seen = jnp.asarray(visible(pattern, layout, positions[:, None], keys[None]))
    k, v = (nn.with_logical_constraint(x, _KEYS) for x in (k, v))
    return _Arranged(q, k, v, seen, layout.summary(pattern))


def _in_rows(x: Float[Array, "b t h k"], layout: Layout) -> Float[Array, "b n c h k"]:
    rows = x.reshape(x.shape[0], layout.blocks, layout.block_ctx, *x.shape[2:])
    return nn.with_logical_constraint(rows, _ROWS)


def attend_all(
    pattern: Pattern,
    q: Float[Array, "b t h k"],
    k: Float[Array, "b s h k"],
    v: Float[Array, "b s h k"],
    layout: Layout,
) -> Float[Array, "b t h k"]:
    """Attention of every position of a whole sequence; for ENCODER, k and v are those of the encoder's states."""
    out = attend(*_arrange(pattern, q, k, v, layout))
    if pattern == Pattern.COLUMN:
        out = nn.with_logical_constraint(out.swapaxes(1, 2), _COLUMNS)
        out = nn.with_logical_constraint(out, _ROWS)
    return nn.with_logical_constraint(out.reshape(q.shape), _TOKENS)


def record_weights(
    pattern: Pattern, q: Float[Array, "b t h k"], k: Float[Array, "b s h k"], layout: Layout
) -> Float[Array, "*b h q _"]:
    """The weights behind `attend_all`, blanks included.

    Shapes: DENSE (b, h, t, t); ROW and PREVIOUS_ROW (b, blocks, h, block_ctx, block_ctx); COLUMN
    (b, block_ctx, h, blocks, blocks); ENCODER (b, h, t, s); PRIME (b, h, t, prime_keys); summaries
    (b, h, t, blanks and summaries).
    """
    arranged = _arrange(pattern, q, k, k, layout)
    return attention_weights(arranged.q, arranged.k, arranged.seen, arranged.blanks)


def _causal(length: int) -> Bool[Array, "q s"]:
    return jnp.tril(jnp.ones((length, length), bool))


# ---- Rows and single tokens, from a cache -----------------------------------------------------------------------


@struct.dataclass
class LayerCache:
    """Keys and values that later queries of one layer may still need: (b, slots, 2, h k), keys first.

    DENSE keeps a slot per position; COLUMN too, column by column, so that a column is read in one piece; ROW one per
    column, for the current row; PREVIOUS_ROW two rows, row r in half r % 2; the summaries one per position they see;
    PRIME its first positions; ENCODER all states of the encoder, once and for all. What a slot holds before it is
    written is never looked at.

    All heads lie side by side, as TPUs lay the last axes out in tiles of 8 × 128: an axis of 8 heads may take the place
    of 128.
    """

    kv: Shaped[Array, "b s 2 hk"]

    @classmethod
    def of(cls, k: Shaped[Array, "b s h k"], v: Shaped[Array, "b s h k"]) -> LayerCache:
        """Keys and values of all slots."""
        return cls(jnp.stack([x.reshape(*x.shape[:2], math.prod(x.shape[2:])) for x in (k, v)], axis=2))

    def by_head(self, heads: int) -> Shaped[Array, "b s 2 h k"]:
        """Its keys and values, the heads apart."""
        return _by_head(self.kv, heads)


def _by_head(kv: Shaped[Array, "*b hk"], heads: int) -> Shaped[Array, "*b h k"]:
    return kv.reshape(*kv.shape[:-1], heads, kv.shape[-1] // heads)


def slot_count(pattern: Pattern, layout: Layout) -> int:
    """Number of keys the cache of a layer holds at most."""
    return {
        Pattern.DENSE: layout.length,
        Pattern.ROW: layout.block_ctx,
        Pattern.COLUMN: layout.length,
        Pattern.PREVIOUS_ROW: 2 * layout.block_ctx,
        Pattern.SUMMARY: layout.blocks - 1,
        Pattern.SUMMARY_SPREAD: (layout.blocks - 1) * layout.spread,
        Pattern.ENCODER: layout.encoded,
        Pattern.PRIME: layout.prime_keys,
    }[pattern]


def slot_of(pattern: Pattern, layout: Layout, position: Positions) -> Positions:
    """The slot that a position's key goes to; `slot_count` if it is never looked at again."""
    width = layout.block_ctx
    row, column = position // width, position % width
    if pattern == Pattern.DENSE:
        return position
    if pattern == Pattern.COLUMN:
        return column * layout.blocks + row
    if pattern == Pattern.ROW:
        return column
    if pattern == Pattern.PREVIOUS_ROW:
        return row % 2 * width + column
    if pattern == Pattern.PRIME:
        kept, slot = position < layout.prime_keys, position
    else:
        spread = layout.summary(pattern)
        kept = (column >= width - spread) & (row < layout.blocks - 1)
        slot = row * spread + column - (width - spread)
    return jnp.where(kept, slot, slot_count(pattern, layout))


def held_positions(pattern: Pattern, layout: Layout, count: Int[Array, ""] | int) -> Int[Array, " s"]:
    """The position whose key stands in each slot after `count` tokens, -1 where none does. Not for ENCODER."""
    width = layout.block_ctx
    slots = jnp.arange(slot_count(pattern, layout))
    if pattern in (Pattern.DENSE, Pattern.PRIME):
        positions = slots
    elif pattern == Pattern.COLUMN:
        positions = slots % layout.blocks * width + slots // layout.blocks
    elif pattern in (Pattern.ROW, Pattern.PREVIOUS_ROW):
        last_row = (count - 1) // width
        behind = (last_row - slots // width) % 2 if pattern == Pattern.PREVIOUS_ROW else 0
        positions = (last_row - behind) * width + slots % width
    else:
        spread = layout.summary(pattern)
        positions = slots // spread * width + width - spread + slots % spread
    return jnp.where((positions >= 0) & (positions < count), positions, -1)


def empty_cache(
    pattern: Pattern, batch: int, layout: Layout, heads: int, head_dim: int, dtype: DTypeLike
) -> LayerCache:
    """The cache before the first token. For ENCODER it has to be replaced by the states' keys and values."""
    return LayerCache(jnp.zeros((batch, slot_count(pattern, layout), 2, heads * head_dim), dtype))


def attend_rows(
    pattern: Pattern,
    cache: LayerCache,
    q: Float[Array, "b t h k"],
    k: Float[Array, "b t h k"] | None,
    v: Float[Array, "b t h k"] | None,
    layout: Layout,
    row: Int[Array, ""],
    count: Int[Array, ""],
) -> tuple[Float[Array, "b t h k"], LayerCache]:
    """Attention of the tokens of whole rows, `row` the first of them, as much in parallel as the pattern allows.

    The first `count` tokens are real; those before `row` have been taken in before. What comes back for the others is
    without meaning, and what they leave in the cache is written again before it is looked at. For ENCODER k and v are
    None, as the cache holds all there is.
    """
    if pattern == Pattern.ENCODER:
        return _attend_cached(q, cache.by_head(q.shape[-2])), cache
    width, rows = layout.block_ctx, q.shape[1] // layout.block_ctx
    kv, held = jnp.stack([k, v], axis=2), cache.by_head(q.shape[-2])
    kv = kv.astype(held.dtype)
    in_rows = kv.reshape(kv.shape[0], rows, width, *kv.shape[2:])  # (b, rows, c, 2, h, k)
    q_rows = q.reshape(q.shape[0], rows, width, *q.shape[2:])
    # Which of these rows the next token belongs to: `rows` if it begins one after them.
    next_row = count // width
    if pattern == Pattern.ROW:
        out = _attend_cached(q_rows, in_rows, _causal(width))
        held = jax.lax.dynamic_index_in_dim(in_rows, next_row, axis=1, keepdims=False)
    elif pattern == Pattern.PREVIOUS_ROW:
        halves = held.reshape(held.shape[0], 2, width, *held.shape[2:])
        before = jax.lax.dynamic_slice_in_dim(halves, (row + 1) % 2, 1, axis=1)
        known = jnp.concatenate([before, in_rows], axis=1)
        out = _attend_cached(q_rows, known[:, :-1])
        out = jnp.where((row + jnp.arange(rows) == 0)[:, None, None, None], 0, out)  # the first row sees nothing
        last = jax.lax.dynamic_slice_in_dim(jnp.pad(known, [(0, 0), (0, 1)] + [(0, 0)] * 4), next_row, 2, axis=1)
        last = jnp.where((row + next_row) % 2 == 0, last[:, ::-1], last)
        held = last
    elif pattern == Pattern.COLUMN:
        table = held.reshape(held.shape[0], width, layout.blocks, *held.shape[2:])
        table = jax.lax.dynamic_update_slice_in_dim(table, in_rows.swapaxes(1, 2), row, axis=2)
        seen = jnp.arange(layout.blocks) <= row + jnp.arange(rows)[:, None]
        out = _attend_cached(q_rows.swapaxes(1, 2), table, seen).swapaxes(1, 2)
        held = table
    else:
        positions, spread = row * width + jnp.arange(rows * width), layout.summary(pattern)
        if spread:
            kv, at = in_rows[:, :, width - spread :].reshape(kv.shape[0], -1, *kv.shape[2:]), row * spread
        else:
            at = jnp.minimum(row * width, held.shape[1])
        if pattern != Pattern.DENSE:  # these tokens may begin among those that are kept, and end outside
            held = jnp.pad(held, [(0, 0), (0, kv.shape[1])] + [(0, 0)] * 3)
        held = jax.lax.dynamic_update_slice_in_dim(held, kv, at, axis=1)[:, : slot_count(pattern, layout)]
        keys = held_positions(pattern, layout, layout.length)
        out = _attend_cached(q, held, visible(pattern, layout, positions[:, None], keys[None]), spread)
    return out.reshape(q.shape), LayerCache(held.reshape(cache.kv.shape))


def attend_next(
    pattern: Pattern,
    cache: LayerCache,
    q: Float[Array, "b h k"],
    k: Float[Array, "b h k"] | None,
    v: Float[Array, "b h k"] | None,
    layout: Layout,
    position: Int[Array, " b"],
) -> tuple[Float[Array, "b h k"], LayerCache]:
    """Attention of one token of each sequence, the one at its `position`, reading only the keys it sees."""
    if pattern == Pattern.ENCODER:
        return _attend_one(q, cache.kv), cache
    width, slots = layout.block_ctx, slot_count(pattern, layout)
    row, column = position // width, position % width
    slot, new = (
        slot_of(pattern, layout, position),
        LayerCache.of(k[:, None], v[:, None]).kv[:, 0].astype(cache.kv.dtype),
    )
    kv = cache.kv.at[jnp.arange(len(q)), slot].set(new, mode="drop", unique_indices=True) if slots else cache.kv

    def read(start: Int[Array, " b"], size: int) -> Array:
        return jax.vmap(lambda x, at: jax.lax.dynamic_slice_in_dim(x, at, size))(kv, start)

    if pattern == Pattern.COLUMN:
        seen = jnp.arange(layout.blocks) <= row[:, None]
        out = _attend_one(q, read(column * layout.blocks, layout.blocks), seen)
    elif pattern == Pattern.PREVIOUS_ROW:
        out = _attend_one(q, read((row + 1) % 2 * width, width))
        out = jnp.where((row == 0)[:, None, None], 0, out)
    else:
        keys = jax.vmap(lambda count: held_positions(pattern, layout, count))(position + 1)
        seen = visible(pattern, layout, position[:, None], keys)
        out = _attend_one(q, kv, seen, layout.summary(pattern))
    return out, LayerCache(kv)


def _attend_one(
    q: Float[Array, "b h k"], kv: Shaped[Array, "b s 2 hk"], seen: Bool[Array, "b s"] | None = None, blanks: int = 0
) -> Float[Array, "b h k"]:
    """`attend` for one query of each sequence.

    In products that take keys and values as they lie: of those of `attend`, XLA's CPU compiler turns all keys round
    first, which takes ten times as long as the attention itself.
    """
    k, v = (_by_head(kv[:, :, index].astype(q.dtype), q.shape[1]) for index in (0, 1))
    columns = (q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype))[..., None]
    logits = jax.lax.dot_general(k, columns, (((3,), (2,)), ((0, 2), (0, 1))))[..., 0]  # (b, h, s)
    weights = _softmax(logits, None if seen is None else seen[:, None], blanks)[..., None, blanks:].astype(v.dtype)
    return jax.lax.dot_general(weights, v, (((3,), (1,)), ((0, 1), (0, 2))))[:, :, 0]


def _attend_cached(
    q: Float[Array, "*b q h k"],
    kv: Shaped[Array, "*b s 2 h k"],
    seen: Bool[Array, ...] | None = None,
    blanks: int = 0,
) -> Float[Array, "*b q h k"]:
    return attend(q, kv[..., 0, :, :].astype(q.dtype), kv[..., 1, :, :].astype(q.dtype), seen, blanks)
