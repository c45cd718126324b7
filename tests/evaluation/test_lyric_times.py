"""Times of words: known answers, what holds of any path, and words as the user wrote them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jukebox_jax.evaluation.lyric_times import ShownWord, lines_of, shown_words, word_times
from jukebox_jax.evaluation.monotone import monotone_path
from jukebox_jax.labels.lyrics import LyricText
from jukebox_jax.labels.timed import TimedWord

SPELLINGS = [LyricText("v3", "anyascii"), LyricText("v2", "unidecode")]
ANYASCII = SPELLINGS[0]


@pytest.mark.parametrize("spelling", SPELLINGS)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_words_know_their_cleaned_characters(spelling, text):
    cleaned, words = spelling.clean(text), shown_words(text, spelling)
    assert [word.text for word in words] == text.replace("\\", "\n").split()
    for word in words:
        assert cleaned[word.start : word.stop] == spelling.clean(word.text)
    for before, after in itertools.pairwise(words):
        assert before.stop <= after.start
        assert before.line <= after.line


def test_what_is_shown_is_what_was_written():
    text = "Größe, ÇA!\r\n\n愛 — ¿sí?\\Ende ♪"
    words = shown_words(text, ANYASCII)
    assert [(word.text, word.line) for word in words] == [
        *(("Größe,", 0), ("ÇA!", 0), ("愛", 2), ("—", 2), ("¿sí?", 2), ("Ende", 3), ("♪", 3)),
    ]
    assert [ANYASCII.clean(text)[word.start : word.stop] for word in words[:3]] == ["Grosse,", "CA!", "Ai"]


@pytest.mark.parametrize("spoken", [[(3, 7), (9, 12), (20, 31)], [(0, 1), (1, 2), (30, 31)]])
def test_planted_times_are_found(spoken):
    """A head that looks at the last character read: place i stands for character i - 1."""
    words, total = shown_words("Oh là  bas", ANYASCII), 40
    matrix = np.zeros((total, 10), np.float32)
    at = np.zeros(total, int)  # nothing is read yet
    for (start, stop), word in zip(spoken, words, strict=True):
        places = np.linspace(word.start, word.stop, stop - start, endpoint=False).astype(int) + 1
        at[start:stop] = np.minimum(places, 9)
        at[stop:] = min(word.stop + 1, 9)  # the space behind it
    matrix[np.arange(total), at] = 0.7
    timed = word_times(words, monotone_path(matrix), 10, 0.5)
    assert [word.text for word in timed] == ["Oh", "là", "bas"]
    assert [word.start for word in timed] == [start / 2 for start, _ in spoken]
    assert [word.end for word in timed[:2]] == [stop / 2 for _, stop in spoken[:2]]
    assert timed[2].end == 20.0  # the last word lasts until the end


@given(st.text("ab \nß♪", min_size=1, max_size=30), st.data())
def test_of_any_path_every_word_is_in_its_place(text, data):
    words, characters = shown_words(text, ANYASCII), len(ANYASCII.clean(text))
    if not characters:
        return
    steps = data.draw(st.lists(st.integers(0, characters - 1), min_size=1, max_size=20))
    path, total = np.sort(np.asarray(steps, np.int32)), len(steps) * 0.25
    timed = word_times(words, path, characters, 0.25)
    assert [(word.text, word.line) for word in timed] == [(word.text, word.line) for word in words]
    starts = [word.start for word in timed]
    assert starts == sorted(starts)
    assert all(0 <= word.start <= word.end <= total for word in timed)
    sung = word_times(words, path, characters, 0.25, from_start=False, to_end=False)
    assert set(sung) <= set(timed)


def test_words_that_are_not_in_this_part_of_the_song_are_left_out():
    words = shown_words("one two three four", ANYASCII)
    path = np.asarray([5, 5, 6, 9, 10, 10], np.int32)  # from the beginning of "two" into "three"
    timed = word_times(words, path, 18, 1.0, from_start=False, to_end=False)
    assert timed == [TimedWord("two", 0.0, 3.0), TimedWord("three", 3.0, 6.0)]
    assert [word.text for word in word_times(words, path, 18, 1.0)] == ["one", "two", "three", "four"]
    assert word_times([ShownWord("a", 0, 0, 1)], np.zeros(4, np.int32), 1, 0.5) == [TimedWord("a", 0.0, 2.0)]


def test_lines():
    words = [TimedWord("a", 0, 1, 0), TimedWord("b", 1, 2, 0), TimedWord("c", 2, 3, 4)]
    assert lines_of(words) == [words[:2], words[2:]]
    assert lines_of([]) == []
