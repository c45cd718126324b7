"""Measures of the codec: convergence, band levels, decibels."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jukebox_jax.evaluation.codec import band_level_db, convergence, decibel


def noise(seed: int = 0, length: int = 8192) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, length, 1)).astype(np.float32) * 0.1


def test_convergence_of_what_is_known():
    audio = jnp.asarray(noise())
    np.testing.assert_allclose(convergence(audio, audio), 0.0, atol=1e-6)
    np.testing.assert_allclose(convergence(audio, 0.0 * audio), 1.0, rtol=1e-5)
    np.testing.assert_allclose(convergence(audio, 0.5 * audio), 0.5, rtol=1e-5)
    np.testing.assert_allclose(convergence(0.0 * audio, audio), 0.0)  # silence counts as 0


def test_decibel():
    assert decibel(0.1) == pytest.approx(-20)
    assert decibel(0.0) < -200


def test_band_levels_follow_a_gain_and_a_tone():
    bands = [(0.0, 1000.0), (1000.0, 2000.0), (2000.0, 4000.0)]
    levels = lambda audio: np.array([band_level_db(jnp.asarray(audio), band, 8000) for band in bands])  # noqa: E731
    np.testing.assert_allclose(levels(0.1 * noise()) - levels(noise()), -20.0, atol=1e-3)
    tone = np.sin(2 * np.pi * 1500 * np.arange(8192) / 8000).astype(np.float32)[None, :, None]
    assert int(np.argmax(levels(tone))) == 1
