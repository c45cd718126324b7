"""Writing a dataset folder: fixed-length records in ArrayRecord shards, TFDS metadata, song table and label table.

`pipeline/dataset.py` describes the format and reads it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from jukebox_jax.errors import UserError
from jukebox_jax.files import atomic_folder, folder_lock
from jukebox_jax.pipeline.dataset import SPLITS, Dataset, Shard, Song, field_dtype, open_dataset, shard_name

# About 128 MiB of mono audio: large enough for few files, small enough to copy and spread.
SHARD_RECORDS = 1024


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


class DatasetWriter:
    """Writes the records of songs, song by song, then the tables. The same calls give the same bytes.

    Args:
      folder: a folder of its own, from `new_dataset_folder`.
      header: the dataset's rates and fields; its songs and shards are those to be written, and are ignored.
    """

    def __init__(self, folder: Path, header: Dataset):
        from array_record.python import array_record_module

        from jukebox_jax.pipeline.order import tensorflow

        self._folder, self._header = folder, header
        self._tf = tensorflow()
        self._open = array_record_module.ArrayRecordWriter
        self._songs: dict[str, list[Song]] = {split: [] for split in SPLITS}
        self._lengths: dict[str, list[int]] = {split: [] for split in SPLITS}
        self._bytes = dict.fromkeys(SPLITS, 0)
        self._writers: dict[str, object] = {}

    def add(self, split: str, song: Song, arrays: Mapping[str, np.ndarray]) -> Song:
        """Appends a song: `arrays` has each field's entries, int16 (t, channels) or uint16 (t / hop,).

        Entries are padded with zeros to whole records; they may stop anywhere from the song's last whole hop of the
        coarsest field on.

        Returns:
          the song with its `first_record`, as it stands in the table.

        Raises:
          ValueError: a field with another type, or too few or too many entries.
        """
        header = self._header
        records = song.records(header.record_samples)
        coarsest = max(header.fields.values())
        whole = song.samples // coarsest * coarsest
        parts = {}
        for field, hop in header.fields.items():
            array = arrays[field]
            entries = header.record_shape(field)[0]
            if array.dtype != field_dtype(field) or not whole // hop <= len(array) <= records * entries:
                raise ValueError(
                    f"{field} of {song.title!r} has {array.dtype} × {len(array)}: expected {field_dtype(field)}, "
                    f"{whole // hop} to {records * entries} entries"
                )
            padding = [(0, records * entries - len(array))] + [(0, 0)] * (array.ndim - 1)
            parts[field] = np.pad(array, padding).reshape(records, *header.record_shape(field))
        song = dataclasses.replace(song, first_record=sum(self._lengths[split]))
        for record in range(records):
            self._write(split, {field: part[record].tobytes() for field, part in parts.items()})
        self._songs[split].append(song)
        return song

    def finish(self) -> Dataset:
        """Closes the shards, writes the metadata and tables, and reads the folder back.

        Raises:
          UserError: the shards do not hold what was written (a full disk).
        """
        self.close()
        shards: dict[str, list[Shard]] = {split: [] for split in SPLITS}
        for split, lengths in self._lengths.items():
            for index, records in enumerate(lengths):
                path = self._partial(split, index).rename(self._folder / shard_name(split, index, len(lengths)))
                shards[split].append(Shard(path.name, records, path.stat().st_size))
        dataset = dataclasses.replace(
            self._header,
            splits={split: tuple(songs) for split, songs in self._songs.items()},
            shards={split: tuple(files) for split, files in shards.items()},
        )
        dataset.labels.save(self._folder / "labels.json")
        table = json.dumps(dataset.table_json(), ensure_ascii=False, indent=1) + "\n"
        (self._folder / "songs.json").write_text(table, encoding="utf-8")
        self._write_tfds_metadata()
        return open_dataset(self._folder)

    def close(self) -> None:
        """Closes the open shards; `finish` does it too."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _write(self, split: str, fields: dict[str, bytes]) -> None:
        if split not in self._writers or self._lengths[split][-1] == SHARD_RECORDS:
            if split in self._writers:
                self._writers[split].close()
            # One record a group for random access; noise-like samples hardly compress, and reading costs four times
            # as much from compressed records.
            path = self._partial(split, len(self._lengths[split]))
            self._writers[split] = self._open(str(path), "group_size:1,uncompressed")
            self._lengths[split].append(0)
        train = self._tf.train
        feature = {name: train.Feature(bytes_list=train.BytesList(value=[data])) for name, data in fields.items()}
        example = train.Example(features=train.Features(feature=feature))
        # The order of a map's keys is free in protobuf unless asked for.
        data = example.SerializeToString(deterministic=True)
        self._writers[split].write(data)
        self._lengths[split][-1] += 1
        self._bytes[split] += len(data)

    def _partial(self, split: str, shard: int) -> Path:
        return self._folder / f"partial-{split}-{shard:05d}"

    def _write_tfds_metadata(self) -> None:
        import tensorflow_datasets as tfds

        features = {
            field: tfds.features.Tensor(
                shape=self._header.record_shape(field), dtype=field_dtype(field), encoding=tfds.features.Encoding.BYTES
            )
            for field in self._header.fields
        }
        template = tfds.core.ShardedFileTemplate(
            data_dir=self._folder, dataset_name="music", split=None, filetype_suffix="array_record"
        )
        splits = [
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=lengths,
                num_bytes=self._bytes[split],
                filename_template=template.replace(split=split),
            )
            for split, lengths in self._lengths.items()
            if lengths
        ]
        tfds.folder_dataset.write_metadata(
            data_dir=self._folder,
            features=features,
            split_infos=splits,
            check_data=False,  # it would read by tf.data, which TFDS cannot do from ArrayRecord
            description="Music in fixed-length records; songs.json says which records make up which song.",
            disable_shuffling=True,  # the order of records is the order of the music
        )
