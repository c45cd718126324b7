"""Files elsewhere, made local: copied with patience, removed after use."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TypeVar

from jukebox_jax.audio.decode import BadAudio

Result = TypeVar("Result")

ATTEMPTS = 4
TIMEOUT_SECONDS = 600.0
_COPY_BYTES = 2**20


def is_remote(path: os.PathLike | str) -> bool:
    """Whether a path is a URL that fsspec takes: "gs://bucket/song.flac", "memory://song.flac"."""
    return "://" in os.fspath(path)


@contextlib.contextmanager
def local_copy(path: os.PathLike | str) -> Iterator[Path]:
    """Yields a local file with the content of `path`: itself where it is local, else a copy that is removed again.

    Raises:
      BadAudio: a remote file does not exist, or could not be copied in ATTEMPTS attempts of TIMEOUT_SECONDS each.
    """
    if not is_remote(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="jukebox_jax_") as folder:
        # The suffix says what is in it; the rest of the name may hold anything.
        target = Path(folder) / f"copy{PurePosixPath(os.fspath(path)).suffix}"
        try:
            retry(lambda: _copy(os.fspath(path), target))
        except FileNotFoundError:
            raise BadAudio("does not exist: check the path") from None
        except Exception as error:  # every store has exceptions of its own
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise BadAudio(
                f"could not be fetched in {ATTEMPTS} attempts ({reason}): "
                "check the network and your rights there, and run again"
            ) from None
        yield target


def retry(
    function: Callable[[], Result],
    *,
    attempts: int = ATTEMPTS,
    timeout_seconds: float = TIMEOUT_SECONDS,
    wait_seconds: float = 1.0,
) -> Result:
    """Calls `function` until it succeeds, with longer and longer waits (1, 2, 4, … times `wait_seconds`).

    Raises:
      FileNotFoundError, PermissionError: at once: what is not there will not come.
      Exception: the last attempt's; TimeoutError where it took longer than `timeout_seconds`.
    """
    for attempt in range(attempts):
        try:
            return _within(function, timeout_seconds)
        except (FileNotFoundError, PermissionError):
            raise
        except Exception:
            if attempt == attempts - 1:
                raise
        time.sleep(wait_seconds * 2**attempt)
    raise ValueError("attempts must be at least 1")


def _within(function: Callable[[], Result], timeout_seconds: float) -> Result:
    # A read that hangs cannot be interrupted, only left behind: in a thread that does not keep the process alive.
    outcome: list = []

    def work() -> None:
        try:
            outcome.append((function(), None))
        except BaseException as error:  # carried to the caller
            outcome.append((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout_seconds)
    if not outcome:
        raise TimeoutError(f"no end within {timeout_seconds:g} seconds")
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def _copy(source: str, target: Path) -> None:
    import fsspec  # what etils.epath goes through; it also knows schemes that epath does not

    with fsspec.open(source, "rb") as reading, target.open("wb") as writing:
        shutil.copyfileobj(reading, writing, _COPY_BYTES)
