"""The stream: windows for the codec, and for priors of all levels from tokens and from audio.

The limits: copying the same bytes in memory, by the processor, and reading them from the disk in order, by the clock.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from experiments.data_bench.music import HOPS
from experiments.data_bench.row import Bench, Speed, measure
from jukebox_jax.labels.lyrics import LyricText
from jukebox_jax.pipeline.dataset import Dataset, field_dtype
from jukebox_jax.pipeline.stream import LabelSpec, LyricSpec, Stream, TimingSpec

CODEC_WINDOW = 393_216
PRIOR_TOKENS = 8192
BATCH = 8
AUDIO_SECONDS = 1500.0  # of one measurement


def rows(bench: Bench) -> Iterator[Speed]:
    def labels(with_lyrics: bool, hop: int) -> LabelSpec:
        lyrics = LyricSpec(LyricText("v3", "anyascii"), 384) if with_lyrics else None
        return LabelSpec(bench.audio.labels, 5, TimingSpec(64, 17.84, 600.0, hop), lyrics)

    yield _row(bench, "codec, audio", bench.audio, CODEC_WINDOW, ("audio",), None)
    levels = list(HOPS)
    for level, name in enumerate(levels):
        fields = tuple(levels[level : level + 2])
        window = PRIOR_TOKENS * HOPS[name]
        spec = labels(level == len(levels) - 1, HOPS[name])
        yield _row(bench, f"prior of {name}, tokens", bench.tokens, window, fields, spec)
        yield _row(bench, f"prior of {name}, audio", bench.audio, window, ("audio",), spec)


def _row(
    bench: Bench,
    what: str,
    dataset: Dataset,
    window: int,
    fields: tuple[str, ...],
    labels: LabelSpec | None,
) -> Speed:
    stream = Stream(
        dataset,
        "train",
        window,
        batch_size=BATCH,
        fields=fields,
        labels=labels,
        blend=labels is None,
    )
    seconds = window * BATCH / dataset.sample_rate
    batches = stream.batches(0)
    # The first batches build the pipeline and fill its buffers; from then on it reads one for each that is taken.
    for _ in itertools.islice(batches, 4):
        pass
    n = max(4, round(AUDIO_SECONDS / seconds))

    def run() -> None:
        for _ in itertools.islice(batches, n):
            pass

    channels = dataset.channels if fields == ("audio",) else 1
    rate = sum(dataset.sample_rate / dataset.fields[field] * channels * field_dtype(field).itemsize for field in fields)
    return Speed(
        "stream",
        f"{what}, {window:,} samples",
        *measure(run, n * seconds, bench.repeats),
        core_limit=bench.limits.copy_bytes_per_core_second / rate,
        clock_limit=bench.limits.disk_bytes_per_second / rate,
    )
