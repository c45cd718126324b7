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
    """Lists the sums of every `parts`-th file of a folder, from the `part`-th on: processes share the work."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith((_LIST, f".{_LIST}"))]
    names = sorted(path.relative_to(folder).as_posix() for path in files)[part::parts]
    with atomic_file(folder / f"{_LIST}.{part}") as temporary:
        sums = _sums(folder, names)
        temporary.write_text("".join(f"{digest}  {name}\n" for name, digest in zip(names, sums, strict=True)))


def find_damage(folder: Path, within: Iterable[str] = ("",), part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with the files of a folder, in a few words; None if nothing is, or if they were never summed.

    Args:
      within: only files whose names below `folder` start with one of these.
      part, parts: look at every `parts`-th file only, from the `part`-th on: processes share the work.
    """
    expected: dict[str, str] = {}
    try:
        for listed in sorted(folder.glob(f"{_LIST}.*")):
            for line in listed.read_text(encoding="utf-8").splitlines():
                found = re.fullmatch("([0-9a-f]{64})  (.+)", line)
                if found is None:
                    return f"{listed.name} is garbled"
                expected[found[2]] = found[1]
        names = sorted(name for name in expected if name.startswith(tuple(within)))[part::parts]
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
