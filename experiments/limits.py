"""What a machine could do at best, measured beside what a benchmark measures: copy memory, multiply matrices."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

from jukebox_jax.parallel import measured

MATRIX = 4096  # rows and columns
READ_BYTES = 2**29  # of a matrix that is larger than any cache


def copy_bytes_per_core_second(repeats: int) -> float:
    """Bytes copied by numpy for each second of processor time, from an array larger than the caches."""
    source = np.ones(2**26, np.uint8)
    target = np.zeros_like(source)
    return len(source) / statistics.median(
        seconds(lambda: np.copyto(target, source), time.process_time) for _ in range(repeats)
    )


def jax_matmul(dtype: str = "float32") -> Callable[[], object]:
    """A compiled product of two square matrices on the first device, to be timed; it waits for its result."""
    product = measured.matmul(jax.devices()[:1], MATRIX, dtype)
    return lambda: product().block_until_ready()


def jax_read() -> Callable[[], object]:
    """A compiled product of a float32 matrix of `READ_BYTES` and a vector on the first device, to be timed: it reads
    the matrix once and waits for its result."""
    reading = measured.read(jax.devices()[:1], READ_BYTES)
    return lambda: reading().block_until_ready()


def numpy_matmul_flops_per_second(repeats: int) -> float:
    """Operations a second of a product of two square float32 matrices in numpy."""
    matrix = np.ones((MATRIX, MATRIX), np.float32)
    return matmul_flops() / statistics.median(
        seconds(lambda: matrix @ matrix, time.perf_counter) for _ in range(repeats)
    )


def matmul_flops() -> float:
    """Operations of a product of two square matrices."""
    return measured.matmul_flops(MATRIX)


def seconds(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """How far a clock went while something ran."""
    started = clock()
    run()
    return clock() - started
