"""What songs start from: prompts, earlier songs, top levels; their tokens in files; and what is refused at once."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from cascade import CODEC, equal, random_model

from jukebox_jax import api
from jukebox_jax.checkpoint import models
from jukebox_jax.errors import UserError
from jukebox_jax.models.vqvae import encode

LENGTH = 3072  # samples: 24 top tokens (less than a window of 32), 96 and 384 below
TOKENS = (384, 96, 24)
HALF = tuple(count // 2 for count in TOKENS)


def sample(lyrics_model=None, **changes):
    settings = {"artist": ["Bach", "Corelli"], "genre": "Song", "sample_length": LENGTH, "seed": 1, "n_samples": 2}
    settings |= {"hop_fractions": (0.5, 0.5, 0.5), "batch_size": 2, "progress": False}
    if "seconds" in changes:
        del settings["sample_length"]
    return random_model(lyrics_model).sample(**settings | changes)


def stacked(songs, parts=TOKENS):
    """Tokens of several songs, level 0 first, each (songs, tokens), cut to the lengths in `parts`."""
    return [np.stack([song.tokens[i][:part] for song in songs]) for i, part in enumerate(parts)]


@pytest.fixture(scope="module")
def songs():
    """Two songs from nothing."""
    return sample()


@pytest.fixture
def prompt():
    """2100 samples: 16 whole top tokens and a rest."""
    return np.random.default_rng(0).normal(size=2100).astype(np.float32) * 0.2


# ---- Starting from something ------------------------------------------------------------------------------------


def test_a_song_from_its_first_half_is_the_same_song(songs):
    again = sample(continue_from=stacked(songs, HALF))
    for before, after in zip(songs, again, strict=True):
        assert all(equal(a, b) for a, b in zip(before.tokens, after.tokens, strict=True))
        assert equal(before.audio, after.audio)
    # The levels may be known to different lengths.
    draft = sample(continue_from=stacked(songs, (0, 17, 24)))
    assert all(equal(a, b) for a, b in zip(songs[1].tokens, draft[1].tokens, strict=True))


def test_another_seed_continues_otherwise_and_keeps_what_was_there(songs):
    (other, same_start) = sample(continue_from=songs[0].tokens, prompt_seconds=0.2, seed=2)
    kept = 1536 // np.asarray(CODEC.hops)  # 0.2 s are 1600 samples, 12 whole top tokens
    for level, count in enumerate(kept):
        assert equal(other.tokens[level][:count], songs[0].tokens[level][:count])
        assert equal(same_start.tokens[level][:count], songs[0].tokens[level][:count])
        assert not equal(other.tokens[level], songs[0].tokens[level])
        assert len(other.tokens[level]) == TOKENS[level]
    assert other.provenance["mode"] == "continue"
    assert other.provenance["given"]["tokens"] == list(kept)
    assert other.provenance["given"] == same_start.provenance["given"]


def test_upsampling_makes_the_levels_below(songs):
    tops = stacked(songs)[-1]
    again = sample(upsample=tops, sample_length=None)
    for before, after in zip(songs, again, strict=True):
        assert all(equal(a, b) for a, b in zip(before.tokens, after.tokens, strict=True))
    assert again[0].provenance["mode"] == "upsample"
    assert again[0].provenance["given"]["tokens"] == [0, 0, 24]
    assert again[0].provenance["given"]["sha256"] != again[1].provenance["given"]["sha256"]
    short = sample(upsample=tops, sample_length=2048)
    assert [len(codes) for codes in short[0].tokens] == [256, 64, 16]
    assert equal(short[0].tokens[2], tops[0, :16])
    renderings = sample(upsample=tops[1], seed=9)
    assert equal(renderings[0].tokens[2], renderings[1].tokens[2])
    assert not equal(renderings[0].tokens[1], renderings[1].tokens[1])


def test_a_prompt_is_what_the_song_starts_with(prompt):
    primed = sample(prompt=[prompt, -prompt])
    codec = random_model().codec.codec
    codes = [encode(CODEC, codec, jnp.asarray(part[None, :2048, None])) for part in (prompt, -prompt)]
    for song, expected in zip(primed, codes, strict=True):
        for level, count in enumerate((256, 64, 16)):
            np.testing.assert_array_equal(song.tokens[level][:count], expected[level][0])
            assert len(song.tokens[level]) == TOKENS[level]
    assert not equal(primed[0].tokens[0][:256], primed[1].tokens[0][:256])
    tokens = [np.concatenate([np.asarray(one[level]) for one in codes]) for level in range(3)]
    continued = sample(continue_from=tokens)
    assert equal(continued[1].tokens[0], primed[1].tokens[0])
    assert primed[0].provenance["mode"] == "primed"
    assert primed[0].provenance["given"] == continued[0].provenance["given"]
    shorter = sample(prompt=prompt, prompt_seconds=0.1)
    assert shorter[1].provenance["given"]["tokens"] == [96, 24, 6]


def test_the_top_level_overruns_as_in_the_original_only_if_asked_to(songs):
    given = stacked(songs, HALF)
    over = sample(continue_from=given, original_overrun=True)
    assert [len(codes) for codes in over[0].tokens] == [384, 96, 12 + 24]
    assert equal(over[0].tokens[2][:12], songs[0].tokens[2][:12])
    assert [len(audio) for audio in over[0].levels] == [LENGTH, LENGTH, 36 * 128]
    assert over[0].provenance["original_overrun"] is True
    assert [len(codes) for codes in sample(original_overrun=True)[0].tokens] == list(TOKENS)
    # What went too far can be continued: here the top level has all it needs.
    longer = sample(continue_from=stacked(over, (384, 96, 36)), sample_length=4608)
    assert [len(codes) for codes in longer[0].tokens] == [576, 144, 36]
    assert equal(longer[0].tokens[2], over[0].tokens[2])


def test_songs_from_nothing_say_so(songs):
    assert songs[0].provenance["mode"] == "ancestral"
    assert "given" not in songs[0].provenance
    assert songs[0].provenance["request"]["lyrics"] == ""


# ---- Files of tokens --------------------------------------------------------------------------------------------


def test_tokens_survive_a_file(songs, tmp_path):
    path = tmp_path / "new" / "song.tokens.npz"
    songs[1].save_tokens(path)
    tokens = random_model().load_tokens(path)
    assert all(equal(a, b) and b.dtype == np.int32 for a, b in zip(songs[1].tokens, tokens, strict=True))
    with pytest.raises(UserError, match=r"written as \.npz"):
        songs[1].save_tokens(tmp_path / "song.tokens")


def test_tokens_of_another_codec_and_other_files_are_refused(songs, tmp_path):
    model = random_model()
    path = tmp_path / "song.npz"
    songs[0].save_tokens(path)
    other = dataclasses.replace(model, codec=dataclasses.replace(model.codec, hash="another"))
    with pytest.raises(UserError, match="tokens of another codec"):
        other.load_tokens(path)
    with pytest.raises(UserError, match="does not exist"):
        model.load_tokens(tmp_path / "absent.npz")
    np.savez(tmp_path / "two_levels.npz", codec="tiny", level_0=np.zeros(4, int), level_1=np.zeros(1, int))
    np.savez(tmp_path / "floats.npz", codec="tiny", **{f"level_{i}": np.zeros(4) for i in range(3)})
    np.savez(tmp_path / "objects.npz", codec=np.asarray([{}], object))
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("la la")
    (tmp_path / "cut.npz").write_bytes(path.read_bytes()[:300])
    for name in ("two_levels.npz", "floats.npz", "objects.npz", "array.npy", "text.npz", "cut.npz", "."):
        with pytest.raises(UserError, match="holds no tokens of a song"):
            model.load_tokens(tmp_path / name)


# ---- Labels and lyrics ------------------------------------------------------------------------------------------


def test_strict_labels_refuse_what_is_else_a_warning():
    settings = {"artist": "Bahc", "genre": "Zydeco", "sample_length": 1024, "n_samples": 1}
    with pytest.warns(UserWarning, match="does not know") as caught:
        sample(**settings)
    with pytest.raises(UserError) as refused:
        sample(**settings, strict_labels=True)
    warned = " ".join(str(warning.message) for warning in caught if warning.category is UserWarning)
    assert str(refused.value) == warned.replace(" and takes it as unknown", "")
    assert len(caught) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(**settings | {"artist": "Bach", "genre": "song"}, strict_labels=True)


def test_lyrics_for_a_model_without_are_a_warning():
    with pytest.warns(UserWarning, match="takes no lyrics"):
        sample(lyrics="la", sample_length=1024)


def test_lyrics_reach_the_songs_that_they_are_for():
    settings = {"artist": "Bach", "genre": "dance", "batch_size": 3, "offset_seconds": 0.5, "total_seconds": 3.0}
    songs = sample("separate", **settings, lyrics=["la la la la", "do re mi fa"], n_samples=3)
    plain = sample("separate", **settings, n_samples=3)
    for index, song in enumerate(songs):
        assert not equal(song.tokens[2], plain[index].tokens[2])
    ours = sample("separate", **settings, lyrics="la la la la", n_samples=3)
    assert equal(ours[0].tokens[2], songs[0].tokens[2])
    assert not equal(ours[1].tokens[2], songs[1].tokens[2])
    assert equal(ours[2].tokens[0], songs[2].tokens[0])
    request = songs[1].provenance["request"]
    assert (request["lyrics"], request["offset_samples"], request["total_samples"]) == ("do re mi fa", 4000, 24_000)
    assert sample(offset_seconds=0.5)[0].provenance["request"]["total_samples"] == 4000 + LENGTH


# ---- Refusals ---------------------------------------------------------------------------------------------------

SOME = tuple(np.zeros(count, np.int32) for count in HALF)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"upsample": SOME[2], "continue_from": SOME}, "continue_from and upsample exclude each other"),
        ({"prompt_seconds": 1.0}, "prompt_seconds cuts what songs start from"),
        ({"continue_from": SOME, "prompt_seconds": 0.01}, "less than one token of the top level: give at least 0.016"),
        ({"continue_from": SOME, "prompt_seconds": float("nan")}, "prompt_seconds is nan"),
        ({"continue_from": SOME, "prompt_seconds": 1.0}, "continue_from lasts 0.19 s, less than prompt_seconds=1"),
        ({"upsample": SOME[2], "prompt_seconds": 1.0}, "upsample lasts 0.19 s, less than prompt_seconds=1"),
        ({"continue_from": SOME[:2]}, "continue_from holds 2 levels, the model has 3"),
        ({"continue_from": (*SOME[:2], SOME[2][:0])}, "continue_from holds no tokens of the top level"),
        ({"continue_from": (*SOME[:2], SOME[2] + 24)}, "continue_from holds the code 24 at level 2.* 0 to 23"),
        ({"continue_from": (SOME[0] - 1, *SOME[1:])}, "continue_from holds the code -1 at level 0"),
        ({"upsample": np.zeros((3, 24), np.int32)}, "upsample is for 3 songs, but n_samples is 2: .*n_samples=3"),
        ({"upsample": np.zeros(12, np.int32)}, "upsample holds 0.19 s of the top level, less than the 0.38 s"),
        ({"continue_from": SOME, "sample_length": 1024}, "lasts 0.19 s, more than the 0.13 s to make"),
        ({"continue_from": SOME, "sample_length": 1536}, "as long as was asked for: ask for more"),
        ({"prompt": []}, "prompt is an empty list"),
        ({"prompt": np.zeros(100, np.float32)}, "shorter than a token of the top level, 128 samples"),
        ({"prompt": np.full(200, np.nan, np.float32)}, "not finite"),
        ({"prompt": np.zeros(600, np.float32), "prompt_seconds": 1.0}, "prompt lasts 0.06 s, less than"),
        ({"prompt": [np.zeros(200, np.float32)] * 3}, "prompt is for 3 songs, but n_samples is 2"),
        ({"lyrics": []}, "lyrics is an empty list"),
        ({"offset_seconds": -1.0}, "offset_seconds is -1.0"),
        ({"offset_seconds": float("inf")}, "offset_seconds is inf"),
        ({"offset_seconds": 1.0, "total_seconds": 1.2}, "shorter than the 0.38 s to sample, from 1.00 s on"),
        ({"hop_fractions": (0.5, 0.5)}, "hop_fractions are 2 numbers: give 3"),
        ({"total_seconds": 19.9, "offset_seconds": 19.5}, "outside the model's 0 to 20 s"),
    ],
)
def test_what_cannot_be_sampled_is_refused_at_once(changes, message, monkeypatch):
    monkeypatch.setattr(api, "sample_order", None)
    with pytest.raises(UserError, match=message):
        sample(**changes)


def test_a_genre_of_too_many_words_is_refused(monkeypatch):
    monkeypatch.setattr(api, "sample_order", None)
    with pytest.raises(UserError, match='genre "song dance song" is 3 words, the model takes 2'):
        sample("single", genre="song dance song")


def test_a_prior_that_does_not_name_its_codec_is_taken(monkeypatch, tmp_path):
    model = random_model()
    priors = {f"level_{level}": prior for level, prior in enumerate(model.priors)}
    monkeypatch.setattr(api, "load_codec", lambda folder: model.codec)
    monkeypatch.setattr(models, "find_prior", lambda folder: priors[Path(folder).name])
    assert api.load(tmp_path).priors == model.priors
    priors["level_1"] = dataclasses.replace(priors["level_1"], codec_hash="")
    assert api.load(tmp_path).priors[1].codec_hash == ""
    priors["level_1"] = dataclasses.replace(priors["level_1"], codec_hash="another")
    with pytest.raises(UserError, match=r"level_1 was trained on the tokens of another codec"):
        api.load(tmp_path)
