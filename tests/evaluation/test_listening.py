"""What is heard while training: the codec's own reconstructions, and samples of the prior as sampling makes them."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from cascade import CODEC, LABELS, lyric_prior, random_codec, random_model

from jukebox_jax.evaluation import listening
from jukebox_jax.evaluation.listening import codec_listening, prior_listening
from jukebox_jax.models.codebook import Codebook
from jukebox_jax.models.vqvae import decode, encode
from jukebox_jax.sampling.cascade import sample_level
from jukebox_jax.sampling.drawing import SamplingConfig
from jukebox_jax.sampling.requests import Request, song_labels, window_conditioning


class Windows:
    """Seven windows in order, one a batch."""

    n_windows, batch_size = 7, 1

    def __init__(self, windows: dict[str, np.ndarray]):
        self.windows = windows

    def batch(self, seed: int, position: int) -> dict[str, np.ndarray]:
        return {name: array[position][None] for name, array in self.windows.items()}


def test_a_codec_is_heard_at_every_level():
    audio = np.random.default_rng(0).normal(size=(7, 1024, 1)).astype(np.float32) * 0.1
    codec = random_codec()
    clips = codec_listening(CODEC, Windows({"audio": audio}))(
        codec.params, tuple(Codebook.restored(codes, 1.0) for codes in codec.codebooks)
    )
    assert sorted(clips) == sorted(
        f"item_{item}_{name}" for item in range(3) for name in ("input", "level_0", "level_1", "level_2")
    )
    for item, window in enumerate((0, 2, 4)):  # spread over the songs
        np.testing.assert_array_equal(clips[f"item_{item}_input"][0], audio[window, :, 0])
        codes = jax.jit(encode, static_argnums=0)(CODEC, codec, audio[window][None])
        heard = random_model().decode([level_codes[0] for level_codes in jax.device_get(codes)])
        for level in range(3):
            samples, rate = clips[f"item_{item}_level_{level}"]
            np.testing.assert_allclose(samples, heard[level], atol=1e-5)
            assert rate == 8000
            assert np.std(samples) > 0


@pytest.mark.parametrize("kind", ["upsampler", "lyrics"])
def test_a_prior_is_heard_as_sampling_would_make_it(monkeypatch, kind):
    model = random_model()
    prior = model.priors[1] if kind == "upsampler" else lyric_prior("single")
    level = dataclasses.replace(model.levels[prior.config.level], prior=prior)
    rng = np.random.default_rng(1)
    songs = [Request(i, 12_000, artist=LABELS.artists.names[i % 3], genre="Song", lyrics="la la") for i in range(7)]
    labels = [song_labels(prior, song) for song in songs]
    windows = {"tokens": rng.integers(0, 24, (7, 32)).astype(np.int32), **window_conditioning(level, labels, 0)}
    if kind == "upsampler":
        windows["upper"] = rng.integers(0, 24, (7, 8)).astype(np.int32)

    monkeypatch.setattr(listening, "SAMPLE_TOKENS", 16)
    clips = prior_listening(prior.config, Windows(windows), model.codec)(prior.params, {})
    assert sorted(clips) == sorted(f"item_{item}_{name}" for item in range(3) for name in ("input", "sample"))
    hop = CODEC.hops[prior.config.level]
    own = [dataclasses.replace(labels[window], index=item) for item, window in enumerate((0, 2, 4))]
    settings = {"seed": 0, "sampling": SamplingConfig(), "hop_fraction": 0.5, "batch_size": 3}
    upper = windows["upper"][[0, 2, 4]] if kind == "upsampler" else None
    tokens = sample_level(level, own, 32, upper=upper, **settings)
    play = jax.jit(decode, static_argnums=(0, 3))
    for item, window in enumerate((0, 2, 4)):
        for name, codes in (("input", windows["tokens"][window]), ("sample", tokens[item, :16])):
            heard = play(CODEC, model.codec.codec, codes[None], prior.config.level)[0, :, 0]
            np.testing.assert_allclose(clips[f"item_{item}_{name}"][0], heard, atol=1e-5)
        assert len(clips[f"item_{item}_sample"][0]) == 16 * hop
