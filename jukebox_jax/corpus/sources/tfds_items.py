"""Items of datasets that TFDS has already prepared: `tfds:NAME[/CONFIG][:VERSION]`.

An item is named "tfds:NAME/SPLIT#INDEX", counted over the shards in order. Both formats that TFDS writes are read at
random: ArrayRecord by its own index, TFRecord (whose records follow one another, each behind its length) by one that
is made by leaping from length to length.
"""

from __future__ import annotations

import functools
import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from jukebox_jax.corpus.piece import Piece, Problem
from jukebox_jax.corpus.sources.fields import KEYS, Statement, merged, official_split, usable_fields
from jukebox_jax.corpus.sources.tree import open_file
from jukebox_jax.errors import UserError
from jukebox_jax.pipeline.order import tensorflow
from jukebox_jax.remote import as_path, is_remote

PREFIX = "tfds:"

#: As in tables; a class of music is its genre.
_KEYS = {**KEYS, "genre": (*KEYS["genre"], "label")}
_RATE_KEYS = ("sample_rate", "sampling_rate", "rate")
_MAX_CHANNELS = 8

_ITEM = re.compile(r"tfds:(?P<name>.+)/(?P<split>[^/#]+)#(?P<index>\d+)", re.DOTALL)


@dataclass(frozen=True)
class TfdsItems:
    """An opened dataset.

    Attributes:
      source: as it was given.
      builder: of TFDS, made from the files alone: the code that once made the dataset is not needed.
      audio: the feature that holds the sound.
      sample_rate: in Hz; 0 where every item has its own, in the feature `rate_key`.
      texts: names of the features that say something of a piece.
    """

    source: str
    builder: Any
    audio: str
    sample_rate: int
    rate_key: str
    texts: tuple[str, ...]

    def __len__(self) -> int:
        return sum(split.num_examples for split in self.builder.info.splits.values())

    @property
    def place(self) -> tuple[str, ...]:
        """What tells this dataset from others of its name: for the names of its pieces."""
        return ("tfds", *self.builder.info.full_name.split("/"))

    def pieces(self) -> Iterator[tuple[Piece, list[Problem]]]:
        """The items, named SPLIT/INDEX, and what is wrong with what is said of each. The sound is not decoded."""
        for name, split in self.builder.info.splits.items():
            # "train_clean100" is a part of train.
            official = official_split(name) or official_split(re.split("[_-]", name)[0]) or ""
            modified = max((_modified(path) for path in split.filepaths), default=0)
            width = len(str(max(split.num_examples - 1, 0)))
            records = _records(self.builder, name)
            for index in range(split.num_examples):
                row = _texts(self.builder, records[index], self.texts) if self.texts else {}
                fields, reasons = usable_fields(row, {**_KEYS, "split": ()})
                file_name = f"{name}/{index:0{width}d}"
                problems = [Problem(file_name, f"its feature {reason}", left_out=False) for reason in reasons]
                if not official and not index:
                    reason = f"is no split that is known here: its {split.num_examples} pieces are split anew."
                    problems.append(Problem(name, reason, left_out=False))
                values, origins = merged([Statement("item", "tfds", {**fields, "split": official})])
                yield (
                    Piece(
                        file_name=file_name,
                        path=f"{self.source}/{name}#{index}",
                        origins=origins,
                        size=split.num_bytes,
                        modified=modified,
                        **values,
                    ),
                    problems,
                )


def open_items(source: str, data_dir: str | None = None) -> TfdsItems:
    """Opens "tfds:NAME[/CONFIG][:VERSION]".

    Raises:
      UserError: it is not there, holds no sound or several sounds an item, says no rate, or is stored in a format that
        has no random access.
    """
    return _open(source, data_dir)


