"""What a part of the benchmark takes and gives, and how it is measured and shown."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.data_bench.limits import Limits
from jukebox_jax.pipeline.dataset import Dataset


@dataclass(frozen=True)
class Bench:
    """The same music as an audio and as a token dataset, and how often to measure.

    `recordings` is a folder of music to measure memory with; None for synthetic music.
    """

    audio: Dataset
    tokens: Dataset
    limits: Limits
    repeats: int
    recordings: Path | None = None


@dataclass(frozen=True)
class Speed:
    """Seconds of audio for each second of processor time, and for each second of the clock.

    The limits, in the same units, are what the work could not be faster than, as each part says; None where there is
    nothing to say.
    """

    part: str
    what: str
    per_core_second: float
    per_second: float
    core_limit: float | None = None
    clock_limit: float | None = None


@dataclass(frozen=True)
class Memory:
    """The most memory that a process held at once, in bytes, with a small and with a large collection."""

    part: str
    what: str
    small_hours: float
    large_hours: float
    small_bytes: int
    large_bytes: int


def measure(run: Callable[[], object], audio_seconds: float, repeats: int) -> tuple[float, float]:
    """Medians of audio seconds for each second of processor time and of the clock, `run` being `audio_seconds`.

    Processor time is that of all threads of this process, and of the processes that it started and that ended.
    """
    of_processor, of_clock = [], []
    for _ in range(repeats):
        processor, clock = _core_seconds(), time.perf_counter()
        run()
        of_processor.append(audio_seconds / (_core_seconds() - processor))
        of_clock.append(audio_seconds / (time.perf_counter() - clock))
    return statistics.median(of_processor), statistics.median(of_clock)


def table(rows: Sequence[Speed | Memory]) -> str:
    """One Markdown table of the speeds, and one of the memory."""
    speeds = [row for row in rows if isinstance(row, Speed)]
    memory = [row for row in rows if isinstance(row, Memory)]
    lines = []
    if speeds:
        lines += [
            "| part | what | audio s / core s | audio s / s | limit, audio s / core s | limit, audio s / s |",
            "|---|---|---:|---:|---:|---:|",
        ]
    for row in speeds:
        values = (row.per_core_second, row.per_second, row.core_limit, row.clock_limit)
        shown = ("" if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}" for value in values)
        lines.append(f"| {row.part} | {row.what} | {' | '.join(shown)} |")
    if speeds and memory:
        lines.append("")
    if memory:
        lines += ["| part | what | small, MB | large, MB | growth, MB |", "|---|---|---:|---:|---:|"]
    for row in memory:
        what = f"{row.what}, {row.small_hours:.2f} h against {row.large_hours:.2f} h"
        values = (row.small_bytes, row.large_bytes, row.large_bytes - row.small_bytes)
        lines.append(f"| {row.part} | {what} | {' | '.join(f'{value / 1e6:,.0f}' for value in values)} |")
    return "\n".join(lines)


def _core_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
