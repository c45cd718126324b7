"""What this machine could do at best, measured in the same run: reading from its disk, and copying memory."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass

from experiments.limits import copy_bytes_per_core_second, seconds
from jukebox_jax.pipeline.dataset import Dataset

_BLOCK = 2**20


@dataclass(frozen=True)
class Limits:
    """In bytes a second: of the clock for the disk, of the processor for memory."""

    disk_bytes_per_second: float
    cached_bytes_per_core_second: float
    copy_bytes_per_core_second: float

    def text(self) -> str:
        disk, cached, copy = (
            value / 1e6
            for value in (
                self.disk_bytes_per_second,
                self.cached_bytes_per_core_second,
                self.copy_bytes_per_core_second,
            )
        )
        return (
            f"disk: {disk:,.0f} MB/s in order; from the page cache: {cached:,.0f} MB per core-second; "
            f"memory copy: {copy:,.0f} MB per core-second"
        )


def machine_limits(dataset: Dataset, repeats: int) -> Limits:
    """Reads the dataset's first training shard from the disk and from the cache, and copies as much memory."""
    path = os.fspath(dataset.folder / dataset.shards["train"][0].name)
    size = os.path.getsize(path)
    buffer = bytearray(_BLOCK)

    def read() -> None:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    def read_from_disk() -> float:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return seconds(read, time.perf_counter)

    return Limits(
        disk_bytes_per_second=size / statistics.median(read_from_disk() for _ in range(repeats)),
        cached_bytes_per_core_second=size / statistics.median(seconds(read, time.process_time) for _ in range(repeats)),
        copy_bytes_per_core_second=copy_bytes_per_core_second(repeats),
    )
