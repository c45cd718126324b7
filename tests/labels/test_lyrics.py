from __future__ import annotations

import json
import string
import sys
from importlib import metadata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import recorded

from jukebox_jax import config as config_lib
from jukebox_jax.errors import UserError
from jukebox_jax.labels.lyrics import LyricText, lyric_window

V2, V3 = LyricText("v2", "unidecode"), LyricText("v3", "unidecode")


def test_vocabularies():
    characters = string.ascii_uppercase + string.ascii_lowercase + string.digits + ".,:;!?-"
    end = "'\"()[] \t\n"
    for text, expected in (
        (LyricText("v2", "anyascii"), characters + "+" + end),
        (LyricText("v3", "anyascii"), characters + end),
    ):
        assert text.tokens(expected).tolist() == list(range(1, text.size))
        assert text.text(range(text.size)) == expected
    assert (LyricText("v2", "anyascii").size, LyricText("v3", "anyascii").size) == (80, 79)


def test_tokens_by_hand():
    town = [41, 38, 30, 77, 46, 41, 49, 40, 77, 44, 41, 27, 30]
    assert LyricText("v2", "anyascii").tokens("old town road").tolist() == town
    assert LyricText("v3", "anyascii").tokens("old town road").tolist() == [76 if t == 77 else t for t in town]
    tokens = LyricText().tokens("")
    assert (tokens.shape, tokens.dtype) == ((0,), np.int32)


@pytest.mark.parametrize("transliterator", ["unidecode", "anyascii"])
@pytest.mark.parametrize(
    ("text", "v2", "v3"),
    [
        ("La la,\r\n\tla!\n", "La la,\n\tla!\n", "La la,\n\tla!\n"),
        ("1+1=2 {no} #hash 50%", "1+12 no hash 50", "112 no hash 50"),
        ("back\\slash", "back\nslash", "back\nslash"),
        ("Café “naïve” straße", 'Cafe "naive" strasse', 'Cafe "naive" strasse'),
        ("Привет мир", "Privet mir", "Privet mir"),
        ("こんにちは", "konnichiha", "konnichiha"),
        ("\0\x7f\u200f", "", ""),
    ],
)
def test_cleaning(transliterator, text, v2, v3):
    if transliterator == "unidecode":
        pytest.importorskip("unidecode")
    assert LyricText("v2", transliterator).clean(text) == v2
    assert LyricText("v3", transliterator).clean(text) == v3


def test_where_the_transliterators_differ():
    pytest.importorskip("unidecode")
    old, new = LyricText("v2", "unidecode"), LyricText("v2", "anyascii")
    assert (old.clean("♪ la 🎵"), new.clean("🎵")) == (" la ", ":musicalnote:")
    assert (old.clean("世界"), new.clean("世界")) == ("Shi Jie ", "ShiJie")
    assert (old.clean("1½ x"), new.clean("½")) == ("1 12  x", "12")


@given(st.text(), st.sampled_from(["v2", "v3"]))
def test_tokens_spell_what_is_read(text, vocabulary):
    lyrics = LyricText(vocabulary, "anyascii")
    cleaned, tokens = lyrics.clean(text), lyrics.tokens(text)
    assert len(tokens) == len(cleaned)
    assert lyrics.text(tokens) == cleaned == lyrics.clean(cleaned)
    assert ((tokens >= 1) & (tokens < lyrics.size)).all()


def test_padding_leaves_no_trace():
    assert LyricText().text([0, 0, 8, 35]) == LyricText().text(np.array([0, 8, 0, 35])) == "Hi"


def test_it_stands_in_a_config():
    text = LyricText("v2", "unidecode")
    tree = json.loads(json.dumps(config_lib.to_dict(text)))
    assert tree == {"vocabulary": "v2", "transliterator": "unidecode"}
    assert config_lib.from_dict(LyricText, tree) == text
    with pytest.raises(UserError, match="vocabulary"):
        config_lib.from_dict(LyricText, tree | {"vocabulary": "v4"})


@pytest.mark.parametrize("version", ["1.3.5", "1.3.6rc1", "1.4", "2.0.0"])
def test_a_newer_unidecode_is_refused(monkeypatch, version):
    pytest.importorskip("unidecode")
    monkeypatch.setattr(metadata, "version", lambda name: version)
    with pytest.raises(UserError, match=rf'up to 1\.3\.4.*{version}.*pip install "jukebox-jax\[openai\]"'):
        V2.tokens("la")


@pytest.mark.parametrize("version", ["1.1.1", "1.2", "1.3.4"])
def test_an_older_unidecode_is_taken(monkeypatch, version):
    pytest.importorskip("unidecode")
    monkeypatch.setattr(metadata, "version", lambda name: version)
    assert V2.text(V2.tokens("là")) == "la"


def test_without_unidecode(monkeypatch):
    monkeypatch.setitem(sys.modules, "unidecode", None)
    with pytest.raises(UserError, match=r'pip install "jukebox-jax\[openai\]"'):
        V3.tokens("la")
    assert LyricText("v3", "anyascii").clean("là") == "la"
    assert V3.text([38, 27]) == "la"  # writing tokens out needs neither


def test_short_lyrics_stand_at_the_end():
    window = lyric_window(np.array([7, 8, 9]), 5, 1000, 400, 100)
    assert window.tokens.tolist() == [0, 0, 7, 8, 9]
    assert window.indices.tolist() == [-1, -1, 0, 1, 2]
    assert window.tokens.dtype == window.indices.dtype == np.int32


