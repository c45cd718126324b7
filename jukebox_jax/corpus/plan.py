"""What becomes of every decoded piece: kept or a duplicate, in which split, under which labels. Pure decisions."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Literal

from jukebox_jax.corpus.fingerprint import find_near_duplicates
from jukebox_jax.corpus.piece import Finding, Piece
from jukebox_jax.errors import UserError
from jukebox_jax.labels.ids import UNKNOWN, LabelTable

VALIDATION_SHARE = 0.1

# A piece that is held out officially stays so: of its duplicates, the one for training goes.
_HELD_OUT_FIRST = {"test": 0, "validation": 1, "train": 2, "": 2}


@dataclass(frozen=True)
class PlanSettings:
    """How pieces are chosen and labelled.

    Attributes:
      split_by: what stays together in one split: all versions of a song, or all songs of an artist.
      validation_share: the part of the pieces without an official split that is held out, by a hash.
      near_duplicates: whether other encodings of a recording are dropped, besides exact copies.
      min_label_songs: a name with fewer songs becomes "unknown".
    """

    split_by: Literal["song", "artist"] = "song"
    validation_share: float = VALIDATION_SHARE
    near_duplicates: bool = True
    min_label_songs: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise UserError(f"A share of {self.validation_share} cannot be held out: choose from 0 to below 1.")
        if self.min_label_songs < 1:
            raise UserError(f"A label cannot need {self.min_label_songs} songs: choose 1 or more.")


@dataclass(frozen=True)
class Duplicate:
    """A piece that is left out, and the one that stays in its place."""

    file_name: str
    kept: str
    kind: Literal["exact", "near"]


@dataclass(frozen=True)
class Kept:
    """A piece of the dataset, its split decided and its labels final, and what decoding it found."""

    piece: Piece
    finding: Finding


@dataclass(frozen=True)
class Coverage:
    """Of one kind of label: songs by name in the source's spelling, and names too rare to keep."""

    songs: Mapping[str, int]
    rare: Mapping[str, int]
    unlabelled: int

    @property
    def share(self) -> float:
        """The part of all songs whose name is known to the table."""
        kept = sum(self.songs.values())
        total = kept + sum(self.rare.values()) + self.unlabelled
        return kept / total if total else 0.0


@dataclass(frozen=True)
class Plan:
    """All decisions. `kept` is in the order in which songs are stored."""

    kept: tuple[Kept, ...]
    duplicates: tuple[Duplicate, ...]
    labels: LabelTable
    artists: Coverage
    genres: Coverage


def make_plan(
    pieces: Sequence[Piece],
    findings: Sequence[Finding],
    settings: PlanSettings = PlanSettings(),
    labels: LabelTable | None = None,
    fingerprints: Sequence[tuple[int, ...]] | None = None,
) -> Plan:
    """Decides over decoded pieces; pieces without an "ok" are left out.

    Args:
      findings: one for each piece, in the same order.
      labels: a table whose ids stay as they are; new names are added behind.
      fingerprints: of the pieces, if the findings do not hold them; each is read a few times and not kept.
    """
    if fingerprints is None:
        fingerprints = [finding.fingerprint for finding in findings]
    usable = [Kept(piece, finding) for piece, finding in zip(pieces, findings, strict=True) if finding.usable]
    place = {piece.file_name: index for index, piece in enumerate(pieces)}
    usable, duplicates = _drop_exact_duplicates(usable)
    if settings.near_duplicates:
        words = _Selected(fingerprints, [place[entry.piece.file_name] for entry in usable])
        usable, more = _drop_near_duplicates(usable, words)
        duplicates = sorted(duplicates + more, key=lambda duplicate: duplicate.file_name)
    split = assign_splits([kept.piece for kept in usable], settings.split_by, settings.validation_share)
    named, artists = _fold_rare(split, "artist", settings.min_label_songs)
    named, genres = _fold_rare(named, "genre", settings.min_label_songs)
    table = (LabelTable.of if labels is None else labels.extended)(artists.songs, genres.songs)
    kept = tuple(replace(entry, piece=piece) for entry, piece in zip(usable, named, strict=True))
    return Plan(kept, tuple(duplicates), table, artists, genres)


# ---- Duplicates -------------------------------------------------------------------------------------------------


def _drop_exact_duplicates(usable: Sequence[Kept]) -> tuple[list[Kept], list[Duplicate]]:
    by_hash = defaultdict(list)
    for entry in usable:
        by_hash[entry.finding.sha256].append(entry)
    return _first_of_each(by_hash.values(), "exact")


