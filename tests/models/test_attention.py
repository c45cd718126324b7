"""Each attention pattern against its definition; chunk by chunk and token by token against the whole sequence."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jukebox_jax.errors import UserError
from jukebox_jax.models.attention import (
    LayerCache,
    Layout,
    Pattern,
    attend_all,
    attend_next,
    attend_rows,
    attention_patterns,
    empty_cache,
    held_positions,
    record_weights,
    slot_count,
)

HEADS, HEAD_DIM = 2, 3
LAYOUT = Layout(24, 4, spread=2, prime=5, encoded=7)
LAYOUTS = [LAYOUT, Layout(5, 1, spread=2, prime=2, encoded=3), Layout(5, 5, spread=1, prime=3, encoded=3)]


def keys_seen(pattern: Pattern, layout: Layout, i: int) -> list[int]:
    """The definition, straight from the specification's table; -1 is a blank key."""
    width, length, blocks = layout.block_ctx, layout.length, layout.blocks
    row, column = i // width, i % width
    up_to = range(i + 1)
    if pattern == Pattern.DENSE:
        return list(up_to)
    if pattern == Pattern.ROW:
        return [j for j in up_to if j // width == row]
    if pattern == Pattern.COLUMN:
        return [j for j in up_to if j % width == column]
    if pattern == Pattern.PREVIOUS_ROW:
        return list(range((row - 1) * width, row * width)) if row else []
    if pattern == Pattern.SUMMARY:
        return [-1] + [r * width + width - 1 for r in range(blocks - 1) if r * width + width - 1 <= i]
    if pattern == Pattern.SUMMARY_SPREAD:
        ends = [r * width + c for r in range(blocks - 1) for c in range(width - layout.spread, width)]
        return [-1] * layout.spread + [j for j in ends if j <= i]
    if pattern == Pattern.ENCODER:
        return list(range(layout.encoded))
    return [j for j in up_to if j < min(length, (layout.prime // blocks + 1) * blocks)]


def by_definition(pattern: Pattern, layout: Layout, q, k, v) -> np.ndarray:
    out = np.zeros(q.shape)
    blank = np.zeros_like(k[:, :1])
    k, v = np.concatenate([k, blank], axis=1), np.concatenate([v, blank], axis=1)
    for i in range(q.shape[1]):
        keys = keys_seen(pattern, layout, i)
        if not keys:
            continue
        weights = np.einsum("bhk,bshk->bhs", q[:, i], k[:, keys]) / np.sqrt(HEAD_DIM)
        weights = np.exp(weights - weights.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        out[:, i] = np.einsum("bhs,bshk->bhk", weights, v[:, keys])
    return out


def random_qkv(pattern: Pattern, layout: Layout, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    keys = layout.encoded if pattern == Pattern.ENCODER else layout.length
    shapes = [(2, length, HEADS, HEAD_DIM) for length in (layout.length, keys, keys)]
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("pattern", list(Pattern))
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_whole_sequence_is_the_definition(pattern, layout):
    q, k, v = random_qkv(pattern, layout)
    out = attend_all(pattern, jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), layout)
    np.testing.assert_allclose(out, by_definition(pattern, layout, q, k, v), atol=1e-5)


NEXT = jax.jit(attend_next, static_argnums=(0, 5))
ROWS = jax.jit(attend_rows, static_argnums=(0, 5))


def start_cache(pattern: Pattern, layout: Layout, k, v) -> LayerCache:
    if pattern == Pattern.ENCODER:
        return LayerCache.of(k, v)
    # Whatever stood in a cache before is never looked at.
    return jax.tree.map(lambda x: x + 7, empty_cache(pattern, 2, layout, HEADS, HEAD_DIM, jnp.float32))


def part(pattern: Pattern, x, positions):
    return None if pattern == Pattern.ENCODER else x[:, positions]


@pytest.mark.parametrize("pattern", list(Pattern))
@settings(max_examples=8, deadline=None)
@given(known=st.integers(0, 23), rows=st.sampled_from([1, 2, 4]), behind=st.integers(0, 23), seed=st.integers(0, 99))
def test_rows_and_then_tokens_equal_the_whole_sequence(pattern, known, rows, behind, seed):
    q, k, v = (jnp.asarray(x) for x in random_qkv(pattern, LAYOUT, seed))
    expected = attend_all(pattern, q, k, v, LAYOUT)
    cache = start_cache(pattern, LAYOUT, k, v)
    size = rows * LAYOUT.block_ctx
    for position in range(0, known, size):
        count, where = min(size, known - position), np.arange(position, position + size)
        # What is not known yet must not matter.
        real = (np.arange(size) < count)[:, None, None]
        q_, k_, v_ = (
            x if x is None else jnp.where(real, x, 9.0)
            for x in (q[:, where], *(part(pattern, x, where) for x in (k, v)))
        )
        row = jnp.asarray(position // LAYOUT.block_ctx)
        out, cache = ROWS(pattern, cache, q_, k_, v_, LAYOUT, row, jnp.asarray(count))
        np.testing.assert_allclose(out[:, :count], expected[:, position : position + count], atol=1e-5)
    # The second sequence is `behind` steps late, standing still at its first token until then.
    two = np.arange(2)
    for i in range(known, LAYOUT.length + behind):
        late = np.minimum(np.asarray([i, max(i - behind, known)]), LAYOUT.length - 1)
        new = (q[two, late], *(None if pattern == Pattern.ENCODER else x[two, late] for x in (k, v)))
        out, cache = NEXT(pattern, cache, *new, LAYOUT, jnp.asarray(late))
        np.testing.assert_allclose(out, expected[two, late], atol=1e-5)


@pytest.mark.parametrize("pattern", list(Pattern))
@pytest.mark.parametrize("layout", LAYOUTS[1:], ids=str)
def test_token_by_token_in_degenerate_layouts(pattern, layout):
    q, k, v = (jnp.asarray(x) for x in random_qkv(pattern, layout))
    expected, cache = attend_all(pattern, q, k, v, layout), start_cache(pattern, layout, k, v)
    for i in range(layout.length):
        arguments = (q[:, i], part(pattern, k, i), part(pattern, v, i), layout, jnp.full(2, i))
        out, cache = NEXT(pattern, cache, *arguments)
        np.testing.assert_allclose(out, expected[:, i], atol=1e-5)


def test_caches_hold_what_the_specification_lists():
    """Number of keys kept after each token (spec: sampling, section 6), and no slot more than ever needed."""
    width = LAYOUT.block_ctx
    expected = {
        Pattern.DENSE: lambda t: t,
        Pattern.ROW: lambda t: (t - 1) % width + 1,
        Pattern.COLUMN: lambda t: t,
        Pattern.PREVIOUS_ROW: lambda t: t if t <= width else (t - 1) % width + 1 + width,
        Pattern.PRIME: lambda t: min(t, 8),
    }
    for pattern, kept in expected.items():
        counts = [int(np.sum(np.asarray(held_positions(pattern, LAYOUT, t)) >= 0)) for t in range(1, 25)]
        assert counts == [kept(t) for t in range(1, 25)], pattern
        assert slot_count(pattern, LAYOUT) == max(counts)


def test_recorded_weights_are_those_that_attention_uses():
    for pattern in Pattern:
        q, k, v = (jnp.asarray(x) for x in random_qkv(pattern, LAYOUT))
        weights = record_weights(pattern, q, k, LAYOUT)
        np.testing.assert_allclose(jnp.sum(weights, axis=-1), 1.0, atol=1e-5)
    q, k, v = (jnp.asarray(x) for x in random_qkv(Pattern.PRIME, LAYOUT))
    weights = record_weights(Pattern.PRIME, q, k, LAYOUT)
    assert weights.shape == (2, HEADS, 24, 8)
    expected = attend_all(Pattern.PRIME, q, k, v, LAYOUT)
    np.testing.assert_allclose(jnp.einsum("bhqs,bshk->bqhk", weights, v[:, :8]), expected, atol=1e-5)


def test_the_released_single_sequence_model_sees_64_music_tokens_as_prime():
    assert Layout(6528, 64, prime=384).prime_keys == 448


def test_orders():
    assert attention_patterns(0, 2) == (0, 0)
    assert attention_patterns(1, 3) == (1, 2, 1)
    assert attention_patterns(2, 5) == (1, 2, 3, 1, 2)
    assert attention_patterns(3, 3) == (1, 4, 1)
    assert attention_patterns(4, 3) == (1, 5, 1)
    assert attention_patterns(5, 6) == (1, 4, 1, 1, 1, 4)
    assert attention_patterns(6, 5) == (1, 2, 3, 6, 1)
    assert attention_patterns(9, 5) == (1, 2, 3, 0, 1)
    with pytest.raises(UserError, match="attention_order=99"):
        attention_patterns(99, 3)


def test_orders_of_the_models_with_lyrics():
    """Where they look at lyrics (spec: priors, section 4, "Concrete")."""

    def where(order: int, depth: int, pattern: int) -> list[int]:
        return [layer for layer, p in enumerate(attention_patterns(order, depth)) if p == pattern]

    assert where(7, 48, 6) == [15, 31, 47]
    assert where(8, 50, 6) == [9, 19, 29, 39, 49]
    assert where(10, 79, 6) == [18, 28, 38, 48, 58, 68, 78]
    assert attention_patterns(10, 79)[19:23] == (1, 2, 3, 1)  # the pattern restarts behind each
    for order, special in ((11, 6), (12, 7)):
        assert where(order, 72, special) == [15, 31, 63]
        assert where(order, 72, 0) == [47]
        patterns = attention_patterns(order, 72)
        assert all(patterns[d] == (1, 2, 3)[d % 3] for d in range(72) if d % 16 != 15)