@pytest.mark.parametrize(("offset", "start"), [(0, 0), (249, 0), (250, 1), (450, 3), (749, 5), (750, 6), (999, 6)])
def test_a_window_of_long_lyrics_by_hand(offset, start):
    # Ten characters over 1000 samples: the middle, offset + 50, lies in character (offset + 50) // 100; two go before.
    window = lyric_window(np.arange(1, 11), 4, 1000, offset, 100)
    assert window.indices.tolist() == [start, start + 1, start + 2, start + 3]
    assert window.tokens.tolist() == [start + 1, start + 2, start + 3, start + 4]


@pytest.mark.parametrize("n_tokens", [3806, 3807])
def test_as_many_tokens_as_characters(n_tokens):
    tokens = np.arange(1, n_tokens + 1, dtype=np.uint16)
    if n_tokens % 2:
        with pytest.raises(UserError, match="even"):
            lyric_window(tokens, n_tokens, 1000, 0, 100)
        assert lyric_window(tokens[1:], n_tokens, 1000, 0, 100).indices[0] == -1
    else:
        np.testing.assert_array_equal(lyric_window(tokens, n_tokens, 1000, 999, 100).tokens, tokens)


def test_float32_moves_the_window_by_one_character():
    place = (np.zeros(3807, np.int32), 512, 18_257_400, 3_154_048, 1_048_576)
    assert lyric_window(*place).indices[0] == 510
    assert lyric_window(*place, precision="float64").indices[0] == 510
    assert lyric_window(*place, precision="float32").indices[0] == 511


@pytest.mark.parametrize(("total", "offset"), [(1000, -1), (1000, 1000), (0, 0)])
def test_a_window_outside_the_song(total, offset):
    for length in (3, 30):
        with pytest.raises(UserError, match="outside a song"):
            lyric_window(np.zeros(length, np.int32), 4, total, offset, 100)


@given(st.data())
def test_windows(data):
    length, half = data.draw(st.integers(0, 4000)), data.draw(st.integers(1, 300))
    total = data.draw(st.integers(1, 26_460_000))
    offset, duration = data.draw(st.integers(0, total - 1)), data.draw(st.integers(1, 2_000_000))
    tokens = 1 + np.arange(length) % 79
    wide, narrow = (lyric_window(tokens, 2 * half, total, offset, duration, p) for p in ("float64", "float32"))
    assert abs(wide.indices[-1] - narrow.indices[-1]) <= 1
    for window in (wide, narrow):
        assert window.tokens.shape == window.indices.shape == (2 * half,)
        assert window.indices.max() < max(length, 1)
        used = window.indices >= 0
        np.testing.assert_array_equal(window.tokens[used], tokens[window.indices[used]])
        assert not window.tokens[~used].any()
        assert used.sum() == min(length, 2 * half)
        assert (np.diff(window.indices[used]) == 1).all()
    if length >= 2 * half and half <= length * (offset + duration / 2) / total < length - half:
        middle = wide.indices[0] + half
        assert middle <= length * (offset + duration / 2) / total < middle + 1


def recorded_labels() -> dict:
    return json.loads(recorded("d_labels.json").read_text(encoding="utf-8"))


def text_of(case: dict) -> LyricText:
    pytest.importorskip("unidecode")
    return LyricText("v3" if case["v3"] else "v2", "unidecode")


def test_the_original_reads_text_so():
    numbers = recorded_labels()
    assert {"v2": V2.size, "v3": V3.size} == numbers["n_vocab"]
    for case in numbers["text"]:
        text = text_of(case)
        assert text.clean(case["text"]) == case["clean"], case
        assert text.tokens(case["text"]).tolist() == case["tokens"], case
        assert text.text(case["tokens"]) == case["textise"], case


def test_the_original_cuts_these_windows():
    for case in recorded_labels()["windows"]:
        place = [case[key] for key in ("n_tokens", "total_length", "offset", "duration")]
        tokens = np.array(case["full_tokens"], np.int32)
        if "error" in case:
            with pytest.raises(UserError):
                lyric_window(tokens, *place)
            continue
        window = lyric_window(tokens, *place)
        assert window.tokens.tolist() == case["tokens"], case
        assert window.indices.tolist() == case["indices"], case


def test_the_original_makes_these_labels():
    for case in recorded_labels()["labels"]:
        text = text_of(case)
        tokens = text.tokens(case["lyrics"])
        assert tokens.tolist() == case["full_tokens"]
        assert text.clean(case["lyrics"]) == case["clean_lyrics"]
        if not case["n_tokens"]:
            continue
        window = lyric_window(tokens, case["n_tokens"], case["total_length"], case["offset"], case["sample_length"])
        assert window.tokens.tolist() == case["y"][4 + case["max_genre_words"] :]
        assert text.text(window.tokens) == case["describe"]["lyrics"]


def test_the_original_moves_on_in_float32():
    windows = 0
    for batch in (batch for batch in recorded_labels()["batch"] if batch["n_tokens"]):
        lyrics_start = 4 + batch["max_genre_words"]
        for i, song in enumerate(batch["metas"]):
            tokens = text_of(batch).tokens(song["lyrics"])
            place = (song["total_length"], song["offset"], batch["sample_length"])
            assert lyric_window(tokens, batch["n_tokens"], *place).tokens.tolist() == batch["y"][i][lyrics_start:]
            for step in batch["get_y"]:
                y = step["y"][i]
                offset = song["offset"] + step["start"] * step["raw_to_tokens"]
                assert y[:3] == [song["total_length"], offset, batch["sample_length"]]
                window = lyric_window(tokens, batch["n_tokens"], *y[:3], precision="float32")
                assert window.tokens.tolist() == y[lyrics_start:]
                assert window.indices.tolist() == step["indices"][i]
                windows += 1
    assert windows
