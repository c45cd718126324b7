"""What a source of music holds and what `prepare` would make of it. Only reads, and of files only their beginnings."""

from __future__ import annotations

import hashlib
import os
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jukebox_jax.audio.decode import BadAudio, open_audio
from jukebox_jax.corpus.piece import FIELDS, Piece, Problem
from jukebox_jax.corpus.plan import PlanSettings, assign_splits, title_of
from jukebox_jax.corpus.prepare import PrepareSettings
from jukebox_jax.corpus.report import duration
from jukebox_jax.corpus.sources.find import find_pieces
from jukebox_jax.labels.ids import UNKNOWN
from jukebox_jax.pipeline.dataset import RECORD_SAMPLES, SPLITS
from jukebox_jax.remote import is_remote

_THREADS = 8  # headers are waited for, not computed
_HEAD_BYTES = 2**16
_EXAMPLES = 3


@dataclass(frozen=True)
class Header:
    """What a file says of itself, or why it cannot be read. 0 where it says nothing."""

    sample_rate: int = 0
    channels: int = 0
    seconds: float = 0.0
    refusal: str = ""
    head: str = ""


def inspect(
    sources: Sequence[str], settings: PrepareSettings, progress: Callable[[str, int, int], None] | None = None
) -> dict[str, Any]:
    """Everything that `table` shows, as JSON.

    Args:
      progress: called with (stage, files done, files in all).

    Raises:
      UserError: a source that is not there or holds no music.
    """
    tell = progress or (lambda *_: None)
    catalogue = find_pieces(
        list(sources), data_dir=settings.song.data_dir, progress=lambda done, total: tell("find", done, total)
    )
    headers = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for header in pool.map(lambda piece: read_header(piece, settings.song.soundfont), catalogue.pieces):
            headers.append(header)
            tell("read", len(headers), len(catalogue.pieces))
    pieces = list(catalogue.pieces)
    problems = list(catalogue.problems)
    problems += [Problem(p.file_name, h.refusal) for p, h in zip(pieces, headers, strict=True) if h.refusal]
    readable = [(p, h) for p, h in zip(pieces, headers, strict=True) if not h.refusal]
    long_enough = [(p, h) for p, h in readable if not h.seconds or h.seconds >= settings.song.min_seconds]
    known = [h.seconds for _, h in readable if h.seconds]
    return {
        "files": len(pieces),
        "hours": round(sum(known) / 3600, 4),
        "formats": _counted(Path(p.file_name).suffix.lower() or "none" for p in pieces),
        "sample_rates": _counted(str(h.sample_rate) for _, h in readable if h.sample_rate),
        "channels": _counted(str(h.channels) for _, h in readable if h.channels),
        "seconds": {
            "shortest": round(min(known, default=0.0), 2),
            "median": round(statistics.median(known), 2) if known else 0.0,
            "longest": round(max(known, default=0.0), 2),
        },
        "unknown_length": sum(not h.seconds for _, h in readable),
        "too_short": len(readable) - len(long_enough),
        "coverage": {field: _share(pieces, field) for field in FIELDS},
        "origins": {field: _counted(p.origins[field] for p in pieces if field in p.origins) for field in FIELDS},
        "suspected_duplicates": suspected_duplicates(pieces, headers),
        "problems": [{"where": p.where, "reason": p.reason, "left_out": p.left_out} for p in problems],
        "other_files": dict(catalogue.other_files),
        "prepare": _forecast(long_enough, settings),
    }


def read_header(piece: Piece, soundfont: str | None = None) -> Header:
    """Opens a piece's file and reads its beginning; pieces that are no local file say nothing."""
    if is_remote(piece.path) or piece.path.startswith("tfds:"):
        return Header()
    try:
        with open_audio(piece.path, soundfont=soundfont) as stream:
            seconds = stream.frames / stream.sample_rate
            header = Header(stream.sample_rate, stream.channels, seconds)
        with open(piece.path, "rb") as file:
            head = hashlib.sha256(file.read(_HEAD_BYTES)).hexdigest()
    except BadAudio as error:
        return Header(refusal=f"{error}.")
    return Header(header.sample_rate, header.channels, header.seconds, head=f"{os.path.getsize(piece.path)} {head}")


def suspected_duplicates(pieces: Sequence[Piece], headers: Sequence[Header]) -> list[list[str]]:
    """Groups of file names with the same size and beginning, or the same title and artist; `prepare` compares sound."""
    groups = defaultdict(list)
    for piece, header in zip(pieces, headers, strict=True):
        if header.head:
            groups["head", header.head].append(piece.file_name)
        if piece.title and piece.artist.strip().lower() not in ("", UNKNOWN):
            groups["name", f"{piece.title.lower()}\n{piece.artist.lower()}"].append(piece.file_name)
    distinct = {tuple(group): None for group in groups.values() if len(group) > 1}
    return [list(group) for group in distinct]


