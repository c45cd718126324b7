"""A store of rows as JSON lines: what was measured stays measured, whatever ends the process that measures."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from jukebox_jax.errors import UserError
from jukebox_jax.files import locked_file


class Store:
    """Rows in the order in which they were added. Made by `open_store`.

    Attributes:
      rows: all of them, those added since included.
    """

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file = file
        file.seek(0)
        lines = file.read().split(b"\n")
        self.rows: list[dict[str, Any]] = []
        for number, line in enumerate(lines[:-1], start=1):
            self.rows.append(_row(line, f"{path}, line {number},"))
        # Whoever was killed while it wrote left the beginning of a row.
        self._torn = len(lines[-1])
        if lines[-1] and not lines[-1].startswith(b"{"):
            _row(lines[-1], f"{path}, line {len(lines)},")

    def add(self, row: dict[str, Any]) -> None:
        """Appends a row; it is on the disk when this returns."""
        if self._torn:
            self._file.truncate(self._file.seek(0, os.SEEK_END) - self._torn)
            self._torn = 0
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows.append(row)


@contextlib.contextmanager
def open_store(path: os.PathLike | str, wait_seconds: float = 0.0) -> Iterator[Store]:
    """The store in a file, made if there is none, for this process alone.

    Args:
      wait_seconds: for which another process may hold it, before that is an error.

    Raises:
      UserError: another process holds it, or it holds something else than rows.
    """
    with contextlib.ExitStack() as stack:
        until = time.monotonic() + wait_seconds
        while True:
            try:
                file = stack.enter_context(locked_file(path))
                break
            except UserError:
                if time.monotonic() >= until:
                    raise
            time.sleep(0.1)
        yield Store(file, Path(path))


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise UserError(f"{where} is no row of a store: remove the line, or choose another file.")
    return row
