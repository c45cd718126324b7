"""Bits of single tokens: their mean is the loss of training, and what was drawn is less surprising than noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cascade import random_model

from jukebox_jax.evaluation.likelihood import token_bits
from jukebox_jax.models.prior import Prior
from jukebox_jax.sampling.requests import Request, song_labels, window_conditioning

MODEL = random_model()


@pytest.mark.parametrize("length", [32, 20])
def test_of_one_window_they_are_those_of_the_models_loss(length):
    level = MODEL.levels[2]
    tokens = np.random.default_rng(0).integers(0, 24, length)
    request = Request(0, 128 * 64, artist="Bach", genre="Song")
    bits = token_bits(level, tokens, request, 0.5)
    labels = song_labels(level.prior, request)
    batch = {"tokens": jnp.asarray(np.pad(tokens, (0, 32 - length)))[None].astype(jnp.int32)}
    batch |= {name: jnp.asarray(rows) for name, rows in window_conditioning(level, [labels], 0).items()}
    logits = Prior(level.prior.config).apply({"params": level.prior.read_params()}, batch)
    expected = -jax.nn.log_softmax(logits[0])[jnp.arange(length), tokens] / np.log(2)
    np.testing.assert_allclose(bits, expected, rtol=2e-4, atol=1e-4)


def test_of_a_longer_song_every_token_has_its_own():
    upper = np.random.default_rng(1).integers(0, 24, 24)
    tokens = np.random.default_rng(2).integers(0, 24, 96)
    bits = token_bits(MODEL.levels[1], tokens, Request(0, 32 * 96, artist="Bach"), 0.5, upper)
    assert bits.shape == (96,)
    assert (bits > 0).all()
    changed = tokens.copy()
    changed[-1] = (changed[-1] + 1) % 24
    assert (token_bits(MODEL.levels[1], changed, Request(0, 32 * 96, artist="Bach"), 0.5, upper) != bits).sum() == 1
