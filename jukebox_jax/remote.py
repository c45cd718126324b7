"""Paths that may lie in a bucket."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from jukebox_jax.files import atomic_file


def is_remote(path: os.PathLike | str) -> bool:
    """Whether a path names something that is not on this machine's file system."""
    return "://" in os.fspath(path)


def upload(local: os.PathLike | str, remote: os.PathLike | str) -> None:
    """Copies a file into a bucket."""
    epath.Path(local).copy(epath.Path(remote), overwrite=True)


@contextlib.contextmanager
def whole_file(path: os.PathLike | str) -> Iterator[Path]:
    """Yields a local temporary path; on success the file appears under `path`, here or in a bucket, whole."""
    if not is_remote(path):
        with atomic_file(path) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / "file"
        yield temporary
        upload(temporary, path)
