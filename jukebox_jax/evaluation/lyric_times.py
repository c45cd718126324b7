"""From attention to times: when each word of the lyrics is sung.

lyrics as shown ──shown_words──▶ words with their places in the cleaned lyrics ─┐
attention (t, l) ──monotone_path──▶ a character for every token ────────────────┴──word_times──▶ TimedWords
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from jukebox_jax.labels.lyrics import LyricText
from jukebox_jax.labels.timed import TimedWord

_LINES = re.compile(r"\r\n|[\n\r\\]")  # a backslash is a new line to the model


@dataclass(frozen=True)
class ShownWord:
    """A word as the user wrote it, and the characters of the cleaned lyrics, [start, stop), that the model reads of it:
    none, if it can spell nothing of it."""

    text: str
    line: int
    start: int
    stop: int


def shown_words(lyrics: str, spelling: LyricText) -> list[ShownWord]:
    """The words of the lyrics in order, with case, punctuation and script as they are."""
    # Both transliterators spell character by character, so that lengths add up.
    lengths = {character: len(spelling.clean(character)) for character in set(lyrics)}
    before = np.concatenate([[0], np.cumsum([lengths[character] for character in lyrics])]).astype(int).tolist()
    line_starts = [0, *(end.end() for end in _LINES.finditer(lyrics))]
    words = []
    for line, (begin, end) in enumerate(itertools.pairwise([*line_starts, len(lyrics)])):
        for found in re.finditer(r"[^\s\\]+", lyrics[begin:end]):
            start, stop = (before[begin + at] for at in found.span())
            words.append(ShownWord(found[0], line, start, stop))
    return words


def word_times(
    words: Sequence[ShownWord],
    path: Int[np.ndarray, " t"],
    characters: int,
    token_seconds: float,
    from_start: bool = True,
    to_end: bool = True,
) -> list[TimedWord]:
    """When each word is sung, by a path that says for every token at which place of the cleaned lyrics it looks.

    A word begins when the path comes to its first character, and ends when the path leaves its last. What is looked at
    in place i has seen the characters before i, so it stands for character i - 1. Words that the path skips, or never
    comes to, have no length.

    Args:
      characters: length of the cleaned lyrics.
      from_start, to_end: whether the song has the beginning of the lyrics, and their end. If not, words before the
        path's beginning, or behind its end, are not sung and are left out.
    """

    def seconds(character: int) -> float:
        # The last character has no place of its own: the place behind it is past the lyrics.
        return float(np.searchsorted(path, min(character + 1, characters - 1))) * token_seconds

    total, first, last = len(path) * token_seconds, int(path[0]) - 1, int(path[-1]) - 1
    timed = []
    for word in words:
        if (not from_start and word.stop <= first) or (not to_end and word.start > last):
            continue
        start = seconds(word.start)
        # The lyrics' last word sounds to the end.
        end = max(start, seconds(word.stop)) if word.stop < characters else total
        timed.append(TimedWord(word.text, start, end, word.line))
    return timed


def lines_of(words: Sequence[TimedWord]) -> list[list[TimedWord]]:
    """The words of each line that has some."""
    return [list(line) for _, line in itertools.groupby(words, key=lambda word: word.line)]
