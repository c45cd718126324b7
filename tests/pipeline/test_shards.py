from __future__ import annotations

import shutil

import numpy as np
import pytest
from buckets import FaultyFileSystem

from jukebox_jax import remote
from jukebox_jax.errors import UserError
from jukebox_jax.pipeline.dataset import RecordReader, open_dataset
from jukebox_jax.pipeline.order import tensorflow
from jukebox_jax.pipeline.shards import LocalReader, RangeReader, RecordLayout
from jukebox_jax.pipeline.stream import Stream

from .conftest import write_audio_dataset

BUCKET = "faulty://bucket"


def uploaded(dataset, name) -> str:
    url = f"{BUCKET}/{name}"
    for path in sorted(dataset.folder.iterdir()):
        remote.upload(path, f"{url}/{path.name}")
    FaultyFileSystem.calls.clear()
    FaultyFileSystem.moved.clear()
    return url


@pytest.fixture
def bucket():
    FaultyFileSystem.reset()
    yield
    FaultyFileSystem.reset()


@pytest.mark.parametrize(
    "sizes", [{"audio": 1}, {"audio": 262_144}, {"level_2": 1024, "level_0": 16_384, "level_1": 4096}, {"ü": 127}]
)
def test_the_layout_is_that_of_an_example(sizes):
    rng = np.random.default_rng(0)
    values = {name: rng.bytes(size) for name, size in sizes.items()}
    train = tensorflow().train
    features = {name: train.Feature(bytes_list=train.BytesList(value=[value])) for name, value in values.items()}
    record = train.Example(features=train.Features(feature=features)).SerializeToString(deterministic=True)
    layout = RecordLayout.of(sizes)
    assert layout.fits(record)
    for name, (offset, size) in layout.fields.items():
        assert record[offset : offset + size] == values[name]
    assert not layout.fits(record[:-1])
    assert not layout.fits(b"\0" + record[1:])


