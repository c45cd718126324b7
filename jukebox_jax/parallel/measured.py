"""What devices do at best, measured where something else is measured: multiply, read memory, exchange.

All devices work at once: fake CPU devices share the cores and the memory of a machine, and each gets its part of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array

# Enough to hide that a device has to be asked: its runtime takes up to 0.1 ms for that.
_IN_A_ROW = 4
_COLUMNS = 4096


@dataclass(frozen=True)
class Rates:
    """Of each of several devices while all of them work; medians.

    Attributes:
      matmul_flops_per_second: products of square matrices, in the dtype that was asked for.
      read_bytes_per_second: of a float32 matrix, by its product with a vector.
      sent_bytes_per_second: that a device sends in an all-gather among all of them, as a ring sends (all parts but
        one); None of one device.
      collective_seconds: an all-reduce of one number, which is all waiting; None of one device.
    """

    matmul_flops_per_second: float
    read_bytes_per_second: float
    sent_bytes_per_second: float | None = None
    collective_seconds: float | None = None


def measure_rates(devices: Sequence[jax.Device], dtype: DTypeLike, repeats: int = 5) -> Rates:
    """Measures devices of this process in a few seconds. Sizes are such that caches hold none of what is read, and that
    the CPU devices of one machine together have as much to do as one would."""
    count = len(devices)
    if devices[0].platform == "cpu":
        size = max(256, int(2048 / count ** (1 / 3)) // 128 * 128)
        read_bytes, gathered_bytes = 2**29 // count, 2**24
    else:
        size, read_bytes, gathered_bytes = 8192, 2**30, 2**28
    product, reading = matmul(devices, size, dtype), read(devices, read_bytes)
    sent = waiting = None
    if count > 1:
        exchange, part = gather(devices, gathered_bytes)
        sent = (count - 1) * part / _median_seconds(exchange, repeats)
        waiting = _median_seconds(all_reduce(devices), repeats)
    return Rates(
        matmul_flops_per_second=matmul_flops(size) / _median_seconds(product, repeats),
        read_bytes_per_second=read_bytes / _median_seconds(reading, repeats),
        sent_bytes_per_second=sent,
        collective_seconds=waiting,
    )


def matmul_flops(size: int) -> float:
    """Operations of a product of two square matrices."""
    return 2.0 * size**3


def matmul(devices: Sequence[jax.Device], size: int, dtype: DTypeLike) -> Callable[[], Array]:
    """A compiled product of two square matrices on each device, to be timed."""
    split = _split(devices)
    matrices = _ones((len(devices), size, size), dtype, split)
    return _compiled(jnp.matmul, split, matrices, matrices)


def read(devices: Sequence[jax.Device], size_bytes: int) -> Callable[[], Array]:
    """A compiled product of a float32 matrix of so many bytes and a vector on each device, to be timed: it reads the
    matrix once."""
    split = _split(devices)
    matrix = _ones((len(devices), size_bytes // 4 // _COLUMNS, _COLUMNS), jnp.float32, split)
    vector = _ones((len(devices), _COLUMNS, 1), jnp.float32, split)
    return _compiled(jnp.matmul, split, matrix, vector)


def gather(devices: Sequence[jax.Device], size_bytes: int) -> tuple[Callable[[], Array], int]:
    """A compiled all-gather of about so many bytes among the devices, to be timed; and the bytes of a device's part."""
    split = _split(devices)
    rows = size_bytes // 4 // len(devices)
    whole = NamedSharding(split.mesh, PartitionSpec())
    return _compiled(lambda x: x, whole, _ones((len(devices), rows), jnp.float32, split)), 4 * rows


def all_reduce(devices: Sequence[jax.Device]) -> Callable[[], Array]:
    """A compiled sum of one number of each device, to be timed."""
    split = _split(devices)
    return _compiled(jnp.sum, NamedSharding(split.mesh, PartitionSpec()), _ones((len(devices),), jnp.float32, split))


def _split(devices: Sequence[jax.Device]) -> NamedSharding:
    """The first axis over all devices."""
    return NamedSharding(Mesh(np.asarray(devices), ("all",)), PartitionSpec("all"))


def _ones(shape: tuple[int, ...], dtype: DTypeLike, sharding: NamedSharding) -> Array:
    return jax.jit(lambda: jnp.ones(shape, dtype), out_shardings=sharding)()


def _compiled(function: Callable, result: NamedSharding, *arguments: Array) -> Callable[[], Array]:
    compiled = jax.jit(function, out_shardings=result).lower(*arguments).compile()
    compiled(*arguments).block_until_ready()
    return lambda: compiled(*arguments)


def _median_seconds(run: Callable[[], Array], repeats: int) -> float:
    """Of one of `_IN_A_ROW` runs."""
    measured = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready([run() for _ in range(_IN_A_ROW)])
        measured.append((time.perf_counter() - started) / _IN_A_ROW)
    return statistics.median(measured)
