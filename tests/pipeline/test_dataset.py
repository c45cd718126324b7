from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from jukebox_jax.errors import UserError
from jukebox_jax.pipeline.dataset import RecordReader, open_dataset


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


def test_missing_shard(copied):
    next(copied.glob("music-train*")).unlink()
    with pytest.raises(UserError, match="hold 0 records, the song table counts 8"):
        open_dataset(copied)


def test_cut_shard(copied):
    shard = next(copied.glob("music-validation*"))
    shard.write_bytes(shard.read_bytes()[:100_000])
    with pytest.raises(UserError, match="validation shards"):
        open_dataset(copied)


def test_stray_shard(copied):
    shard = next(copied.glob("music-train*"))
    shutil.copy(shard, copied / "music-train.array_record-00003-of-00004")
    with pytest.raises(UserError, match="should be"):
        open_dataset(copied)


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
