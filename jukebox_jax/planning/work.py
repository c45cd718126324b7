"""What a traced program computes, what it reads and writes, and what it holds at once: counted, nothing is compiled.

The count is of the program that jax differentiates and rematerialises, so that what is computed twice counts twice;
loops count as often as they run. A compiler fuses elementwise operations into the kernels around them, and how is
guessed by simple rules:

- A *kernel* is a matrix product, a convolution, a reduction, a gather or scatter, a transform, a sort. It reads what
  its operands were made from and writes its results.
- Everything else is fused: such a value takes no room and is computed again by each kernel that wants it, from the
  values in memory that it depends on; unless these hold more than twice its own bytes: then it is written once.

Elementwise arithmetic counts no operations: it hides behind its traffic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import jax
from jax.extend.core import Jaxpr, JaxprEqn, Literal, jaxprs_in_params

# fmt: off
_KERNELS = frozenset((
    "dot_general", "conv_general_dilated", "gather", "scatter", "scatter-add", "scatter_add", "scatter_max", "sort",
    "top_k", "argmax", "argmin", "fft", "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and",
    "reduce_or", "reduce_window_sum", "cumsum", "cumprod", "cummax", "cumlogsumexp", "dynamic_update_slice",
))
# fmt: on
_LOOPS = ("scan", "while")
#: Rows that a matrix unit takes at once, whatever its size (the sublanes of a TPU).
_ROWS = 8


@dataclass(frozen=True)
class Work:
    """Attributes:
    flops: operations of matrix products and convolutions.
    tiled_flops: the same if a matrix unit of `tile` × `tile` does them: contracted and output dimensions, and of the
      rows multiples of 8, are filled up.
    traffic_bytes: read from and written to memory.
    peak_bytes: largest sum of values that are in memory at once, arguments not among them.
    """

    flops: float
    tiled_flops: float
    traffic_bytes: float
    peak_bytes: float


def work(function: Callable, *arguments: Any, tile: int = 1) -> Work:
    """Counts one call; the arguments may be ShapeDtypeStructs."""
    return _work_of(jax.make_jaxpr(function)(*arguments).jaxpr, tile)


def executed_flops(function: Callable, *arguments: Any) -> float:
    """Operations of matrix products and convolutions in one call; the arguments may be ShapeDtypeStructs."""
    return work(function, *arguments).flops


# ---- A flat program ---------------------------------------------------------------------------------------------


class _Step(NamedTuple):
    """An equation whose operands and results are numbers of values; None for a literal."""

    equation: JaxprEqn
    operands: list[int | None]
    results: list[int]


class _Flat:
    """A jaxpr with its calls (jit, checkpoint, custom derivatives, the costliest branch of a cond) written out."""

    def __init__(self, jaxpr: Jaxpr, tile: int):
        self.tile = tile
        self.sizes: list[float] = []
        self.steps: list[_Step] = []
        self.inputs = [self._new(variable) for variable in (*jaxpr.constvars, *jaxpr.invars)]
        self.outputs = self._write_out(jaxpr, self.inputs)

    def _new(self, variable: Any) -> int:
        aval = variable.aval
        self.sizes.append(float(prod(aval.shape) * aval.dtype.itemsize))
        return len(self.sizes) - 1

    def _write_out(self, jaxpr: Jaxpr, inputs: Sequence[int | None]) -> list[int | None]:
        known = dict(zip((*jaxpr.constvars, *jaxpr.invars), inputs, strict=True))

        def read(atom: Any) -> int | None:
            return None if isinstance(atom, Literal) else known[atom]

        for equation in jaxpr.eqns:
            operands = [read(atom) for atom in equation.invars]
            called = self._called(equation)
            if called is None:
                results = [self._new(variable) for variable in equation.outvars]
                self.steps.append(_Step(equation, operands, results))
            else:
                inner, skipped = called
                # Constants of an inner jaxpr are arrays that it brings along.
                consts = [self._new(variable) for variable in inner.constvars]
                results = self._write_out(inner, [*consts, *operands[skipped:]])
            known.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _called(self, equation: JaxprEqn) -> tuple[Jaxpr, int] | None:
        """What an equation runs once, and how many of its operands are not that one's."""
        if equation.primitive.name in (*_LOOPS, *_KERNELS):
            return None
        inner = [getattr(jaxpr, "jaxpr", jaxpr) for jaxpr in jaxprs_in_params(equation.params)]
        if equation.primitive.name == "cond":
            # Branches that depend on the platform compute the same, each in the form that its compiler fuses best: the
            # one that moves the fewest bytes is what they come to.
            return max(inner, key=lambda branch: ((w := _work_of(branch, self.tile)).flops, -w.traffic_bytes)), 1
        inner = [jaxpr for jaxpr in inner if len(jaxpr.invars) == len(equation.invars)]
        if not inner or len(inner[0].outvars) != len(equation.outvars):
            return None
        return inner[0], 0

    def needed(self) -> list[_Step]:
        """The steps that the outputs depend on."""
        wanted, kept = set(self.outputs), []
        for step in reversed(self.steps):
            if wanted.intersection(step.results):
                wanted.update(step.operands)
                kept.append(step)
        return kept[::-1]


# ---- Fusion -----------------------------------------------------------------------------------------------------


class _Kernel(NamedTuple):
    reads: dict[int, float]
    writes: list[int]
    inside: Work


