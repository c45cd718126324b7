from __future__ import annotations

import gzip
import io
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jukebox_jax.corpus.piece import FIELDS
from jukebox_jax.corpus.sources import tables
from jukebox_jax.corpus.sources.beside import read_json, read_lrc, read_txt
from jukebox_jax.corpus.sources.fields import is_text, official_split, usable_fields
from jukebox_jax.corpus.sources.names import title_of
from jukebox_jax.corpus.sources.tables import read_csv, read_json_lines, read_parquet
from jukebox_jax.corpus.sources.tags import read_tags
from jukebox_jax.corpus.sources.tree import split_glob

# Bytes that look enough like tables and lyrics to get far into the parsers.
PIECES = st.sampled_from(
    [
        *(b"file_name", b"path", b"title", b",", b";", b"\t", b'"', b'""', b"\n", b"\r", b"\r\n", b"\0", b"\xff"),
        *(b"{", b"}", b"[", b"]", b":", b"1e999", b"NaN", b'"\\ud800"', b'{"file_name": "a.wav"}', b"a.wav"),
        *(b"[00:01.00]", b"[99:99]", b"<00:01>", b"[ti:x]", b"[ar:", b"[1:2:3]", b"[-1:0]", b"[]", b"word", b" "),
        *(b"\xef\xbb\xbf", "é".encode()),
    ]
)
ALMOST = st.one_of(st.binary(max_size=200), st.lists(PIECES, max_size=60).map(b"".join))
LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n"), max_size=20)


def check_rows(rows):
    for row in rows:
        assert (row.values is None) == bool(row.reason)
        if row.values is not None:
            fields, reasons = usable_fields(row.values)
            assert all(field in FIELDS and value and is_text(value) for field, value in fields.items())
            assert all(isinstance(reason, str) for reason in reasons)
            json.dumps(fields, ensure_ascii=False).encode()
        row.reason.encode("utf-8", "backslashreplace")


@given(ALMOST)
def test_no_bytes_break_the_parsers(data):
    check_rows(read_csv(io.BytesIO(data)))
    check_rows(read_json_lines(io.BytesIO(data)))
    check_rows(read_json_lines(gzip.GzipFile(fileobj=io.BytesIO(data))))
    check_rows(read_json_lines(gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(data)[: len(data)]))))
    check_rows(read_csv(io.BytesIO(b"file_name,title\n" + data)))
    for read in (read_txt, read_json, read_lrc):
        found = read(data)
        assert all(field in FIELDS and is_text(value) for field, value in found.fields.items())


@given(ALMOST)
def test_no_bytes_break_parquet_and_tags(data):
    check_rows(read_parquet(io.BytesIO(data)))
    check_rows(read_parquet(io.BytesIO(b"PAR1" + data + b"PAR1")))
    for head in (b"", b"ID3\x03\0\0\0\0\0\x40", b"OggS\0\2", b"fLaC", b"RIFF\x40\0\0\0WAVE", b"\0\0\0\x0cftypM4A "):
        fields, reasons = read_tags(io.BytesIO(head + data))
        assert fields == {} or all(map(is_text, fields.values()))
        assert all(is_text(reason) for reason in reasons)


@given(st.lists(st.dictionaries(st.sampled_from(["title", "lyrics", "mood"]), LINE), max_size=5))
def test_tables_give_back_what_was_written(written):
    """The same rows in each format are the same rows, whatever characters are in them."""
    import csv

    rows = [{"file_name": f"{index}.wav", **row} for index, row in enumerate(written)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    assert [row.values for row in read_json_lines(io.BytesIO(lines))] == rows

    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["file_name", "title", "lyrics", "mood"], restval="")
    writer.writeheader()
    writer.writerows(rows)
    full = [{"title": "", "lyrics": "", "mood": ""} | row for row in rows]
    assert [row.values for row in read_csv(io.BytesIO(text.getvalue().encode()))] == full

    file = io.BytesIO()
    schema = pyarrow.schema([(key, pyarrow.string()) for key in ("file_name", "title", "lyrics", "mood")])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), file)
    known = [{"file_name": row["file_name"], "title": row.get("title"), "lyrics": row.get("lyrics")} for row in rows]
    assert [row.values for row in read_parquet(file)] == known


@given(st.lists(st.tuples(st.integers(0, 5999), LINE.filter(lambda line: not set(line) & set("[]<>"))), max_size=8))
def test_lrc_is_put_in_the_order_of_its_stamps(lines):
    text = "\n".join(f"[{stamp // 60:02d}:{stamp % 60:02d}.00]{line}" for stamp, line in lines)
    sung = [" ".join(line.split()) for _, line in sorted(lines, key=lambda pair: pair[0])]
    found = read_lrc(text.encode())
    assert found.reasons == []
    assert [line for line in found.fields["lyrics"].split("\n") if line] == [line for line in sung if line]


