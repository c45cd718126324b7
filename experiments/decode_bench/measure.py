"""How a case is measured, beside the machine's memory and matrix products, and how the rows are shown."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from experiments import limits
from experiments.decode_bench.cases import Cascade, Case
from experiments.decode_bench.work import random_entry, random_weights
from experiments.train_bench.cases import codec_decode
from jukebox_jax.planning.decode_counts import cache_bytes_read, prefill_flops, weight_bytes_read
from jukebox_jax.sampling.drawing import SamplingConfig, song_keys
from jukebox_jax.sampling.engine import Engine, Entry, Slots, make_engine
from jukebox_jax.sampling.weights import decoding_config

EARLY, LATE = 100, 8000  # positions of the music at which steps are timed


@dataclass(frozen=True)
class DecodeRow:
    """A decode step; seconds are medians over the repeats, by the clock unless "core" says of the processor.

    Attributes:
      early_seconds, late_seconds: of a step near positions `EARLY` and `LATE`; the step's are of both together.
      least_seconds: the fastest repeat's.
      weight_bytes, cache_bytes: what a step has to read of each.
      read_bytes_per_second, read_bytes_per_core_second: of a large matrix, measured between the steps.
      begin_seconds: of admitting a window of which nothing is known: its conditioning.
      compile_seconds: of the program that decodes, its first run included.
    """

    name: str
    model: str
    precision: str
    batch: int
    step_seconds: float
    step_core_seconds: float
    least_seconds: float
    early_seconds: float
    late_seconds: float
    original_step_seconds: float | None
    weight_bytes: int
    cache_bytes: int
    read_bytes_per_second: float
    read_bytes_per_core_second: float
    begin_seconds: float
    compile_seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.batch / self.step_seconds

    @property
    def bytes_per_step(self) -> int:
        return self.weight_bytes + self.cache_bytes

    @property
    def of_memory(self) -> float:
        """The bytes a second that a step reads as a part of the machine's, by the clock."""
        return self.bytes_per_step / self.step_seconds / self.read_bytes_per_second

    @property
    def of_memory_by_core(self) -> float:
        """The same in processor time, which neighbours on the machine change less."""
        return self.bytes_per_step / self.step_core_seconds / self.read_bytes_per_core_second


@dataclass(frozen=True)
class PrefillRow:
    """Taking known tokens in; medians as in `DecodeRow`.

    Attributes:
      tokens: of music known; lyrics that stand before them in the sequence are taken in, too, and not counted here.
      original_tokens_per_second: of 1,024 tokens in chunks of 32.
      flops: executed.
      matmul_flops_per_second, matmul_flops_per_core_second: of square matrices, measured between the prefills.
      compile_seconds: of the program, its first run included.
    """

    name: str
    model: str
    precision: str
    tokens: int
    seconds: float
    core_seconds: float
    original_tokens_per_second: float | None
    flops: float
    matmul_flops_per_second: float
    matmul_flops_per_core_second: float
    compile_seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def of_matmul(self) -> float:
        """The operations a second as a part of the matrix product's, by the clock."""
        return self.flops / self.seconds / self.matmul_flops_per_second

    @property
    def of_matmul_by_core(self) -> float:
        """The same in processor time."""
        return self.flops / self.core_seconds / self.matmul_flops_per_core_second