def _work_of(jaxpr: Jaxpr, tile: int) -> Work:
    program = _Flat(jaxpr, tile)
    sizes, kernels = program.sizes, []
    # What a kernel reads that wants a value: values in memory, and how many bytes of each.
    sources: dict[int, dict[int, float]] = {}

    def sources_of(values: Sequence[int | None]) -> dict[int, float]:
        merged: dict[int, float] = {}
        for value in values:
            if value is not None:
                for source, size in sources.get(value, {value: sizes[value]}).items():
                    merged[source] = max(size, merged.get(source, 0.0))
        return merged

    for step in program.needed():
        reads, name = sources_of(step.operands), step.equation.primitive.name
        if name in (*_KERNELS, *_LOOPS):
            kernels.append(_Kernel(_cut(name, step, reads, sizes), step.results, _inside(step.equation, tile)))
            continue
        largest = max((sizes[result] for result in step.results), default=0)
        # A slice, or a value of fewer bits, is read as such.
        reads = {source: min(size, largest) for source, size in reads.items()}
        if len(reads) > 1 and sum(reads.values()) > 2 * largest:
            kernels.append(_Kernel(reads, step.results, Work(0.0, 0.0, 0.0, 0.0)))
        else:
            sources.update((result, reads) for result in step.results)

    # What goes out has to be in memory.
    for output in dict.fromkeys(value for value in program.outputs if value is not None):
        reads = sources_of([output])
        if output in program.inputs or reads != {output: sizes[output]}:
            kernels.append(_Kernel(reads, [output], Work(0.0, 0.0, 0.0, 0.0)))

    traffic = sum(
        sum(kernel.reads.values()) + sum(sizes[value] for value in kernel.writes) + kernel.inside.traffic_bytes
        for kernel in kernels
    )
    # A loop's own traffic is what its body reads and writes; it does not read its arguments and write its results
    # besides.
    return Work(
        flops=sum(kernel.inside.flops for kernel in kernels),
        tiled_flops=sum(kernel.inside.tiled_flops for kernel in kernels),
        traffic_bytes=float(traffic),
        peak_bytes=_peak(program, kernels),
    )


def _cut(name: str, step: _Step, reads: dict[int, float], sizes: list[float]) -> dict[int, float]:
    """What a kernel really reads: of a table the rows that it gathers, of its arguments a loop what its body reads."""
    if name in _LOOPS:
        return dict.fromkeys(reads, 0.0)
    if name == "gather":
        return {source: min(size, sum(sizes[result] for result in step.results)) for source, size in reads.items()}
    return reads


def _peak(program: _Flat, kernels: list[_Kernel]) -> float:
    """Values live from the kernel that writes them to the last one that reads them, outputs to the end."""
    last = {source: index for index, kernel in enumerate(kernels) for source in kernel.reads}
    last |= {value: len(kernels) for value in program.outputs if value is not None}
    held, peak, leaving = 0.0, 0.0, {}
    given = set(program.inputs)
    for index, kernel in enumerate(kernels):
        for value in kernel.writes:
            held += program.sizes[value]
            if last.get(value, index) < len(kernels):
                leaving.setdefault(max(index, last.get(value, index)), []).append(value)
        peak = max(peak, held + kernel.inside.peak_bytes)
        for value in leaving.pop(index, []):
            if value not in given:
                held -= program.sizes[value]
    return peak


# ---- One kernel -------------------------------------------------------------------------------------------------


def _inside(equation: JaxprEqn, tile: int) -> Work:
    """Operations of a kernel; of a loop everything inside. A loop of unknown length counts once."""
    name, values = equation.primitive.name, equation.params
    if name in _LOOPS:
        times = values["length"] if name == "scan" else 1
        bodies = [_work_of(getattr(jaxpr, "jaxpr", jaxpr), tile) for jaxpr in jaxprs_in_params(values)]
        written = sum(prod(v.aval.shape) * v.aval.dtype.itemsize for v in equation.outvars)
        return Work(
            flops=times * sum(body.flops for body in bodies),
            tiled_flops=times * sum(body.tiled_flops for body in bodies),
            # What is stacked has been written by the body, one slice at a time.
            traffic_bytes=times * sum(body.traffic_bytes for body in bodies) - written,
            peak_bytes=max(body.peak_bytes for body in bodies),
        )
    if name == "dot_general":
        return _product(equation, tile)
    if name == "conv_general_dilated":
        return _convolution(equation, tile)
    return Work(0.0, 0.0, 0.0, 0.0)


def _product(equation: JaxprEqn, tile: int) -> Work:
    (contracted, _), (batch, _) = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    inner = prod(left[axis] for axis in contracted)
    batches = prod(left[axis] for axis in batch)
    rows = prod(left) // max(1, inner * batches)
    columns = prod(equation.outvars[0].aval.shape) // max(1, batches * rows)
    return _matrices(batches, rows, inner, columns, 1.0, tile)


def _convolution(equation: JaxprEqn, tile: int) -> Work:
    values = equation.params
    numbers, kernel = values["dimension_numbers"], equation.invars[1].aval.shape
    out, channels, *spatial = (kernel[axis] for axis in numbers.rhs_spec)
    rows = prod(equation.outvars[0].aval.shape) // out
    # Zeros inserted into the input are not multiplied with.
    taps = prod(spatial) / prod(values["lhs_dilation"])
    if taps > channels:  # the gradient of a kernel: the sum runs over positions
        channels, taps = round(channels * taps), 1.0
    return _matrices(1, rows, channels, out // values["feature_group_count"], taps, tile)


def _matrices(batches: int, rows: int, inner: int, columns: int, times: float, tile: int) -> Work:
    """Products of (rows, inner) and (inner, columns). Either factor may be the one that is held in the matrix unit."""

    def filled(size: int, unit: int) -> int:
        return -(-size // unit) * unit

    sublanes = min(_ROWS, tile)
    either = min(
        filled(rows, sublanes) * filled(columns, tile),
        filled(rows, tile) * filled(columns, sublanes),
    )
    times = 2.0 * times * batches
    return Work(times * rows * inner * columns, times * either * filled(inner, tile), 0.0, 0.0)
