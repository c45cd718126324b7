"""Token datasets: the codes of every song, under the record numbers of the audio they came from.

They are made song by song in a work folder beside the dataset-to-be:

    .NAME.encoding/plan.json           what is encoded, with which codec, and how
    .NAME.encoding/process-0/          locked by a running process; holds the song that it is at
    .NAME.encoding/songs/train-12/     a finished song: one file of codes for each level

A song's folder appears whole, by renaming, so that a killed run goes on with the songs that are not there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int16, Integer

from jukebox_jax.corpus.records import DatasetWriter, StoredSong, new_dataset_folder, write_dataset
from jukebox_jax.errors import UserError
from jukebox_jax.files import atomic_file, folder_lock
from jukebox_jax.pipeline.dataset import Dataset, RecordReader, Song, open_dataset
from jukebox_jax.remote import read_bytes

MAX_CODES = 2**16  # they are stored as uint16

#: How often process 0 looks whether the others are done, and after how long without a new song it asks who still runs.
POLL_SECONDS = 1.0
STALL_SECONDS = 600.0

EncodeSong = Callable[[str, Song, Int16[np.ndarray, "t channels"]], Mapping[str, np.ndarray]]

_PLAN = "plan.json"


class SongId(NamedTuple):
    """A song's place in the song table."""

    split: str
    index: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.index}"


def song_ids(audio: Dataset) -> list[SongId]:
    """All songs in the order in which they are stored."""
    return [SongId(split, index) for split, table in audio.splits.items() for index in range(len(table))]


def check_encodable(audio: Dataset, hops: Mapping[str, int], codes: int | None) -> None:
    """Raises a UserError unless the codes of this dataset can be stored; see `write_token_dataset`."""
    if "audio" not in audio.fields:
        raise UserError(f"{audio.folder} holds tokens, not audio: name the folder that `jukebox-jax prepare` wrote.")
    for level, hop in hops.items():
        if audio.record_samples % hop:
            raise UserError(
                f"The hop of {level}, {hop} samples, does not divide a record of {audio.record_samples} samples: "
                "use a codec whose hops are powers of two."
            )
    if codes is not None and codes > MAX_CODES:
        raise UserError(f"The codec has {codes} codes, but only {MAX_CODES} can be stored: train one with fewer.")


def token_header(audio: Dataset, hops: Mapping[str, int], codec_hash: str, codes: int | None) -> Dataset:
    """The token dataset of an audio dataset, as `DatasetWriter` takes it."""
    codec = {"hash": codec_hash} | ({} if codes is None else {"codes": codes})
    return dataclasses.replace(audio, fields=dict(hops), codec=codec)


def write_token_dataset(
    audio: Dataset,
    out: os.PathLike | str,
    hops: Mapping[str, int],
    encode_song: EncodeSong,
    codec_hash: str,
    progress: Callable[[int, int, str], None] | None = None,
    *,
    codes: int | None = None,
) -> Dataset:
    """Encodes every song of an audio dataset by a function of whole songs, in one go.

    Args:
      hops: level name → hop in samples, {"level_0": 8, "level_1": 32, "level_2": 128}.
      encode_song: (split, song, its samples) → for each level uint16 codes (n,), at least up to the last whole
        hop of the coarsest level and at most to the end of the last record; the rest is filled with zeros.
      codec_hash: what made the codes; stored, so that a prior is not trained on the codes of another codec.
      progress: called after each song with (songs done, songs in all, title).
      codes: how many codes a level has; stored, so that a prior has as many. None leaves it open.

    Raises:
      UserError: `audio` holds no audio, a hop does not divide a record, more codes than can be stored, or `out` exists
        or is being written.
      ValueError: `encode_song` returned codes of another type or length.
    """
    check_encodable(audio, hops, codes)
    songs = song_ids(audio)
    readers = {split: RecordReader(audio, split) for split in audio.splits}
    with new_dataset_folder(out) as folder:
        writer = DatasetWriter(folder, token_header(audio, hops, codec_hash, codes))
        for done, (split, index) in enumerate(songs, start=1):
            song = audio.splits[split][index]
            writer.add(split, song, encode_song(split, song, readers[split].read_song(index, "audio")))
            if progress is not None:
                progress(done, len(songs), song.title)
        writer.finish()
    return open_dataset(Path(out))


# ---- Song by song, by several processes, across kills -----------------------------------------------------------


