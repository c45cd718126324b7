from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from jukebox_jax.corpus.prepare import assign_splits, find_pieces, prepare
from jukebox_jax.corpus.records import new_dataset_folder
from jukebox_jax.errors import UserError
from jukebox_jax.pipeline.dataset import RecordReader, open_dataset

RATE = 44_100
LENGTHS = {"one.wav": 70_000, "sub/two.flac": 140_000, "three.wav": 30_000}
ROWS = [
    {"file_name": "one.wav", "title": "Air", "artist": "Bach", "genre": "Baroque", "licence": "CC0"},
    {"file_name": "sub/two.flac", "artist": "  Clara Schumann ", "lyrics": "La\nla", "split": "train"},
    {"file_name": "three.wav", "title": "Étude", "artist": None, "split": "validation"},
]


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "music"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, length in LENGTHS.items():
        channels = 2 if name.endswith("flac") else 1
        soundfile.write(folder / name, rng.integers(-(2**15), 2**15, (length, channels), dtype=np.int16), RATE)
    write_rows(folder, ROWS)
    return folder


def write_rows(folder, rows):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_songs_records_and_labels(source, tmp_path):
    steps = []
    dataset = prepare(source, tmp_path / "out", progress=lambda done, of, title: steps.append((done, of, title)))
    assert steps == [(1, 3, "Air"), (2, 3, "two"), (3, 3, "Étude")]
    assert dataset == open_dataset(tmp_path / "out")
    assert (dataset.sample_rate, dataset.channels, dict(dataset.fields)) == (RATE, 2, {"audio": 1})
    air, two = dataset.splits["train"]
    (etude,) = dataset.splits["validation"]
    assert (air.title, air.artist, air.genre, air.samples, air.first_record) == ("Air", "Bach", "Baroque", 70_000, 0)
    assert (two.title, two.artist, two.genre, two.lyrics) == ("two", "Clara Schumann", "unknown", "La\nla")
    assert (two.samples, two.first_record) == (140_000, 2)
    assert (etude.artist, etude.first_record) == ("unknown", 0)
    assert dataset.labels.artists.names == ("unknown", "bach", "clara schumann")
    assert dataset.labels.genres.names == ("unknown", "baroque")
    for split, index, name in (("train", 0, "one.wav"), ("train", 1, "sub/two.flac"), ("validation", 0, "three.wav")):
        original, _ = soundfile.read(source / name, dtype="int16", always_2d=True)
        stored = RecordReader(dataset, split).read_song(index, "audio")
        np.testing.assert_array_equal(stored, np.broadcast_to(original, (len(original), 2)))


def test_mono_and_resampling(source, tmp_path):
    dataset = prepare(source, tmp_path / "out", channels=1, sample_rate=22_050)
    assert (dataset.channels, dataset.sample_rate) == (1, 22_050)
    assert dataset.splits["train"][1].samples == 70_000
    assert RecordReader(dataset, "train").read_song(1, "audio").shape == (70_000, 1)


def test_tfds_reads_the_folder(source, tmp_path):
    import tensorflow_datasets as tfds

    dataset = prepare(source, tmp_path / "out")
    builder = tfds.builder_from_directory(tmp_path / "out")
    assert builder.info.splits["train"].num_examples == 5
    assert builder.info.splits["validation"].num_examples == 1
    source = builder.as_data_source(split="train")
    for index, song in enumerate(dataset.splits["train"]):
        joined = np.concatenate([source[song.first_record + r]["audio"] for r in range(song.records(65_536))])
        whole = RecordReader(dataset, "train").read_song(index, "audio")
        np.testing.assert_array_equal(joined[: song.samples], whole)
        assert not joined[song.samples :].any()


