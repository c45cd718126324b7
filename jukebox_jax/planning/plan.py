"""Plans: a row for every way to lay a training step over a topology, by the model or with what the compiler says."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from jukebox_jax.errors import UserError
from jukebox_jax.models.transformer import Remat
from jukebox_jax.parallel.collectives import Message
from jukebox_jax.parallel.network import Network
from jukebox_jax.parallel.topology import Topology
from jukebox_jax.planning.compile_step import Compiled
from jukebox_jax.planning.costs import Costs, Memory, train_costs
from jukebox_jax.planning.layouts import Combination, Mesh, Meshes, Run, accumulations, meshes_of
from jukebox_jax.planning.serving import serving_costs
from jukebox_jax.planning.workload import audio_seconds
from jukebox_jax.sampling.weights import Precision
from jukebox_jax.training.run import CodecRun

# Temporaries lie scattered: the compiler's programs needed 1.1 to 1.7 times what they held at once (median 1.27; see
# experiments/sharding_lab).
_SCATTERED = 1.3

Step = Literal["train", "decode", "prefill", "encode"]


@dataclass(frozen=True)
class Times:
    """Seconds that a step needs a resource for.

    Attributes:
      compute: if the matrix units do nothing but useful operations, at their peak.
      matrix: if they also fill their tiles up, at the efficiency of the assumptions.
      hbm, ici, dcn: memory, the network of a slice, the network between slices.
    """

    compute: float
    matrix: float
    hbm: float
    ici: float
    dcn: float

    @property
    def best(self) -> float:
        """Everything overlaps: the longest."""
        return max(self.compute, self.hbm, self.ici, self.dcn)

    @property
    def worst(self) -> float:
        """Nothing overlaps: the sum."""
        return self.matrix + self.hbm + self.ici + self.dcn

    @property
    def bound(self) -> str:
        """What takes longest."""
        return max(("compute", "hbm", "ici", "dcn"), key=lambda name: getattr(self, name))


@dataclass(frozen=True)
class Row:
    """One combination on one topology. Bytes and FLOPs are of one chip in one step.

    Attributes:
      model: as the command named it.
      compiled: whether memory and messages are the TPU compiler's; else they are modelled.
      fits: whether a chip's memory holds the step.
      memory: by the model; None where there is no such step.
      hbm_bytes_per_chip: that the step needs, by the compiler if it was asked; else `memory`'s total.
      peak_bytes: the most that is in use at once, by the compiler; what `memory` is a model of. A program needs more,
        as what it holds lies scattered.
      hbm_limit: what a program may use.
      compile_seconds: None if nothing was compiled.
      reason: why there is no such step, or why it was not compiled, in a sentence.
    """

    model: str
    topology: str
    chips: int
    combination: Combination
    compiled: bool
    fits: bool
    memory: Memory | None = None
    hbm_bytes_per_chip: int = 0
    peak_bytes: int | None = None
    hbm_limit: int = 0
    model_flops_per_chip: float = 0.0
    executed_flops_per_chip: float = 0.0
    hbm_traffic_bytes: float = 0.0
    messages: tuple[Message, ...] = ()
    times: Times = Times(0.0, 0.0, 0.0, 0.0, 0.0)
    mfu_best: float = 0.0
    mfu_worst: float = 0.0
    tokens_per_second_per_chip: float | None = None
    audio_hours_per_day: float = 0.0
    dollars_per_billion_tokens: float | None = None
    dollars_per_audio_hour: float | None = None
    compile_seconds: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Question:
    """What is planned.

    Attributes:
      name: of the model, for people.
      batch_size: examples of a step over all chips; None: the config's.
      remats: for a prior; empty: the config's.
      meshes: "own", "all", or sizes.
      accumulate: None: the fewest microbatches that fit.
      precision: of weights, in decode and prefill.
    """

    name: str
    run: Run
    strategies: tuple[str, ...]
    batch_size: int | None = None
    remats: tuple[Remat, ...] = ()
    meshes: Meshes | Mesh = "own"
    accumulate: int | None = None
    step: Step = "train"
    precision: Precision = "bfloat16"


def rows(question: Question, topology: Topology) -> Iterator[Row]:
    """A row for every strategy, mesh and remat of a question; what cannot be says why.

    Raises:
      UserError: an unknown strategy.
    """
    if question.step != "train":
        yield from _serving_rows(question, topology)
        return
    for strategy, mesh in _layouts(question, topology):
        if isinstance(mesh, str):
            empty = Combination(strategy, (1, 1, 1, 1), question.batch_size or question.run.train.batch_size)
            yield _none(question, topology, empty, mesh)
            continue
        for remat in _remats(question):
            yield _fitting(question, topology, strategy, mesh, remat)


def count(question: Question, topology: Topology) -> int:
    """How many rows a question has at most: those that progress is measured by."""
    layouts = sum(1 for _ in _layouts(question, topology))
    return layouts * (len(_remats(question)) if question.step == "train" else 1)


def _layouts(question: Question, topology: Topology) -> Iterator[tuple[str, Mesh | str]]:
    """Every strategy with each of its meshes, or with the reason why it has none."""
    for strategy in question.strategies:
        try:
            for mesh in meshes_of(strategy, topology.chips, topology.slices, question.meshes):
                yield strategy, mesh
        except UserError as error:
            yield strategy, str(error)


def _remats(question: Question) -> Sequence[Remat | None]:
    if isinstance(question.run, CodecRun):
        return (None,)
    return question.remats or (question.run.model.remat,)


def _fitting(question: Question, topology: Topology, strategy: str, mesh: Mesh, remat: Remat | None) -> Row:
    """The row with the fewest microbatches that fit, or with the most if none do."""
    run, batch = question.run, question.batch_size or question.run.train.batch_size
    whole = Combination(strategy, mesh, batch, 1, remat)
    if question.accumulate is not None:
        parts = [question.accumulate]
    else:
        parts = list(accumulations(batch, mesh))
        if isinstance(run, CodecRun):  # codebooks learn from whole batches
            parts = parts[:1]
    if not parts:
        groups = mesh[0] * mesh[1]
        reason = f"{batch} examples are no multiple of {groups} groups of chips: choose another --batch, or mesh."
        return _none(question, topology, whole, reason)
    row = None
    for count in parts:
        combination = dataclasses.replace(whole, accumulate=count)
        try:
            row = modelled(question.name, run, combination, topology)
        except UserError as error:
            return _none(question, topology, combination, str(error))
        if row.fits:
            return row
    return row


def _serving_rows(question: Question, topology: Topology) -> Iterator[Row]:
    batch = question.batch_size or topology.chips
    for strategy in question.strategies:
        if isinstance(question.meshes, tuple) or strategy != "fsdp_tp":
            meshes = meshes_of(strategy, topology.chips, topology.slices, question.meshes)
        else:  # copies, each divided among 2, 4, … chips
            meshes = (mesh for mesh in meshes_of(strategy, topology.chips, topology.slices, "all") if mesh[1] == 1)
        for mesh in meshes:
            combination = Combination(strategy, mesh, batch)
            try:
                costs = serving_costs(
                    question.run, combination, question.step, question.precision, topology.chip.matrix_unit
                )
            except UserError as error:
                yield _none(question, topology, combination, str(error))
                continue
            yield with_costs(question.name, question.run, combination, topology, costs)


def _none(question: Question, topology: Topology, combination: Combination, reason: str) -> Row:
    return Row(question.name, topology.name, topology.chips, combination, False, False, reason=reason)


def modelled(name: str, run: Run, combination: Combination, topology: Topology) -> Row:
    """The row of a combination, by the model alone.

    Raises:
      UserError: the strategy does not fit the model or the batch.
    """
    return with_costs(name, run, combination, topology, train_costs(run, combination, topology.chip.matrix_unit))


def with_costs(name: str, run: Run, combination: Combination, topology: Topology, costs: Costs) -> Row:
    """The row of a combination whose costs are known."""
    chip = topology.chip
    messages = as_compiled(costs.messages, combination.mesh, topology)
    memory = costs.memory
    needed = memory.total + round((_SCATTERED - 1) * memory.activations)
    row = Row(
        model=name,
        topology=topology.name,
        chips=topology.chips,
        combination=combination,
        compiled=False,
        fits=needed <= chip.memory_bytes,
        memory=memory,
        hbm_bytes_per_chip=memory.total,
        hbm_limit=chip.memory_bytes,
        model_flops_per_chip=costs.model_flops,
        executed_flops_per_chip=costs.executed_flops,
        hbm_traffic_bytes=costs.traffic_bytes,
        messages=messages,
    )
    return _timed(row, run, costs, topology)


def with_compiled(row: Row, run: Run, found: Compiled, topology: Topology) -> Row:
    """A modelled row with the compiler's memory and messages, or with why there are none."""
    if found.fits is None:
        return dataclasses.replace(row, reason=found.reason)
    if found.reason is not None:
        return dataclasses.replace(row, compiled=True, fits=False, reason=found.reason)
    needed = found.arguments + found.temporaries + found.outputs
    row = dataclasses.replace(
        row,
        compiled=True,
        fits=needed <= topology.chip.memory_bytes,
        hbm_bytes_per_chip=needed,
        peak_bytes=found.peak,
        messages=found.messages,
        compile_seconds=found.compile_seconds,
    )
    costs = train_costs(run, row.combination, topology.chip.matrix_unit)
    return _timed(row, run, costs, topology)


