"""Songs: the same seed repeats, neighbours change nothing, prefixes stay, and what cannot be sampled is refused."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
from cascade import CODEC, equal, random_model

from jukebox_jax.errors import UserError
from jukebox_jax.sampling.cascade import Request, check_request, sample_level
from jukebox_jax.sampling.decode import SamplingConfig

SECONDS = 1.0  # 8000 samples: 62 top tokens, 248 and 992 below; two to sixty windows of 32
SETTINGS = {"seed": 3, "sampling": SamplingConfig(), "hop_fraction": 0.5, "batch_size": 3}


def sample(**changes):
    settings = {"artist": ["Bach", "Corelli", "Monteverdi"], "genre": "Song", "seconds": SECONDS, "seed": 1}
    return random_model().sample(**settings | {"n_samples": 3, "batch_size": 3, "progress": False} | changes)


def test_the_same_seed_repeats_and_another_does_not():
    first, again, other = sample(), sample(), sample(seed=2)
    for a, b, c in zip(first, again, other, strict=True):
        for level in range(3):
            assert equal(a.tokens[level], b.tokens[level])
            assert not equal(a.tokens[level], c.tokens[level])
        assert equal(a.audio, b.audio)
    length = 8000 // 128 * 128
    assert [t.shape for t in first[0].tokens] == [(length // hop,) for hop in CODEC.hops]
    assert all(audio.shape == (length,) for audio in first[0].levels)


def test_neighbours_and_slots_do_not_change_a_song():
    level = random_model().levels[2]
    ours = Request(5, 8000, artist="Bach", genre="Song")
    neighbours = [Request(i, 8000, artist="Corelli", genre="Dance") for i in (1, 2, 3)]
    alone = sample_level(level, [ours], 62, **SETTINGS)[0]
    for place in range(4):
        requests = [*neighbours[:place], ours, *neighbours[place:]]
        assert equal(sample_level(level, requests, 62, **SETTINGS)[place], alone)


def test_by_default_the_number_of_songs_does_not_change_a_song():
    settings = {"artist": "Bach", "genre": "Song", "seconds": 0.6, "seed": 2**32 - 1, "progress": False}
    alone = random_model().sample(**settings, n_samples=1)[0]
    among_others = random_model().sample(**settings, n_samples=5)
    for level in range(3):
        assert equal(alone.tokens[level], among_others[0].tokens[level])
        assert not equal(alone.tokens[level], among_others[4].tokens[level])
    assert equal(alone.audio, among_others[0].audio)
    assert alone.provenance == among_others[0].provenance


def test_given_tokens_are_kept_and_continued():
    level = random_model().levels[2]
    requests = [Request(i, 16000, artist="Bach", genre="Song") for i in range(2)]
    whole = sample_level(level, requests, 100, **SETTINGS)
    # At a multiple of the hop the windows are the same, and so is the continuation.
    np.testing.assert_array_equal(sample_level(level, requests, 100, given=whole[:, :48], **SETTINGS), whole)
    given = (whole[:, :37] + 1) % CODEC.codes
    np.testing.assert_array_equal(sample_level(level, requests, 100, given=given, **SETTINGS)[:, :37], given)


def test_the_composer_and_the_level_above_matter():
    model = random_model()
    bach, corelli = (
        sample_level(model.levels[2], [Request(0, 8000, 0, a)], 62, **SETTINGS) for a in ("Bach", "Corelli")
    )
    assert not equal(bach, corelli)
    above = np.zeros((1, 62), np.int32)
    low, high = (
        sample_level(model.levels[1], [Request(0, 8000)], 248, upper=u, **SETTINGS) for u in (above, above + 7)
    )
    assert not equal(low, high)


def test_an_unknown_artist_is_a_warning_with_the_closest_names():
    with pytest.warns(UserWarning, match='"Bahc".*closest it knows: bach'):
        sample(artist="Bahc", seconds=0.6, n_samples=1)


def test_each_unknown_name_is_warned_of_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sample(artist=["Bahc", "Corelli", "Bahc"], genre="Zydeco", seconds=0.6)
    assert [str(warning.message).partition(" and takes")[0] for warning in caught] == [
        'The model does not know the artist "Bahc"',
        'The model does not know the genre "Zydeco"',
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_length": 8001}, "not a multiple of the top hop 128: use 8064"),
        ({"seconds": 0.001}, "less than one token"),
        ({"seconds": 0.1}, "less than a window of level 1.*at least 0.13 s"),
        ({"seconds": 30.0}, "outside what the model knows, 0 to 20 s"),
        ({"total_seconds": 0.5}, "shorter than the 0.99 s to sample"),
        ({"hop_fractions": (0.3, 0.5, 0.5)}, "hop fraction 0.3 of level 0"),
        ({"n_samples": 0}, "at least 1 song"),
        ({"artist": []}, "empty list"),
        ({"temperature": -1.0}, "not positive"),
        ({"temperature": float("nan")}, "not positive and finite"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"seconds": float("inf")}, "seconds is inf"),
        ({"total_seconds": float("nan")}, "total_seconds is nan"),
        ({"total_seconds": float("inf")}, "total_seconds is inf"),
        ({"seed": -1}, "seed is -1: choose a whole number from 0 to 4294967295"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"batch_size": 0}, "at least 1 song"),
    ],
)
def test_what_cannot_be_sampled_is_refused_at_once(changes, message):
    with pytest.raises(UserError, match=message):
        sample(**changes)


def test_an_unlabelled_model_samples_too():
    model = random_model()
    level = model.levels[2]
    config = dataclasses.replace(level.prior.config, labels=None)
    params = {name: value for name, value in level.prior.params.items() if name != "labels"}
    params["start"] = np.zeros((1, config.width), np.float32)
    plain = dataclasses.replace(
        level, prior=dataclasses.replace(level.prior, config=config, params=params, labels=None)
    )
    check_request([plain], 8064, [0.5])
    assert sample_level(plain, [Request(0, 8064)], 63, **SETTINGS).shape == (1, 63)
