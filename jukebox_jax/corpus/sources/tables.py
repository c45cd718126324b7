"""Tables of metadata: JSON lines, CSV, Parquet. A bad row is told of, never fatal, and never the end of the table."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from jukebox_jax.corpus.sources.fields import KEYS

#: The keys that name a row's file: AudioFolder's, and that of audiocraft's manifests.
FILE_KEYS = ("file_name", "path")

MAX_LINE_BYTES = 1 << 24
_SNIFFED_ROWS = 100

_TABLE = re.compile(r"(.*/)?metadata\.(csv|jsonl|jsonl\.gz|parquet)", re.IGNORECASE | re.DOTALL)
_MANIFEST = re.compile(r".*\.jsonl(\.gz)?", re.IGNORECASE | re.DOTALL)
_ANY = re.compile(r".*\.(csv|jsonl|jsonl\.gz|parquet)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Row:
    """One row: where it stands ("line 3", or "" for the table as a whole), and its values or why it has none.

    The keys of `values` are in lower case.
    """

    where: str
    values: dict[str, object] | None = None
    reason: str = ""


def is_metadata_table(name: str) -> bool:
    """Whether a file is AudioFolder metadata by its name."""
    return _TABLE.fullmatch(name) is not None


def may_be_manifest(name: str) -> bool:
    """Whether a file may be a manifest by its name; `is_manifest` tells."""
    return _MANIFEST.fullmatch(name) is not None


def is_table(name: str) -> bool:
    """Whether `read_table` knows the format of a file that is named as a source."""
    return _ANY.fullmatch(name) is not None


def read_table(file: io.BufferedIOBase, name: str) -> Iterator[Row]:
    """The rows of a table, in the format that its name says."""
    suffix = name.lower()
    if suffix.endswith(".csv"):
        return read_csv(file)
    if suffix.endswith(".parquet"):
        return read_parquet(file)
    return read_json_lines(gzip.GzipFile(fileobj=file) if suffix.endswith(".gz") else file)


def is_manifest(rows: Iterator[Row]) -> bool:
    """Whether there is a row among the first that audiocraft could have written, as in no other JSON lines."""
    keys = [row.values.keys() for row in itertools.islice(rows, _SNIFFED_ROWS) if row.values is not None]
    return any("path" in row and ("duration" in row or "sample_rate" in row) for row in keys)


def read_json_lines(file: io.BufferedIOBase) -> Iterator[Row]:
    """One JSON object a line; empty lines are passed over."""
    number = 0
    while True:
        number += 1
        where = f"line {number}"
        try:
            line = file.readline(MAX_LINE_BYTES)
        except (OSError, EOFError, zlib.error) as error:
            yield Row(where, reason=f"cannot be read ({error}): the rest of the table is lost; copy it again.")
            return
        if not line:
            return
        if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            yield Row(where, reason=f"is longer than {MAX_LINE_BYTES >> 20} MiB: write one object a line.")
            return
        text = line.decode("utf-8-sig" if number == 1 else "utf-8", errors="surrogateescape")
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield Row(where, reason=f"is not JSON ({error}): write one object a line.")
            continue
        if isinstance(row, dict):
            yield Row(where, _lower_keys(row))
        else:
            yield Row(where, reason="is JSON, but no object: write {…}.")


def read_csv(file: io.BufferedIOBase) -> Iterator[Row]:
    """Rows below a header line; the cells are separated by commas, semicolons or tabs, and quoted by '"'."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    try:
        head = text.readline(MAX_LINE_BYTES)
        delimiter = next((mark for mark in ",;\t" if FILE_KEYS[0] in _header([head], mark)), None)
        if delimiter is None:
            yield Row("", reason='has no column "file_name" (as UTF-8 text): name the columns in the first line.')
            return
        header = _header([head], delimiter)
        # strict: else a quote that is never closed swallows the rest of the table without a word.
        cells = csv.reader(text, delimiter=delimiter, strict=True)
        while True:
            first = cells.line_num + 2  # the header is line 1
            try:
                row = next(cells, None)
            except csv.Error as error:
                last = cells.line_num + 1
                lines = f"line {first}" if last <= first else f"lines {first} to {last}"
                yield Row(lines, reason=f"cannot be read ({error}): mend the quotes.")
                continue
            if row is None:
                return
            if not any(row):
                continue
            if any(row[len(header) :]):
                reason = (
                    f"has {len(row)} cells below {len(header)} columns: put cells that hold a “{delimiter}” in quotes."
                )
                yield Row(f"line {first}", reason=reason)
                continue
            yield Row(f"line {first}", dict(zip(header, row, strict=False)))
    finally:
        text.detach()  # the file is closed by whoever opened it


def read_parquet(file: io.BufferedIOBase) -> Iterator[Row]:
    """Rows of the columns that say something here; sound that lies in the table is not read."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        table = pyarrow.parquet.ParquetFile(file)
        wanted = {*FILE_KEYS, *itertools.chain(*KEYS.values())}
        columns = [name for name in table.schema_arrow.names if name.lower() in wanted]
        if FILE_KEYS[0] not in map(str.lower, columns):
            yield Row("", reason='has no column "file_name": name the file of each row (sound inside it is not read).')
            return
        for batch in table.iter_batches(batch_size=1024, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield Row(f"row {number}", _lower_keys(row))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        where = f"row {number + 1}" if number else ""
        yield Row(where, reason=f"cannot be read from here on ({' '.join(str(error).split())}): write it anew.")


def _header(lines: Iterable[str], delimiter: str) -> list[str]:
    try:
        return [cell.strip().lower() for cell in next(csv.reader(lines, delimiter=delimiter), [])]
    except csv.Error:
        return []


def _lower_keys(row: dict) -> dict[str, object]:
    """Keys in lower case; of two that differ in case only, the one that is written so counts."""
    return {key.lower(): value for key, value in row.items()} | {k: v for k, v in row.items() if k == k.lower()}