def table(result: dict[str, Any]) -> str:
    """The result as aligned lines: coverage, problems with examples, and what `prepare` would do."""
    coverage, length, forecast = result["coverage"], result["seconds"], result["prepare"]
    # Of items of TFDS, files in buckets, and streams that do not say, only decoding tells.
    unknown = f" without {result['unknown_length']} of unknown length" if result["unknown_length"] else ""
    lines = [
        ("files", f"{result['files']}, {duration(3600 * result['hours'])}" + unknown),
        ("formats", _text(result["formats"])),
        ("sample rates", _text(result["sample_rates"], " Hz")),
        ("channels", _text(result["channels"])),
        ("seconds", f"{length['shortest']:g} to {length['longest']:g}, median {length['median']:g}"),
        ("too short", f"{result['too_short']}"),
    ]
    for field in ("title", "artist", "genre", "lyrics", "split"):
        origins = _text(result["origins"][field])
        lines.append((field, f"{100 * coverage[field]:.1f} %" + (f" ({origins})" if origins else "")))
    lines.append(("suspected duplicates", _with_examples([", ".join(g) for g in result["suspected_duplicates"]])))
    lines.append(("no music by name", _text(result["other_files"]) or "0"))
    lines.append(("problems", _by_kind(result["problems"])))
    splits = ", ".join(f"{split} {count}" for split, count in forecast["splits"].items() if count)
    lines += [
        ("prepare would store", f"{forecast['songs']} songs ({splits})"),
        ("  shards", f"{forecast['shards']}, {forecast['gigabytes']:.2f} GB" + unknown),
        ("  channels", f"{forecast['channels']}"),
        ("  artists, genres", f"{forecast['artists']}, {forecast['genres']}"),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _forecast(usable: Sequence[tuple[Piece, Header]], settings: PrepareSettings) -> dict[str, Any]:
    """What `prepare` would store if no file is damaged or double."""
    from jukebox_jax.corpus.records import SHARD_RECORDS

    rate, plan = settings.song.sample_rate, settings.plan
    pieces = assign_splits([piece for piece, _ in usable], plan.split_by, plan.validation_share)
    channels = settings.song.channels or min(2, max((header.channels for _, header in usable), default=1) or 1)
    records = Counter()
    for piece, (_, header) in zip(pieces, usable, strict=True):
        records[piece.split] += -(-round(header.seconds * rate) // RECORD_SAMPLES)
    return {
        "songs": len(pieces),
        "splits": {split: sum(piece.split == split for piece in pieces) for split in SPLITS},
        "channels": channels,
        "shards": sum(-(-count // SHARD_RECORDS) for count in records.values()),
        "gigabytes": round(sum(records.values()) * RECORD_SAMPLES * channels * 2 / 1e9, 3),
        "artists": _names((piece.artist for piece in pieces), plan),
        "genres": _names((piece.genre for piece in pieces), plan),
    }


def _names(names: Any, plan: PlanSettings) -> int:
    songs = Counter(name.strip().lower() for name in names)
    return sum(count >= plan.min_label_songs for name, count in songs.items() if name not in ("", UNKNOWN))


def _share(pieces: Sequence[Piece], field: str) -> float:
    known = sum(bool(title_of(p) if field == "title" else getattr(p, field)) for p in pieces)
    return round(known / len(pieces), 4) if pieces else 0.0


def _counted(values: Any) -> dict[str, int]:
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def _text(counts: dict[str, int], unit: str = "") -> str:
    shown = [f"{name}{unit}: {count}" for name, count in list(counts.items())[:6]]
    return ", ".join(shown) + (f", and {len(counts) - 6} more" if len(counts) > 6 else "")


def _by_kind(problems: Sequence[dict[str, Any]]) -> str:
    """How many problems there are of each kind, each with an example."""
    kinds = defaultdict(list)
    for problem in problems:
        # What is in brackets or behind the colon differs from file to file.
        kinds[re.split(r"[(:]", problem["reason"])[0].strip()].append(f"{problem['where']}: {problem['reason']}")
    common = sorted(kinds.values(), key=lambda texts: (-len(texts), texts))
    shown = "".join(f"\n  {len(texts)} × {' '.join(texts[0].split())}" for texts in common[: 2 * _EXAMPLES])
    rest = (
        f"\n  … and {len(common) - 2 * _EXAMPLES} more kinds (all with --json)" if len(common) > 2 * _EXAMPLES else ""
    )
    return f"{len(problems)}{shown}{rest}"


def _with_examples(texts: Sequence[str]) -> str:
    shown = "".join(f"\n  {' '.join(text.split())}" for text in texts[:_EXAMPLES])
    rest = f"\n  … and {len(texts) - _EXAMPLES} more (all with --json)" if len(texts) > _EXAMPLES else ""
    return f"{len(texts)}{shown}{rest}"
