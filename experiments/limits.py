"""What a machine could do at best, measured beside what a benchmark measures: copy memory, multiply matrices."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

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
    matrix = jnp.ones((MATRIX, MATRIX), dtype)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()  # compiles
    return lambda: product(matrix, matrix).block_until_ready()


def jax_read() -> Callable[[], object]:
    """A compiled product of a float32 matrix of `READ_BYTES` and a vector on the first device, to be timed: it reads
    the matrix once and waits for its result."""
    matrix, vector = jnp.ones((READ_BYTES // 4 // 4096, 4096)), jnp.ones(4096)
    product = jax.jit(jnp.matmul)
    product(matrix, vector).block_until_ready()  # compiles
    return lambda: product(matrix, vector).block_until_ready()


def numpy_matmul_flops_per_second(repeats: int) -> float:
    """Operations a second of a product of two square float32 matrices in numpy."""
    matrix = np.ones((MATRIX, MATRIX), np.float32)
    return matmul_flops() / statistics.median(
        seconds(lambda: matrix @ matrix, time.perf_counter) for _ in range(repeats)
    )


def matmul_flops() -> float:
    """Operations of a product of two square matrices."""
    return 2.0 * MATRIX**3


def seconds(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """How far a clock went while something ran."""
    started = clock()
    run()
    return clock() - started
