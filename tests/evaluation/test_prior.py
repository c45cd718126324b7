"""Counting baselines against hand-made distributions, and held-out bits against the definition."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cascade import random_prior

from jukebox_jax.evaluation.prior import bigram_bits, held_out_bits, unigram_bits, with_other_artist
from jukebox_jax.models.prior import Prior


def test_unigram_is_add_one_smoothed_on_the_training_songs():
    train, held_out = [np.array([0, 0, 1])], [np.array([0, 1, 2, 2])]
    # Counts with one added: 3, 2, 1, 1 of 7.
    expected = -np.mean(np.log2(np.array([3, 2, 1, 1]) / 7))
    assert unigram_bits(train, held_out, 4) == pytest.approx(expected)


def test_bigram_never_crosses_from_song_to_song():
    train, held_out = [np.array([0, 1]), np.array([0, 1, 0])], [np.array([0, 1]), np.array([1, 1])]
    # After 0 twice a 1: (1 + 2) / (3 + 2); after 1 once a 0, never a 1: 1 / (3 + 1).
    expected = -np.mean(np.log2([3 / 5, 1 / 4]))
    assert bigram_bits(train, held_out, 3) == pytest.approx(expected)


def test_a_predictable_sequence_costs_a_bigram_little():
    song = np.tile(np.arange(4), 500)
    assert unigram_bits([song], [song], 4) == pytest.approx(2.0, abs=0.01)
    assert bigram_bits([song], [song], 4) < 0.05


class FixedWindows:
    """Five windows in order, in batches that wrap around: what held_out_bits needs of a stream."""

    n_windows, batch_size = 5, 2

    def __init__(self, config):
        rng = np.random.default_rng(0)
        self.tokens = rng.integers(0, config.codes, (5, config.n_ctx)).astype(np.int32)
        self.bins = rng.integers(0, 8, (5, config.n_ctx)).astype(np.int32)

    def batch(self, seed: int, position: int) -> dict[str, np.ndarray]:
        rows = (position + np.arange(2)) % 5
        ones = np.ones(2, np.int32)
        bins = {"total_bins": ones, "absolute_bins": self.bins[rows], "relative_bins": self.bins[rows]}
        return {"tokens": self.tokens[rows], "artist": ones, "genres": ones[:, None], **bins}


def test_held_out_bits_count_every_window_once():
    prior = random_prior(2)
    stream = FixedWindows(prior.config)
    bits = []
    for window in range(5):
        batch = {name: jnp.asarray(value[:1]) for name, value in stream.batch(0, window).items()}
        logits = Prior(prior.config).apply({"params": prior.params}, batch)
        log_probability = jax.nn.log_softmax(logits)[0, np.arange(32), batch["tokens"][0]]
        bits.append(-np.mean(log_probability) / np.log(2))
    assert held_out_bits(prior.config, prior.params, stream) == pytest.approx(np.mean(bits), rel=1e-5)
    wrong = held_out_bits(
        prior.config, prior.params, stream, change=lambda batch: with_other_artist(batch, 4, np.random.default_rng(0))
    )
    assert wrong != pytest.approx(np.mean(bits), rel=1e-5)


def test_another_artist_is_never_the_same_and_never_unknown():
    artists = np.arange(1, 5, dtype=np.int32).repeat(50)
    other = with_other_artist({"artist": artists}, 5, np.random.default_rng(0))["artist"]
    assert (other != artists).all()
    assert set(other.tolist()) == {1, 2, 3, 4}
