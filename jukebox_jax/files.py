"""Files that are either whole or absent, and folders that belong to one process at a time."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from jukebox_jax.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has no fcntl; msvcrt locks a byte range instead.
    fcntl = None
    import msvcrt


@contextlib.contextmanager
def atomic_file(path: os.PathLike | str) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is flushed and renamed to `path`, on error removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays: libraries choose a file format by it.
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_targets(*paths: Path | None) -> None:
    """Refuses files that could not be written, before the work that would fill them; makes their folders.

    Raises:
      UserError: a path is a folder.
      OSError: its folder cannot be made, or takes no files.
    """
    for path in paths:
        if path is None:
            continue
        if path.is_dir():
            raise UserError(f"{path} is a folder: give a file in it.")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass


_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}(\.\w+)?")


def is_unfinished(path: Path) -> bool:
    """Whether a name is that of a file which `atomic_file` has not finished."""
    return _TEMPORARY.fullmatch(path.name) is not None


def remove_unfinished(folder: Path, stem: str = "", below: bool = False) -> None:
    """Removes what killed processes were in the middle of writing to a folder with `atomic_file`, also `below` it, or
    only files whose names begin with `stem`. It is for who writes them alone."""
    for path in (folder.rglob if below else folder.glob)(f".{stem}*"):
        if is_unfinished(path):
            path.unlink()


@contextlib.contextmanager
def atomic_folder(path: os.PathLike | str) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; on success it is renamed to `path`, on error removed.

    Raises:
      UserError: `path` already exists and is not an empty folder.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} already exists: remove it or choose another folder.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        if path.exists():
            path.rmdir()
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def folder_lock(folder: os.PathLike | str) -> Iterator[None]:
    """Holds `folder/.lock` for this process; the system frees it when the process ends, however it ends.

    Raises:
      UserError: another process holds it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+") as handle:
        _lock(handle, f"{folder}", "folder")
        yield


@contextlib.contextmanager
def locked_file(path: os.PathLike | str) -> Iterator[IO[bytes]]:
    """Opens a file, made if there is none, to be read and appended to by this process alone.

    Raises:
      UserError: another process holds it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as handle:
        _lock(handle, f"{path}", "file")
        yield handle


def _lock(handle: IO, name: str, kind: str) -> None:
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError:
        raise UserError(f"{name} is in use by another process: wait for it to end, or choose another {kind}.") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