@contextlib.contextmanager
def open_work(
    audio: Dataset,
    header: Dataset,
    out: os.PathLike | str,
    settings: Mapping[str, int],
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[TokenWork]:
    """The work folder of a token dataset, for this process to fill: new, or as an earlier run left it.

    Args:
      header: from `token_header`.
      settings: what else the codes depend on; a run with others does not go on with these songs.

    Raises:
      UserError: `out` exists, another process does this process's part, the folder was begun with something else, or
        there is too little free space.
    """
    out = Path(out).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already exists: remove it or choose another folder.")
    work = TokenWork(audio, header, out, process_index, process_count)
    plan = _plan(audio, header, settings)
    work.check_same(plan)
    work.check_room()
    with folder_lock(work.own):
        for leftover in work.own.iterdir():
            if leftover.is_dir():
                shutil.rmtree(leftover)
        (work.folder / "songs").mkdir(exist_ok=True)
        if not (work.folder / _PLAN).exists():
            with atomic_file(work.folder / _PLAN) as file:
                file.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
        yield work
    if work.assembled:
        shutil.rmtree(work.folder, ignore_errors=True)


def finished_dataset(
    audio: Dataset, header: Dataset, out: os.PathLike | str, settings: Mapping[str, int]
) -> Dataset | None:
    """The dataset of a run that was killed when there was nothing left to do but to clear up; else None."""
    work = TokenWork(audio, header, Path(out).absolute(), 0, 1)
    if not ((work.folder / _PLAN).exists() and (work.out / "songs.json").exists()):
        return None
    work.check_same(_plan(audio, header, settings))
    shutil.rmtree(work.folder, ignore_errors=True)
    return open_dataset(out)


@dataclasses.dataclass
class TokenWork:
    """Finished songs on their way into a token dataset; from `open_work`."""

    audio: Dataset
    header: Dataset
    out: Path
    process_index: int
    process_count: int
    assembled: bool = False

    @property
    def folder(self) -> Path:
        return self.out.with_name(f".{self.out.name}.encoding")

    @property
    def own(self) -> Path:
        """What this process alone may touch."""
        return self.folder / f"process-{self.process_index}"

    def finished(self) -> set[str]:
        """The names of the songs that are done, whoever did them."""
        songs = self.folder / "songs"
        return set(os.listdir(songs)) if songs.is_dir() else set()

    @contextlib.contextmanager
    def new_part(self, song: SongId) -> Iterator[Part]:
        """A song to append codes to; it counts as done when the block ends without an error."""
        folder, destination = self.own / song.name, self.folder / "songs" / song.name
        try:
            folder.mkdir()
            with contextlib.ExitStack() as stack:
                files = [stack.enter_context((folder / level).open("wb")) for level in self.header.fields]
                yield Part(files)
                for file in files:
                    file.flush()
                    os.fsync(file.fileno())
            if not destination.exists():  # a run with another number of processes may have been faster
                folder.rename(destination)
        except OSError as error:
            if error.filename is None and error.errno is not None:  # writing does not say where
                raise OSError(error.errno, error.strerror, str(folder)) from None
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def assemble(self) -> Dataset:
        """Waits for the songs of the other processes and writes the dataset.

        Raises:
          UserError: they stopped before their songs were done, or another process writes it.
        """
        self._wait_for_others()
        stored: dict[str, list[StoredSong]] = {split: [] for split in self.audio.splits}
        for split, index in song_ids(self.audio):
            part = self.folder / "songs" / SongId(split, index).name
            files = {level: str(part / level) for level in self.header.fields}
            stored[split].append(StoredSong(self.audio.splits[split][index], files))
        with new_dataset_folder(self.out) as folder:
            write_dataset(folder, self.header, stored)
        self.assembled = True
        return open_dataset(self.out)

    def check_same(self, plan: Mapping[str, str | int]) -> None:
        """Raises a UserError if the folder was begun with another plan."""
        path = self.folder / _PLAN
        if not path.exists():
            return
        begun = json.loads(path.read_text(encoding="utf-8"))
        for name, value in plan.items():
            if begun.get(name) != value:
                which = f"{name}={begun.get(name)}" if isinstance(value, int) else f"another {name}"
                raise UserError(f"{self.folder} was begun with {which}: use the same, or remove that folder.")

    def check_room(self) -> None:
        """Raises a UserError if the disk cannot hold the songs still missing and the dataset."""
        finished = self.finished()
        needed = 0
        for song in song_ids(self.audio):
            records = self.audio.splits[song.split][song.index].records(self.audio.record_samples)
            needed += records * (2 - (song.name in finished))
        needed *= sum(self.audio.record_samples // hop * 2 for hop in self.header.fields.values())
        there = next(folder for folder in self.out.parents if folder.exists())
        free = shutil.disk_usage(there).free
        if free < needed:
            raise UserError(
                f"{there} has {free / 2**20:,.0f} MiB of free space and the tokens need {needed / 2**20:,.0f} MiB "
                "(half of it only until they are done): free space or choose another folder."
            )

    def _wait_for_others(self) -> None:
        songs = song_ids(self.audio)
        owner = {song.name: number % self.process_count for number, song in enumerate(songs)}
        left, since, told = owner.keys() - self.finished(), time.monotonic(), False
        while left:
            if not told:
                print(f"Waiting for {len(left)} songs of other processes.", file=sys.stderr)
                told = True
            if time.monotonic() - since > STALL_SECONDS:
                stopped = sorted({owner[name] for name in left})
                if not any(_is_locked(self.folder / f"process-{index}") for index in stopped):
                    raise UserError(
                        f"Of {self.process_count} processes, {', '.join(map(str, stopped))} stopped with {len(left)} "
                        "songs not done: start them again with the same command, and this one."
                    )
                since = time.monotonic()
            time.sleep(POLL_SECONDS)
            now_left = left - self.finished()
            if len(now_left) < len(left):
                left, since = now_left, time.monotonic()


class Part:
    """The codes of one song, appended in order."""

    def __init__(self, files: Sequence):
        self._files = files

    def append(self, codes: Sequence[Integer[np.ndarray, " _"]]) -> None:
        """Appends to each level, level 0 first."""
        for file, level in zip(self._files, codes, strict=True):
            file.write(level.astype("<u2").tobytes())


def _plan(audio: Dataset, header: Dataset, settings: Mapping[str, int]) -> dict[str, str | int]:
    """What the codes depend on. Of the audio a sample stands for the whole: who changes it changes all of it."""
    digest = hashlib.sha256(json.dumps([audio.table_json(), audio.labels.to_json()], sort_keys=True).encode())
    shards = [audio.folder / shard.name for split in sorted(audio.shards) for shard in audio.shards[split]]
    for shard in shards[:: max(1, len(shards) // 16)]:
        digest.update(read_bytes(shard, 0, 2**20))
    return {"dataset": digest.hexdigest(), "codec": str(header.codec["hash"]), **settings}


def _is_locked(folder: Path) -> bool:
    try:
        with folder_lock(folder):
            return False
    except UserError:
        return True
