"""What a training step costs each chip, by the model: operations, memory traffic, messages, memory.

Operations and what is held come from the traced program of one example (`work`); parameters, moments, gradients and
messages from the shardings that the strategy resolves to (`traffic`). Nothing is compiled.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
from flax.core import meta
from jax.sharding import AbstractMesh, AxisType

from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.models.transformer import TransformerConfig, segments
from jukebox_jax.parallel.collectives import Message
from jukebox_jax.parallel.mesh import AXES
from jukebox_jax.parallel.plan import bytes_per_device
from jukebox_jax.parallel.strategies import batch_sharding, get_strategy
from jukebox_jax.planning.layouts import Combination, Run
from jukebox_jax.planning.traffic import activation_messages, merged, parameter_messages
from jukebox_jax.planning.work import Work, work
from jukebox_jax.planning.workload import task_of
from jukebox_jax.training.config import TrainConfig
from jukebox_jax.training.run import CodecRun, PriorRun
from jukebox_jax.training.state import TrainState, boxed_shapes, sharded_state

# Of each parameter, in float32: read are its gradient (for the norm, and again), itself and two moments; written are
# itself, the moments and, before all that, the gradient.
_UPDATE_VALUES = 9


@dataclass(frozen=True)
class Memory:
    """Of one chip, in bytes.

    Attributes:
      parameters, optimizer, average: what the chip holds between steps.
      activations: everything else at the step's peak: activations, gradients, gathered parameters.
    """

    parameters: int
    optimizer: int
    average: int
    activations: int

    @property
    def total(self) -> int:
        return self.parameters + self.optimizer + self.average + self.activations


@dataclass(frozen=True)
class Costs:
    """Of one chip in one step.

    Attributes:
      model_flops: what the model asks for, without what is computed twice.
      executed_flops: with that.
      tiled_flops: as the chip's matrix unit computes them, with the rows and columns that fill it up.
      traffic_bytes: read from and written to the chip's memory.
      messages: by kind and mesh axes.
      part: of each example, that a step handles.
    """

    model_flops: float
    executed_flops: float
    tiled_flops: float
    traffic_bytes: float
    messages: tuple[Message, ...]
    memory: Memory
    part: float = 1.0


def train_costs(run: Run, combination: Combination, tile: int = 1) -> Costs:
    """Costs of a run's training step.

    - Operations: those of one traced example, times the examples of a group of chips, over the chips along `sequence`.
      Along `tensor` the traced model has its part of the heads, hidden features and codes.
    - Memory traffic: what the traced kernels read and write of activations (the part that grows with the batch);
      matrices as gathered, written and read at each use; nine values of four bytes for every parameter of the chip's
      own in the update.
    - Memory: the state; what a traced example holds at its peak; the gradients, twice (as they were summed, and as the
      update takes them, all of which wait for their norm); of the layers that a loop's body holds, the recomputed
      activations of all but one, since the compiler computes them all before it differentiates the last.

    Args:
      tile: rows and columns of the chip's matrix unit.

    Raises:
      UserError: the strategy does not fit the model or the batch.
    """
    run = combination.of(run)
    rules = get_strategy(combination.strategy).rules
    abstract_mesh = AbstractMesh(tuple(combination.mesh), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    mesh = dict(zip(AXES, combination.mesh, strict=True))
    batch_sharding(abstract_mesh, rules, combination.batch_size, combination.accumulate)
    state = sharded_state(_boxed(_anywhere(run)), abstract_mesh, rules)
    examples, parts = combination.examples / mesh["sequence"], combination.accumulate
    prior = isinstance(run, PriorRun)
    itemsize = 2 if prior and run.model.dtype != "float32" else 4

    traced = _traced(_anywhere(_divided(run, mesh["tensor"])), tile)
    held = bytes_per_device(state.params)
    gathered = sum(leaf.size for leaf in jax.tree.leaves(state.params)) * itemsize / mesh["tensor"]
    uses = 2 if prior and run.model.remat == "none" else 3
    traffic = parts * (examples * traced.traffic_bytes + gathered * (2 + uses + 2)) + held * _UPDATE_VALUES
    messages = parameter_messages(state.params, itemsize, mesh, 2)
    if prior:
        messages += activation_messages(run.model, combination.examples, mesh)
    sent = merged([dataclasses.replace(message, bytes_sent=parts * message.bytes_sent) for message in messages])
    activations = examples * (traced.peak_bytes + _held_by_a_body(run, mesh["tensor"])) + 2 * held
    if parts > 1:  # the sum over microbatches
        activations += held
    return Costs(
        model_flops=task_of(run).flops_per_example * combination.batch_size / _chips(combination),
        executed_flops=parts * examples * traced.flops,
        tiled_flops=parts * examples * traced.tiled_flops,
        traffic_bytes=traffic,
        messages=tuple(sent),
        memory=Memory(
            parameters=held,
            optimizer=bytes_per_device(state.opt_state),
            average=bytes_per_device(state.ema),
            activations=round(activations),
        ),
    )


def _chips(combination: Combination) -> int:
    chips = 1
    for size in combination.mesh:
        chips *= size
    return chips


def _anywhere(run: Run) -> Run:
    """The run without what its trace and its state's shapes do not depend on, so that many layouts share them."""
    kept = TrainConfig(optimizer=run.train.optimizer, frozen=run.train.frozen)
    return dataclasses.replace(run, train=kept)