def as_compiled(messages: Sequence[Message], mesh: Mesh, topology: Topology) -> tuple[Message, ...]:
    """Messages as the TPU compiler was seen to send them: gathers and scatters among more chips than it has a rule for
    become sums of arrays that are zero elsewhere, and send twice as much."""
    sizes = dict(zip(("replica", "fsdp", "sequence", "tensor"), mesh, strict=True))
    limits = {"all-gather": topology.chip.largest_gather_group, "reduce-scatter": topology.chip.largest_scatter_group}
    found = []
    for message in messages:
        limit = limits.get(message.kind, 0)
        if limit and math.prod(sizes[axis] for axis in message.axes) > limit:
            message = Message("all-reduce", message.axes, 2 * message.bytes_sent)
        found.append(message)
    return tuple(found)


def _timed(row: Row, run: Run, costs: Costs, topology: Topology) -> Row:
    chip, network = topology.chip, Network(topology, row.combination.mesh)
    sent = [network.seconds(message) for message in row.messages]
    times = Times(
        compute=costs.executed_flops / chip.flops_per_second,
        matrix=costs.tiled_flops / (chip.matmul_efficiency * chip.flops_per_second),
        hbm=costs.traffic_bytes / chip.memory_bytes_per_second,
        ici=float(sum(ici for ici, _ in sent)),
        dcn=float(sum(dcn for _, dcn in sent)),
    )
    useful = costs.model_flops / chip.flops_per_second
    examples = costs.part * row.combination.batch_size / times.worst
    audio_hours = examples * audio_seconds(run) * 24
    dollars = None if chip.dollars_per_hour is None else chip.dollars_per_hour * topology.chips / 3600
    tokens = None if isinstance(run, CodecRun) else examples * run.model.n_ctx
    return dataclasses.replace(
        row,
        times=times,
        mfu_best=useful / times.best,
        mfu_worst=useful / times.worst,
        tokens_per_second_per_chip=None if tokens is None else tokens / topology.chips,
        audio_hours_per_day=audio_hours,
        dollars_per_billion_tokens=None if tokens is None or dollars is None else 1e9 * dollars / tokens,
        dollars_per_audio_hour=None if dollars is None else 86400 * dollars / audio_hours,
    )


