"""Reading fixtures: an npz file of arrays beside a JSON sidecar that describes them, or a JSON file alone."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

#: Keys of a JSON-only fixture that record nothing.
_PROSE = ("_about", "fixture", "set", "note", "notes")


class UnreadableError(Exception):
    """A fixture whose files are missing, damaged or not in the format."""


@dataclass(frozen=True)
class Fixture:
    """Everything one fixture records.

    `tree` is its JSON. `arrays` are the recorded quantities by name: the npz file's arrays, or, of a JSON-only
    fixture, the leaves of its tree with the path to them as their name ("windows/3/tokens"). `declared` is the
    sidecar's own list, (shape, dtype) by name.
    """

    name: str
    path: Path
    tree: dict[str, Any]
    arrays: dict[str, Any]
    declared: dict[str, tuple[tuple[int, ...], str]] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        return _mapping(self.tree.get("config"))

    @property
    def extra(self) -> dict[str, Any]:
        return _mapping(self.tree.get("extra"))


class Reader(Mapping[str, Any]):
    """A fixture's recorded quantities, noting in `read` which ones served as inputs."""

    def __init__(self, fixture: Fixture):
        self.fixture = fixture
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        if name not in self.fixture.arrays:
            raise KeyError(f"{name} is missing")
        self.read.add(name)
        return self.fixture.arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.fixture.arrays)

    def __len__(self) -> int:
        return len(self.fixture.arrays)

    def __contains__(self, name: object) -> bool:
        return name in self.fixture.arrays

    @property
    def config(self) -> dict[str, Any]:
        return self.fixture.config

    @property
    def extra(self) -> dict[str, Any]:
        return self.fixture.extra

    def below(self, prefix: str) -> dict[str, Any]:
        """All quantities whose names start with `prefix`, as inputs, without it."""
        return {name.removeprefix(prefix): self[name] for name in self if name.startswith(prefix)}


def discover(path: Path) -> list[Path]:
    """The fixtures at a path, by their file names without a suffix: a file's own, or all below a folder."""
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.suffix in (".json", ".npz") and file.is_file()]
        return sorted({file.with_suffix("") for file in files})
    return [path.with_suffix("")] if path.suffix in (".json", ".npz") and path.is_file() else []


def load(stem: Path) -> Fixture:
    """Reads the fixture in `stem`.json and `stem`.npz.

    Raises:
      UnreadableError: no sidecar, or a file that is not what its name says.
    """
    sidecar, arrays = Path(f"{stem}.json"), Path(f"{stem}.npz")
    if not sidecar.is_file():
        raise UnreadableError(f"{sidecar.name} is missing")
    try:
        tree = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UnreadableError(f"{sidecar.name} is not JSON ({error})") from None
    if not isinstance(tree, dict):
        raise UnreadableError(f"{sidecar.name} does not hold an object")
    if "arrays" not in tree and not arrays.is_file():
        return of_tree(tree, sidecar)
    return Fixture(_name(tree, sidecar), sidecar, tree, _read_arrays(arrays), _declared(tree, sidecar))


def of_tree(tree: dict[str, Any], path: Path) -> Fixture:
    """A JSON-only fixture: its leaves are what it records."""
    leaves = dict(_leaves({key: value for key, value in tree.items() if key not in _PROSE}))
    return Fixture(_name(tree, path), path, tree, leaves)


def _name(tree: dict[str, Any], path: Path) -> str:
    return str(tree.get("fixture", path.stem))


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise UnreadableError(f"{path.name} is missing") from None
    # numpy and zipfile raise whatever the damage happens to break.
    except (OSError, ValueError, EOFError, KeyError, AttributeError, NotImplementedError, zipfile.BadZipFile) as error:
        raise UnreadableError(f"{path.name} cannot be read ({error})") from None


def _declared(tree: dict[str, Any], sidecar: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    try:
        return {name: (tuple(entry["shape"]), str(entry["dtype"])) for name, entry in tree["arrays"].items()}
    except (AttributeError, KeyError, TypeError):
        raise UnreadableError(f"{sidecar.name} lists its arrays in another way than shape and dtype by name") from None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Paths to whatever holds no object: numbers, texts, and lists of such (of lists)."""
    if isinstance(tree, dict) and tree:
        items = list(tree.items())
    elif isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        items = list(enumerate(tree))
    else:
        yield path, tree
        return
    for key, value in items:
        yield from _leaves(value, f"{path}/{key}" if path else str(key))
