from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from jukebox_jax.errors import UserError
from jukebox_jax.pipeline.dataset import RecordReader, open_dataset

from .conftest import write_audio_dataset


@pytest.fixture
def copied(audio_dataset, tmp_path):
    return shutil.copytree(audio_dataset.folder, tmp_path / "copy")


def test_reading_any_span(audio_dataset):
    reader = RecordReader(audio_dataset, "train")
    whole = reader.read_song(2, "audio")
    assert whole.shape == (140_001, 2)
    for start, stop in ((0, 1), (65_535, 65_537), (10, 140_001), (131_072, 131_073)):
        np.testing.assert_array_equal(reader.read(2, start, stop, ("audio",))[0], whole[start:stop])
    # Padding, up to the end of the last record.
    assert not reader.read(2, 140_001, 3 * 65_536, ("audio",))[0].any()


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 5), (0, 65_537)])
def test_reading_outside_a_song(audio_dataset, start, stop):
    with pytest.raises(ValueError, match="not inside"):
        RecordReader(audio_dataset, "train").read(0, start, stop, ("audio",))


def test_reading_half_a_hop(token_dataset):
    with pytest.raises(ValueError, match="multiple of the hop 128"):
        RecordReader(token_dataset, "train").read(0, 64, 128, ("level_2",))


def test_opening_needs_no_tensorflow(audio_dataset):
    code = (
        "import sys; from jukebox_jax.pipeline.dataset import open_dataset\n"
        f"open_dataset({str(audio_dataset.folder)!r}); assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_not_a_dataset(tmp_path):
    with pytest.raises(UserError, match="prepare"):
        open_dataset(tmp_path)


def without_shard_table(folder):
    """Makes of a folder one from before songs.json listed its shards."""
    table = json.loads((folder / "songs.json").read_text())
    del table["shards"]
    (folder / "songs.json").write_text(json.dumps(table))


def test_the_table_lists_the_shards(audio_dataset):
    table = json.loads((audio_dataset.folder / "songs.json").read_text())
    (shard,) = audio_dataset.shards["validation"]
    size = (audio_dataset.folder / shard.name).stat().length
    assert table["shards"]["validation"] == [{"name": shard.name, "records": 3, "bytes": size}]
    assert table["shards"]["test"] == table["splits"]["test"] == []


def test_missing_shard(copied):
    (shard,) = copied.glob("music-train*")
    shard.unlink()
    with pytest.raises(UserError, match=f"lacks {shard.name}"):
        open_dataset(copied)
    without_shard_table(copied)
    with pytest.raises(UserError, match="hold 0 records, the song table counts 8"):
        open_dataset(copied)


def test_cut_shard(copied):
    shard = next(copied.glob("music-validation*"))
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:100_000])
    with pytest.raises(UserError, match=f"{shard.name} has 100000 bytes and was written with {size}"):
        open_dataset(copied)
    without_shard_table(copied)
    with pytest.raises(UserError, match="validation shards hold 0 records"):
        open_dataset(copied)


def test_a_shard_table_that_counts_otherwise(copied):
    table = json.loads((copied / "songs.json").read_text())
    table["shards"]["train"][0]["records"] += 1
    (copied / "songs.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match="hold 9 records, the song table counts 8"):
        open_dataset(copied)


def test_a_shard_of_the_right_size_that_is_none(copied, audio_dataset):
    (shard,) = copied.glob("music-train*")
    shard.write_bytes(bytes(shard.stat().st_size))
    dataset = open_dataset(copied)
    with pytest.raises(UserError, match=f"{shard.name} is damaged .it does not hold 8 whole records"):
        RecordReader(dataset, "train").read_song(0, "audio")


def test_stray_shard(copied):
    shard = next(copied.glob("music-train*"))
    shutil.copy(shard, copied / "music-train.array_record-00003-of-00004")
    with pytest.raises(UserError, match="00003-of-00004, which is none of its shards"):
        open_dataset(copied)
    without_shard_table(copied)
    with pytest.raises(UserError, match="should be"):
        open_dataset(copied)


def test_a_folder_without_a_shard_table_still_opens(copied, audio_dataset):
    without_shard_table(copied)
    older = open_dataset(copied)
    assert older.shards == audio_dataset.shards
    assert older.splits == audio_dataset.splits


def test_a_folder_from_before_there_was_a_test_split(copied, audio_dataset):
    table = json.loads((copied / "songs.json").read_text())
    del table["splits"]["test"], table["shards"]["test"]
    (copied / "songs.json").write_text(json.dumps(table))
    assert open_dataset(copied).splits == audio_dataset.splits


def test_a_test_split(tmp_path):
    dataset = write_audio_dataset(tmp_path / "three", train=(9_000,), validation=(), test=(70_000, 5_000))
    assert [song.samples for song in dataset.splits["test"]] == [70_000, 5_000]
    assert len(RecordReader(dataset, "test").read_song(1, "audio")) == 5_000
    assert dataset.splits["validation"] == dataset.shards["validation"] == ()


def test_missing_labels(copied):
    (copied / "labels.json").unlink()
    with pytest.raises(UserError, match=r"labels.json does not exist"):
        open_dataset(copied)


@pytest.mark.parametrize(
    "damage",
    [
        lambda table: table.pop("splits"),
        lambda table: table["splits"]["train"][0].pop("samples"),
        lambda table: table["splits"]["train"][0].update(colour="red"),
        lambda table: table.update(fields=["audio"]),
        lambda table: table.update(format=2),
    ],
)
def test_damaged_table(copied, damage):
    table = json.loads((copied / "songs.json").read_text())
    damage(table)
    (copied / "songs.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match=r"songs.json"):
        open_dataset(copied)


def test_keys_of_older_folders_are_passed_over(copied, audio_dataset):
    table = json.loads((copied / "songs.json").read_text())
    assert "bandwidth" not in table
    (copied / "songs.json").write_text(json.dumps(table | {"bandwidth": {"l1": 0.5, "l2": 0.3}}))
    assert open_dataset(copied).splits == audio_dataset.splits


def test_table_that_is_not_json(copied):
    (copied / "songs.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        open_dataset(copied)