def test_lrc():
    text = """\ufeff[ti: The Title ]
[ar:The Artist]\r
[al:]
[by:somebody]
[offset:+500]
Before any stamp
[00:20.5][00:05]Chorus
after the chorus
[Chorus: all]
[0:10.123] <00:10.20> When  <00:10.90>the [00:11.00] sun
[00:12.00]
[00:13.00]
[00:14.00]A [bracket] stays
[00:61.00]bad seconds
[1:2:3:4][00:15:20]one bad, one good

"""
    found = read_lrc(text.encode())
    assert found.fields == {
        "title": "The Title",
        "artist": "The Artist",
        "lyrics": "Before any stamp\nChorus\nafter the chorus\n[Chorus: all]\nWhen the sun\n\nA [bracket] stays\n"
        "bad seconds\none bad, one good\nChorus",
    }
    assert [(line, "2" in reason or "1 more" in reason) for line, reason in found.reasons] == [(14, True)]


@pytest.mark.parametrize(
    ("name", "title"),
    [
        *[(f"{mark}Song", "Song") for mark in ("01 ", "01 - ", "1. ", "12 - ", "01-", "01_", "1-02 ", "3) ", "100 – ")],
        *[
            (name, name)
            for name in ("99 Luftballons", "24-7", "1979", "3.14", "007", "50 Ways", "1-800-273", "7 Rings")
        ],
        *[("01", "01"), ("01 - ", "01 -"), ("05.Été", "Été"), ("02. 2 Become 1", "2 Become 1"), ("a  b", "a b")],
    ],
)
def test_track_numbers(name, title):
    assert title_of(name) == title


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *[(name, "validation") for name in ("validation", "valid", "VAL", "Dev", " eval ")],
        *[("Train", "train"), ("TEST", "test"), ("testing", None), ("", None), ("all", None)],
    ],
)
def test_official_splits(name, split):
    assert official_split(name) == split


def test_csv_problems_name_their_lines():
    text = b'file_name,title\n"a.wav",x\nb.wav,"two\nlines"\nc.wav,x,y\nd.wav,"x"y\n\ne.wav\nf.wav,"open\ng.wav,z\n'
    rows = list(read_csv(io.BytesIO(text)))
    assert [(row.where, row.values is None) for row in rows] == [
        *[("line 2", False), ("line 3", False), ("line 5", True), ("line 6", True), ("line 8", False)],
        ("lines 9 to 10", True),
    ]
    assert rows[1].values == {"file_name": "b.wav", "title": "two\nlines"}
    assert rows[4].values == {"file_name": "e.wav"}


def test_a_line_without_end_is_not_read_into_memory(monkeypatch):
    monkeypatch.setattr(tables, "MAX_LINE_BYTES", 100)
    rows = list(read_json_lines(io.BytesIO(b'{"a": 1}\n"' + b"x" * 1000)))
    assert [(row.where, row.reason[:14]) for row in rows] == [("line 1", ""), ("line 2", "is longer than")]


def test_a_damaged_parquet_file_keeps_the_rows_before():
    file = io.BytesIO()
    table = pyarrow.table({"file_name": [f"{index}.wav" for index in range(5000)]})
    pyarrow.parquet.write_table(table, file, row_group_size=1000, compression="none", use_dictionary=False)
    data = bytearray(file.getvalue())
    offset = pyarrow.parquet.ParquetFile(file).metadata.row_group(3).column(0).data_page_offset
    data[offset : offset + 20] = b"\xff" * 20
    rows = list(read_parquet(io.BytesIO(bytes(data))))
    assert [(row.where, row.values is None) for row in rows[2047:]] == [("row 2048", False), ("row 2049", True)]
    assert "from here on" in rows[-1].reason


@pytest.mark.parametrize(
    ("pattern", "root", "parts"),
    [
        ("*.wav", ".", ["*.wav"]),
        ("/*.wav", "/", ["*.wav"]),
        ("a/b/**/x?.wav", "a/b", ["**", "x?.wav"]),
        ("gs://bucket/a/*/b.wav", "gs://bucket/a", ["*", "b.wav"]),
        ("gs://bucket/*", "gs://bucket", ["*"]),
    ],
)
def test_globs_start_where_their_wildcards_do(pattern, root, parts):
    assert split_glob(pattern) == (root, parts)
