"""Aligned lyrics as files: read back, hostile, in scripts that the picture cannot draw."""

from __future__ import annotations

import io
import json
import re
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jukebox_jax.corpus.sources.beside import read_lrc
from jukebox_jax.errors import UserError
from jukebox_jax.evaluation.lyric_times import shown_words, word_times
from jukebox_jax.export.lyrics import Alignment, attention_png, lrc_text, lyrics_json
from jukebox_jax.labels.lyrics import LyricText
from jukebox_jax.labels.timed import TimedWord

SPELLING = LyricText("v3", "anyascii")
HOSTILE = "<script>alert('1:2')</script> [00:05.00] <00:07.00> $\\frac{1}{0}$ [ti:no] \"&amp; \x00\x1b]0;x\x07 %s {0}"


def aligned(lyrics: str, tokens: int = 50) -> Alignment:
    shown, characters = shown_words(lyrics, SPELLING), len(SPELLING.clean(lyrics))
    path = np.linspace(0, characters, tokens, endpoint=False).astype(np.int32)
    matrix = np.zeros((tokens, characters), np.float32)
    matrix[np.arange(tokens), path] = 0.5
    words = word_times(shown, path, characters, 0.5)
    return Alignment(lyrics, matrix, path, tuple(words), tuple(shown), tokens * 0.5, 3, 1)


def read_enhanced(text: str) -> list[TimedWord]:
    """Words of enhanced LRC as a player takes them apart; lines by their order."""

    def seconds(minutes: str, rest: str) -> float:
        return 60 * int(minutes) + float(rest)

    words = []
    stamped = [found for row in text.splitlines() if (found := re.match(r"\[(\d+):([\d.]+)\](.*)", row))]
    for line, found in enumerate(stamped):
        parts = re.split(r"<(\d+):([\d.]+)>", found[3])
        assert parts[0] == ""
        times = [seconds(*pair) for pair in zip(parts[1::3], parts[2::3], strict=True)]
        assert times[0] == seconds(found[1], found[2])
        for word, start, end in zip(parts[3:-1:3], times, times[1:], strict=False):
            words.append(TimedWord(word.strip(), start, end, line))
    return words


def test_lrc_is_read_back():
    found = aligned("Größe und Weite\n愛 ist alles")
    words = read_enhanced(lrc_text(found.words, found.seconds))
    assert [(word.text, word.line) for word in words] == [(word.text, word.line) for word in found.words]
    np.testing.assert_allclose([w.start for w in words], [w.start for w in found.words], atol=0.0051)
    assert words[-1].end == found.seconds == 25.0
    by_line = lrc_text(found.words, found.seconds, by_word=False)
    assert by_line.splitlines()[1:] == ["[length:00:25.00]", "[00:01.00]Größe und Weite", "[00:16.00]愛 ist alles"]
    for text in (by_line, lrc_text(found.words, found.seconds)):
        heard = read_lrc(text.encode())
        assert heard.fields["lyrics"] == found.lyrics
        assert heard.reasons == []


def test_long_songs_and_rounding():
    words = [TimedWord("a", 59.996, 60.0), TimedWord("b", 6000.0, 6000.004)]
    assert "[01:00.00]<01:00.00>a <100:00.00>b <100:00.00>" in lrc_text(words, 6001.0)


@given(st.lists(st.text("[]<>0:.5 a♪", min_size=1, max_size=12).map(lambda text: "".join(text.split())), max_size=5))
def test_lyrics_that_look_like_stamps_are_words(texts):
    words = [TimedWord(text, float(at), at + 1.0) for at, text in enumerate(filter(None, texts))]
    if not words:
        return
    found = read_enhanced(lrc_text(words, 9.0))
    assert [word.start for word in found] == [word.start for word in words]
    assert [re.sub(r"[][<>()]", "", word.text) for word in found] == [
        re.sub(r"[][<>()]", "", word.text) for word in words
    ]


def test_json_is_read_back(tmp_path):
    found = aligned(f"Größe\n\n{HOSTILE}")
    found.save(tmp_path / "song.json")
    stored = json.loads((tmp_path / "song.json").read_text(encoding="utf-8"))
    assert stored == lyrics_json(found)
    assert stored["lyrics"] == found.lyrics
    assert (stored["format"], stored["seconds"], stored["layer"], stored["head"]) == (1, 25.0, 3, 1)
    words = [
        TimedWord(word["text"], word["start"], word["end"], line["line"])
        for line in stored["lines"]
        for word in line["words"]
    ]
    assert words == list(found.words)
    assert stored["lines"][0] | {"words": []} == {"line": 0, "start": 0.5, "end": words[0].end, "words": []}


def picture(found: Alignment) -> Image.Image:
    return Image.open(io.BytesIO(attention_png(found)))


def test_a_picture_shows_where_it_looks(tmp_path):
    found = aligned("123 456 78901")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = picture(found)
        found.save(tmp_path / "song.png")
    assert image.size == (1100, 700)
    assert np.array_equal(np.asarray(image), np.asarray(Image.open(tmp_path / "song.png")))
    empty = Alignment(found.lyrics, 0 * found.matrix, found.path, found.words, found.shown, found.seconds, 3, 1)
    assert np.mean(np.asarray(image) != np.asarray(picture(empty))) > 0.01
    backwards = aligned("456 789 01234")  # digits, all of one width
    assert np.array_equal(backwards.matrix, found.matrix)
    differs = np.argwhere(np.asarray(image) != np.asarray(picture(backwards)))
    assert 0 < differs[:, 1].max() < 100  # only the words at the left


def test_letters_that_the_font_lacks_are_told_once():
    found = aligned("我爱你 love \x07 नमस्ते " + "x" * 200)
    with pytest.warns(UserWarning, match="no glyph for 我 爱 你 .*: boxes stand for them") as told:
        image = picture(found)
    assert len(told) == 1
    assert image.size == (1100, 700)


@pytest.mark.filterwarnings("ignore:The picture's font")
def test_hostile_lyrics_are_words_everywhere(tmp_path):
    found = aligned(HOSTILE)
    for suffix in (".lrc", ".json", ".png"):
        found.save(tmp_path / f"song{suffix}")
    words = read_enhanced((tmp_path / "song.lrc").read_text(encoding="utf-8"))
    assert len(words) == len(found.words)
    assert [word.text for word in words[1:3]] == ["(00:05.00)", "(00:07.00)"]
    assert words[-1].end == found.seconds
    assert Image.open(tmp_path / "song.png").size == (1100, 700)


def test_long_songs_have_a_picture_too():
    found = aligned(" ".join(f"word{number}" for number in range(400)), tokens=5000)
    assert picture(found).size == (1100, 700)


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"written as \.lrc, \.json, \.png"):
        aligned("la").save(tmp_path / "song.txt")
    assert list(tmp_path.iterdir()) == []
