"""The journal of a session: every finished window in a file of its own, so that no kill loses more than windows in
progress.

    FOLDER/session.json                                   what is sampled, from what, by which models
    FOLDER/level_L_song_I_part_P_window_START.npz         the new tokens of a window

Keys of tokens are folded from their places, so whoever goes on from these files ends with the same tokens.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jukebox_jax.errors import UserError
from jukebox_jax.files import atomic_file, folder_lock, remove_unfinished
from jukebox_jax.sampling.cascade import Finished, Part

SESSION_FILE = "session.json"


def settings_hash(settings: Mapping[str, Any]) -> str:
    """SHA-256 of settings that can be written as JSON."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Journal:
    """The windows of a session that are on disk; see `open_journal`."""

    folder: Path
    settings: Mapping[str, Any]
    hash: str

    def write(self, level: int, finished: Finished) -> None:
        """Adds a window; the file is whole or absent."""
        window, part = finished.window, finished.part
        with atomic_file(self._path(level, part, window.start)) as temporary:
            np.savez(
                temporary,
                tokens=part.tokens[finished.new],
                place=np.asarray([window.start, window.given, window.target]),
                session=np.asarray(self.hash),
            )

    def restore(self, level: int, parts: Sequence[Part]) -> list[Finished]:
        """Takes into the parts all windows that are there, which are then not left to sample.

        Raises:
          UserError: a window is damaged, or of another session.
        """
        found = []
        for part in parts:
            while part.windows and self._path(level, part, part.windows[0].start).exists():
                finished = Finished(part, part.windows.popleft())
                part.tokens[finished.new] = self._read(level, finished)
                found.append(finished)
        return found

    def _path(self, level: int, part: Part, start: int) -> Path:
        return self.folder / f"level_{level}_song_{part.song}_part_{part.number}_window_{start}.npz"

    def _read(self, level: int, finished: Finished) -> np.ndarray:
        window = finished.window
        path = self._path(level, finished.part, window.start)
        try:
            with np.load(path, allow_pickle=False) as stored:
                tokens, place, session = stored["tokens"], stored["place"].tolist(), str(stored["session"])
        # numpy and zipfile raise whatever the damage happens to break.
        except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is damaged ({error}): delete it, and its window is sampled again.") from None
        if session != self.hash or place != [window.start, window.given, window.target]:
            raise UserError(f"{path} belongs to another session: delete it, and its window is sampled again.")
        if tokens.shape != (window.target - window.given,) or not np.issubdtype(tokens.dtype, np.integer):
            raise UserError(f"{path} is damaged (tokens of another shape): delete it, and its window is sampled again.")
        return tokens


@contextlib.contextmanager
def open_journal(folder: Path, settings: Mapping[str, Any]) -> Iterator[Journal]:
    """The journal in a folder, which this process has for itself until it leaves the block.

    Args:
      settings: all that tokens depend on, as JSON; a folder that holds a journal must hold that of the same.

    Raises:
      UserError: another process has it, it is damaged, or it is the journal of something else (names what differs).
    """
    with folder_lock(folder):
        remove_unfinished(folder)
        there = recorded_settings(folder)
        if there is None:
            with atomic_file(folder / SESSION_FILE) as temporary:
                temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        else:
            differing = _difference(there, json.loads(json.dumps(settings)))
            if differing:
                raise UserError(
                    f"{folder} is the session of something else ({differing}): choose another folder, or repeat what "
                    "it was begun with."
                )
        yield Journal(folder, settings, settings_hash(settings))


def recorded_settings(folder: Path) -> dict[str, Any] | None:
    """What a session folder was begun with; None if it was not.

    Raises:
      UserError: it is damaged.
    """
    path = folder / SESSION_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): remove the folder {folder} to begin anew.") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged (no settings): remove the folder {folder} to begin anew.")
    return found


def remove_session(folder: Path) -> None:
    """Removes a session, and its folder if nothing else is in it."""
    for path in (folder / SESSION_FILE, folder / ".lock", *folder.glob("level_*_song_*_part_*_window_*.npz")):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty, or never made
        folder.rmdir()


def _difference(there: Any, here: Any, name: str = "") -> str:
    """The first thing in which two trees of JSON differ; "" if none."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*there, *here]:
            found = _difference(there.get(key), here.get(key), f"{name}.{key}" if name else key)
            if found:
                return found
        return ""
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        found = (_difference(a, b, f"{name}[{i}]") for i, (a, b) in enumerate(zip(there, here, strict=True)))
        return next(filter(None, found), "")
    return "" if there == here else f"{name} is {_short(there)} there and {_short(here)} here"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
