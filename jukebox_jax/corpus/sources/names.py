"""What the names of folders and files say: `[split/]artist/[album/]NN - title.ext`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from jukebox_jax.corpus.sources.fields import Statement, official_split

# Folders that hold music but name no one: parts of an album, and what data sets call the folder of their sound.
_HOLDER = re.compile(
    r"(cd|dis[ck])\s*\d+|audios?|clips?|data|files|(flac|mp3|ogg|wav)s?|music|recordings|samples|songs|sounds?|tracks",
    re.IGNORECASE,
)
# What players write where they know nothing.
_NOBODY = re.compile(r"unknown(\s+(artist|album))?", re.IGNORECASE)

# A number alone may well be the title ("99 Luftballons", "24-7"): it is a track number with a mark and a space behind
# it ("1. Song", "12 - Song"), a mark and no digit ("12.Song", "3_Song"), or a zero in front ("01 Song", "01-Song").
# Albums of several discs write "1-01 Song".
_TRACK = re.compile(
    r"""(\d{1,3} (\s*[-–—.)]\s+ | [._)](?=[^\W\d])) | (\d-)?0\d [\s_.)–—-]+ | \d-\d\d [\s_.)–—-]+) (?=[^\s_.)–—-])""",
    re.VERBOSE,
)


def title_of(stem: str) -> str:
    """A file's name as a title, without its leading track number."""
    number = _TRACK.match(stem)
    return " ".join(stem[number.end() if number else 0 :].split()) or stem


def folder_statement(folders: Sequence[str], split_folders: bool) -> Statement:
    """What the folders of a file, from its source downwards, say.

    Two folders are artist and album, one is the artist, any other number says nothing. Folders that only hold things
    ("CD 1", "audio") are not counted.

    Args:
      split_folders: whether the first folder is an official split, if it is called like one (`has_split_folders`).
    """
    fields = {}
    split = official_split(folders[0]) if split_folders and folders else None
    if split is not None:
        fields["split"] = split
        folders = folders[1:]
    named = [" ".join(name.split()) for name in folders if not _HOLDER.fullmatch(name.strip())]
    if 1 <= len(named) <= 2:
        told = dict(zip(("artist", "album"), named, strict=False))
        fields |= {field: name for field, name in told.items() if not _NOBODY.fullmatch(name)}
    return Statement("folder", "folder", fields)


def has_split_folders(files: Iterable[str]) -> bool:
    """Whether the audio files of a source lie in folders of which every one is called like a split."""
    tops = {name.partition("/")[0] if "/" in name else "" for name in files}
    return bool(tops) and all(official_split(top) for top in tops)
