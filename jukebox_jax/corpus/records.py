"""Writing a dataset folder: fixed-length records in ArrayRecord shards, TFDS metadata, song table and label table.

`pipeline/dataset.py` describes the format and reads it. What goes into a shard is planned first, from lengths alone
(`plan_shards`), so that shards can be written by any number of workers, in any order, again after a kill
(`write_shard`), with the same bytes; `finish_dataset` adds the tables.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jukebox_jax.errors import UserError
from jukebox_jax.files import atomic_folder, folder_lock
from jukebox_jax.pipeline.dataset import SPLITS, Dataset, Shard, Song, field_dtype, open_dataset, shard_name
from jukebox_jax.remote import as_path, file_size, file_sizes, upload, whole_file

# About 128 MiB of mono audio: large enough for few files, small enough to copy and spread.
SHARD_RECORDS = 1024


@dataclass(frozen=True)
class StoredSong:
    """A song and the raw files that its entries are copied from.

    Attributes:
      files: field → file of little-endian entries, int16 (t, channels) or uint16 (t / hop,). Entries may stop anywhere
        from the song's last whole hop of the coarsest field on; zeros follow them up to the end of the last record.
      channels: of the audio in its file; one channel is repeated where the dataset has two.
    """

    song: Song
    files: Mapping[str, str]
    channels: int = 1


@dataclass(frozen=True)
class ShardTask:
    """One shard: where it goes, and which records [first, stop) of which songs it holds."""

    path: str
    fields: Mapping[str, int]
    record_samples: int
    channels: int
    slices: tuple[tuple[StoredSong, int, int], ...]

    @property
    def records(self) -> int:
        return sum(stop - first for _, first, stop in self.slices)


def plan_shards(
    folder: os.PathLike | str, header: Dataset, stored: Mapping[str, Sequence[StoredSong]]
) -> tuple[dict[str, tuple[Song, ...]], list[ShardTask]]:
    """The song table, with the place of every song's records, and the shards that make it true.

    Args:
      folder: where the shards go.
      header: the dataset's rates and fields; its songs and shards are ignored.
      stored: split → its songs in order.
    """
    splits, tasks = {}, []
    for split, songs in stored.items():
        table, shards, total = [], [], 0
        for entry in songs:
            count = entry.song.records(header.record_samples)
            table.append(dataclasses.replace(entry.song, first_record=total))
            done = 0
            while done < count:
                place = (total + done) % SHARD_RECORDS
                if place == 0:
                    shards.append([])
                stop = min(count, done + SHARD_RECORDS - place)
                shards[-1].append((entry, done, stop))
                done = stop
            total += count
        splits[split] = tuple(table)
        for index, slices in enumerate(shards):
            path = os.fspath(as_path(folder) / shard_name(split, index, len(shards)))
            tasks.append(ShardTask(path, header.fields, header.record_samples, header.channels, tuple(slices)))
    return splits, tasks


def write_shard(task: ShardTask) -> None:
    """Writes one shard, whole or not at all, unless it is there.

    Raises:
      OSError: it cannot be written (a full disk).
      ValueError: a song's file has too few or too many entries.
    """
    if as_path(task.path).exists():
        return
    from array_record.python import array_record_module

    with whole_file(task.path) as temporary:
        # One record a group for random access; noise-like samples hardly compress, and reading costs four times as
        # much from compressed records.
        try:
            writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
            for stored, first, stop in task.slices:
                for record in _records(task, stored, first, stop):
                    writer.write(record)
            writer.close()
        except RuntimeError as error:  # ArrayRecord's only exception
            raise OSError(
                f"{task.path} cannot be written ({error}): free space and run the same command again"
            ) from None
        reader = array_record_module.ArrayRecordReader(str(temporary))
        found = reader.num_records() if reader.ok() else 0
        reader.close()
        if found != task.records:
            raise OSError(
                f"{task.path} holds {found} of {task.records} records: free space and run the same command again"
            )


def finish_dataset(tables: Path, dataset: Dataset, shards: Sequence[ShardTask]) -> Dataset:
    """Writes TFDS metadata, label table and song table, and returns the dataset with its table of shards.

    Args:
      tables: a local folder; the shards need not lie there.
    """
    sizes = file_sizes(as_path(shards[0].path).parent) if shards else {}
    files: dict[str, list[Shard]] = {split: [] for split in dataset.splits}
    for task in shards:
        name = as_path(task.path).name
        files[name.removeprefix("music-").partition(".")[0]].append(Shard(name, task.records, sizes[name]))
    dataset = dataclasses.replace(dataset, shards={split: tuple(shards) for split, shards in files.items()})
    dataset.labels.save(tables / "labels.json")
    table = json.dumps(dataset.table_json(), ensure_ascii=False, indent=1) + "\n"
    (tables / "songs.json").write_text(table, encoding="utf-8")
    # TFDS learns names from files; where the shards lie elsewhere, empty ones stand in for them.
    absent = [tables / shard.name for shards in dataset.shards.values() for shard in shards]
    absent = [path for path in absent if not path.exists()]
    for path in absent:
        path.touch()
    _write_tfds_metadata(tables, dataset)
    for path in absent:
        path.unlink()
    return dataset


def write_dataset(folder: Path, header: Dataset, stored: Mapping[str, Sequence[StoredSong]]) -> None:
    """Writes shards, metadata and tables into a local folder, in this process.

    Args:
      header, stored: as `plan_shards` takes them.

    Raises:
      OSError: it cannot be written.
    """
    splits, tasks = plan_shards(folder, header, stored)
    for task in tasks:
        write_shard(task)
    finish_dataset(folder, dataclasses.replace(header, folder=folder, splits=splits), tasks)


def upload_dataset(folder: Path, out: os.PathLike | str) -> None:
    """Uploads the files of a local folder; the song table, which makes a dataset of them, comes last.

    Raises:
      UserError: the bucket refused it, or cannot be reached.
    """
    files = (path for path in folder.iterdir() if path.is_file())
    for path in sorted(files, key=lambda path: (path.name == "songs.json", path.name)):
        upload(path, as_path(out) / path.name)


class DatasetWriter:
    """Writes a dataset song by song from arrays in memory. The same calls give the same bytes.

    Args:
      folder: a folder of its own, from `new_dataset_folder`.
      header: the dataset's rates and fields; its songs and shards are those to be written, and are ignored.
    """

    def __init__(self, folder: Path, header: Dataset):
        self._folder, self._header = folder, header
        self._parts = folder / ".parts"
        self._stored: dict[str, list[StoredSong]] = {split: [] for split in SPLITS}

    def add(self, split: str, song: Song, arrays: Mapping[str, np.ndarray]) -> None:
        """Appends a song: `arrays` has each field's entries, as `StoredSong` describes them.

        Raises:
          ValueError: a field with another type, or too few or too many entries.
        """
        self._parts.mkdir(exist_ok=True)
        files = {}
        for field in self._header.fields:
            array = arrays[field]
            _check_entries(self._header, song, field, array.dtype, len(array))
            files[field] = str(self._parts / f"{split}-{len(self._stored[split])}.{field}")
            np.ascontiguousarray(array).tofile(files[field])
        self._stored[split].append(StoredSong(song, files, self._header.channels))

    def finish(self) -> Dataset:
        """Writes the shards, metadata and tables, and reads the folder back.

        Raises:
          OSError: the shards cannot be written.
        """
        write_dataset(self._folder, self._header, self._stored)
        shutil.rmtree(self._parts, ignore_errors=True)
        return open_dataset(self._folder)


@contextlib.contextmanager
def new_dataset_folder(out: os.PathLike | str) -> Iterator[Path]:
    """Yields a working folder that becomes `out` on success; on error, or if the process is killed, `out` never is.

    What a killed run left in the working place beside `out` is cleared away by the next run.

    Raises:
      UserError: `out` exists and is not an empty folder, or another process is writing it.
    """
    out = Path(out).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already exists: remove it or choose another folder.")
    work = out.with_name(f".{out.name}.partial")
    with folder_lock(work):
        try:
            for leftover in work.iterdir():
                if leftover.is_dir():
                    shutil.rmtree(leftover)
            with atomic_folder(work / "dataset") as folder:
                yield folder
            os.replace(work / "dataset", out)
        finally:
            shutil.rmtree(work, ignore_errors=True)


# ---- Records ----------------------------------------------------------------------------------------------------


def _records(task: ShardTask, stored: StoredSong, first: int, stop: int) -> Iterator[bytes]:
    """The serialised records [first, stop) of a song."""
    from jukebox_jax.pipeline.order import tensorflow

    train = tensorflow().train
    with contextlib.ExitStack() as stack:
        files = {}
        for field, path in stored.files.items():
            files[field] = stack.enter_context(as_path(path).open("rb"))
            width = field_dtype(field).itemsize * (stored.channels if field == "audio" else 1)
            entries, rest = divmod(file_size(path), width)
            _check_entries(task, stored.song, field, None if rest else field_dtype(field), entries)
        for record in range(first, stop):
            feature = {}
            for field, file in files.items():
                data = _entries(task, field, file, stored.channels, record)
                feature[field] = train.Feature(bytes_list=train.BytesList(value=[data]))
            example = train.Example(features=train.Features(feature=feature))
            # The order of a map's keys is free in protobuf unless asked for.
            yield example.SerializeToString(deterministic=True)


def _entries(task: ShardTask, field: str, file: Any, channels: int, record: int) -> bytes:
    """One record of a field from its file: channels repeated and the end filled with zeros as the dataset has it."""
    channels = channels if field == "audio" else 1
    wanted = task.channels if field == "audio" else 1
    count, dtype = task.record_samples // task.fields[field], field_dtype(field)
    size = count * channels * dtype.itemsize
    file.seek(record * size)
    data = file.read(size).ljust(size, b"\0")
    if channels == wanted:
        return data
    return np.repeat(np.frombuffer(data, dtype).reshape(count, channels), wanted, axis=1).tobytes()


def _check_entries(layout: Any, song: Song, field: str, dtype: Any, entries: int) -> None:
    hop, coarsest = layout.fields[field], max(layout.fields.values())
    least = song.samples // coarsest * coarsest // hop
    most = song.records(layout.record_samples) * (layout.record_samples // hop)
    if dtype != field_dtype(field) or not least <= entries <= most:
        raise ValueError(
            f"{field} of {song.title!r} has {dtype} × {entries}: "
            f"expected {field_dtype(field)}, {least} to {most} entries"
        )


def _write_tfds_metadata(folder: Path, header: Dataset) -> None:
    import tensorflow_datasets as tfds

    features = {
        field: tfds.features.Tensor(
            shape=header.record_shape(field), dtype=field_dtype(field), encoding=tfds.features.Encoding.BYTES
        )
        for field in header.fields
    }
    # Records have one length, whatever is in them.
    record_bytes = sum(
        int(np.prod(header.record_shape(field))) * field_dtype(field).itemsize for field in header.fields
    )
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name="music", split=None, filetype_suffix="array_record"
    )
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard.records for shard in shards],
            num_bytes=sum(shard.records for shard in shards) * record_bytes,
            filename_template=template.replace(split=split),
        )
        for split, shards in header.shards.items()
        if shards
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=splits,
        check_data=False,  # it would read by tf.data, which TFDS cannot do from ArrayRecord
        description="Music in fixed-length records; songs.json says which records make up which song.",
        disable_shuffling=True,  # the order of records is the order of the music
    )
