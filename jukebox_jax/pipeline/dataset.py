"""A prepared dataset folder: its song table, and random access to its records.

The folder is a TFDS directory (`tfds.builder_from_directory` reads it) with two files of ours: `songs.json`, which
song lies in which records and which shards there are, and `labels.json`. It may be local or lie in a bucket. Record r
of a song holds its samples [r·R, (r+1)·R), padded with zeros at the song's end; a token dataset holds the codes of the
same samples under the same record numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
from jaxtyping import Shaped

from jukebox_jax import remote
from jukebox_jax.errors import UserError
from jukebox_jax.labels.ids import LabelTable
from jukebox_jax.pipeline.shards import RecordLayout, ShardReader, open_shard, record_count

FORMAT = 1
RECORD_SAMPLES = 65_536
SPLITS = ("train", "validation", "test")

# Shards kept open by one reader: a large collection has more than a process may have open files.
_OPEN_SHARDS = 64


@dataclass(frozen=True)
class Song:
    """One piece. `samples` counts per channel; its records are numbered from `first_record` within its split."""

    title: str
    artist: str
    genre: str
    lyrics: str
    file_name: str
    samples: int
    first_record: int

    def records(self, record_samples: int) -> int:
        return -(-self.samples // record_samples)


@dataclass(frozen=True)
class Shard:
    """One file of records: its name in the folder, how many records it holds, and its size."""

    name: str
    records: int
    bytes: int


@dataclass(frozen=True)
class Dataset:
    """An opened dataset folder.

    Attributes:
      fields: name → hop in samples: {"audio": 1}, or the levels of a token dataset.
      splits: split → its songs, for every name in `SPLITS`.
      shards: split → its files in order; a split without songs has none.
      codec: what made the tokens, {"hash": …, "codes": codes of a level} (token datasets; older ones lack "codes").
    """

    folder: PurePath
    sample_rate: int
    channels: int
    record_samples: int
    fields: Mapping[str, int]
    splits: Mapping[str, tuple[Song, ...]]
    labels: LabelTable
    shards: Mapping[str, tuple[Shard, ...]]
    codec: Mapping[str, str | int]

    def seconds(self, split: str) -> float:
        return sum(song.samples for song in self.splits[split]) / self.sample_rate

    def record_shape(self, field: str) -> tuple[int, ...]:
        """Shape of a field in one record: (entries, channels) for audio, (entries,) for codes."""
        entries = self.record_samples // self.fields[field]
        return (entries, self.channels) if field == "audio" else (entries,)

    def record_layout(self) -> RecordLayout:
        return RecordLayout.of(
            {field: math.prod(self.record_shape(field)) * field_dtype(field).itemsize for field in self.fields}
        )

    def table_json(self) -> dict:
        """What `songs.json` holds."""
        return {
            "format": FORMAT,
            "sample_rate": self.sample_rate,
            "channels": self.channels,
            "record_samples": self.record_samples,
            "fields": dict(self.fields),
            "codec": dict(self.codec),
            "splits": {split: [dataclasses.asdict(song) for song in songs] for split, songs in self.splits.items()},
            "shards": {split: [dataclasses.asdict(shard) for shard in files] for split, files in self.shards.items()},
        }


def field_dtype(field: str) -> np.dtype:
    """Audio is stored as int16, codes as uint16."""
    return np.dtype(np.int16 if field == "audio" else np.uint16)


def open_dataset(folder: os.PathLike | str) -> Dataset:
    """Reads the song table and checks that every shard is there, with the size and the records that the table says.

    Args:
      folder: a local path or a URL (`gs://…`).

    Raises:
      UserError: no dataset folder, another format, or shards missing, cut short or too many.
    """
    folder = remote.as_path(folder)
    path = folder / "songs.json"
    try:
        table = json.loads(remote.read_text(path))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise UserError(
            f"{folder} is not a prepared dataset (it has no songs.json): run `jukebox-jax prepare` first."
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error!r}): prepare the data again.") from None
    try:
        if table["format"] != FORMAT:
            raise UserError(f"{path} has format {table['format']}, not {FORMAT}: prepare the data again.")
        songs = {"test": []} | table["splits"]  # older folders have no test split
        dataset = Dataset(
            folder=folder,
            sample_rate=int(table["sample_rate"]),
            channels=int(table["channels"]),
            record_samples=int(table["record_samples"]),
            fields={name: int(hop) for name, hop in table["fields"].items()},
            splits={split: tuple(Song(**song) for song in songs[split]) for split in SPLITS},
            labels=LabelTable.load(folder / "labels.json"),
            shards=_check_shards(folder, table["shards"]) if "shards" in table else _count_shards(folder),
            codec=table["codec"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): prepare the data again.") from None
    for split, entries in dataset.splits.items():
        expected = sum(song.records(dataset.record_samples) for song in entries)
        found = sum(shard.records for shard in dataset.shards[split])
        if found != expected:
            raise UserError(
                f"{folder}: the {split} shards hold {found} records, the song table counts {expected}: "
                "a shard is missing or cut short; copy the folder again, or prepare the data again."
            )
    return dataset


class RecordReader:
    """Random access to the records of one split. Threads may share one reader.

    Every way of reading raises UserError at a damaged record.
    """

    def __init__(self, dataset: Dataset, split: str):
        self.dataset, self._split = dataset, split
        self.songs = dataset.splits[split]
        self._shards = dataset.shards[split]
        self._first = np.cumsum([0] + [shard.records for shard in self._shards])
        self._layout = dataset.record_layout()
        self._open = functools.lru_cache(_OPEN_SHARDS)(self._open_shard)

    def read(self, song: int, start_samples: int, stop_samples: int, fields: tuple[str, ...]) -> list[np.ndarray]:
        """The samples [start, stop) of a song in each field; both must be multiples of the field's hop.

        Returns:
          int16 (t, channels) for audio, uint16 (t / hop,) for codes. Past the song's end, up to the end of its last
          record, there are zeros.
        """
        pieces = list(self.pieces(song, start_samples, stop_samples, fields))
        if len(pieces) == 1:
            return pieces[0]
        return [np.concatenate(column) for column in zip(*pieces, strict=True)]

    def pieces(
        self, song: int, start_samples: int, stop_samples: int, fields: tuple[str, ...]
    ) -> Iterator[list[np.ndarray]]:
        """What `read` gives, record by record, as read-only views of the records."""
        size = self.dataset.record_samples
        first, last = start_samples // size, (stop_samples - 1) // size
        if start_samples < 0 or stop_samples <= start_samples or last >= self.songs[song].records(size):
            raise ValueError(f"[{start_samples}, {stop_samples}) is not inside the records of song {song}")
        hops = [self.dataset.fields[field] for field in fields]
        for field, hop in zip(fields, hops, strict=True):
            if start_samples % hop or stop_samples % hop:
                raise ValueError(f"[{start_samples}, {stop_samples}) is not a multiple of the hop {hop} of {field}")
        begin = self.songs[song].first_record
        for number, record in enumerate(self._records(begin + first, begin + last + 1), start=first):
            begins, ends = max(start_samples - number * size, 0), min(stop_samples - number * size, size)
            yield [
                self._entries(record, field)[begins // hop : ends // hop]
                for field, hop in zip(fields, hops, strict=True)
            ]

    def read_song(self, song: int, field: str) -> Shaped[np.ndarray, " t *channels"]:
        """A whole song: audio cut at its last sample, codes up to the end of its last record."""
        samples = self.songs[song].samples
        if field == "audio":
            return self.read(song, 0, samples, (field,))[0]
        size = self.dataset.record_samples
        return self.read(song, 0, self.songs[song].records(size) * size, (field,))[0]

    def _entries(self, record: bytes | memoryview, field: str) -> np.ndarray:
        offset, size = self._layout.fields[field]
        dtype = field_dtype(field)
        entries = np.frombuffer(record, dtype, size // dtype.itemsize, offset)
        return entries.reshape(self.dataset.record_shape(field))

    def _records(self, first: int, stop: int) -> Iterator[bytes | memoryview]:
        """The records [first, stop) of the split, which mostly lie in one shard."""
        while first < stop:
            shard = int(np.searchsorted(self._first, first, side="right")) - 1
            begin, end = int(self._first[shard]), min(stop, int(self._first[shard + 1]))
            yield from self._open(shard).read(first - begin, end - begin)
            first = end

    def _open_shard(self, index: int) -> ShardReader:
        shard = self._shards[index]
        return open_shard(self.dataset.folder / shard.name, shard.records, self._layout)


def shard_name(split: str, shard: int, shards: int) -> str:
    return f"music-{split}.array_record-{shard:05d}-of-{shards:05d}"


def _check_shards(folder: PurePath, table: Mapping[str, list[dict]]) -> dict[str, tuple[Shard, ...]]:
    """The shards of the table, which must be those of the folder, with the sizes that they were written with."""
    shards = {split: tuple(Shard(**shard) for shard in table.get(split, [])) for split in SPLITS}
    sizes = remote.file_sizes(folder)
    for shard in (shard for files in shards.values() for shard in files):
        if shard.name not in sizes:
            raise UserError(f"{folder} lacks {shard.name}: copy the folder again, or prepare the data again.")
        if sizes[shard.name] != shard.bytes:
            raise UserError(
                f"{folder / shard.name} has {sizes[shard.name]} bytes and was written with {shard.bytes}: "
                "copy the folder again, or prepare the data again."
            )
    known = {shard.name for files in shards.values() for shard in files}
    for name in sorted(sizes):
        if _SHARD_NAME.fullmatch(name) and name not in known:
            raise UserError(f"{folder} has {name}, which is none of its shards: remove it, or copy the folder again.")
    return shards


def _count_shards(folder: PurePath) -> dict[str, tuple[Shard, ...]]:
    """The shards of a local folder from before there was a table of them."""
    if remote.is_remote(folder):
        raise UserError(f"{folder} has no table of its shards, so it was not uploaded whole: prepare the data again.")
    sizes = remote.file_sizes(folder)
    found: dict[str, list[Shard]] = {split: [] for split in SPLITS}
    for name in sorted(sizes):
        if match := _SHARD_NAME.fullmatch(name):
            found[match[1]].append(Shard(name, record_count(folder / name), sizes[name]))
    for split, files in found.items():
        for index, shard in enumerate(files):
            wanted = shard_name(split, index, len(files))
            if shard.name != wanted:
                raise UserError(f"{folder} has {shard.name} where {wanted} should be: copy the folder again.")
    return {split: tuple(files) for split, files in found.items()}


_SHARD_NAME = re.compile(rf"music-({'|'.join(SPLITS)})\.array_record-\d+-of-\d+")
