"""A prepared dataset folder: its song table, and random access to its records.

The folder is a TFDS directory (`tfds.builder_from_directory` reads it) with two files of ours: `songs.json`, which
song lies in which records, and `labels.json`. Record r of a song holds its samples [r·R, (r+1)·R), padded with zeros
at the song's end; a token dataset holds the codes of the same samples under the same record numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from jukebox_jax.errors import UserError
from jukebox_jax.labels.ids import LabelTable

FORMAT = 1
RECORD_SAMPLES = 65_536
SPLITS = ("train", "validation")


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
class Dataset:
    """An opened dataset folder.

    Attributes:
      fields: name → hop in samples: {"audio": 1}, or the levels of a token dataset.
      shards: split → its files in order; a split without songs has none.
      codec: what made the tokens, {"hash": …, "codes": codes of a level} (token datasets; older ones lack "codes").
    """

    folder: Path
    sample_rate: int
    channels: int
    record_samples: int
    fields: Mapping[str, int]
    splits: Mapping[str, tuple[Song, ...]]
    labels: LabelTable
    shards: Mapping[str, tuple[Path, ...]]
    codec: Mapping[str, str | int]

    def seconds(self, split: str) -> float:
        return sum(song.samples for song in self.splits[split]) / self.sample_rate

    def record_shape(self, field: str) -> tuple[int, ...]:
        """Shape of a field in one record: (entries, channels) for audio, (entries,) for codes."""
        entries = self.record_samples // self.fields[field]
        return (entries, self.channels) if field == "audio" else (entries,)

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
        }


def field_dtype(field: str) -> np.dtype:
    """Audio is stored as int16, codes as uint16."""
    return np.dtype(np.int16 if field == "audio" else np.uint16)


def open_dataset(folder: os.PathLike | str) -> Dataset:
    """Reads the song table and checks that every shard is there and holds the records the table counts on.

    Raises:
      UserError: no dataset folder, another format, or shards missing, cut short or too many.
    """
    folder = Path(folder)
    path = folder / "songs.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a prepared dataset (it has no songs.json): run `jukebox-jax prepare` first.")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if table["format"] != FORMAT:
            raise UserError(f"{path} has format {table['format']}, not {FORMAT}: prepare the data again.")
        splits = {split: tuple(Song(**song) for song in table["splits"][split]) for split in SPLITS}
        dataset = Dataset(
            folder=folder,
            sample_rate=int(table["sample_rate"]),
            channels=int(table["channels"]),
            record_samples=int(table["record_samples"]),
            fields={name: int(hop) for name, hop in table["fields"].items()},
            splits=splits,
            labels=LabelTable.load(folder / "labels.json"),
            shards={split: _find_shards(folder, split) for split in SPLITS},
            codec=table["codec"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): prepare the data again.") from None
    for split, songs in dataset.splits.items():
        expected = sum(song.records(dataset.record_samples) for song in songs)
        found = sum(_record_count(shard) for shard in dataset.shards[split])
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
        self._shards = [_open_shard(shard) for shard in dataset.shards[split]]
        self._first = np.cumsum([0] + [shard.num_records() for shard in self._shards])
        self._example = _example_parser()

    def read(self, song: int, start_samples: int, stop_samples: int, fields: tuple[str, ...]) -> list[np.ndarray]:
        """The samples [start, stop) of a song in each field; both must be multiples of the field's hop.

        Returns:
          int16 (t, channels) for audio, uint16 (t / hop,) for codes. Past the song's end, up to the end of its last
          record, there are zeros.
        """
        size = self.dataset.record_samples
        first, last = start_samples // size, (stop_samples - 1) // size
        if start_samples < 0 or stop_samples <= start_samples or last >= self.songs[song].records(size):
            raise ValueError(f"[{start_samples}, {stop_samples}) is not inside the records of song {song}")
        parts = [self._record(self.songs[song].first_record + r, fields) for r in range(first, last + 1)]
        result = []
        for index, field in enumerate(fields):
            hop = self.dataset.fields[field]
            if start_samples % hop or stop_samples % hop:
                raise ValueError(f"[{start_samples}, {stop_samples}) is not a multiple of the hop {hop} of {field}")
            joined = parts[0][index] if len(parts) == 1 else np.concatenate([part[index] for part in parts])
            result.append(joined[(start_samples - first * size) // hop : (stop_samples - first * size) // hop])
        return result

    def read_song(self, song: int, field: str) -> Shaped[np.ndarray, " t *channels"]:
        """A whole song: audio cut at its last sample, codes up to the end of its last record."""
        samples = self.songs[song].samples
        if field == "audio":
            return self.read(song, 0, samples, (field,))[0]
        size = self.dataset.record_samples
        return self.read(song, 0, self.songs[song].records(size) * size, (field,))[0]

    def _record(self, record: int, fields: tuple[str, ...]) -> list[np.ndarray]:
        shard = int(np.searchsorted(self._first, record, side="right")) - 1
        try:
            (data,) = self._shards[shard].read([record - int(self._first[shard])])
        except RuntimeError as error:  # ArrayRecord's only exception: a checksum that does not hold, or a failing disk
            raise UserError(
                f"{self.dataset.shards[self._split][shard]} is damaged ({error}): "
                "copy the folder again, or prepare the data again."
            ) from None
        features = self._example(data).features.feature
        return [
            np.frombuffer(features[field].bytes_list.value[0], field_dtype(field)).reshape(
                self.dataset.record_shape(field)
            )
            for field in fields
        ]


def shard_name(split: str, shard: int, shards: int) -> str:
    return f"music-{split}.array_record-{shard:05d}-of-{shards:05d}"


def _find_shards(folder: Path, split: str) -> tuple[Path, ...]:
    shards = sorted(folder.glob(f"music-{split}.array_record-*-of-*"))
    for index, shard in enumerate(shards):
        wanted = shard_name(split, index, len(shards))
        if shard.name != wanted:
            raise UserError(f"{folder} has {shard.name} where {wanted} should be: copy the folder again.")
    return tuple(shards)


def _open_shard(path: Path):
    from array_record.python import array_record_module

    # Without read-ahead: windows are read at random.
    return array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0", file_reader_buffer_size=32_768)


def _record_count(path: Path) -> int:
    """Records of a shard, 0 if it is not whole."""
    reader = _open_shard(path)
    if not reader.ok():  # a damaged file opens without an error; only closing it would raise
        return 0
    count = reader.num_records()
    reader.close()
    return count


@functools.cache
def _example_parser():
    from jukebox_jax.pipeline.order import tensorflow

    return tensorflow().train.Example.FromString
