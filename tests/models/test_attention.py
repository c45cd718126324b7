"""Each attention pattern against its definition, and token by token against the full pass."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jukebox_jax.errors import UserError
from jukebox_jax.models.attention import Pattern, attend_all, attend_next, attention_patterns, empty_cache, fill_cache

HEADS, HEAD_DIM = 2, 3


def visible(pattern: Pattern, i: int, j: int, block_ctx: int) -> bool:
    """The definition, straight from the specification's table."""
    row_i, row_j = i // block_ctx, j // block_ctx
    if pattern == Pattern.DENSE:
        return j <= i
    if pattern == Pattern.ROW:
        return row_i == row_j and j <= i
    if pattern == Pattern.COLUMN:
        return i % block_ctx == j % block_ctx and j <= i
    return row_j == row_i - 1


def by_definition(pattern: Pattern, q, k, v, block_ctx: int) -> np.ndarray:
    out = np.zeros(q.shape)
    for i in range(q.shape[1]):
        keys = [j for j in range(q.shape[1]) if visible(pattern, i, j, block_ctx)]
        if not keys:
            continue
        weights = np.einsum("bhk,bshk->bhs", q[:, i], k[:, keys]) / np.sqrt(HEAD_DIM)
        weights = np.exp(weights - weights.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        out[:, i] = np.einsum("bhs,bshk->bhk", weights, v[:, keys])
    return out


def random_qkv(length: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(2, length, HEADS, HEAD_DIM)).astype(np.float32) for _ in range(3)]


@pytest.mark.parametrize("pattern", list(Pattern))
@pytest.mark.parametrize(("blocks", "block_ctx"), [(4, 6), (1, 5), (5, 1)])
def test_full_pass_is_the_definition(pattern, blocks, block_ctx):
    q, k, v = random_qkv(blocks * block_ctx)
    out = attend_all(pattern, jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), blocks)
    np.testing.assert_allclose(out, by_definition(pattern, q, k, v, block_ctx), atol=1e-5)


@pytest.mark.parametrize("pattern", list(Pattern))
@settings(max_examples=12, deadline=None)
@given(given_tokens=st.integers(0, 23), seed=st.integers(0, 99))
def test_token_by_token_equals_the_full_pass_from_any_prefix(pattern, given_tokens, seed):
    blocks, block_ctx = 4, 6
    length = blocks * block_ctx
    q, k, v = (jnp.asarray(x) for x in random_qkv(length, seed))
    expected = attend_all(pattern, q, k, v, blocks)
    if given_tokens:
        # What stands after the prefix must not matter.
        hidden = [jnp.asarray(x).at[:, given_tokens:].set(9.0) for x in (k, v)]
        cache = fill_cache(pattern, *hidden, blocks, jnp.asarray(given_tokens))
    else:
        cache = empty_cache(pattern, 2, length, blocks, HEADS, HEAD_DIM, jnp.float32)
    for i in range(given_tokens, length):
        out, cache = NEXT(pattern, cache, q[:, i], k[:, i], v[:, i], blocks, block_ctx, jnp.asarray(i))
        np.testing.assert_allclose(out, expected[:, i], atol=1e-5)


NEXT = jax.jit(attend_next, static_argnums=(0, 5, 6))


def test_caches_are_as_small_as_their_pattern_allows():
    def shape(pattern):
        return empty_cache(pattern, 1, 24, 4, HEADS, HEAD_DIM, jnp.bfloat16).k.shape[1:-2]

    assert shape(Pattern.DENSE) == (24,)
    assert shape(Pattern.ROW) == (6,)
    assert shape(Pattern.COLUMN) == (4, 6)
    assert shape(Pattern.PREVIOUS_ROW) == (2, 6)


def test_orders():
    assert attention_patterns(0, 2) == (0, 0)
    assert attention_patterns(1, 3) == (1, 2, 1)
    assert attention_patterns(2, 5) == (1, 2, 3, 1, 2)
    assert attention_patterns(9, 5) == (1, 2, 3, 0, 1)
    with pytest.raises(UserError, match="attention_order=99"):
        attention_patterns(99, 3)