@lru_cache(maxsize=64)
def _boxed(run: Run) -> TrainState:
    return boxed_shapes(task_of(run), run.train)


def _divided(run: Run, tensor: int) -> Run:
    """The run of one of `tensor` chips that divide heads, hidden features and vocabulary."""
    if tensor == 1 or isinstance(run, CodecRun):
        return run
    model = run.model
    changes: dict[str, Any] = _narrower(model, tensor)
    if (model.shift + model.codes) % tensor == 0 and model.shift == 0:
        changes["codes"] = model.codes // tensor
    encoder = model.lyrics and model.lyrics.encoder
    if encoder and encoder.heads % tensor == 0:
        encoder = dataclasses.replace(encoder, **_narrower(encoder, tensor))
        changes["lyrics"] = dataclasses.replace(model.lyrics, encoder=encoder)
    return dataclasses.replace(run, model=dataclasses.replace(model, **changes))


def _narrower(model: Any, tensor: int) -> dict[str, Any]:
    return {
        "heads": model.heads // tensor,
        "attention_multiplier": model.attention_multiplier / tensor,
        "mlp_multiplier": model.mlp_multiplier / tensor,
    }


@lru_cache(maxsize=64)
def _traced(run: Run, tile: int) -> Work:
    """Loss and gradients of one example more: what grows with the batch."""
    task = task_of(run)
    params, model_state = meta.unbox(jax.eval_shape(lambda: task.init(jax.random.key(0))))

    def gradients(params, model_state, batch):
        def loss(params):
            value, *rest = task.loss(params, model_state, batch, jax.random.key(0))
            return value, rest

        return jax.grad(loss, has_aux=True)(params)

    def of(examples: int) -> Work:
        batch = {
            name: jax.ShapeDtypeStruct((examples, *spec.shape), spec.dtype) for name, spec in task.batch_spec.items()
        }
        return work(gradients, params, model_state, batch, tile=tile)

    one, two = of(1), of(2)
    difference = {field.name: getattr(two, field.name) - getattr(one, field.name) for field in dataclasses.fields(Work)}
    return Work(**difference)


def _held_by_a_body(run: Run, tensor: int) -> float:
    """Recomputed activations of one example, of the layers in the longest body of a loop, but one; bytes."""
    if isinstance(run, CodecRun) or run.model.remat == "none":
        return 0.0
    return _recomputed(run.model, run.model.transformer, tensor)


def _recomputed(model: PriorConfig, t: TransformerConfig, tensor: int) -> float:
    scanned = [segment for segment in segments(t.patterns) if segment.repeats > 1]
    layers = max((len(segment.patterns) for segment in scanned), default=1)
    itemsize = 4 if model.dtype == "float32" else 2
    # Two normed inputs, two outputs; queries, keys, values and what was attended; hidden features twice.
    features = 4 * t.width + (4 * t.state + 2 * t.hidden) / tensor
    return float((layers - 1) * t.context * features * itemsize)
