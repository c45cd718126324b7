"""Artist and genre names to ids and back (spec/prior.md 8).

Two normalisations exist. v3, also that of newly prepared data, looks a lower-cased name up as a whole. v2 keeps letters
a-z and digits and makes one "_" of everything between them; a genre is then a bag of words, each with an id of its own.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from jukebox_jax import remote
from jukebox_jax.errors import UserError
from jukebox_jax.files import atomic_file

UNKNOWN = "unknown"

Normalisation = Literal["v2", "v3"]

_NUMBER = re.compile("#[0-9]{1,9}")


def normalise(name: str, version: Normalisation) -> str:
    """A name as the tables spell it.

    "v2": lower case, whatever is not a-z or 0-9 becomes "_" (no transliteration: "Céline Dion" is c_line_dion), runs
    of "_" become one, none at either end. "v3": lower case, nothing else.
    """
    if version == "v2":
        return re.sub("[^a-z0-9]+", "_", name.lower()).strip("_")
    # Spaces at the ends stay: the original looks the name up with them, and so finds nothing.
    return name.lower()


@dataclass(frozen=True)
class Match:
    """The answer to a name: its id, whether the table knows it, and, if not, the closest names it has."""

    id: int
    known: bool
    closest: tuple[str, ...] = ()


@dataclass(frozen=True)
class NameTable:
    """The names of each id, sorted; id 0 is "unknown". Several names may share an id, and an id may have none."""

    by_id: tuple[tuple[str, ...], ...]

    def __post_init__(self):
        if not self.by_id or UNKNOWN not in self.by_id[0]:
            raise ValueError(f'a name table has "{UNKNOWN}" as id 0')

    @classmethod
    def of(cls, names: Iterable[str]) -> NameTable:
        """The table of all distinct names, stripped, lower-cased and sorted, behind "unknown"."""
        distinct = {name.strip().lower() for name in names} - {UNKNOWN, ""}
        return cls(((UNKNOWN,), *((name,) for name in sorted(distinct))))

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[str, int]], rows: int | None = None) -> NameTable:
        """The table of (name, id), lower-cased; of a name given twice, the later id counts.

        Args:
          rows: how many ids there are, if there are more than named ones. A checkpoint whose names are not at hand
            has the table `from_pairs([(UNKNOWN, 0)], rows)`: its ids can be given as numbers.
        """
        pairs = [(name.lower(), index) for name, index in pairs]
        by_id: list[list[str]] = [[] for _ in range(max(rows or 0, *(1 + index for _, index in pairs), 0))]
        for name, index in dict(pairs).items():
            by_id[index].append(name)
        return cls(tuple(tuple(sorted(group)) for group in by_id))

    @property
    def rows(self) -> int:
        """How many ids there are, named or not."""
        return len(self.by_id)

    def __len__(self) -> int:
        return self.rows

    @property
    def names(self) -> tuple[str, ...]:
        """All names that can be looked up, in the order of their ids."""
        return tuple(name for group in self.by_id for name in group if name)

    def name_of(self, index: int) -> str:
        """The name of an id: names that share it are joined by "_"; an id without a name is "#145"."""
        return "_".join(self.by_id[index]) or f"#{index}"

    def find(self, name: str) -> int | None:
        """The id of a name in the table's spelling (in any case), None if it has none.

        An empty name is "unknown"; "#145" is id 145 itself, unless a name is spelled so.
        """
        key = name.lower()
        if key in self._ids:
            return self._ids[key]
        if not key.strip():
            return 0
        if _NUMBER.fullmatch(key) and int(key[1:]) < self.rows:
            return int(key[1:])
        return None

    def lookup(self, name: str) -> Match:
        """As `find`, but for a name that the table does not have: id 0, and the closest names that it has."""
        index = self.find(name)
        if index is not None:
            return Match(index, known=True)
        names = [known for known in self.names if known != UNKNOWN]
        return Match(0, known=False, closest=tuple(difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)))

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {name: index for index, group in enumerate(self.by_id) for name in group}


@dataclass(frozen=True)
class LabelTable:
    """The names a model is conditioned on. Its embeddings have at least as many rows as the tables."""

    artists: NameTable
    genres: NameTable
    normalisation: Normalisation = "v3"

    @classmethod
    def of(cls, artists: Iterable[str], genres: Iterable[str]) -> LabelTable:
        """The tables of the names of a new dataset."""
        return cls(NameTable.of(artists), NameTable.of(genres))

    def extended(self, artists: Iterable[str], genres: Iterable[str], rows: tuple[int, int] = (0, 0)) -> LabelTable:
        """The table with the names that it does not know behind those that it has, whose ids stay.

        Args:
          rows: how many artists and genres a model of this table has rows for; new names get the ids behind these.
        """
        artist_keys = [self._key(name) for name in artists]
        genre_keys = [key for name in genres for key in self._genre_keys(name)]
        return replace(
            self,
            artists=_behind(self.artists, artist_keys, rows[0]),
            genres=_behind(self.genres, genre_keys, rows[1]),
        )

    def artist(self, name: str) -> Match:
        return _match(self.artists, name, self._key(name))

    def genres_of(self, name: str) -> tuple[Match, ...]:
        """One match, or in v2 one per word (at least one: an empty genre is "unknown")."""
        return tuple(_match(self.genres, name, key) for key in self._genre_keys(name))

    def artist_id(self, name: str) -> int:
        """The id of `artist(name)`, without the search for close names."""
        return self.artists.find(self._key(name)) or 0

    def genre_ids(self, name: str, max_genres: int) -> list[int]:
        """The ids of `genres_of(name)`, then -1 up to `max_genres`.

        Raises:
          UserError: a genre of more words than `max_genres`.
        """
        ids = [self.genres.find(key) or 0 for key in self._genre_keys(name)]
        if len(ids) > max_genres:
            raise UserError(f'The genre "{name}" is {len(ids)} words, the model takes {max_genres}: leave some out.')
        return ids + [-1] * (max_genres - len(ids))

    def _key(self, name: str) -> str:
        number = name.strip()  # which v2 would spell as the name "145"
        return number if _NUMBER.fullmatch(number) else normalise(name, self.normalisation)

    def _genre_keys(self, name: str) -> list[str]:
        if self.normalisation == "v3":
            return [self._key(name)]
        words = name.split()
        if words and all(_NUMBER.fullmatch(word) for word in words):
            return words
        return normalise(name, "v2").split("_")

    def to_json(self) -> dict:
        """Each table as a list by id: a name, or a list of those that share the id.

        A table of v3 with one name an id has format 1, which earlier versions read too.
        """
        tables = {
            key: [group[0] if len(group) == 1 else list(group) for group in table.by_id]
            for key, table in (("artists", self.artists), ("genres", self.genres))
        }
        simple = self.normalisation == "v3" and all(isinstance(entry, str) for entry in chain(*tables.values()))
        return {"format": 1 if simple else 2, "normalisation": self.normalisation} | tables

    @classmethod
    def from_json(cls, tree: Any, where: str = "the label table") -> LabelTable:
        """Inverse of `to_json`; `where` names the source in errors.

        Raises:
          UserError: another format, or tables that are not lists of names with "unknown" first.
        """
        try:
            if (tree["format"], tree["normalisation"]) not in ((1, "v3"), (2, "v2"), (2, "v3")):
                raise ValueError(f"format {tree['format']}, normalisation {tree['normalisation']!r}")
            return cls(*(_by_id(tree[key], key) for key in ("artists", "genres")), tree["normalisation"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where} is no label table of this version ({error}): prepare the data again.") from None

    def save(self, path: os.PathLike | str) -> None:
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(self.to_json(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: os.PathLike | str) -> LabelTable:
        """Raises UserError if the file is missing or is not a label table."""
        try:
            tree = json.loads(remote.read_text(path))
        except FileNotFoundError:
            raise UserError(f"{path} does not exist: prepare the data again, or check the path.") from None
        except ValueError as error:
            raise UserError(f"{path} is not JSON ({error}): prepare the data again.") from None
        return cls.from_json(tree, str(path))


def read_id_table(path: os.PathLike | str) -> NameTable:
    """Reads a table of the original: UTF-8 text, one `name;id` a line, where a name may itself hold ";".

    Every id from 0 to the greatest must be there, and only id 0 may stand for several names. A name that stands twice
    has the later id, and leaves the earlier one without a name.

    Raises:
      UserError: no such file, or not such a table; the line is named.
    """
    path = Path(path)
    try:
        # Only "\n" ends a line: names hold rarer characters that `splitlines` would break at.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}): supply the table as it was released.") from None
    pairs: list[tuple[str, int]] = []
    first: dict[int, tuple[str, int]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, separator, digits = line.rpartition(";")
        name, digits = name.lower(), digits.strip()
        if not separator:
            raise UserError(f'{path}, line {number} is not "name;id": supply a table of names and ids.')
        if not re.fullmatch("[0-9]{1,9}", digits):
            raise UserError(f'{path}, line {number}: the id "{digits}" is not a number: supply the table as released.')
        index = int(digits)
        earlier, line_number = first.setdefault(index, (name, number))
        if index and earlier != name:
            raise UserError(
                f'{path}, line {number} gives "{name}" the id {index} of "{earlier}" (line {line_number}): '
                "supply the table as it was released."
            )
        pairs.append((name, index))
    if dict(pairs).get(UNKNOWN) != 0:
        raise UserError(f'{path} has no line "{UNKNOWN};0": supply a table of names and ids.')
    missing = next((index for index in range(len(first)) if index not in first), None)
    if missing is not None:
        raise UserError(
            f"{path} has ids up to {max(first)}, but none is {missing}: it was cut or changed, copy it again."
        )
    return NameTable.from_pairs(pairs)


def _match(table: NameTable, name: str, key: str) -> Match:
    if not key and name.strip():  # a name of nothing but signs, such as "!!!" in v2
        return Match(0, known=False)
    return table.lookup(key)


def _behind(table: NameTable, keys: Iterable[str], rows: int) -> NameTable:
    new = sorted({key for key in keys if table.find(key) is None})
    nameless: tuple[tuple[str, ...], ...] = ((),) * (rows - table.rows if new else 0)
    return NameTable((*table.by_id, *nameless, *((key,) for key in new)))


def _by_id(entries: Any, key: str) -> NameTable:
    if not isinstance(entries, list):
        raise ValueError(f"{key} is not a list")
    pairs = []
    for index, entry in enumerate(entries):
        group = [entry] if isinstance(entry, str) else entry
        if not isinstance(group, list) or not all(isinstance(name, str) for name in group):
            raise ValueError(f"{key} holds something that is not a name")
        pairs += [(name, index) for name in group]
    return NameTable.from_pairs(pairs, rows=len(entries))
