"""The unit of work of `prepare`: one piece, decoded once into a file of samples and a note of what was found.

    WORK/KEY.pcm    int16 samples (t, channels), little-endian; empty for a piece that cannot be used
    WORK/KEY.print  its fingerprint: 32-bit words, little-endian
    WORK/KEY.json   the rest of the Finding; it appears last, so that a piece with one is done

The key covers the file's name, size and time of change and all settings that decoding depends on: whatever is changed
is decoded again, and whatever was killed goes on. A work folder may be anywhere that every worker reaches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from etils import epath

from jukebox_jax.corpus.piece import Finding, Piece
from jukebox_jax.corpus.song import SongSettings, decode_song
from jukebox_jax.remote import as_path, file_size, read_bytes, whole_file

#: Changes whenever the same file would be stored as other samples.
_VERSION = 1


@dataclass(frozen=True)
class DecodeTask:
    """A piece to decode, how, and the work folder."""

    piece: Piece
    settings: SongSettings
    work: str

    @property
    def key(self) -> str:
        piece = self.piece
        identity = [_VERSION, piece.path, piece.size, piece.modified, dataclasses.asdict(self.settings)]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def samples_path(self) -> epath.Path:
        return as_path(self.work) / f"{self.key}.pcm"

    @property
    def fingerprint_path(self) -> epath.Path:
        return as_path(self.work) / f"{self.key}.print"

    @property
    def finding_path(self) -> epath.Path:
        return as_path(self.work) / f"{self.key}.json"


def decode_piece(task: DecodeTask) -> None:
    """Writes the piece's part, unless it is there. Nothing that is wrong with the piece raises: it is in the Finding.

    Raises:
      OSError: the work folder cannot be written (a full disk).
    """
    if task.finding_path.exists():
        return
    with contextlib.ExitStack() as stack:
        samples = stack.enter_context(whole_file(task.samples_path))
        file = stack.enter_context(samples.open("wb"))

        def write(block: np.ndarray) -> None:
            try:
                file.write(block.astype("<i2", copy=False).tobytes())
            except OSError as error:  # writing does not say where
                raise OSError(error.errno, error.strerror, task.work) from None

        finding = decode_song(task.piece, task.settings, write)
        if not finding.usable:
            file.truncate(0)
    _write_finding(task, finding)


def crashed(task: DecodeTask) -> None:
    """Notes that decoding the piece takes a process down."""
    finding = Finding("decoding it crashes the decoder or runs out of memory: convert it to FLAC, or remove it.")
    _write_finding(task, finding)


def read_finding(task: DecodeTask) -> Finding | None:
    """What decoding the piece found, without its fingerprint; None if it is not decoded yet, or not whole."""
    if not task.finding_path.exists():
        return None
    try:
        tree = json.loads(task.finding_path.read_text())
        finding = Finding(**tree | {"fingerprint": tuple(tree["fingerprint"]), "notes": tuple(tree["notes"])})
        stored = file_size(task.samples_path) if finding.usable else 0
    except (OSError, ValueError, TypeError, KeyError):  # a power cut can leave files without their contents
        finding = stored = None
    if finding is not None and stored == finding.samples * finding.channels * 2 * finding.usable:
        return finding
    task.finding_path.unlink()
    return None


class Fingerprints(Sequence[tuple[int, ...]]):
    """The fingerprints of decoded pieces, read as they are asked for: those of a collection would fill the memory."""

    def __init__(self, tasks: Sequence[DecodeTask]):
        self._tasks = tasks

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index: int) -> tuple[int, ...]:
        return tuple(np.frombuffer(read_bytes(self._tasks[index].fingerprint_path), "<u4").tolist())


def _write_finding(task: DecodeTask, finding: Finding) -> None:
    with whole_file(task.fingerprint_path) as words:
        words.write_bytes(np.asarray(finding.fingerprint, "<u4").tobytes())
    with whole_file(task.finding_path) as note:
        note.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(finding, fingerprint=()))), encoding="utf-8")
