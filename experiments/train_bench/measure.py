"""How a case is measured, beside the machine's matrix products, and how the rows are shown."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from experiments.limits import jax_matmul, matmul_flops
from experiments.train_bench.cases import Case
from jukebox_jax.parallel.mesh import make_mesh
from jukebox_jax.planning.work import executed_flops


@dataclass(frozen=True)
class Row:
    """A case, measured: medians over the repeats.

    Attributes:
      seconds, core_seconds: of a step, by the clock and of the processor (all threads; 0 means little on accelerators).
      original_seconds: see `cases.Case`.
      flops: executed in a step, recomputed ones included.
      matmul_flops_per_second: of square matrices, measured between the steps.
      matmul_core_seconds: processor time of such a product.
      units: samples or tokens of a step.
      memory_bytes: arguments, results and temporaries by the compiler, and what the device held at most if it says so.
    """

    name: str
    seconds: float
    core_seconds: float
    original_seconds: float | None
    flops: float
    matmul_flops_per_second: float
    matmul_core_seconds: float
    units: int
    unit: str
    memory_bytes: int

    @property
    def of_matmul(self) -> float:
        """The step's operations a second as a part of the matrix product's, by the clock."""
        return self.flops / self.seconds / self.matmul_flops_per_second

    @property
    def of_matmul_by_core(self) -> float:
        """The same in processor time, which neighbours on the machine change less."""
        return self.flops / self.core_seconds / (matmul_flops() / self.matmul_core_seconds)


def measure(case: Case, repeats: int, dtype: str, profile: Path | None = None) -> Row:
    """Runs a case `repeats` times after two steps to warm up, a matrix product before each.

    Args:
      profile: folder for a profiler's trace of one more step; None for none.
    """
    with jax.set_mesh(make_mesh((1,))):
        return _measure(case, repeats, dtype, profile)


def _measure(case: Case, repeats: int, dtype: str, profile: Path | None) -> Row:
    work, product = case.make(), jax_matmul(dtype)
    state = jax.block_until_ready(work.create())
    flops = executed_flops(work.step, jax.eval_shape(lambda: state), work.batch)
    step = work.step.lower(state, work.batch).compile()
    batch = jax.device_put(work.batch)
    for _ in range(2):
        state = jax.block_until_ready(step(state, batch))[0]
    clocks: dict[str, list[float]] = {"step": [], "step_core": [], "product": [], "product_core": []}

    def timed(name: str, run) -> object:
        clock, core = time.perf_counter(), time.process_time()
        result = jax.block_until_ready(run())
        clocks[name].append(time.perf_counter() - clock)
        clocks[f"{name}_core"].append(time.process_time() - core)
        return result

    for _ in range(repeats):
        timed("product", product)
        state = timed("step", lambda: step(state, batch))[0]  # noqa: B023 (called at once)
    if profile is not None:
        with jax.profiler.trace(str(profile / case.name)):
            jax.block_until_ready(step(state, batch))
    median = {name: statistics.median(values) for name, values in clocks.items()}
    sizes = step.memory_analysis()
    compiled = (
        sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes + sizes.temp_size_in_bytes
    )
    held = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    return Row(
        name=case.name,
        seconds=median["step"],
        core_seconds=median["step_core"],
        original_seconds=case.original_seconds,
        flops=flops,
        matmul_flops_per_second=matmul_flops() / median["product"],
        matmul_core_seconds=median["product_core"],
        units=work.units,
        unit=work.unit,
        memory_bytes=max(compiled, held),
    )


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [
        "| what | s | original, s | ratio | core s | GFLOP/s | matrix product, GFLOP/s | of it | of it, by core s "
        "| units/s | memory, GB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        original = row.original_seconds
        cells = [
            row.name,
            f"{row.seconds:,.3g}",
            "" if original is None else f"{original:g}",
            "" if original is None else f"{original / row.seconds:.2f}",
            f"{row.core_seconds:,.3g}",
            f"{row.flops / row.seconds / 1e9:,.0f}",
            f"{row.matmul_flops_per_second / 1e9:,.0f}",
            f"{row.of_matmul:.0%}",
            f"{row.of_matmul_by_core:.0%}",
            f"{row.units / row.seconds:,.0f} {row.unit}",
            f"{row.memory_bytes / 1e9:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
