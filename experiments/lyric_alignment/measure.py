"""How far the words of held-out clips are found from where they are, beside guesses that do not listen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.lyric_alignment import models, speech
from jukebox_jax import api
from jukebox_jax.export.lyrics import Alignment
from jukebox_jax.labels.timed import TimedWord
from jukebox_jax.pipeline.dataset import RecordReader, open_dataset

#: Training clips that the head is searched in.
SEARCHED = 64
SECONDS = models.CLIP_SAMPLES / speech.SAMPLE_RATE


@dataclass(frozen=True, eq=False)
class Heard:
    """A clip as the prior gets it, and when its words are spoken."""

    song: api.Song
    words: tuple[TimedWord, ...]

    @property
    def lyrics(self) -> str:
        return " ".join(word.text for word in self.words)


def read_clips(work: Path, model: api.Model, split: str, most: int | None = None) -> list[Heard]:
    """The first clips of a split: tokens, labels and lyrics as the prior was trained on, and the true times."""
    dataset, times = open_dataset(work / "tokens"), speech.read_times(work / "clips")
    reader, heard = RecordReader(dataset, split), []
    for index, entry in enumerate(dataset.splits[split][:most]):
        codes = reader.read_song(index, "level_0")[: models.N_CTX].astype(np.int32)
        request = {"total_samples": models.CLIP_SAMPLES, "offset_samples": 0, "lyrics": entry.lyrics}
        told = {"request": {"index": 0, **request, "artist": entry.artist, "genre": entry.genre}}
        heard.append(Heard(api.Song((codes,), (), model.codec.config.sample_rate, told), times[entry.title]))
    return heard


def start_errors(found: Sequence[Sequence[float]], clips: Sequence[Heard]) -> Float[np.ndarray, " n"]:
    """Seconds between where each word was found to begin and where it does."""
    return np.asarray(
        [
            abs(start - word.start)
            for starts, clip in zip(found, clips, strict=True)
            for start, word in zip(starts, clip.words, strict=True)
        ]
    )


def shares(clip: Heard) -> Float[np.ndarray, " w"]:
    """The share of the lyrics' characters before each word."""
    lengths = [len(word.text) + 1 for word in clip.words]
    return np.cumsum([0, *lengths[:-1]]) / len(clip.lyrics)


def linear_guess(clip: Heard) -> list[float]:
    """Words spread evenly by characters over the clip."""
    return (shares(clip) * SECONDS).tolist()


def fitted_guess(known: Sequence[Heard]) -> Callable[[Heard], list[float]]:
    """The best that can be guessed without listening: the median start of the words of other clips whose number, in a
    clip of so many words, is the same."""
    starts: dict[tuple[int, int], list[float]] = {}
    for clip in known:
        for number, word in enumerate(clip.words):
            starts.setdefault((len(clip.words), number), []).append(word.start)

    def guess(clip: Heard) -> list[float]:
        count, evenly = len(clip.words), linear_guess(clip)
        return [float(np.median(starts.get((count, number), [evenly[number]]))) for number in range(count)]

    return guess


def measure(work: Path) -> tuple[dict[str, Any], Alignment, Heard]:
    """The figures of README.md, and a held-out clip with what was found."""
    model = api.load(work / "model")
    training, held_out = read_clips(work, model, "train"), read_clips(work, model, "validation")
    scores = model.search_alignment([clip.song for clip in training[:SEARCHED]])
    heads = []
    for one in scores:
        aligned = [model.align(clip.song, layer=one.layer, head=one.head, progress=False) for clip in held_out]
        errors = start_errors([[word.start for word in found.words] for found in aligned], held_out)
        heads.append({"layer": one.layer, "head": one.head, "score": one.score, **_summary(errors)})
        if one is scores[0]:
            shown = aligned[0]
    fitted = fitted_guess(training)
    linear = _summary(start_errors([linear_guess(clip) for clip in held_out], held_out))
    figures = {
        "clips": len(held_out),
        "words": sum(len(clip.words) for clip in held_out),
        "found": heads[0],
        "linear": linear,
        "fitted": _summary(start_errors([fitted(clip) for clip in held_out], held_out)),
        "times_better_than_linear": linear["median_seconds"] / heads[0]["median_seconds"],
        "heads": heads,
    }
    return figures, shown, held_out[0]


def _summary(errors: Float[np.ndarray, " n"]) -> dict[str, float]:
    return {
        "median_seconds": float(np.median(errors)),
        "p90_seconds": float(np.quantile(errors, 0.9)),
        "within_100_ms": float(np.mean(errors < 0.1)),
    }
