"""Artist and genre names to ids and back (spec/prior.md 8, the normalisation of the v3 tables)."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jukebox_jax.errors import UserError
from jukebox_jax.files import atomic_file

UNKNOWN = "unknown"


def normalise(name: str) -> str:
    """Lower case, no space at either end; the name is looked up as a whole string."""
    return name.lower().strip()


@dataclass(frozen=True)
class Match:
    """The answer to a name: its id, whether the table knows it, and, if not, the closest names it has."""

    id: int
    known: bool
    closest: tuple[str, ...] = ()


@dataclass(frozen=True)
class NameTable:
    """Names by id; id 0 is "unknown". A name that occurs twice means the later id."""

    names: tuple[str, ...]

    def __post_init__(self):
        if not self.names or self.names[0] != UNKNOWN:
            raise ValueError(f'a name table starts with "{UNKNOWN}" as id 0')

    @classmethod
    def of(cls, names: Iterable[str]) -> NameTable:
        """The table of all distinct names, sorted, behind "unknown"."""
        distinct = {normalise(name) for name in names} - {UNKNOWN, ""}
        return cls((UNKNOWN, *sorted(distinct)))

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {normalise(name): index for index, name in enumerate(self.names)}

    def lookup(self, name: str) -> Match:
        """The id of `name`; 0, with the closest known names, if the table does not have it."""
        key = normalise(name) or UNKNOWN
        if key in self._ids:
            return Match(self._ids[key], known=True)
        return Match(0, known=False, closest=tuple(difflib.get_close_matches(key, self.names[1:], n=3, cutoff=0.5)))


@dataclass(frozen=True)
class LabelTable:
    """The names a model is conditioned on. Its embeddings have len(artists) and len(genres) rows."""

    artists: NameTable
    genres: NameTable

    @classmethod
    def of(cls, artists: Iterable[str], genres: Iterable[str]) -> LabelTable:
        return cls(NameTable.of(artists), NameTable.of(genres))

    def to_json(self) -> dict:
        return {
            "format": 1,
            "normalisation": "v3",
            "artists": list(self.artists.names),
            "genres": list(self.genres.names),
        }

    @classmethod
    def from_json(cls, tree: Any, where: str = "the label table") -> LabelTable:
        """Inverse of `to_json`; `where` names the source in errors.

        Raises:
          UserError: another format, or names that are not a list of strings with "unknown" first.
        """
        try:
            if tree["format"] != 1 or tree["normalisation"] != "v3":
                raise ValueError(f"format {tree['format']}, normalisation {tree['normalisation']!r}")
            tables = []
            for key in ("artists", "genres"):
                if not all(isinstance(name, str) for name in tree[key]):
                    raise ValueError(f"{key} holds something that is not a name")
                tables.append(NameTable(tuple(tree[key])))
            return cls(*tables)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where} is no label table of this version ({error}): prepare the data again.") from None

    def save(self, path: os.PathLike | str) -> None:
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(self.to_json(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: os.PathLike | str) -> LabelTable:
        """Raises UserError if the file is missing or is not a label table."""
        path = Path(path)
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path} does not exist: prepare the data again, or check the path.") from None
        except ValueError as error:
            raise UserError(f"{path} is not JSON ({error}): prepare the data again.") from None
        return cls.from_json(tree, str(path))