def read_tfds_item(path: str, data_dir: str | None = None) -> tuple[Float[np.ndarray, "t c"], int]:
    """The samples of an item (`Piece.path`): float32 (samples, channels), integers scaled to [-1, 1), and their rate.

    The dataset stays open for the next item; any order is equally fast.

    Raises:
      UserError: there is no such item, or its sound cannot be decoded.
    """
    item = _ITEM.fullmatch(path)
    if not item:
        raise UserError(f"{path} names no item of a TFDS dataset: write tfds:NAME/SPLIT#INDEX.")
    items = _open(PREFIX + item["name"], data_dir)
    splits = items.builder.info.splits
    if item["split"] not in splits or int(item["index"]) >= splits[item["split"]].num_examples:
        raise UserError(f"{path} does not exist: was the dataset made anew? List its pieces again.")
    try:
        record = _records(items.builder, item["split"])[int(item["index"])]
        wanted = {items.audio: True} | ({items.rate_key: True} if items.rate_key else {})
        example = _decoded(items.builder, record, wanted)
        samples = np.asarray(example[items.audio])
        rate = items.sample_rate or int(example[items.rate_key])
    except UserError:
        raise
    except Exception as error:  # TFDS decodes sound by other packages, each with errors of its own
        raise UserError(f"{path} cannot be decoded ({' '.join(str(error).split())}): make the dataset anew.") from None
    if samples.ndim == 1:
        samples = samples[:, None]
    if rate <= 0:
        raise UserError(f"{path} has the sample rate {rate}: make the dataset anew.")
    return _to_float32(samples), rate


@functools.lru_cache(maxsize=8)
def _open(source: str, data_dir: str | None) -> TfdsItems:
    tensorflow()  # before TFDS loads it in its own way
    import tensorflow_datasets as tfds

    name = source.removeprefix(PREFIX)
    try:
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
    except Exception as error:  # names, versions and files can be wrong in many ways, each with an error of its own
        place = data_dir or "TFDS's own place (~/tensorflow_datasets, or TFDS_DATA_DIR)"
        raise UserError(
            f"{source} is not a dataset in {place} ({_first_line(error)}): prepare it with TFDS first, or name the "
            "folder that it lies in."
        ) from None
    features = builder.info.features
    sounds = {key: feature for key, feature in features.items() if isinstance(feature, tfds.features.Audio)}
    sounds = {key: feature for key, feature in sounds.items() if np.dtype(feature.np_dtype).kind in "if"}
    if not sounds:
        sounds = {key: feature for key, feature in features.items() if _may_be_sound(feature)}
    if len(sounds) > 1 and "audio" in sounds:
        sounds = {"audio": sounds["audio"]}
    if len(sounds) != 1:
        have = f"has several sounds an item ({', '.join(sorted(sounds))})" if sounds else "has no sound"
        raise UserError(f"{source} {have}: give a dataset with one audio feature, or one that is called audio.")
    ((audio, feature),) = sounds.items()
    rate = getattr(feature, "sample_rate", None) or 0
    rate_key = "" if rate else next((key for key in _RATE_KEYS if key in features), "")
    if not rate and not rate_key:
        raise UserError(f"{source} says no sample rate: prepare it with features.Audio(sample_rate=…).")
    if builder.info.file_format not in _random_access_formats():
        stored = getattr(builder.info.file_format, "value", None)
        raise UserError(
            f"{source} is stored as {stored}, which is not read here: convert it with "
            "`tfds convert_format --out_file_format=array_record`."
        )
    if not any(split.num_examples for split in builder.info.splits.values()):
        raise UserError(f"{source} holds no items: prepare it with TFDS first.")
    keys = [key for names in _KEYS.values() for key in names]
    texts = tuple(key for key in dict.fromkeys(keys) if key in features and key != audio)
    return TfdsItems(source, builder, audio, rate, rate_key, texts)


def _random_access_formats() -> tuple:
    from tensorflow_datasets.core.file_adapters import FileFormat

    return FileFormat.ARRAY_RECORD, FileFormat.TFRECORD


def _may_be_sound(feature: object) -> bool:
    """Whether a feature is a tensor (t,) or (t, few channels) of samples."""
    import tensorflow_datasets as tfds

    if type(feature) is not tfds.features.Tensor or np.dtype(feature.np_dtype) not in (np.int16, np.float32):
        return False
    shape = feature.shape
    return len(shape) in (1, 2) and shape[0] is None and (len(shape) == 1 or (shape[1] or 0) in range(1, _MAX_CHANNELS))


