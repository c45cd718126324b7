"""Files that may lie in a bucket: the path type, and calls that are bounded in time and tried again.

A path is an `etils.epath.Path`: a local one, or any URL that fsspec knows (`gs://bucket/music`). What the project needs
of remote files is little: list a folder, read a file or a range of it, upload a file. Each of these is one call here,
and each remote call passes through `retry`.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import datetime
import functools
import itertools
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

# TensorFlow's client for gs:// would be asked first where TensorFlow is installed: it loads TensorFlow, and reads
# 64 MiB to give out a byte. etils asks this variable the first time it meets a URL.
os.environ.setdefault("EPATH_USE_TF", "false")

from etils import epath

from jukebox_jax.errors import UserError
from jukebox_jax.files import atomic_file

Value = TypeVar("Value")

# A call is tried this often; between the tries it rests 0.5, 1, 2, 4 and 8 seconds.
ATTEMPTS = 6
FIRST_DELAY_SECONDS = 0.5
# No new try after this long: some clients try for a minute by themselves before they report anything.
GIVE_UP_SECONDS = 120.0
# One try takes no longer than this, and for what it moves no longer than at this rate.
TIMEOUT_SECONDS = 60.0
SLOWEST_BYTES_PER_SECOND = 2**20


def as_path(path: os.PathLike | str) -> epath.Path:
    """The path as an `epath.Path`; schemes that etils does not know are left to fsspec."""
    try:
        return epath.Path(path)
    except KeyError:  # how etils says that it does not know a scheme
        epath.register_path_cls(os.fspath(path).partition("://")[0] + "://")(FsspecPath)
        return epath.Path(path)


def is_remote(path: os.PathLike | str) -> bool:
    return "://" in os.fspath(path)


class RefusedError(UserError):
    """A remote call that was answered with a no: trying again would not help, unlike with a network that is down."""


@dataclass(frozen=True)
class Entry:
    """A file or folder in a remote folder; size in bytes, time of change in nanoseconds (0 where it is not told)."""

    name: str
    is_folder: bool
    size: int
    modified: int


def list_folder(folder: os.PathLike | str) -> list[Entry]:
    """What is in a remote folder, by name.

    Raises:
      FileNotFoundError: no such folder.
      RefusedError, UserError: the listing was refused, or kept failing.
    """
    fs, url = _filesystem(folder), os.fspath(folder)

    def listing() -> list[dict[str, Any]]:
        fs.invalidate_cache()
        return fs.ls(url, detail=True)

    entries = []
    for entry in retry(listing, f"Listing {url}"):
        # Stores keep an empty object in place of an empty folder: its name is the folder's own, or ends in a slash.
        name = entry["name"].rstrip("/").rsplit("/", 1)[-1]
        if entry["name"].strip("/") != fs._strip_protocol(url).strip("/"):
            entries.append(Entry(name, entry["type"] == "directory", int(entry["size"] or 0), _modified(entry)))
    return sorted(entries, key=lambda entry: entry.name)


def _modified(entry: dict[str, Any]) -> int:
    """Each store has its own name and type for it."""
    value = next((entry[key] for key in ("mtime", "updated", "LastModified", "created") if entry.get(key)), 0)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = datetime.datetime.fromisoformat(value)
    if isinstance(value, datetime.datetime):
        value = value.timestamp()
    return int(value * 1e9) if isinstance(value, int | float) else 0


def is_folder(path: os.PathLike | str) -> bool:
    """Whether a remote path is a folder; raises what `list_folder` raises, but FileNotFoundError."""
    fs, url = _filesystem(path), os.fspath(path)
    return bool(retry(lambda: fs.isdir(url), f"Looking at {url}"))


def exists(path: os.PathLike | str) -> bool:
    """Whether there is a remote file or folder; raises what `list_folder` raises, but FileNotFoundError."""
    fs, url = _filesystem(path), os.fspath(path)
    return bool(retry(lambda: fs.exists(url), f"Looking at {url}"))


def open_file(path: os.PathLike | str) -> Any:
    """A remote file, opened for reading bytes piece by piece as they are asked for."""
    fs, url = _filesystem(path), os.fspath(path)
    return retry(lambda: fs.open(url, "rb"), f"Opening {url}")


def file_sizes(folder: os.PathLike | str) -> dict[str, int]:
    """Name → size in bytes of the files in a folder, from one listing.

    Raises:
      FileNotFoundError: no such folder.
      UserError: the listing was refused, or kept failing.
    """
    if not is_remote(folder):
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    return {entry.name: entry.size for entry in list_folder(folder) if not entry.is_folder}


def file_size(path: os.PathLike | str) -> int:
    """Size in bytes of a file.

    Raises:
      FileNotFoundError: no such file.
      UserError: the question was refused, or kept failing.
    """
    if not is_remote(path):
        return os.path.getsize(path)
    fs, url = _filesystem(path), os.fspath(path)

    def ask() -> int:
        fs.invalidate_cache()
        return int(fs.info(url)["size"])

    return retry(ask, f"Looking at {url}")


def read_bytes(path: os.PathLike | str, start: int = 0, stop: int | None = None) -> bytes:
    """The bytes [start, stop) of a file, without reading the rest; fewer where the file ends before.

    Raises:
      FileNotFoundError: no such file.
      UserError: reading was refused, or kept failing.
    """
    if not is_remote(path):
        with open(path, "rb") as file:
            file.seek(start)
            return file.read() if stop is None else file.read(stop - start)
    fs, url = _filesystem(path), os.fspath(path)
    return retry(
        lambda: bytes(fs.cat_file(url, start=start, end=stop)),
        f"Reading {url}",
        moved_bytes=0 if stop is None else stop - start,
    )


def read_text(path: os.PathLike | str) -> str:
    """A whole UTF-8 file; raises what `read_bytes` raises, and UnicodeDecodeError."""
    return read_bytes(path).decode("utf-8")


def upload(local_path: os.PathLike | str, remote_path: os.PathLike | str) -> None:
    """Copies a local file to a remote path, over what is there, and checks its size there. Safe to repeat.

    Raises:
      FileNotFoundError: no such local file.
      UserError: the bucket refused it, or it kept failing or arriving short.
    """
    size = os.stat(local_path).st_size
    fs, url = _filesystem(remote_path), os.fspath(remote_path)

    def put() -> None:
        # The folders of buckets are only names, those of other file systems must be there.
        with contextlib.suppress(FileExistsError):
            fs.makedirs(url.rsplit("/", 1)[0], exist_ok=True)
        fs.put_file(os.fspath(local_path), url)
        fs.invalidate_cache()
        arrived = fs.info(url)["size"]
        if arrived != size:
            raise ConnectionError(f"{arrived} of {size} bytes arrived")

    try:
        retry(put, f"Uploading {url}", moved_bytes=size)
    except FileNotFoundError as error:  # so that nobody takes it for the local file
        raise UserError(f"Uploading {url} was refused ({_reason(error)}): check that the bucket exists.") from None


@contextlib.contextmanager
def whole_file(path: os.PathLike | str) -> Iterator[Path]:
    """Yields a temporary local path; on success its file appears under `path`, here or in a bucket, whole.

    Raises:
      UserError: the bucket refused it.
    """
    if not is_remote(path):
        with atomic_file(path) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / os.fspath(path).rsplit("/", 1)[-1]
        yield temporary
        upload(temporary, path)


@contextlib.contextmanager
def local_copy(path: os.PathLike | str) -> Iterator[Path]:
    """Yields a local file with the contents of `path`: itself where it is local, else a copy that is removed again.

    Raises:
      FileNotFoundError: no such remote file.
      UserError: fetching it was refused, or kept failing.
    """
    if not is_remote(path):
        yield Path(path)
        return
    fs, url = _filesystem(path), os.fspath(path)
    size = file_size(path)
    with tempfile.TemporaryDirectory(prefix="jukebox_jax_") as folder:
        # The suffix says what is in it; the rest of the name may hold anything.
        target = Path(folder) / f"copy{PurePosixPath(url).suffix}"
        retry(lambda: fs.get_file(url, str(target)), f"Fetching {url}", moved_bytes=size)
        yield target


def retry(call: Callable[[], Value], what: str, *, moved_bytes: int = 0) -> Value:
    """The result of `call()`, which is tried again, after growing pauses, when it fails in a way that may pass.

    A call that does not come back in time is left to itself (in a thread that does not keep the program from ending),
    so it must be safe to repeat.

    Args:
      what: names the call in messages, as the beginning of a sentence: "Reading gs://…".
      moved_bytes: what one call moves; allows it more time.

    Raises:
      FileNotFoundError: as `call` raised it, at once.
      RefusedError: it was refused.
      UserError: it failed `ATTEMPTS` times or for `GIVE_UP_SECONDS`.
    """
    seconds = TIMEOUT_SECONDS + moved_bytes / SLOWEST_BYTES_PER_SECOND
    delay, started = FIRST_DELAY_SECONDS, time.monotonic()
    for attempt in itertools.count(1):
        try:
            return _within(seconds, call)
        except (FileNotFoundError, UserError, *_MISTAKES):
            raise
        except Exception as error:  # every store has exceptions of its own
            if not _may_pass(error):
                raise RefusedError(
                    f"{what} was refused ({_reason(error)}): check the path, and that your credentials allow it."
                ) from None
            if attempt >= ATTEMPTS or time.monotonic() - started > GIVE_UP_SECONDS:
                raise UserError(
                    f"{what} failed {attempt} times, the last time with {_reason(error)}: "
                    "check the network, then run the same command again."
                ) from None
        time.sleep(delay)
        delay *= 2
    raise AssertionError("the loop has no end")


# Errors of programs, not of networks.
_MISTAKES = (AssertionError, AttributeError, ImportError, LookupError, NotImplementedError, TypeError)


def _may_pass(error: Exception) -> bool:
    code = getattr(error, "code", getattr(error, "status", None))
    if isinstance(code, int | str) and str(code).isdecimal():
        return int(code) in (408, 429) or int(code) >= 500
    if isinstance(error, PermissionError | FileExistsError | IsADirectoryError | NotADirectoryError | ValueError):
        return False
    # gcsfs makes a bare OSError of status 403.
    return not str(error).startswith("Forbidden")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _within(seconds: float, call: Callable[[], Value]) -> Value:
    future: concurrent.futures.Future = concurrent.futures.Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    # A future given up on may still be filled later; nobody looks then.
    done, _ = concurrent.futures.wait([future], timeout=seconds)
    if not done:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return future.result()


def _filesystem(path: os.PathLike | str) -> Any:
    """The fsspec file system of a URL.

    Raises:
      UserError: nothing installed knows the scheme.
    """
    url = os.fspath(path)
    try:
        return _filesystem_of(url.partition("://")[0], os.getpid())
    except ImportError as error:
        raise UserError(
            f"{url} needs a package ({error}): for gs:// install jukebox-jax with the extra [gcs]."
        ) from None
    except (TypeError, ValueError) as error:  # how fsspec says that it does not know a scheme, or needs more than a URL
        raise UserError(f"{url} cannot be reached ({error}): use a local path, or a URL that fsspec knows.") from None


@functools.cache
def _filesystem_of(scheme: str, process: int) -> Any:
    # fsspec keeps an instance for every thread that asks, and ours are many; connections do not survive a fork.
    del process
    import fsspec

    fs = fsspec.filesystem(scheme)
    # gcsfs logs a traceback of each failure, which becomes one sentence here.
    logging.getLogger(type(fs).__module__.partition(".")[0]).setLevel(logging.CRITICAL)
    return fs


class FsspecPath(epath.Path):
    """A URL of a scheme that only fsspec knows, as an `epath.Path`."""

    def __str__(self) -> str:
        # The pure path beneath has made one slash of two.
        return super().__str__().replace(":/", "://", 1)

    __fspath__ = __str__

    def exists(self) -> bool:
        return _filesystem(self).exists(str(self))

    def is_dir(self) -> bool:
        return _filesystem(self).isdir(str(self))

    def iterdir(self) -> Iterator[FsspecPath]:
        for name in _filesystem(self).ls(str(self), detail=False):
            yield self / name.rsplit("/", 1)[-1]

    def glob(self, pattern: str) -> Iterator[FsspecPath]:
        fs = _filesystem(self)
        for name in fs.glob(f"{self}/{pattern}"):
            yield type(self)(fs.unstrip_protocol(name))

    def resolve(self, strict: bool = False) -> FsspecPath:
        del strict
        return self

    def open(self, mode: str = "r", encoding: str | None = None, errors: str | None = None, **kwargs: Any) -> Any:
        return _filesystem(self).open(str(self), mode, **({} if "b" in mode else {"encoding": encoding or "utf-8"}))

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        del mode
        if parents:
            _filesystem(self).makedirs(str(self), exist_ok=exist_ok)
        elif not (exist_ok and self.is_dir()):
            _filesystem(self).mkdir(str(self), create_parents=False)

    def rmtree(self, missing_ok: bool = False) -> None:
        if self.exists() or not missing_ok:
            _filesystem(self).rm(str(self), recursive=True)

    def unlink(self, missing_ok: bool = False) -> None:
        if self.exists() or not missing_ok:
            _filesystem(self).rm_file(str(self))
