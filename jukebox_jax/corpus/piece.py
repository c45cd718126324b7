"""What is known of a piece of music before it is decoded, and what is found when it is.

    SOURCE… ──sources──▶ Piece ──song──▶ samples and a Finding ──plan──▶ splits, labels, shards ──records──▶ dataset

Both are plain values that travel between processes and stand in reports as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: Fields of a piece that metadata can give, in the order in which reports show them.
FIELDS = ("title", "artist", "album", "genre", "lyrics", "split")


@dataclass(frozen=True)
class Piece:
    """One piece of a source.

    Attributes:
      file_name: its name in reports and tables, unique over all sources: the path inside its source, with "/".
      path: where its sound is read from: a path that etils.epath takes, or an item of a TFDS dataset
        ("tfds:NAME/SPLIT#INDEX").
      title, artist, album, genre: as given; "" where nothing is said.
      lyrics: lines of text; "" where nothing is said.
      split: "train", "validation", "test", or "" until it is decided.
      origins: field → what said so ("metadata.csv", "tags", "folder", "song.lrc", …), for those that are not "".
      size, modified: of the file, in bytes and nanoseconds, so that a changed file is decoded again.
    """

    file_name: str
    path: str
    title: str = ""
    artist: str = ""
    album: str = ""
    genre: str = ""
    lyrics: str = ""
    split: str = ""
    origins: Mapping[str, str] = field(default_factory=dict)
    size: int = 0
    modified: int = 0


@dataclass(frozen=True)
class Problem:
    """Something in a source that is no usable piece, or only in part: where, and one sentence with cause and remedy.

    `where` is a file name, or a file with a line ("metadata.jsonl, line 3"). `left_out` tells whether a piece is
    missing because of it (a row without a file) or merely says less (a bad time stamp in its lyrics).
    """

    where: str
    reason: str
    left_out: bool = True


@dataclass(frozen=True)
class Catalogue:
    """Everything found in the sources: pieces ordered by file name, and what is wrong with the rest.

    `other_files` counts, by suffix, the files whose names are neither of music nor of what tells of it.
    """

    pieces: tuple[Piece, ...]
    problems: tuple[Problem, ...] = ()
    other_files: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """What decoding a piece found.

    Attributes:
      verdict: "ok", or one sentence that says why the piece cannot be used, with cause and remedy.
      source_rate, source_channels: of the file, in Hz and channels; 0 where it could not be read.
      channels: stored per sample, 1 or 2.
      samples: per channel, at the rate asked for.
      sha256: of the stored int16 samples, rate and channels: equal for exact duplicates.
      fingerprint: 32-bit acoustic sub-fingerprints, a few a second, for near duplicates.
      peak, rms: of the decoded samples; 1.0 is full scale.
      notes: what was done to it that its owner may want to know ("6 channels mixed to 2", "clipped: 12 samples").
    """

    verdict: str
    source_rate: int = 0
    source_channels: int = 0
    channels: int = 0
    samples: int = 0
    sha256: str = ""
    fingerprint: tuple[int, ...] = ()
    peak: float = 0.0
    rms: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        return self.verdict == "ok"