def _to_float32(samples: np.ndarray) -> Float[np.ndarray, "t c"]:
    """Integers to [-1, 1). Audio features keep 16 bits in wider types; where 16 do not suffice, 32 are meant."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    info = np.iinfo(samples.dtype)
    bits = info.bits
    if bits > 16:
        bits = 16 if not samples.size or (samples.min() >= -(2**15) and samples.max() < 2**15) else 32
    return samples.astype(np.float32) / np.float32(2 ** (bits - 1))


def _texts(builder: Any, record: bytes, names: Sequence[str]) -> dict[str, object]:
    """The features of an item that say something, as a row of a table."""
    import tensorflow_datasets as tfds

    example = _decoded(builder, record, dict.fromkeys(names, True))
    row: dict[str, object] = {}
    for name in names:
        feature, value = builder.info.features[name], example[name]
        if isinstance(feature, tfds.features.ClassLabel):
            row[name] = feature.int2str(int(value)) if value >= 0 else ""
        elif isinstance(value, bytes):
            row[name] = value.decode("utf-8", errors="surrogateescape")
        elif isinstance(value, np.ndarray) and value.dtype == object:
            row[name] = [text.decode("utf-8", errors="surrogateescape") for text in value.ravel()]
        else:
            row[name] = np.asarray(value).tolist()
    return row


def _decoded(builder: Any, record: bytes, wanted: Mapping[str, bool]) -> dict[str, Any]:
    import tensorflow_datasets as tfds

    features = builder.info.features
    decoders = tfds.decode.PartialDecoding(dict(wanted))
    partial = decoders.extract_features(features)
    return partial.deserialize_example_np(record)


@functools.lru_cache(maxsize=32)
def _records(builder: Any, split: str) -> Any:
    """The serialized items of a split, to be had by their number."""
    from tensorflow_datasets.core.file_adapters import FileFormat

    info = builder.info.splits[split]
    if builder.info.file_format is FileFormat.TFRECORD:
        return _TfRecords([os.fspath(path) for path in info.filepaths], info.shard_lengths)
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    return ArrayRecordDataSource([os.fspath(path) for path in info.filepaths])


class _TfRecords:
    """The records of TFRecord files: 8 bytes of length, 4 of checksum, the record, 4 of checksum, and so on."""

    def __init__(self, paths: Sequence[str], lengths: Sequence[int]):
        self._paths = paths
        self._ends = np.cumsum(lengths)
        self._spans: dict[int, np.ndarray] = {}  # shard → (offset, bytes) of each record

    def __getitem__(self, index: int) -> bytes:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        with open_file(self._paths[shard]) as file:
            if shard not in self._spans:
                self._spans[shard] = _spans(file)
            within = index - (int(self._ends[shard - 1]) if shard else 0)
            if within >= len(self._spans[shard]):
                raise UserError(f"{self._paths[shard]} ends early: prepare the dataset with TFDS again.")
            offset, size = map(int, self._spans[shard][within])
            file.seek(offset)
            return file.read(size)


def _spans(file: Any) -> np.ndarray:
    """(offset, bytes) of each record of a TFRecord file."""
    spans = []
    total = file.seek(0, os.SEEK_END) or file.tell()  # TensorFlow's files answer nothing when they seek
    file.seek(0)
    offset = 0
    while head := file.read(8):
        if len(head) < 8:
            break
        (size,) = struct.unpack("<Q", head)
        spans.append((offset + 12, size))
        offset += 16 + size
        file.seek(offset)
    return np.array([span for span in spans if span[0] + span[1] + 4 <= total], np.int64).reshape(-1, 2)


def _modified(path: os.PathLike | str) -> int:
    # epath's own answer has no nanoseconds, and fails where the owner of a file has no name.
    return as_path(path).stat().mtime * 10**9 if is_remote(path) else os.stat(path).st_mtime_ns


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