@pytest.fixture(scope="module")
def shard_files(tmp_path_factory):
    """ArrayRecord files of many record sizes, such that records begin and end everywhere in blocks, also at seams."""
    from array_record.python import array_record_module

    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(1)
    files = []
    # 65,512 bytes of a block are usable, 40 of them in the first block are the signature's; a chunk has 45 bytes beside
    # a record of this length. So some of these end on the seam between two blocks, or a byte before or after it.
    head = RecordLayout.of({"audio": 65_400}).size - 65_400
    seams = [chunk - 45 - head for chunk in (65_472, 65_471, 65_473, 65_512, 65_511, 2 * 65_512 // 3)]
    for size, count in ((1, 3000), (300, 900), (262_144, 5), *((size, 9) for size in seams)):
        layout = RecordLayout.of({"audio": size})
        path = folder / f"{size}"
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        for _ in range(count):
            (_, head), (offset, _) = layout.constant[0], layout.fields["audio"]
            assert offset == len(head)
            writer.write(head + rng.bytes(size))
        writer.close()
        files.append((path, count, layout))
    return files


def test_byte_ranges_give_the_records_of_the_native_reader(shard_files, bucket):
    for path, count, layout in shard_files:
        url = f"{BUCKET}/{path.name}"
        remote.upload(path, url)
        native = LocalReader(path, count, layout).read(0, count)
        for place in (path, url):
            ranges = RangeReader(place, layout)
            assert [bytes(record) for record in ranges.read(0, count)] == native
            for first, stop in ((0, 1), (count - 1, count), (count // 3, count // 3 + 2)):
                assert [bytes(record) for record in ranges.read(first, stop)] == native[first:stop]


def test_a_range_is_one_request_of_little_more_than_its_records(shard_files, bucket):
    path, _, layout = shard_files[2]
    remote.upload(path, f"{BUCKET}/shard")
    RangeReader(f"{BUCKET}/shard", layout).read(1, 3)
    (moved,) = FaultyFileSystem.moved
    assert 2 * layout.size < moved < 2 * layout.size + 400


def test_damage_is_found_by_its_place(shard_files, bucket):
    for path, count, layout in shard_files[1:]:
        whole = path.read_bytes()
        url = f"{BUCKET}/shard"
        fs = remote._filesystem(url)
        reader = RangeReader(url, layout)
        record = bytes(RangeReader(path, layout).read(count - 1, count)[0])
        for data in (
            whole[: len(whole) // 2],  # cut
            b"",
            whole[:64] + whole[72:],  # shifted
            bytes(len(whole)),  # never written
        ):
            fs.pipe_file(url, data)
            with pytest.raises(UserError, match=f"{url} is damaged"):
                reader.read(count - 1, count)
        # Another record length, and other fields of the same length.
        fs.pipe_file(url, whole)
        with pytest.raises(UserError, match="is not where it should be"):
            RangeReader(url, RecordLayout.of({"audio": layout.fields["audio"][1] - 1})).read(0, 1)
        with pytest.raises(UserError, match="is not where it should be"):
            RangeReader(url, RecordLayout.of({"codes": layout.fields["audio"][1]})).read(0, 1)
        with pytest.raises(UserError, match="other fields"):
            LocalReader(path, count, RecordLayout.of({"codes": layout.fields["audio"][1]})).read(0, 1)
        assert bytes(reader.read(count - 1, count)[0]) == record


def test_a_missing_shard_is_told(bucket):
    layout = RecordLayout.of({"audio": 4})
    with pytest.raises(UserError, match="does not exist"):
        RangeReader(f"{BUCKET}/none", layout).read(0, 1)


def test_a_dataset_in_a_bucket_streams_what_the_local_one_does(audio_dataset, token_dataset, bucket, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_DELAY_SECONDS", 0.0)
    for local, fields in ((audio_dataset, ("audio",)), (token_dataset, ("level_0", "level_2"))):
        there = open_dataset(uploaded(local, fields[0]))
        assert FaultyFileSystem.calls == {"ls": 1, "cat_file": 2}  # both tables; no shard is opened
        assert (there.splits, there.shards, there.labels) == (local.splits, local.shards, local.labels)
        here, away = (Stream(data, "train", 16_384, batch_size=4, fields=fields) for data in (local, there))
        FaultyFileSystem.faults["cat_file"] = [ConnectionResetError("reset")] * 3
        batches = away.batches(3)
        for position in range(0, 24, 4):
            for key, array in next(batches).items():
                np.testing.assert_array_equal(array, here.batch(3, position)[key])
        for song in range(5):
            np.testing.assert_array_equal(
                RecordReader(there, "train").read_song(song, fields[0]),
                RecordReader(local, "train").read_song(song, fields[0]),
            )


def test_a_bucket_that_fails_ends_the_stream_in_one_sentence(audio_dataset, bucket, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_DELAY_SECONDS", 0.0)
    there = open_dataset(uploaded(audio_dataset, "audio"))
    stream = Stream(there, "train", 16_384, batch_size=4)
    FaultyFileSystem.faults["cat_file"] = [PermissionError("no")] * 100
    with pytest.raises(UserError, match=r"Reading faulty://bucket/audio/music-train\S+ was refused"):
        next(stream.batches(0))


def test_a_bucket_is_checked_before_anything_is_read(audio_dataset, bucket):
    url = uploaded(audio_dataset, "audio")
    (shard,) = audio_dataset.shards["train"]
    fs = remote._filesystem(url)
    whole = fs.cat_file(f"{url}/{shard.name}")
    fs.pipe_file(f"{url}/{shard.name}", whole[:-1])
    with pytest.raises(UserError, match=f"has {shard.bytes - 1} bytes and was written with {shard.bytes}"):
        open_dataset(url)
    fs.rm_file(f"{url}/{shard.name}")
    with pytest.raises(UserError, match=f"lacks {shard.name}"):
        open_dataset(url)
    with pytest.raises(UserError, match="faulty://bucket/other is not a prepared dataset"):
        open_dataset(f"{BUCKET}/other")
    remote.upload(audio_dataset.folder / "songs.json", f"{BUCKET}/half/songs.json")
    with pytest.raises(UserError, match=r"half/labels\.json does not exist"):
        open_dataset(f"{BUCKET}/half")


def test_few_shards_are_open_at_once(tmp_path, monkeypatch):
    from jukebox_jax.corpus import records
    from jukebox_jax.pipeline import dataset as module

    monkeypatch.setattr(records, "SHARD_RECORDS", 1)
    monkeypatch.setattr(module, "_OPEN_SHARDS", 3)
    dataset = write_audio_dataset(tmp_path / "many", train=(9_000,) * 40, validation=(), channels=1)
    assert len(dataset.shards["train"]) == 40
    reader = RecordReader(dataset, "train")

    def open_files() -> int:
        import os

        return len(os.listdir("/proc/self/fd"))

    before = open_files()
    for song in range(40):
        assert len(reader.read_song(song, "audio")) == 9_000
    assert open_files() <= before + 3
    shutil.rmtree(tmp_path / "many")
