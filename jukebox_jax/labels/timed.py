"""Words of lyrics and when they are sung."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TimedWord:
    """A word of the lyrics as they are shown, and when it sounds.

    Attributes:
      start, end: in seconds from the beginning of the song.
      line: its line of the lyrics, from 0.
    """

    text: str
    start: float
    end: float
    line: int = 0
