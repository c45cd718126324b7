"""A piece to render: a score of music21's bundled corpus, an excerpt, instruments, labels and licences."""

from __future__ import annotations

import dataclasses

# General MIDI programs, counted from 0.
PIANO, HARPSICHORD, CHURCH_ORGAN, REED_ORGAN, ACCORDION, GUITAR = 0, 6, 19, 20, 21, 24
VIOLIN, VIOLA, CELLO, HARP, STRINGS, CHOIR, VOICE = 40, 41, 42, 46, 48, 52, 53
OBOE, BASSOON, CLARINET, PICCOLO, FLUTE, BAGPIPE = 68, 70, 71, 72, 73, 109
CHORDS = -1  # as a voice's part: the score's chord symbols, played as chords
NO_LYRICS = -1  # as the lyric part: what stands under the notes is no sung text (figured bass, markings)

QUARTET = (VIOLIN, VIOLIN, VIOLA, CELLO)


@dataclasses.dataclass(frozen=True)
class Voice:
    """One part of the score on one instrument. `level` scales the MIDI velocity, `transpose` is in semitones."""

    part: int
    program: int
    transpose: int = 0
    level: float = 1.0


@dataclasses.dataclass(frozen=True)
class Piece:
    """One recording to make.

    `source` is a path in music21's corpus, `number` a tune in a file of many (ABC). The excerpt is given in quarter
    notes (`end_quarters` None: to the end, or as far as `max_seconds` reaches); the tempo in quarter notes per minute
    (None: the score's own mark, else `default_tempo`, times `tempo_factor`). Empty `voices`: every part, on `programs`
    cyclically. Empty `title`, `artist` or `split`: from the score's metadata, or derived from its title.
    """

    name: str
    title: str
    artist: str
    genre: str
    split: str
    source: str
    number: int | None = None
    voices: tuple[Voice, ...] = ()
    programs: tuple[int, ...] = (PIANO,)
    tempo: float | None = None
    default_tempo: float = 100.0
    tempo_factor: float = 1.0
    start_quarters: float = 0.0
    end_quarters: float | None = None
    max_seconds: float = 900.0
    transpose: int = 0
    lyric_part: int | None = None  # None: the first part that has lyrics
    verse: int = 1
    composition_licence: str = ""
    encoding_licence: str = ""
    recording_licence: str = "CC0-1.0"


def public_domain(composer: str, lived: str) -> str:
    return f"Public domain ({composer}, {lived})"


UNSTATED = (
    "No licence statement in the score file; distributed with music21 by permission of its encoder "
    "(music21/corpus/license.txt)"
)
