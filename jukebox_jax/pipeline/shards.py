"""Reading records out of shard files: ArrayRecord's own reader on local files, byte ranges of remote ones.

A shard is an ArrayRecord file with one uncompressed record in each chunk ("group_size:1,uncompressed"). A record is a
tf.train.Example with one bytes value for each field. Fields have fixed sizes, so that every record of a dataset is the
same but for those bytes, and where each byte of record i lies follows from i alone: nothing is kept for each record,
and a shard is opened without reading it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from jukebox_jax import remote
from jukebox_jax.errors import UserError

# Riegeli/records, on which ArrayRecord builds (github.com/google/riegeli, doc/riegeli_records_file_format.md): a file
# is cut into blocks that each begin with a header, and chunks run through the blocks as if those headers were not
# there. The first chunk is a signature without data.
_BLOCK, _BLOCK_HEADER, _CHUNK_HEADER = 65_536, 24, 40
_USABLE = _BLOCK - _BLOCK_HEADER
_SIMPLE_CHUNK = ord("r")


@dataclass(frozen=True)
class RecordLayout:
    """Where things lie in a record.

    Attributes:
      size: bytes of a record.
      constant: (offset, bytes) of what is the same in every record.
      fields: name → (offset, size) of its bytes.
    """

    size: int
    constant: tuple[tuple[int, bytes], ...]
    fields: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, sizes: Mapping[str, int]) -> RecordLayout:
        """The layout of a tf.train.Example, serialised deterministically, with a bytes value of each of these sizes."""
        # Example{1: Features{1: entry{1: name, 2: Feature{1: BytesList{1: bytes}}}, …}}, names in order.
        entries = []
        for name in sorted(sizes):
            key = _tag(1, len(name.encode())) + name.encode()
            value = _tag(1, sizes[name])  # each level is the tag and length of what it holds
            value = _tag(1, len(value) + sizes[name]) + value
            value = _tag(2, len(value) + sizes[name]) + value
            entries.append((name, _tag(1, len(key) + len(value) + sizes[name]) + key + value))
        size = sum(len(head) + sizes[name] for name, head in entries)
        offset, head = 0, _tag(1, size)
        constant, fields = [], {}
        for name, entry in entries:
            head += entry
            constant.append((offset, head))
            fields[name] = (offset + len(head), sizes[name])
            offset += len(head) + sizes[name]
            head = b""
        return cls(offset, tuple(constant), fields)

    def fits(self, record: bytes | memoryview) -> bool:
        """Whether a record has this layout."""
        return len(record) == self.size and all(
            record[offset : offset + len(same)] == same for offset, same in self.constant
        )


def record_count(path: os.PathLike | str) -> int:
    """Records of a local shard, 0 if it is not whole."""
    reader = _array_record(path)
    if not reader.ok():  # a damaged file opens without an error; only closing it would raise
        return 0
    count = reader.num_records()
    reader.close()
    return count


class LocalReader:
    """ArrayRecord's own reader, which checks a hash of every record."""

    def __init__(self, path: os.PathLike | str, records: int, layout: RecordLayout):
        self._path, self._layout = path, layout
        self._reader = _array_record(path)
        if not self._reader.ok() or self._reader.num_records() != records:
            raise damaged(path, f"it does not hold {records} whole records")

    def read(self, first: int, stop: int) -> list[bytes]:
        """The records [first, stop); raises UserError at a damaged one."""
        try:
            # One at a time: for more it starts threads, which cost more than they bring.
            records = [self._reader.read([index])[0] for index in range(first, stop)]
        except RuntimeError as error:  # ArrayRecord's only exception: a hash that does not hold, or a failing disk
            raise damaged(self._path, error) from None
        if not all(map(self._layout.fits, records)):
            raise damaged(self._path, "its records have other fields or sizes")
        return records


class RangeReader:
    """Reads the bytes of records that lie side by side in one range request.

    Riegeli's hashes (HighwayHash) are not checked, for want of a library: in their place every byte that is known
    beforehand is, which is the chunk's header but for the hashes, and the record's layout. So a shard that was cut,
    shifted or overwritten is found, and a flipped bit of a sample is not; against those stand the checksums of the
    store and of TLS.
    """

    def __init__(self, path: os.PathLike | str, layout: RecordLayout):
        self._path, self._layout = path, layout
        sizes = _varint(layout.size)
        self._head = b"\0" + _varint(len(sizes)) + sizes  # not compressed; the sizes of the chunk's records
        self._data_size = len(self._head) + layout.size
        self._chunk_size = _CHUNK_HEADER + self._data_size

    def read(self, first: int, stop: int) -> list[memoryview]:
        """The records [first, stop); raises UserError at a damaged one, and what `remote.read_bytes` raises."""
        # In bytes without block headers; the signature is before the first record.
        start = _CHUNK_HEADER + first * self._chunk_size
        end = start + (stop - first) * self._chunk_size
        begin = _position(start)
        try:
            data = remote.read_bytes(self._path, begin, _position(end - 1) + 1)
        except FileNotFoundError:
            raise UserError(f"{os.fspath(self._path)} does not exist: copy the folder again.") from None
        chunks = memoryview(_without_block_headers(data, begin))
        if len(chunks) != end - start:
            raise damaged(self._path, "it ends too early")
        return [self._record(chunks[at : at + self._chunk_size]) for at in range(0, end - start, self._chunk_size)]

    def _record(self, chunk: memoryview) -> memoryview:
        data_size, kind_and_records, decoded_size = struct.unpack_from("<8xQ8xQQ", chunk)
        record = chunk[_CHUNK_HEADER + len(self._head) :]
        if (
            data_size != self._data_size
            or kind_and_records != _SIMPLE_CHUNK + (1 << 8)  # one byte of kind, seven bytes of number
            or decoded_size != self._layout.size
            or chunk[_CHUNK_HEADER : _CHUNK_HEADER + len(self._head)] != self._head
            or not self._layout.fits(record)
        ):
            raise damaged(self._path, "a record is not where it should be")
        return record


ShardReader = LocalReader | RangeReader  # threads may share one


def open_shard(path: os.PathLike | str, records: int, layout: RecordLayout) -> ShardReader:
    """Opens a shard that should hold `records` records.

    Raises:
      UserError: a local shard is damaged or holds another number. Remote ones are not looked at here.
    """
    return RangeReader(path, layout) if remote.is_remote(path) else LocalReader(path, records, layout)


def damaged(path: os.PathLike | str, why: object) -> UserError:
    return UserError(f"{os.fspath(path)} is damaged ({why}): copy the folder again, or prepare the data again.")


def _array_record(path: os.PathLike | str):
    from array_record.python import array_record_module

    # Without read-ahead: windows are read at random.
    return array_record_module.ArrayRecordReader(
        os.fspath(path), "readahead_buffer_size:0", file_reader_buffer_size=32_768
    )


def _position(logical: int) -> int:
    """Where a byte lies in the file, given its place when block headers are not counted."""
    return logical // _USABLE * _BLOCK + _BLOCK_HEADER + logical % _USABLE


def _without_block_headers(data: bytes, begin: int) -> bytes:
    """The bytes of a file from `begin` on, which is not in a block header, less the block headers among them."""
    starts = range(-(begin % _BLOCK), len(data), _BLOCK)
    return b"".join(data[max(0, start + _BLOCK_HEADER) : start + _BLOCK] for start in starts)


def _tag(field: int, size: int) -> bytes:
    """The beginning of a length-delimited protobuf field."""
    return bytes([field << 3 | 2]) + _varint(size)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
