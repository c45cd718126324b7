from __future__ import annotations

import numpy as np
import pytest
import soundfile

from jukebox_jax.corpus.prepare import prepare
from jukebox_jax.corpus.tokens import write_token_dataset
from jukebox_jax.errors import UserError
from jukebox_jax.pipeline.dataset import RecordReader

HOPS = {"level_0": 8, "level_1": 32, "level_2": 128}


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    source = tmp_path_factory.mktemp("music")
    rng = np.random.default_rng(0)
    for i, samples in enumerate((65_536, 70_003, 50_000)):
        soundfile.write(source / f"{i}.wav", rng.integers(-(2**15), 2**15, samples, dtype=np.int16), 44_100)
    return prepare(source, source.parent / "audio")


def loudness_codes(split, song, samples):
    """Real functions of the samples, so that codes of other songs or places would differ."""
    assert len(samples) == song.samples
    return {
        level: (
            np.abs(samples[: len(samples) // hop * hop, 0].astype(np.int32)).reshape(-1, hop).mean(1) % 2048
        ).astype(np.uint16)
        for level, hop in HOPS.items()
    }


def test_the_same_songs_under_the_same_records(audio, tmp_path):
    steps = []
    tokens = write_token_dataset(
        audio,
        tmp_path / "t",
        HOPS,
        loudness_codes,
        "c0de",
        lambda done, of, title: steps.append((done, of)),
        codes=2048,
    )
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert tokens.splits == audio.splits
    assert tokens.labels == audio.labels
    assert dict(tokens.codec) == {"hash": "c0de", "codes": 2048}
    assert dict(tokens.fields) == HOPS
    for split, songs in audio.splits.items():
        for index, song in enumerate(songs):
            expected = loudness_codes(split, song, RecordReader(audio, split).read_song(index, "audio"))
            for level, hop in HOPS.items():
                stored = RecordReader(tokens, split).read_song(index, level)
                assert stored.shape == (song.records(65_536) * 65_536 // hop,)
                np.testing.assert_array_equal(stored[: len(expected[level])], expected[level])
                assert not stored[len(expected[level]) :].any()


def test_tfds_reads_the_folder(audio, tmp_path):
    import tensorflow_datasets as tfds

    tokens = write_token_dataset(audio, tmp_path / "t", HOPS, loudness_codes, "c0de")
    record = tfds.builder_from_directory(tmp_path / "t").as_data_source(split="train")[0]
    reader = RecordReader(tokens, "train")
    for level, hop in HOPS.items():
        assert record[level].dtype == np.uint16
        np.testing.assert_array_equal(record[level], reader.read_song(0, level)[: 65_536 // hop])


def test_the_same_codes_give_the_same_bytes(audio, tmp_path):
    for name in "ab":
        write_token_dataset(audio, tmp_path / name, HOPS, loudness_codes, "c0de")
    a, b = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in "ab")
    assert a == b


@pytest.mark.parametrize(
    ("break_codes", "message"),
    [
        (lambda codes: codes | {"level_1": codes["level_1"][:-9]}, "level_1"),
        (lambda codes: codes | {"level_2": np.zeros(2000, np.uint16)}, "level_2"),
        (lambda codes: codes | {"level_0": codes["level_0"].astype(np.int32)}, "int32"),
    ],
)
def test_wrong_codes_leave_nothing(audio, tmp_path, break_codes, message):
    with pytest.raises(ValueError, match=message):
        write_token_dataset(audio, tmp_path / "t", HOPS, lambda *song: break_codes(loudness_codes(*song)), "c0de")
    assert not list(tmp_path.iterdir())


def test_an_encoder_that_fails_leaves_nothing(audio, tmp_path):
    def fail(split, song, samples):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_token_dataset(audio, tmp_path / "t", HOPS, fail, "c0de")
    assert not list(tmp_path.iterdir())


def test_tokens_of_tokens(audio, tmp_path):
    tokens = write_token_dataset(audio, tmp_path / "t", HOPS, loudness_codes, "c0de")
    with pytest.raises(UserError, match="holds tokens"):
        write_token_dataset(tokens, tmp_path / "u", HOPS, loudness_codes, "c0de")


def test_more_codes_than_can_be_stored(audio, tmp_path):
    with pytest.raises(UserError, match="65537 codes, but only 65536 can be stored"):
        write_token_dataset(audio, tmp_path / "t", HOPS, loudness_codes, "c0de", codes=65_537)
    assert not list(tmp_path.iterdir())
    assert (
        write_token_dataset(audio, tmp_path / "t", HOPS, loudness_codes, "c0de", codes=65_536).codec["codes"] == 2**16
    )


def test_hops_divide_records(audio, tmp_path):
    with pytest.raises(UserError, match="level_0, 12 samples"):
        write_token_dataset(audio, tmp_path / "t", {"level_0": 12}, loudness_codes, "c0de")
