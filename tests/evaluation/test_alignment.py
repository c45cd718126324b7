"""Lyric alignment: every entry by brute force, what is padded, and what cannot be aligned."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cascade import BAGS, CODEC, loud_params, lyric_config, random_model

from jukebox_jax.checkpoint.models import TrainedPrior
from jukebox_jax.errors import UserError
from jukebox_jax.evaluation.alignment import alignment
from jukebox_jax.labels.lyrics import lyric_window
from jukebox_jax.models.prior import Prior
from jukebox_jax.sampling.requests import Request, song_labels, window_conditioning

CONTEXT, WINDOW, HOP = 32, 8, 128  # tokens and characters of a window, samples per token


@pytest.fixture(scope="module")
def level():
    return random_model("separate").levels[2]


def single_level(level):
    """The same with lyrics and music in one sequence, and one layer that looks at lyrics, the last of 16."""
    config = dataclasses.replace(lyric_config("single"), attention_order=12, depth=16)
    return dataclasses.replace(level, prior=TrainedPrior(config, loud_params(config), BAGS, "tiny"))


def expected(level, codes, song, starts, layer, head):
    """One song's alignment, entry by entry: the first window that holds a token and a character decides."""
    labels = song_labels(level.prior, song)
    characters = len(labels.lyrics)
    matrix, decided = np.zeros((len(codes), characters)), np.zeros((len(codes), characters), bool)
    look = jax.jit(partial(Prior(level.prior.config).apply, method="alignment"), static_argnums=2)
    for start in starts:
        tokens = np.zeros(CONTEXT, np.int32)
        part = codes[start : start + CONTEXT]
        tokens[: len(part)] = part
        batch = {"tokens": tokens[None], **window_conditioning(level, [labels], start)}
        batch = {name: jnp.asarray(value) for name, value in batch.items()}
        weights = np.asarray(look({"params": level.prior.params}, batch, layer))[0, head]
        offset = song.offset_samples + start * HOP
        window = lyric_window(labels.lyrics, WINDOW, song.total_samples, offset, CONTEXT * HOP, "float32")
        for token in range(len(part)):
            for place, index in enumerate(window.indices):
                if index >= 0 and not decided[start + token, index]:
                    matrix[start + token, index] = weights[token, place]
                    decided[start + token, index] = True
    return matrix


def test_the_earliest_window_counts(level):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, CODEC.codes, (2, 50)).astype(np.int32)
    songs = [
        Request(0, 9000, 0, "Bach", "song", "It was the best of times"),
        Request(1, 12_000, 700, "Corelli", "dance", "la la"),
    ]
    found = alignment(level, tokens, songs, 0.25)
    assert [matrix.shape for matrix in found] == [(50, 24), (50, 5)]
    assert all(matrix.dtype == np.float32 for matrix in found)
    for codes, song, matrix in zip(tokens, songs, found, strict=True):
        np.testing.assert_allclose(matrix, expected(level, codes, song, (0, 8, 16, 18), 3, 1), atol=1e-5)
        assert np.all((matrix >= 0) & (matrix <= 1 + 1e-6))
    assert np.sum(np.any(found[0] > 0, axis=1)) == 50
    other = alignment(level, tokens, songs, 0.25, layer=3, head=0)
    np.testing.assert_allclose(other[0], expected(level, tokens[0], songs[0], (0, 8, 16, 18), 3, 0), atol=1e-5)
    assert np.max(np.abs(other[0] - found[0])) > 0.01


def test_a_song_shorter_than_a_window_is_followed_by_nothing(level):
    tokens = np.arange(20, dtype=np.int32)[None]
    song = Request(0, 6000, lyrics="a longer text")
    (matrix,) = alignment(level, tokens, [song], 0.5)
    np.testing.assert_allclose(matrix, expected(level, tokens[0], song, (0,), 3, 1), atol=1e-5)
    (none,) = alignment(level, tokens, [Request(0, 6000)], 0.5)
    assert none.shape == (20, 0)


def test_lyrics_in_one_sequence_with_the_music(level):
    level = single_level(level)
    tokens = np.arange(20, dtype=np.int32)[None]
    song = Request(0, 6000, lyrics="a longer text")
    (matrix,) = alignment(level, tokens, [song], 0.5, layer=15, head=1)
    np.testing.assert_allclose(matrix, expected(level, tokens[0], song, (0,), 15, 1), atol=1e-5)
    assert matrix.max() > 0.01
    with pytest.raises(UserError, match=r"not known: search for it .*, or give layer \(15\)"):
        alignment(level, tokens, [song], 0.5)


def test_what_cannot_be_aligned(level):
    tokens, songs = np.zeros((1, 20), np.int32), [Request(0, 6000, lyrics="la")]
    with pytest.raises(UserError, match="layer=2 does not look at the lyrics: give one of 3"):
        alignment(level, tokens, songs, 0.5, layer=2)
    with pytest.raises(UserError, match="head=2 is none of layer 3: give one from 0 to 1"):
        alignment(level, tokens, songs, 0.5, head=2)
    with pytest.raises(UserError, match="takes no lyrics"):
        alignment(random_model().levels[2], tokens, songs, 0.5)
    with pytest.raises(UserError, match="hop fraction 2"):
        alignment(level, tokens, songs, 2.0)