# ---- Choosing ---------------------------------------------------------------------------------------------------


def recommended(found: Sequence[Row]) -> Row | None:
    """Of the rows that fit, the one that is fastest at worst; None if none fits."""
    fitting = [row for row in found if row.fits]
    return min(fitting, key=lambda row: row.times.worst, default=None)


def best_of_each(found: Sequence[Row], group: Callable[[Row], object]) -> list[Row]:
    """Of each group the recommended row, or else its first: that strategies are compared at their best."""
    groups: dict[object, list[Row]] = {}
    for row in found:
        groups.setdefault(group(row), []).append(row)
    return [recommended(members) or members[0] for members in groups.values()]


def best_layouts(found: Sequence[Row]) -> list[Row]:
    """The best mesh of every strategy and remat."""
    return best_of_each(found, lambda row: (row.combination.strategy, row.combination.remat))


def advice(topology: Topology, found: Sequence[Row]) -> str:
    """What to do on a topology with these rows, and why, in a sentence or two."""
    best = recommended(found)
    text = "no row fits: take more chips, smaller batches or another remat."
    return f"{topology.name}: {text if best is None else reason_for(best, found)}"


def reason_for(row: Row, found: Sequence[Row]) -> str:
    """Why a row is recommended, in a sentence or two."""
    others = [other for other in found if other.fits and other.combination.strategy != row.combination.strategy]
    text = (
        f"{row.combination} is the fastest of {sum(other.fits for other in found)} that fit, at worst "
        f"{row.times.worst:.3g} s a step; its longest part is {row.times.bound}."
    )
    if second := recommended(others):
        text += (
            f" The best of another strategy, {second.combination}, needs {second.times.worst / row.times.worst:.2f} "
            "times as long."
        )
    return text
