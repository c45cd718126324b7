"""Small datasets of noise, written by the real writer. Every sample and code tells where it stands."""

from __future__ import annotations

import numpy as np
import pytest

from jukebox_jax.corpus.records import DatasetWriter, new_dataset_folder
from jukebox_jax.corpus.tokens import write_token_dataset
from jukebox_jax.labels.ids import LabelTable
from jukebox_jax.pipeline.dataset import RECORD_SAMPLES, Dataset, Song, open_dataset

# Under one record, exactly one, just over two, and a song too short for most windows.
TRAIN_SAMPLES = (50_000, 65_536, 140_001, 3_000, 90_100)
VALIDATION_SAMPLES = (70_000, 40_000)
HOPS = {"level_0": 8, "level_1": 32, "level_2": 128}


def write_audio_dataset(out, train=TRAIN_SAMPLES, validation=VALIDATION_SAMPLES, test=(), channels=2) -> Dataset:
    rng = np.random.default_rng(0)
    labels = LabelTable.of(["Bach", "Clara Schumann"], ["baroque", "romantic"])
    header = Dataset(out, 44_100, channels, RECORD_SAMPLES, {"audio": 1}, {}, labels, {}, {})
    with new_dataset_folder(out) as folder:
        writer = DatasetWriter(folder, header)
        for split, lengths in (("train", train), ("validation", validation), ("test", test)):
            for i, samples in enumerate(lengths):
                artist, genre = (("Bach", "Baroque"), ("Clara Schumann", "Romantic"))[i % 2]
                audio = rng.integers(-(2**15), 2**15, (samples, channels), dtype=np.int16)
                lyrics = f"Verse {i},\nwith a line for every window of the song.\n" * 9 if i % 2 == 0 else ""
                song = Song(f"{split} {i}", artist, genre, lyrics, f"{i}.wav", samples, 0)
                writer.add(split, song, {"audio": audio})
        writer.finish()
    return open_dataset(out)


def positional_codes(split, song, samples):
    """Code k of each level is k, counted over the song: code · hop is where it lies."""
    del split, song
    return {level: np.arange(len(samples) // 128 * (128 // hop)).astype(np.uint16) for level, hop in HOPS.items()}


@pytest.fixture(scope="session")
def audio_dataset(tmp_path_factory) -> Dataset:
    return write_audio_dataset(tmp_path_factory.mktemp("data") / "audio")


@pytest.fixture(scope="session")
def token_dataset(audio_dataset) -> Dataset:
    out = audio_dataset.folder.parent / "tokens"
    return write_token_dataset(audio_dataset, out, HOPS, positional_codes, "abc", codes=2**15)
