"""What a part of the benchmark takes and gives, and how it is measured and shown."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from experiments.data_bench.limits import Limits
from jukebox_jax.pipeline.dataset import Dataset


@dataclass(frozen=True)
class Bench:
    """The same music as an audio and as a token dataset, and how often to measure."""

    audio: Dataset
    tokens: Dataset
    limits: Limits
    repeats: int


@dataclass(frozen=True)
class Row:
    """One measurement: seconds of audio for each second of processor time, and for each second of the clock.

    `disk_limit` and `copy_limit` are what reading and copying the same bytes would allow, in the same unit (of the
    clock and of the processor); None where they say nothing.
    """

    part: str
    what: str
    per_core_second: float
    per_second: float
    disk_limit: float | None = None
    copy_limit: float | None = None


def measure(run: Callable[[], object], audio_seconds: float, repeats: int) -> tuple[float, float]:
    """Medians of audio seconds for each second of processor time and of the clock, `run` being `audio_seconds`."""
    of_processor, of_clock = [], []
    for _ in range(repeats):
        processor, clock = time.process_time(), time.perf_counter()
        run()
        of_processor.append(audio_seconds / (time.process_time() - processor))
        of_clock.append(audio_seconds / (time.perf_counter() - clock))
    return statistics.median(of_processor), statistics.median(of_clock)


def table(rows: list[Row]) -> str:
    lines = [
        "| part | what | audio s / core s | audio s / s | disk limit, audio s / s | copy limit, audio s / core s |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        limits = ("" if limit is None else f"{limit:,.0f}" for limit in (row.disk_limit, row.copy_limit))
        values = (f"{row.per_core_second:,.0f}", f"{row.per_second:,.0f}", *limits)
        lines.append(f"| {row.part} | {row.what} | {' | '.join(values)} |")
    return "\n".join(lines)