class _Clocks:
    """Seconds of named things, by the clock and of the processor."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = defaultdict(list)
        self.core: dict[str, list[float]] = defaultdict(list)

    def timed(self, name: str, run: Callable[[], object]) -> object:
        wall, core = time.perf_counter(), time.process_time()
        result = jax.block_until_ready(run())
        self.wall[name].append(time.perf_counter() - wall)
        self.core[name].append(time.process_time() - core)
        return result


def measure(case: Case, repeats: int, turns: int) -> tuple[DecodeRow, list[PrefillRow]]:
    """Runs a case.

    Args:
      repeats: of every measurement, after one to warm up; before each the machine's own best is measured.
      turns: decode steps of one measurement.
    """
    config = decoding_config(case.config, case.precision)
    engine = make_engine(config, random_weights(case.config, case.precision, case.batch), case.batch)
    clocks, window = _Clocks(), random_entry(config)
    keys = song_keys(0, jnp.arange(1), 0)[0]

    def entry(given: int) -> Entry:
        return Entry(window, given, config.n_ctx, 0, keys, SamplingConfig())

    slots = engine.empty()
    admit_compiling = clocks.timed("admit", lambda: engine.admit(slots, {0: entry(0)}))
    slots = engine.admit(admit_compiling, {slot: entry(0) for slot in range(1, engine.slots)})
    for _ in range(repeats):
        slots = clocks.timed("begin", partial(engine.admit, slots, {0: entry(0)}))
    slots, decoded = _decode(case, engine, slots, repeats, turns, clocks)
    prefills = []
    if case.prefill:
        for tokens in sorted({min(1024, config.n_ctx // 2), config.n_ctx // 2}):
            slots, row = _prefill(case, engine, slots, entry(tokens), repeats, clocks)
            prefills.append(row)
    return decoded, prefills


def _decode(
    case: Case, engine: Engine, slots: Slots, repeats: int, turns: int, clocks: _Clocks
) -> tuple[Slots, DecodeRow]:
    config, read = engine.config, limits.jax_read()
    turns = min(turns, config.n_ctx // 4)
    late = min(LATE, config.n_ctx - turns)
    places = {"early": min(EARLY, late), "late": late}

    def at(slots: Slots, position: int) -> Slots:
        where = jnp.full_like(slots.position, config.prefix + position)
        return slots.replace(position=jax.device_put(where, slots.position.sharding))

    slots = clocks.timed("decode", lambda: engine.advance(at(slots, 0), turns))
    slots = jax.block_until_ready(engine.advance(at(slots, 0), turns))
    for _ in range(repeats):
        for name, position in places.items():
            clocks.timed("read", read)
            slots = clocks.timed(name, partial(engine.advance, jax.block_until_ready(at(slots, position)), turns))
    wall = {name: [seconds / turns for seconds in clocks.wall[name]] for name in places}
    both, core = wall["early"] + wall["late"], clocks.core["early"] + clocks.core["late"]
    step = statistics.median(both)
    row = DecodeRow(
        name=case.name,
        model=case.model,
        precision=case.precision,
        batch=case.batch,
        step_seconds=step,
        step_core_seconds=statistics.median(core) / turns,
        least_seconds=min(both),
        early_seconds=statistics.median(wall["early"]),
        late_seconds=statistics.median(wall["late"]),
        original_step_seconds=case.original_step_seconds,
        weight_bytes=weight_bytes_read(config, engine.weights, case.batch),
        cache_bytes=cache_bytes_read(config, case.batch),
        read_bytes_per_second=limits.READ_BYTES / statistics.median(clocks.wall["read"]),
        read_bytes_per_core_second=limits.READ_BYTES / statistics.median(clocks.core["read"]),
        begin_seconds=statistics.median(clocks.wall["begin"]),
        compile_seconds=clocks.wall["decode"][0],
    )
    return slots, row


def _prefill(
    case: Case, engine: Engine, slots: Slots, entry: Entry, repeats: int, clocks: _Clocks
) -> tuple[Slots, PrefillRow]:
    config, name = engine.config, f"prefill {entry.given}"
    product = limits.jax_matmul(config.dtype)
    slots = jax.block_until_ready(engine.admit(slots, {0: entry}))
    for _ in range(repeats):
        clocks.timed(f"product {name}", product)
        slots = clocks.timed(name, partial(engine.admit, slots, {0: entry}))
    row = PrefillRow(
        name=case.name,
        model=case.model,
        precision=case.precision,
        tokens=entry.given,
        seconds=statistics.median(clocks.wall[name]),
        core_seconds=statistics.median(clocks.core[name]),
        original_tokens_per_second=case.original_prefill if entry.given == 1024 else None,
        flops=prefill_flops(config, engine.weights, config.prefix + entry.given),
        matmul_flops_per_second=limits.matmul_flops() / statistics.median(clocks.wall[f"product {name}"]),
        matmul_flops_per_core_second=limits.matmul_flops() / statistics.median(clocks.core[f"product {name}"]),
        compile_seconds=clocks.wall["admit"][0],
    )
    return slots, row


@dataclass(frozen=True)
class FirstSecond:
    """Seconds until the first second of a song sounds from all levels of a cascade, computed from measured rates.

    Attributes:
      tokens: drawn at each level, the top one first: enough below for a second of sound, above for the codes that a
        window of the level below is conditioned on.
      codec_seconds: measured, of decoding that second.
    """

    cascade: str
    precision: str
    tokens: tuple[int, ...]
    seconds: float
    codec_seconds: float


def first_seconds(
    cascade: Cascade, cases: Sequence[Case], rows: Sequence[DecodeRow], repeats: int
) -> list[FirstSecond]:
    """For every precision in which all priors of the cascade were measured at batch 1; weights are loaded already."""
    configs = {case.model: case.config for case in cases}
    measured = {(row.model, row.precision): row for row in rows if row.batch == 1}
    priors = [configs[name] for name in cascade.priors]
    tokens = [below.n_ctx // below.conditioner.ratio for below in priors[1:]]
    hop = cascade.codec.hops[priors[-1].level]
    tokens.append(-(-cascade.codec.sample_rate // hop))
    results = []
    precisions = dict.fromkeys(row.precision for row in rows)
    precisions = [name for name in precisions if all((prior, name) in measured for prior in cascade.priors)]
    if not precisions:
        return []
    codec, clocks = codec_decode(cascade.codec, tokens[-1] * hop, priors[-1].level), _Clocks()
    weights = codec.create()
    for _ in range(repeats + 1):
        clocks.timed("codec", lambda: codec.step(weights, codec.batch)[1])
    sounding = statistics.median(clocks.wall["codec"][1:])
    for precision in precisions:
        levels = [measured[prior, precision] for prior in cascade.priors]
        drawn = sum(row.begin_seconds + n * row.step_seconds for row, n in zip(levels, tokens, strict=True))
        results.append(FirstSecond(cascade.name, precision, tuple(tokens), drawn + sounding, sounding))
    return results


def decode_table(rows: Sequence[DecodeRow]) -> str:
    """Markdown."""
    head = [
        "model",
        "precision",
        "batch",
        "ms/step",
        "least",
        "core ms/step",
        "original, ms",
        "ratio",
        "tokens/s",
        f"ms near {EARLY}",
        f"near {LATE}",
        "read per step, MB",
        "of it caches",
        "memory, GB/s",
        "of it",
        "of it, by core s",
        "begin, s",
        "compile, s",
    ]
    return _table(
        head,
        3 * [""] + 15 * ["right"],
        [
            [
                row.model,
                row.precision,
                f"{row.batch}",
                f"{1e3 * row.step_seconds:,.3g}",
                f"{1e3 * row.least_seconds:,.3g}",
                f"{1e3 * row.step_core_seconds:,.3g}",
                "" if row.original_step_seconds is None else f"{1e3 * row.original_step_seconds:g}",
                "" if row.original_step_seconds is None else f"{row.original_step_seconds / row.step_seconds:.2f}",
                f"{row.tokens_per_second:,.1f}",
                f"{1e3 * row.early_seconds:,.3g}",
                f"{1e3 * row.late_seconds:,.3g}",
                f"{row.bytes_per_step / 1e6:,.0f}",
                f"{row.cache_bytes / 1e6:,.0f}",
                f"{row.read_bytes_per_second / 1e9:,.1f}",
                f"{row.of_memory:.0%}",
                f"{row.of_memory_by_core:.0%}",
                f"{row.begin_seconds:.2g}",
                f"{row.compile_seconds:.0f}",
            ]
            for row in rows
        ],
    )


def prefill_table(rows: Sequence[PrefillRow]) -> str:
    """Markdown."""
    head = [
        "model/precision/batch",
        "tokens",
        "s",
        "core s",
        "tokens/s",
        "original, tokens/s",
        "ratio",
        "GFLOP",
        "GFLOP/s",
        "matrix product, GFLOP/s",
        "of it",
        "of it, by core s",
        "compile, s",
    ]
    cells = []
    for row in rows:
        original = row.original_tokens_per_second
        cells.append(
            [
                row.name,
                f"{row.tokens:,}",
                f"{row.seconds:.3g}",
                f"{row.core_seconds:.3g}",
                f"{row.tokens_per_second:,.0f}",
                "" if original is None else f"{original:g}",
                "" if original is None else f"{row.tokens_per_second / original:.2f}",
                f"{row.flops / 1e9:,.0f}",
                f"{row.flops / row.seconds / 1e9:,.0f}",
                f"{row.matmul_flops_per_second / 1e9:,.0f}",
                f"{row.of_matmul:.0%}",
                f"{row.of_matmul_by_core:.0%}",
                f"{row.compile_seconds:.0f}",
            ]
        )
    return _table(head, [""] + 12 * ["right"], cells)


def first_second_table(rows: Sequence[FirstSecond]) -> str:
    """Markdown."""
    cells = [
        [
            row.cascade,
            row.precision,
            " + ".join(f"{n:,}" for n in row.tokens),
            f"{row.codec_seconds:.2g}",
            f"{row.seconds:,.3g}",
        ]
        for row in rows
    ]
    head = ["cascade", "precision", "tokens, top level first", "codec, s", "first second after, s"]
    return _table(head, ["", "", "", "right", "right"], cells)


def _table(head: Sequence[str], sides: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = "|".join("---:" if side else "---" for side in sides)
    return "\n".join([f"| {' | '.join(head)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows)])
