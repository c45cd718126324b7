"""Hours of something as hard to compress as music: partials that come and go over noise, in songs of four minutes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int16

from jukebox_jax.audio.decode import BLOCK_FRAMES
from jukebox_jax.corpus.records import DatasetWriter, new_dataset_folder
from jukebox_jax.corpus.tokens import write_token_dataset
from jukebox_jax.labels.ids import LabelTable
from jukebox_jax.pipeline.dataset import RECORD_SAMPLES, Dataset, Song, open_dataset

SAMPLE_RATE = 44_100
SONG_SECONDS = 240
HOPS = {"level_0": 8, "level_1": 32, "level_2": 128}
CODES = 2048
#: Suffix of a file → its format and how samples are coded, in libsndfile's words.
FORMATS = {
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".wav": ("WAV", "PCM_16"),
}
_ARTISTS, _GENRES = ("Ada", "Bela", "Cleo"), ("folk", "jazz")
_WORDS = "over the hills and far away the wind will blow my plaid away\n"


def write_music(folder: Path, hours: float) -> tuple[Dataset, Dataset]:
    """Writes about `hours` of stereo songs as an audio dataset, and random codes of them as a token dataset."""
    audio = write_audio_dataset(folder / "audio", songs(hours))
    rng = np.random.default_rng(0)

    def codes(split: str, song: Song, samples: np.ndarray) -> dict[str, np.ndarray]:
        del split, song
        return {name: rng.integers(0, CODES, len(samples) // hop).astype(np.uint16) for name, hop in HOPS.items()}

    tokens = write_token_dataset(audio, folder / "tokens", HOPS, codes, "random", codes=CODES)
    return audio, tokens


def write_audio_dataset(out: Path, sounds: Iterator[Int16[np.ndarray, "t 2"]]) -> Dataset:
    """Writes sounds, one at a time in memory, as the training songs of a dataset."""
    header = Dataset(out, SAMPLE_RATE, 2, RECORD_SAMPLES, {"audio": 1}, {}, LabelTable.of(_ARTISTS, _GENRES), {}, {})
    with new_dataset_folder(out) as work:
        writer = DatasetWriter(work, header)
        for index, sound in enumerate(sounds):
            artist, genre = _ARTISTS[index % len(_ARTISTS)], _GENRES[index % len(_GENRES)]
            entry = Song(f"song {index}", artist, genre, _WORDS * 30, f"{index}.wav", len(sound), 0)
            writer.add("train", entry, {"audio": sound})
        writer.finish()
    return open_dataset(out)


def write_file(path: Path, sound: Int16[np.ndarray, "t 2"], sample_rate: int = SAMPLE_RATE) -> None:
    """Writes an audio file in the format that its suffix names in `FORMATS`, at libsndfile's usual quality."""
    import soundfile

    container, subtype = FORMATS[path.suffix]
    with soundfile.SoundFile(path, "w", sample_rate, 2, subtype=subtype, format=container) as file:
        # Writing a minute or more of Vorbis in one call crashes libsndfile (seen in soundfile 0.14).
        for start in range(0, len(sound), BLOCK_FRAMES):
            file.write(sound[start : start + BLOCK_FRAMES])


def songs(hours: float) -> Iterator[Int16[np.ndarray, "t 2"]]:
    """At least two songs, together about `hours` long: the same seconds, each time in another order.

    To a reader they are as good as any, and to a fingerprint no two are alike.
    """
    rng = np.random.default_rng(0)
    seconds = _song(rng).reshape(SONG_SECONDS, SAMPLE_RATE, 2)
    for _ in range(max(2, math.ceil(hours * 3600 / SONG_SECONDS))):
        yield rng.permutation(seconds).reshape(-1, 2)


def _song(rng: np.random.Generator) -> Int16[np.ndarray, "t 2"]:
    """Eight partials with slow tremolo, and noise at a tenth of full scale."""
    time = np.arange(SONG_SECONDS * SAMPLE_RATE, dtype=np.float32) / SAMPLE_RATE
    sound = 0.1 * rng.standard_normal((len(time), 2), dtype=np.float32)
    for frequency in rng.uniform(50, 4000, 8):
        loudness = 0.05 * (1 + np.sin(2 * np.pi * rng.uniform(0.1, 2) * time))
        sound += (loudness * np.sin(2 * np.pi * frequency * time))[:, None]
    return (np.clip(sound, -1, 1) * 32_767).astype(np.int16)