def test_the_same_input_gives_the_same_bytes(source, tmp_path):
    prepare(source, tmp_path / "a")
    prepare(source, tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_several_shards(source, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    whole = prepare(source, tmp_path / "whole")
    monkeypatch.setattr("jukebox_jax.corpus.records.SHARD_RECORDS", 2)
    dataset = prepare(source, tmp_path / "out")
    assert [shard.name[-5:] for shard in dataset.shards["train"]] == ["00003"] * 3
    for index in (0, 1):
        a, b = (RecordReader(d, "train").read_song(index, "audio") for d in (whole, dataset))
        np.testing.assert_array_equal(a, b)
    assert len(tfds.builder_from_directory(tmp_path / "out").as_data_source(split="train")) == 5


def test_without_metadata_every_file_is_taken(source, tmp_path):
    (source / "metadata.jsonl").unlink()
    (source / "notes.txt").write_text("not music")
    pieces = assign_splits(find_pieces(source))
    assert [piece.file_name for piece in pieces] == ["one.wav", "sub/two.flac", "three.wav"]
    assert {(piece.artist, piece.genre) for piece in pieces} == {("unknown", "unknown")}
    assert [piece.title for piece in pieces] == ["one", "two", "three"]
    assert sorted(piece.split for piece in pieces) == ["train", "train", "validation"]


def test_hashed_split_is_about_a_tenth_and_stable(source):
    one = find_pieces(source)[0]
    pieces = [one.__class__(**{**vars(one), "title": f"Piece {i}", "split": ""}) for i in range(1000)]
    split = {piece.title: piece.split for piece in assign_splits(pieces)}
    assert 70 < sum(value == "validation" for value in split.values()) < 130
    assert {piece.title: piece.split for piece in assign_splits(pieces[::-1][:600])} == {
        title: split[title] for title in [f"Piece {i}" for i in range(400, 1000)]
    }
    # Two recordings of one piece are never on both sides.
    twice = assign_splits([p for piece in pieces[:50] for p in (piece, piece)])
    assert all(a.split == b.split for a, b in zip(twice[::2], twice[1::2], strict=True))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_pieces_have_both_splits(source, count):
    one = find_pieces(source)[0]
    for seed in range(30):
        pieces = [one.__class__(**{**vars(one), "title": f"{seed} {i}", "split": ""}) for i in range(count)]
        splits = [piece.split for piece in assign_splits(pieces)]
        assert "train" in splits
        assert ("validation" in splits) == (count > 1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 4 is not JSON"),
        ("[1]", 'line 4 has no "file_name"'),
        ('{"title": "x"}', 'line 4 has no "file_name"'),
        ('{"file_name": "one.wav"}', r"line 4 names one\.wav again \(first on line 1\)"),
        ('{"file_name": "../secret.wav"}', r"line 4: \.\./secret\.wav lies outside"),
        ('{"file_name": "/etc/passwd"}', "lies outside"),
        ('{"file_name": "link.wav"}', "lies outside"),
        ('{"file_name": "none.wav"}', r"line 4: .*none\.wav does not exist"),
        ('{"file_name": "four.wav", "artist": 5}', '"artist" is 5, not text'),
        ('{"file_name": "four.wav", "split": "dev"}', '"split" is "dev"'),
        ('{"file_name": "four.wav", "title": "\\ud800"}', "not text"),
        ('{"file_name": "four.wav"}', r"four\.wav cannot be read as audio"),
        ('{"file_name": "empty.wav"}', r"empty\.wav is empty"),
        ('{"file_name": "sub"}', "is not a file"),
    ],
)
def test_bad_rows_and_files_are_named_and_nothing_is_written(source, tmp_path, line, message):
    soundfile.write(tmp_path / "secret.wav", np.zeros(100), RATE)
    (source / "link.wav").symlink_to(tmp_path / "secret.wav")
    (source / "four.wav").write_bytes(b"noise" * 100)
    (source / "empty.wav").write_bytes(b"")
    with (source / "metadata.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(UserError, match=message):
        prepare(source, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == before


def test_a_file_that_breaks_in_the_middle_leaves_nothing(source, tmp_path):
    path = source / "sub" / "two.flac"
    path.write_bytes(path.read_bytes()[:300_000])
    with pytest.raises(UserError, match=r"two\.flac"):
        prepare(source, tmp_path / "out")
    assert os.listdir(tmp_path) == ["music"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder.rename(folder.parent / "moved"), "not a folder"),
        (lambda folder: write_rows(folder, []), "holds no audio"),
        (lambda folder: write_rows(folder, [ROWS[2]]), "no piece for training"),
        (lambda folder: (folder / "metadata.jsonl").write_bytes(b"\xff\xfe"), "not UTF-8"),
        (lambda folder: [(folder / "metadata.jsonl").unlink(), (folder / "x.m4a").touch()], "cannot be decoded"),
    ],
)
def test_bad_folders(source, tmp_path, make, message):
    make(source)
    with pytest.raises(UserError, match=message):
        prepare(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="already exists"):
        prepare(source, tmp_path / "out")
    assert files(tmp_path / "out") == {"mine.txt": b"keep"}


def test_two_writers_of_one_folder(source, tmp_path):
    with new_dataset_folder(tmp_path / "out") as folder:
        with pytest.raises(UserError, match="in use by another process"):
            prepare(source, tmp_path / "out")
        (folder / "mark").write_text("whole")
    assert files(tmp_path / "out") == {"mark": b"whole"}
    assert sorted(os.listdir(tmp_path)) == ["music", "out"]


def test_silence(source, tmp_path):
    for name in LENGTHS:
        soundfile.write(source / name, np.zeros(70_000, np.int16), RATE)
    dataset = prepare(source, tmp_path / "out")
    assert not RecordReader(dataset, "train").read_song(0, "audio").any()


def test_killed_while_writing(source, tmp_path):
    code = (
        "import sys, time; from jukebox_jax.corpus.prepare import prepare\n"
        "def stop(done, of, title): print(title, flush=True); time.sleep(60)\n"
        f"prepare({str(source)!r}, {str(tmp_path / 'out')!r}, progress=stop)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "Air\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "out").exists()
    prepare(source, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["music", "out"]
