"""What is said of a piece, whom to believe when two say different things, and which values can be used."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from jukebox_jax.corpus.piece import FIELDS

#: Between the values of a field that has several, such as genres.
SEPARATOR = "; "

#: Field → the keys that may hold it in a table or a sidecar, the first that is not empty counts.
KEYS = {
    **{field: (field,) for field in FIELDS},
    "genre": ("genre", "genres"),
    "lyrics": ("lyrics", "text"),
}

_SPLITS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test",),
}
_SPLIT_OF = {spelling: split for split, spellings in _SPLITS.items() for spelling in spellings}


@dataclass(frozen=True)
class Convention:
    """One way in which sources say something of a piece; `fields` are those that it can give."""

    kind: str
    where: str
    fields: tuple[str, ...]


#: The strongest first: of two conventions that give the same field, the earlier one is believed.
PRECEDENCE = (
    Convention("row", "a row of `metadata.csv`, `.jsonl` or `.parquet`, or of a manifest `*.jsonl[.gz]`", FIELDS),
    Convention("item", "a feature of the item (`tfds:` sources), and the split that it lies in", FIELDS),
    Convention("sidecar", "`{stem}.json` beside the file", FIELDS),
    Convention("lrc", "`{stem}.lrc` beside the file", ("title", "artist", "album", "lyrics")),
    Convention("txt", "`{stem}.txt` beside the file", ("lyrics",)),
    Convention("tags", "tags inside the file", ("title", "artist", "album", "genre", "lyrics")),
    Convention("folder", "the folders `[split/]artist/[album/]` that the file lies in", ("artist", "album", "split")),
    Convention("name", "the file's name, without a leading track number", ("title",)),
)
_STRENGTH = {convention.kind: -index for index, convention in enumerate(PRECEDENCE)}


@dataclass(frozen=True)
class Statement:
    """What one place says of a piece: the convention it follows, its name for `Piece.origins`, field → value."""

    kind: str
    origin: str
    fields: Mapping[str, str]


def precedence_table() -> str:
    """`PRECEDENCE` as a Markdown table, the strongest first."""
    rows = [f"| {row.where} | {', '.join(row.fields)} |" for row in PRECEDENCE]
    return "\n".join(["| from | can give |", "|---|---|", *rows])


def merged(statements: Iterable[Statement]) -> tuple[dict[str, str], dict[str, str]]:
    """The believed value of each field that anyone gives, and where it comes from.

    Statements of one convention are believed in the order in which they come.
    """
    values, origins = {}, {}
    for statement in sorted(statements, key=lambda s: _STRENGTH[s.kind], reverse=True):
        for field, value in statement.fields.items():
            if value and field not in values:
                values[field], origins[field] = value, statement.origin
    return values, {field: origins[field] for field in FIELDS if field in origins}


def usable_fields(row: Mapping[str, object], keys: Mapping[str, Sequence[str]] = KEYS) -> tuple[dict[str, str], list]:
    """The fields that a row gives, and a sentence for each that it gives in a way that cannot be used.

    Text is stripped (and, but for lyrics, brought onto one line), several values are joined by `SEPARATOR` (lyrics:
    line by line), a split is spelled as `Piece.split` has it. Empty text, null and NaN say nothing.

    Args:
      row: key → value, the keys in lower case.
    """
    fields, reasons = {}, []
    for field, names in keys.items():
        for name in names:
            value = row.get(name)
            if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
                continue
            several = field in ("artist", "genre", "lyrics") and isinstance(value, list)
            texts = value if several else [value]
            if not all(isinstance(text, str) for text in texts):
                reasons.append(f'"{name}" is {_shown(value)}, not text: put it in quotes, or leave it out.')
                continue
            if not all(map(is_text, texts)):
                reasons.append(f'"{name}" holds characters that are not text (NUL, or not UTF-8): write it anew.')
                continue
            if field == "lyrics":
                text = clean_lyrics("\n".join(texts))
            else:
                text = SEPARATOR.join(filter(None, (" ".join(text.split()) for text in texts)))
            if field == "split" and text:
                if (split := official_split(text)) is None:
                    reasons.append(f'"{name}" is {_shown(text)}: use train, validation or test, or leave it out.')
                text = split or ""
            if text:
                fields[field] = text
                break
    return fields, reasons


def official_split(name: str) -> str | None:
    """ "train", "validation" or "test" for each of their usual names, in any case; None for any other name."""
    return _SPLIT_OF.get(name.strip().lower())


def is_text(value: str) -> bool:
    """Whether UTF-8 can hold it: JSON can spell half a surrogate pair, and NUL ends a text in other languages.

    Bytes that are not UTF-8 are read as such halves (`errors="surrogateescape"`), so this finds them too.
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def clean_lyrics(text: str) -> str:
    """Lines end in a newline alone, none has spaces at its end, and none is empty at either end of the text."""
    return "\n".join(line.rstrip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")).strip("\n")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