def _drop_near_duplicates(
    usable: Sequence[Kept], fingerprints: Sequence[tuple[int, ...]]
) -> tuple[list[Kept], list[Duplicate]]:
    groups = find_near_duplicates(fingerprints)
    alike = {index for group in groups for index in group}
    single = [(entry,) for index, entry in enumerate(usable) if index not in alike]
    return _first_of_each([[usable[index] for index in group] for group in groups] + single, "near")


class _Selected(Sequence[tuple[int, ...]]):
    """Some of a sequence, read as they are asked for."""

    def __init__(self, everything: Sequence[tuple[int, ...]], indices: Sequence[int]):
        self._everything, self._indices = everything, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> tuple[int, ...]:
        return self._everything[self._indices[index]]


def _first_of_each(
    groups: Iterable[Sequence[Kept]], kind: Literal["exact", "near"]
) -> tuple[list[Kept], list[Duplicate]]:
    """Keeps one piece of every group: a held-out one, then the best described, then by name."""
    kept, duplicates = [], []
    for group in groups:
        first, *rest = sorted(group, key=_preference)
        kept.append(first)
        duplicates += [Duplicate(entry.piece.file_name, first.piece.file_name, kind) for entry in rest]
    kept.sort(key=lambda entry: entry.piece.file_name)
    return kept, sorted(duplicates, key=lambda duplicate: duplicate.file_name)


def _preference(entry: Kept) -> tuple[int, int, str]:
    return _HELD_OUT_FIRST[entry.piece.split], -len(entry.piece.origins), entry.piece.file_name


# ---- Splits -----------------------------------------------------------------------------------------------------


def assign_splits(
    pieces: Sequence[Piece], split_by: Literal["song", "artist"] = "song", share: float = VALIDATION_SHARE
) -> list[Piece]:
    """Gives a split to each piece that has none: `share` of them, by a hash, is held out for validation.

    What belongs together (versions of a song, or all songs of an artist) gets one split, and follows a member whose
    split is official. Of two or more groups at least one is in each split, unless `share` is 0.
    """
    keys = [_hash_key(piece, split_by) for piece in pieces]
    official = {}
    for key, piece in zip(keys, pieces, strict=True):
        if piece.split:
            official[key] = min(official.get(key, piece.split), piece.split, key=_HELD_OUT_FIRST.__getitem__)
    undecided = set(keys) - official.keys()
    held_out = {key for key in undecided if int(key[:8], 16) < share * 2**32}
    # The extremes of the hash order move first, so that adding pieces moves as few others as possible.
    decided = set(official.values())
    if share and "validation" not in decided and not held_out and len(undecided) + ("train" in decided) >= 2:
        held_out = {min(undecided)}
    if "train" not in decided and held_out == undecided:
        held_out = undecided - {max(undecided, default="")}

    def split_of(key: str) -> str:
        return official.get(key) or ("validation" if key in held_out else "train")

    return [
        piece if piece.split else replace(piece, split=split_of(key)) for key, piece in zip(keys, pieces, strict=True)
    ]


def title_of(piece: Piece) -> str:
    """The piece's title, or its file's name without the suffix."""
    return piece.title or PurePosixPath(piece.file_name).stem


def _hash_key(piece: Piece, split_by: Literal["song", "artist"]) -> str:
    # Pieces of nobody known have nothing in common.
    artist = piece.artist.strip().lower()
    together = (
        artist if split_by == "artist" and artist not in ("", UNKNOWN) else f"{title_of(piece).lower()}\n{artist}"
    )
    return hashlib.sha256(together.encode("utf-8", "surrogatepass")).hexdigest()


# ---- Labels -----------------------------------------------------------------------------------------------------


def _fold_rare(
    pieces: Sequence[Piece], field: Literal["artist", "genre"], min_songs: int
) -> tuple[list[Piece], Coverage]:
    """Names with fewer than `min_songs` songs become unknown."""
    spelled = [getattr(piece, field).strip() for piece in pieces]
    keys = ["" if name.lower() in ("", UNKNOWN) else name.lower() for name in spelled]
    songs = Counter(keys)
    unlabelled = songs.pop("", 0)
    rare = {key for key, count in songs.items() if count < min_songs}
    first = dict(zip(reversed(keys), reversed(spelled), strict=True))  # the first spelling of each name
    coverage = Coverage(
        songs={first[key]: songs[key] for key in sorted(songs) if key not in rare},
        rare={first[key]: songs[key] for key in sorted(rare)},
        unlabelled=unlabelled,
    )
    named = [
        replace(piece, **{field: UNKNOWN if not key or key in rare else name})
        for piece, key, name in zip(pieces, keys, spelled, strict=True)
    ]
    return named, coverage
