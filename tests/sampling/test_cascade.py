"""Songs: the same seed repeats, neighbours change nothing, prefixes stay, and what cannot be sampled is refused."""

from __future__ import annotations

import dataclasses
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from cascade import BAGS, CODEC, equal, lyric_prior, random_model, random_prior

from jukebox_jax.errors import UserError
from jukebox_jax.labels.ids import UNKNOWN, LabelTable, NameTable
from jukebox_jax.labels.lyrics import lyric_window
from jukebox_jax.sampling.cascade import sample_level
from jukebox_jax.sampling.drawing import SamplingConfig, song_keys
from jukebox_jax.sampling.engine import sample_window
from jukebox_jax.sampling.requests import (
    Request,
    SongLabels,
    check_request,
    check_songs,
    level_windows,
    song_labels,
    unknown_names,
    window_conditioning,
)

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


def test_at_one_batch_size_the_number_of_songs_does_not_change_a_song():
    settings = {"artist": "Bach", "genre": "Song", "seconds": 0.6, "seed": 2**32 - 1, "progress": False}
    alone = random_model().sample(**settings, n_samples=1, batch_size=4)[0]
    among_others = random_model().sample(**settings, n_samples=5, batch_size=4)
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
    decoder = level.prior.params["decoder"] | {"start": np.zeros((1, config.width), np.float32)}
    prior = dataclasses.replace(level.prior, config=config, params={"decoder": decoder}, labels=None)
    plain = dataclasses.replace(level, prior=prior)
    check_request([plain], 8064, [0.5])
    assert sample_level(plain, [Request(0, 8064)], 63, **SETTINGS).shape == (1, 63)


# ---- A request in numbers ---------------------------------------------------------------------------------------


def test_a_request_in_the_numbers_of_a_prior():
    prior = lyric_prior("separate")
    request = Request(4, 9000, 500, "CORELLI", "Dance, Song!", "Héy \u266b ho")
    labels = song_labels(prior, request)
    assert (labels.index, labels.total_samples, labels.offset_samples, labels.artist) == (4, 9000, 500, 2)
    assert labels.genres == tuple(BAGS.genres.find(word) for word in ("dance", "song")) == (1, 2)
    assert prior.config.lyrics.text.text(labels.lyrics) == "Hey  ho"
    assert song_labels(prior, labels) is labels
    assert song_labels(prior, Request(0, 9000, genre="Song")).genres == (2, -1)
    with pytest.raises(UserError, match='genre "a b c" is 3 words, the model takes 2'):
        song_labels(prior, Request(0, 9000, genre="a b c"))
    upsampler = song_labels(random_prior(0), request)
    assert upsampler.genres == (0,)  # its genres are whole names
    assert len(upsampler.lyrics) == 0


def test_ids_need_no_names():
    level = random_model("separate").levels[2]
    nameless = LabelTable(*(NameTable.from_pairs([(UNKNOWN, 0)], rows) for rows in (4, 3)), normalisation="v2")
    bare = dataclasses.replace(level, prior=dataclasses.replace(level.prior, labels=nameless))
    lyrics = level.prior.config.lyrics.text.tokens("one two three")
    by_name = sample_level(level, [Request(7, 8000, 0, "Bach", "Song Dance", "one two three")], 40, **SETTINGS)
    in_numbers = sample_level(bare, [SongLabels(7, 8000, 0, 1, (2, 1), lyrics)], 40, **SETTINGS)
    by_number = sample_level(bare, [Request(7, 8000, 0, "#1", "#2 #1", "one two three")], 40, **SETTINGS)
    assert equal(by_name, in_numbers)
    assert equal(by_name, by_number)


def test_every_word_of_a_genre_counts():
    level = random_model("separate").levels[2]
    one, both, other = (
        sample_level(level, [Request(i, 10_000, 0, "Bach", genre) for i in range(3)], 62, **SETTINGS)
        for genre in ("Song", "Song Dance", "Dance")
    )
    assert not equal(one, both)
    assert not equal(both, other)


@pytest.mark.parametrize("kind", ["separate", "single"])
def test_lyrics_change_the_tokens(kind):
    level = random_model(kind).levels[2]
    text = "What passing bells for these who die as cattle"
    first, again, other, none = (
        sample_level(level, [Request(0, 8000, 0, "Bach", "Song", lyrics)], 62, **SETTINGS)[0]
        for lyrics in (text, text, text[::-1], "")
    )
    assert equal(first, again)
    assert not equal(first, other)
    assert not equal(first, none)
    assert max(first) < CODEC.codes


