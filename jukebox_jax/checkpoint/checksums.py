"""SHA-256 sums of a checkpoint's files: written when it is complete, compared before it is read.

Orbax's database of arrays guards its index with checksums, but not the arrays: a bit that flips in a data file comes
back as another weight, without a word. And a host that fails in the middle of reading leaves the others waiting for
it; what is known to be damaged beforehand, no host begins to read.

    STEP/SHA256SUMS.0, STEP/SHA256SUMS.1, …   one list per process that wrote; `sha256sum -c` reads them, too
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jukebox_jax.files import atomic_file

_LIST = "SHA256SUMS"
_THREADS = 8  # hashing leaves Python's lock alone, so that threads add up


def write_sums(folder: Path, part: int = 0, parts: int = 1) -> None:
    """Lists the sums of a folder's files; of `parts` processes that share the work, this is the `part`-th."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith((_LIST, f".{_LIST}"))]
    largest_first = sorted(files, key=lambda path: (-path.stat().st_size, path))
    names = [path.relative_to(folder).as_posix() for path in largest_first[part::parts]]
    with atomic_file(folder / f"{_LIST}.{part}") as temporary:
        sums = _sums(folder, names)
        temporary.write_text("".join(f"{digest}  {name}\n" for name, digest in zip(names, sums, strict=True)))


def find_damage(folder: Path, within: Iterable[str] = ("",), part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with the files of a folder, in a few words; None if nothing is, or if they were never summed.

    Args:
      within: only files whose names below `folder` start with one of these.
      part, parts: of so many processes that share the work, this is which.
    """
    expected: dict[str, str] = {}
    try:
        for listed in sorted(folder.glob(f"{_LIST}.*")):
            for line in listed.read_text(encoding="utf-8").splitlines():
                found = re.fullmatch("([0-9a-f]{64})  (.+)", line)
                if found is None:
                    return f"{listed.name} is garbled"
                expected[found[2]] = found[1]
        # By the sums all processes draw the same lots, in which each gets large and small files.
        mine = [name for name, digest in expected.items() if int(digest, 16) % parts == part]
        names = sorted(name for name in mine if name.startswith(tuple(within)))
        for name in names:
            if not (folder / name).is_file():
                return f"{name} is missing"
        for name, digest in zip(names, _sums(folder, names), strict=True):
            if digest != expected[name]:
                return f"{name} has changed since it was written"
    except (OSError, UnicodeDecodeError) as error:
        return f"{error}"
    return None


def _sums(folder: Path, names: list[str]) -> list[str]:
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda name: _sum(folder / name), names))


def _sum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
