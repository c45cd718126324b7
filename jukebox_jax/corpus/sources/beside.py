"""Files beside a piece: lyrics as plain text or LRC, and a sidecar of JSON."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from jukebox_jax.corpus.sources.fields import clean_lyrics, is_text, usable_fields

_STAMP = re.compile(r"\s*\[(\d{1,4}):([0-5]?\d)(?:[.:](\d{1,3}))?\]")
_LIKE_A_STAMP = re.compile(r"\s*\[[-+\d\s]*\d[-+\d\s]*[:.][-+\d\s:.,]*\]")  # "[99:99]", "[1:2:3:4]", "[00.12]"
_WORD_STAMP = re.compile(r"\s*[<\[]\d+:\d+(?:[.:]\d+)?[>\]]\s*")
_TAG = re.compile(r"\s*\[\s*([A-Za-z#]+)\s*:(.*)\]\s*")
# Any other word in brackets belongs to the lyrics ("[Chorus: all]").
_TAG_FIELDS = {"ti": "title", "ar": "artist", "al": "album"}
_OTHER_TAGS = {"#", "au", "by", "encoding", "id", "la", "language", "length", "lr", "offset", "re", "tool", "ve"}


@dataclass(frozen=True)
class Beside:
    """What a file beside a piece says, and a sentence for each thing in it that cannot be used: (line or 0, reason)."""

    fields: dict[str, str]
    reasons: list[tuple[int, str]] = field(default_factory=list)


def read_txt(data: bytes) -> Beside:
    """Lyrics as they are."""
    text = _decoded(data)
    if isinstance(text, Beside):
        return text
    return Beside({"lyrics": clean_lyrics(text)})


def read_json(data: bytes) -> Beside:
    """A sidecar of JSON: one object with the keys of a metadata table."""
    text = _decoded(data)
    if isinstance(text, Beside):
        return text
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Beside({}, [(0, f"is not JSON ({error}): write one object, or remove the file.")])
    if not isinstance(row, dict):
        return Beside({}, [(0, "is JSON, but no object: write {…}, or remove the file.")])
    fields, reasons = usable_fields({key.lower(): value for key, value in row.items()})
    return Beside(fields, [(0, reason) for reason in reasons])


def read_lrc(data: bytes) -> Beside:
    """Lyrics with time stamps, brought into the order in which they are sung.

    [mm:ss.xx] before a line (several, if it is sung several times) order the lines; stamps of words and tags such as
    [by:…] are taken out, [ti:…] [ar:…] [al:…] give fields. A line without a stamp follows the line above it. A bad
    stamp is taken out and named; its line stays where it stands.
    """
    text = _decoded(data)
    if isinstance(text, Beside):
        return text
    fields, reasons, bad = {}, [], []
    lines: list[tuple[float, str]] = []
    seconds = -1.0  # what stands above the first stamp comes first
    # Empty lines at the end would follow the last line into the middle of the song.
    for number, line in enumerate(text.rstrip().replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1):
        tag = _TAG.fullmatch(line)
        if tag and tag[1].lower() in _TAG_FIELDS:
            value = " ".join(tag[2].split())
            if value:
                fields.setdefault(_TAG_FIELDS[tag[1].lower()], value)
            continue
        if tag and tag[1].lower() in _OTHER_TAGS:
            continue
        times, rest = [], line
        while True:
            if stamp := _STAMP.match(rest):
                times.append(60 * int(stamp[1]) + int(stamp[2]) + float(f"0.{stamp[3] or 0}"))
            elif stamp := _LIKE_A_STAMP.match(rest):
                bad.append(number)
            else:
                break
            rest = rest[stamp.end() :]
        words = " ".join(_WORD_STAMP.sub(" ", rest).split())
        for time in times or [seconds]:
            lines.append((time, words))
            seconds = time
    if bad:
        more = f" (and on {len(bad) - 1} more)" if len(bad) > 1 else ""
        reasons.append((bad[0], f"has a bad time stamp{more}: write [minutes:seconds.hundredths]; the words are kept."))
    ordered = [words for _, words in sorted(lines, key=lambda line: line[0])]
    kept = [words for words, above in zip(ordered, ["", *ordered], strict=False) if words or above]
    return Beside({"lyrics": clean_lyrics("\n".join(kept)), **fields}, reasons)


def _decoded(data: bytes) -> str | Beside:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        return Beside({}, [(line, "is not UTF-8: save the file as UTF-8 text.")])
    if not is_text(text):
        line = text[: text.index("\0")].count("\n") + 1
        return Beside({}, [(line, "holds a NUL character: save the file as UTF-8 text.")])
    return text