def test_each_window_is_told_its_own_place_and_lyrics():
    level = random_model("separate").levels[2]
    song = song_labels(level.prior, Request(0, 20_000, 1500, lyrics="abcdefghijklmnopqrstuvwxyz"))
    short = dataclasses.replace(song, lyrics=song.lyrics[:3])
    early, late = (window_conditioning(level, [song, short], start) for start in (0, 62))
    np.testing.assert_array_equal(early["lyrics"][1], [0] * 5 + [27, 28, 29])
    for start, told in ((0, early), (62, late)):
        offset = 1500 + start * 128
        expected = lyric_window(song.lyrics, 8, 20_000, offset, 32 * 128, precision="float32").tokens
        np.testing.assert_array_equal(told["lyrics"][0], expected)
        np.testing.assert_array_equal(
            told["relative_bins"][0], np.floor(8 * (offset + 128 * np.arange(32)) / 20_000).astype(int)
        )
    assert not equal(early["lyrics"][0], late["lyrics"][0])
    upsampler = window_conditioning(random_model().levels[0], [song_labels(random_prior(0), Request(0, 8000))], 0)
    assert set(upsampler) == {"artist", "genres"}


def test_a_window_outside_the_song_is_refused_before_work():
    level = random_model("single").levels[2]
    song = song_labels(level.prior, Request(0, 8000, 7000))
    windows = level_windows(level, 62, 0.5)
    with pytest.raises(UserError, match="starts past the end"):
        check_songs(level, [song], windows)
    check_songs(level, [song], windows[:1])


def test_unknown_names_of_a_mixed_cascade():
    priors = random_model("separate").priors
    assert unknown_names(priors, "Bach", "song") == []
    known = "The closest it knows:"
    assert unknown_names(priors, "Corely", "Song Danse") == [
        f'The model does not know the artist "Corely" and takes it as unknown. {known} corelli.',
        f'The prior of level 2 does not know the genre "danse" and takes it as unknown. {known} dance.',
        'The prior of level 1 and 0 does not know the genre "Song Danse" and takes it as unknown. '
        f"{known} song, dance.",
    ]
    # Upsamplers that know only whole genres do not know a bag of words that the top prior knows.
    assert len(unknown_names(priors, "", "Song Dance")) == 1
    unlabelled = [dataclasses.replace(prior, labels=None) for prior in priors[:2]]
    assert unknown_names([*unlabelled, priors[2]], "x", "Song Dance") == [
        'The model does not know the artist "x" and takes it as unknown.'
    ]


# ---- More than a song begins with -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["separate", "single"])
@pytest.mark.parametrize("sampling", [SamplingConfig(top_k=1), SamplingConfig()], ids=["greedy", "drawn"])
def test_a_song_goes_on_as_it_would_have(kind, sampling):
    level = random_model(kind).levels[2]
    requests = [Request(i, 16_000, 0, artist, "Song", "la la la la la") for i, artist in enumerate(("Bach", "Corelli"))]
    settings = SETTINGS | {"sampling": sampling}
    whole = sample_level(level, requests, 80, **settings)
    assert len(np.unique(whole)) > 4
    # A window's own lyric symbols are code 0 in what follows it, so one sequence goes on from where windows end.
    for known in (48,) if kind == "single" else (48, 40, 37):
        np.testing.assert_array_equal(sample_level(level, requests, 80, given=whole[:, :known], **settings), whole)


def test_an_overrun_goes_on_beyond_the_song():
    level = random_model().levels[2]
    requests = [Request(i, 16_000, artist="Bach") for i in range(3)]
    given = np.arange(75).reshape(3, 25).astype(np.int32) % CODEC.codes
    assert equal(sample_level(level, requests, 20, given=given, **SETTINGS), given)  # nothing is left to sample
    over = sample_level(level, requests, 20, given=given, overrun=True, **SETTINGS)
    assert over.shape == (3, 45)
    np.testing.assert_array_equal(over[:, :25], given)
    labels = [song_labels(level.prior, request) for request in requests]
    batch = window_conditioning(level, labels, 13) | {"tokens": np.pad(given[:, 13:], ((0, 0), (0, 20)))}
    window = sample_window(
        level.prior.config,
        SETTINGS["sampling"],
        level.prior.params,
        {name: jnp.asarray(value) for name, value in batch.items()},
        song_keys(SETTINGS["seed"], jnp.arange(3), 2),
        given=12,
        target=32,
        first=13,
    )
    np.testing.assert_array_equal(over[:, 13:], window)
