"""Hours of something as hard to compress as music: partials that come and go over noise, in songs of four minutes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from jukebox_jax.corpus.records import DatasetWriter, new_dataset_folder
from jukebox_jax.corpus.tokens import write_token_dataset
from jukebox_jax.labels.ids import LabelTable
from jukebox_jax.pipeline.dataset import RECORD_SAMPLES, Dataset, Song, open_dataset

SAMPLE_RATE = 44_100
SONG_SECONDS = 240
HOPS = {"level_0": 8, "level_1": 32, "level_2": 128}
CODES = 2048
_ARTISTS, _GENRES = ("Ada", "Bela", "Cleo"), ("folk", "jazz")
_WORDS = "over the hills and far away the wind will blow my plaid away\n"


def write_music(folder: Path, hours: float) -> tuple[Dataset, Dataset]:
    """Writes about `hours` of stereo songs as an audio dataset, and random codes of them as a token dataset."""
    rng = np.random.default_rng(0)
    song = _song(rng)
    songs = max(2, math.ceil(hours * 3600 / SONG_SECONDS))
    header = Dataset(folder, SAMPLE_RATE, 2, RECORD_SAMPLES, {"audio": 1}, {}, LabelTable.of(_ARTISTS, _GENRES), {}, {})
    with new_dataset_folder(folder / "audio") as work:
        writer = DatasetWriter(work, header)
        for index in range(songs):
            # The same sound, begun elsewhere: to a reader it makes no difference.
            sound = np.roll(song, int(rng.integers(len(song))), axis=0)
            artist, genre = _ARTISTS[index % len(_ARTISTS)], _GENRES[index % len(_GENRES)]
            entry = Song(f"song {index}", artist, genre, _WORDS * 30, f"{index}.wav", len(sound), 0)
            writer.add("train", entry, {"audio": sound})
        writer.finish()
    audio = open_dataset(folder / "audio")

    def codes(split: str, song: Song, samples: np.ndarray) -> dict[str, np.ndarray]:
        del split, song
        return {name: rng.integers(0, CODES, len(samples) // hop).astype(np.uint16) for name, hop in HOPS.items()}

    tokens = write_token_dataset(audio, folder / "tokens", HOPS, codes, "random", codes=CODES)
    return audio, tokens


def _song(rng: np.random.Generator) -> np.ndarray:
    """int16 (t, 2): eight partials with slow tremolo, and noise at a tenth of full scale."""
    time = np.arange(SONG_SECONDS * SAMPLE_RATE, dtype=np.float32) / SAMPLE_RATE
    sound = 0.1 * rng.standard_normal((len(time), 2), dtype=np.float32)
    for frequency in rng.uniform(50, 4000, 8):
        loudness = 0.05 * (1 + np.sin(2 * np.pi * rng.uniform(0.1, 2) * time))
        sound += (loudness * np.sin(2 * np.pi * frequency * time))[:, None]
    return (np.clip(sound, -1, 1) * 32_767).astype(np.int16)
