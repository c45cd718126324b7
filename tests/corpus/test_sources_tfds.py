"""Datasets that TFDS itself wrote, in both of its formats, with several shards."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from jukebox_jax.corpus.sources import tfds_items
from jukebox_jax.corpus.sources.find import find_pieces
from jukebox_jax.corpus.sources.tfds_items import read_tfds_item
from jukebox_jax.errors import UserError

COUNTS = {"train_clean": 11, "test": 4, "extra": 3}
GENRES = ["folk", "rock"]


def samples(split: str, index: int, channels: int = 1) -> np.ndarray:
    rng = np.random.default_rng([len(split), index])
    return rng.integers(-(2**15), 2**15, (100 + index, channels)).squeeze()


def write(folder: Path, name: str, features: dict, example, counts=COUNTS, file_format="array_record", config=None):
    """A dataset of TFDS; `example(split, index)` gives the items."""
    import tensorflow_datasets as tfds

    def info(self):
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in counts}

    def examples(self, split):
        for index in range(counts[split]):
            yield f"{index:03d}", example(split, index)

    body = {
        "VERSION": tfds.core.Version("1.2.0"),
        "name": name,
        "_info": info,
        "_split_generators": generators,
        "_generate_examples": examples,
        "__module__": __name__,
        "code_path": None,  # there is no file of checksums to look for
        "url_infos": {},
    }
    if config:
        body["BUILDER_CONFIGS"] = [tfds.core.BuilderConfig(name=config)]
    kind = type(name, (tfds.core.GeneratorBasedBuilder,), body, skip_registration=True)
    builder = kind(data_dir=folder, file_format=file_format)
    options = tfds.download.DownloadConfig(num_shards=3 if min(counts.values()) > 2 else 1)
    builder.download_and_prepare(download_config=options)
    return builder


@pytest.fixture(scope="module", params=["array_record", "tfrecord"])
def music(request, tmp_path_factory):
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp(request.param)
    write(
        folder,
        "tiny_music",
        {
            "audio": tfds.features.Audio(sample_rate=8_000),
            "artist": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=GENRES),
            "lyrics": tfds.features.Text(),
            "mood": tfds.features.Text(),
        },
        lambda split, index: {
            "audio": samples(split, index),
            "artist": b"\xff" if (split, index) == ("test", 1) else f"Artist {split} {index}",
            "label": GENRES[index % 2],
            "lyrics": "one\r\ntwo" if index == 0 else "",
            "mood": "x",
        },
        file_format=request.param,
    )
    return folder


def test_items_and_their_sound(music):
    steps = []
    catalogue = find_pieces(
        ["tfds:tiny_music"], data_dir=str(music), progress=lambda done, total: steps.append((done, total))
    )
    assert steps == [(done, 18) for done in range(1, 19)]
    widths = {"train_clean": 2, "test": 1, "extra": 1}
    names = [f"{split}/{index:0{widths[split]}d}" for split in sorted(COUNTS) for index in range(COUNTS[split])]
    assert [piece.file_name for piece in catalogue.pieces] == names
    paths = [f"tfds:tiny_music/{split}#{index}" for split in sorted(COUNTS) for index in range(COUNTS[split])]
    assert [piece.path for piece in catalogue.pieces] == paths
    shown = set()
    for piece in catalogue.pieces:
        split = piece.file_name.partition("/")[0]
        assert piece.split == {"train_clean": "train", "test": "test", "extra": ""}[split]
        assert piece.size > 0
        assert piece.modified > 10**18
        read, rate = read_tfds_item(piece.path, str(music))
        assert (read.dtype, rate) == (np.float32, 8_000)
        # TFDS shuffles what it writes: which item this is, its own label tells.
        if piece.artist:
            original = int(piece.artist.rpartition(" ")[2])
            assert piece.artist == f"Artist {split} {original}"
        else:
            original = 1
        shown.add((split, original))
        np.testing.assert_array_equal(read * 32_768, samples(split, original)[:, None])
        assert piece.genre == GENRES[original % 2]
        assert piece.lyrics == ("one\ntwo" if original == 0 else "")
        assert piece.title == ""
        assert set(piece.origins.values()) == {"tfds"}
    assert shown == {(split, index) for split in COUNTS for index in range(COUNTS[split])}
    assert [(problem.where[:5], problem.left_out) for problem in catalogue.problems] == [
        *(("extra", False), ("test/", False))
    ]
    assert 'feature "artist" holds characters that are not text' in catalogue.problems[1].reason


@pytest.mark.parametrize("path", ["tiny_music/test#0", "tfds:tiny_music/test", "tfds:tiny_music#3", "a.wav"])
def test_what_is_no_item(music, path):
    with pytest.raises(UserError, match="names no item of a TFDS dataset"):
        read_tfds_item(path, str(music))


@pytest.mark.parametrize("path", ["tfds:tiny_music/test#4", "tfds:tiny_music/none#0"])
def test_items_that_are_not_there(music, path):
    with pytest.raises(UserError, match="does not exist"):
        read_tfds_item(path, str(music))


def test_a_cut_shard_is_named(tmp_path):
    import tensorflow_datasets as tfds

    write(
        tmp_path,
        "cut_music",
        {"audio": tfds.features.Audio(sample_rate=8_000)},
        lambda split, index: {"audio": samples(split, index)},
        {"train": 2},
        "tfrecord",
    )
    (shard,) = (tmp_path / "cut_music" / "1.2.0").glob("*.tfrecord*")
    os.truncate(shard, shard.stat().st_size - 10)
    # Nothing is said of the items, so finding them reads none.
    assert len(find_pieces(["tfds:cut_music"], data_dir=str(tmp_path)).pieces) == 2
    read_tfds_item("tfds:cut_music/train#0", str(tmp_path))
    with pytest.raises(UserError, match="ends early"):
        read_tfds_item("tfds:cut_music/train#1", str(tmp_path))


def test_other_shapes_of_sound(tmp_path):
    import tensorflow_datasets as tfds

    rate = {"sample_rate": tfds.features.Scalar(np.int32)}
    kinds = {
        "stereo16": (tfds.features.Tensor(shape=(None, 2), dtype=np.int16, encoding="bytes"), np.int16, 1),
        "float": (tfds.features.Tensor(shape=(None,), dtype=np.float32), np.float32, 2**-15),
        "wide32": (tfds.features.Audio(shape=(None, 1), dtype=np.int32), np.int32, 2**16),
    }
    for name, (feature, dtype, scale) in kinds.items():
        channels = 2 if name == "stereo16" else 1
        expected = samples("train", 0, channels).reshape(-1, channels)
        stored = (expected * scale).astype(dtype)
        write(
            tmp_path,
            name,
            {"sound": feature, **rate},
            lambda split, index, stored=stored, name=name: {
                "sound": stored[:, 0] if name == "float" else stored,
                "sample_rate": 11_025,
            },
            {"train": 1},
        )
        (piece,) = find_pieces([f"tfds:{name}:1.2.0"], data_dir=str(tmp_path)).pieces
        assert piece.path == f"tfds:{name}:1.2.0/train#0"
        read, given = read_tfds_item(piece.path, str(tmp_path))
        assert given == 11_025
        np.testing.assert_allclose(read, expected / 32_768, atol=1e-7)


def test_a_config_beside_a_folder(tmp_path):
    import soundfile
    import tensorflow_datasets as tfds

    for config in ("one", "two"):
        write(
            tmp_path / "data",
            "with_config",
            {"audio": tfds.features.Audio(sample_rate=8_000)},
            lambda split, index: {"audio": samples(split, index)},
            {"train": 1},
            config=config,
        )
    soundfile.write(tmp_path / "a.wav", np.zeros(10), 8_000)
    sources = ["tfds:with_config/one", f"{tmp_path}/*.wav", "tfds:with_config/two:1.2.0"]
    pieces = find_pieces(sources, data_dir=str(tmp_path / "data")).pieces
    assert [(piece.file_name, piece.path) for piece in pieces] == [
        ("a.wav", f"{tmp_path}/a.wav"),
        ("one/1.2.0/train/0", "tfds:with_config/one/train#0"),
        ("two/1.2.0/train/0", "tfds:with_config/two:1.2.0/train#0"),
    ]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (lambda f: {"text": f.Text()}, "has no sound"),
        (lambda f: {"image": f.Tensor(shape=(None, 40), dtype=np.float32)}, "has no sound"),
        (lambda f: {"a": f.Audio(sample_rate=1), "b": f.Audio(sample_rate=1)}, r"several sounds an item \(a, b\)"),
        (lambda f: {"audio": f.Audio()}, "says no sample rate"),
    ],
)
def test_datasets_of_no_use(tmp_path, features, message):
    import tensorflow_datasets as tfds

    features = features(tfds.features)
    values = {"text": "x", "image": np.zeros((1, 40), np.float32)}
    write(
        tmp_path,
        "no_use",
        features,
        lambda split, index: {key: values.get(key, np.zeros(3, np.int64)) for key in features},
        {"train": 1},
    )
    tfds_items._open.cache_clear()
    with pytest.raises(UserError, match=message):
        find_pieces(["tfds:no_use"], data_dir=str(tmp_path))


@pytest.mark.parametrize("name", ["none_such", "none_such:9.9.9", "no such", "", "tiny_music/none"])
def test_datasets_that_are_not_there(tmp_path, name):
    with pytest.raises(UserError, match=r"is not a dataset in .*prepare it with TFDS first") as raised:
        find_pieces([f"tfds:{name}"], data_dir=str(tmp_path))
    assert "\n" not in str(raised.value)
