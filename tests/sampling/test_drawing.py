"""Drawing tokens: filters, keys, and that a window continues exactly what was given."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cascade import random_prior
from hypothesis import given, settings
from hypothesis import strategies as st

from jukebox_jax.errors import UserError
from jukebox_jax.models.prior import Prior
from jukebox_jax.sampling.drawing import SamplingConfig, filter_logits, song_keys
from jukebox_jax.sampling.engine import sample_window


def test_top_k_keeps_the_largest_and_their_ties():
    logits = jnp.asarray([[1.0, 3.0, 2.0, 2.0, 0.0]])
    kept = np.isfinite(filter_logits(logits, top_k=2))
    np.testing.assert_array_equal(kept, [[False, True, True, True, False]])
    np.testing.assert_array_equal(filter_logits(logits, top_k=99), logits)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.floats(0.05, 0.95))
def test_top_p_keeps_the_smallest_set_that_crosses_p(seed, p):
    logits = np.random.default_rng(seed).normal(size=(3, 12)).astype(np.float32) * 2
    kept = np.isfinite(filter_logits(jnp.asarray(logits), top_p=p))
    probability = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    for row, chosen in zip(probability, kept, strict=True):
        inside, outside = row[chosen], row[~chosen]
        assert inside.sum() > p - 1e-4
        assert inside.sum() - inside.min() <= p + 1e-4
        assert not len(outside) or inside.min() >= outside.max()


def test_settings_that_exclude_each_other():
    with pytest.raises(UserError, match="exclude each other"):
        SamplingConfig(top_k=5, top_p=0.5)
    with pytest.raises(UserError, match="not positive"):
        SamplingConfig(temperature=0.0)
    for temperature in (float("nan"), float("inf")):
        with pytest.raises(UserError, match="not positive and finite"):
            SamplingConfig(temperature=temperature)
    with pytest.raises(UserError, match="top_p"):
        SamplingConfig(top_p=float("nan"))
    with pytest.raises(UserError, match="top_p"):
        SamplingConfig(top_p=1.5)


def window_inputs(level: int, songs: int = 3) -> dict[str, jax.Array]:
    config = random_prior(level).config
    rng = np.random.default_rng(0)
    batch = {
        "tokens": np.zeros((songs, config.n_ctx), np.int32),
        "artist": np.arange(songs) % 4,
        "genres": np.ones((songs, 1), np.int32),
    }
    if config.conditioner:
        batch["upper"] = rng.integers(0, 24, (songs, config.n_ctx // 4))
    else:
        batch["total_bins"] = np.zeros(songs)
        batch |= {f"{name}_bins": rng.integers(0, 8, (songs, config.n_ctx)) for name in ("absolute", "relative")}
    return {name: jnp.asarray(value, jnp.int32) for name, value in batch.items()}


@pytest.mark.parametrize("level", [0, 2])
def test_a_primed_window_goes_on_as_the_unprimed_one_did(level):
    prior, batch = random_prior(level), window_inputs(level)
    keys = song_keys(7, jnp.arange(3), level)
    draw = lambda batch, given: np.asarray(  # noqa: E731
        sample_window(prior.config, SamplingConfig(), prior.params, batch, keys, given=given, target=32, first=64)
    )
    whole = draw(batch, 0)
    assert len(np.unique(whole)) > 5
    for prefix in (1, 8, 13, 31):
        # Whatever stands behind the prefix is ignored.
        tokens = jnp.asarray(whole).at[:, prefix:].set(3)
        np.testing.assert_array_equal(draw(batch | {"tokens": tokens}, prefix), whole)


def test_greedy_tokens_are_the_likeliest_of_the_full_forward():
    prior, batch = random_prior(2), window_inputs(2)
    keys = song_keys(0, jnp.arange(3), 2)
    tokens = sample_window(
        prior.config, SamplingConfig(top_k=1), prior.params, batch, keys, given=0, target=32, first=0
    )
    logits = Prior(prior.config).apply({"params": prior.params}, batch | {"tokens": tokens})
    np.testing.assert_array_equal(np.argmax(logits, axis=-1), tokens)


def test_a_window_stops_at_its_target():
    prior, batch = random_prior(2), window_inputs(2)
    keys = song_keys(0, jnp.arange(3), 2)
    run = lambda target: np.asarray(  # noqa: E731
        sample_window(prior.config, SamplingConfig(), prior.params, batch, keys, given=0, target=target, first=0)
    )
    np.testing.assert_array_equal(run(10)[:, :10], run(32)[:, :10])
    assert (run(10)[:, 10:] == 0).all()


def test_temperature_follows_the_distribution():
    """Frequencies of many draws against softmax(logits / temperature)."""
    logits = jnp.asarray([2.0, 1.0, 0.0, -1.0])
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = jax.vmap(lambda key: jax.random.categorical(key, filter_logits(logits[None] / 0.5)[0]))(keys)
    frequency = np.bincount(drawn, minlength=4) / 20_000
    np.testing.assert_allclose(frequency, jax.nn.softmax(logits / 0.5), atol=0.015)
