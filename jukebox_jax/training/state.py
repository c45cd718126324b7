"""TrainState: all that a run is at a step, and all that a checkpoint holds."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax.core import meta
from jax.sharding import AbstractMesh, Mesh

from jukebox_jax.parallel.strategies import Rules, resolve
from jukebox_jax.training.config import TrainConfig
from jukebox_jax.training.freezing import partition
from jukebox_jax.training.loss_scale import LossScale, create_loss_scale
from jukebox_jax.training.optimizer import create_ema, make_optimizer
from jukebox_jax.training.task import Task

PyTree = Any


@flax.struct.dataclass
class TrainState:
    """A run between two steps: arrays, or in their place ShapeDtypeStructs or shardings.

    Attributes:
      step: finished steps; this and the other counters are int32 scalars.
      total_steps: the run's length; 0 while a time budget is not measured yet.
      examples_seen: the position in the data, in examples, so that a changed batch size repeats or skips nothing.
      data_offset: added to `examples_seen` when asking for data; a rewind past bad data advances it.
      skipped_steps: steps whose loss or gradients were not finite, or whose gradients were to be ignored, and which
        changed nothing else (but the loss scale).
      skipped_in_a_row: how many of them were the last steps; 0 after a step that was taken.
      params, opt_state: parameters, and the optax state of those that are trained.
      ema: average of the parameters, or None.
      model_state: the task's own state (codebooks), `{}` if none.
      loss_scale: a dynamic loss scale, or None.
    """

    step: PyTree
    total_steps: PyTree
    examples_seen: PyTree
    data_offset: PyTree
    skipped_steps: PyTree
    skipped_in_a_row: PyTree
    params: PyTree
    opt_state: PyTree
    ema: PyTree | None
    model_state: PyTree
    loss_scale: LossScale | None = None

    @property
    def eval_params(self) -> PyTree:
        """The average of the weights if one is kept, else the parameters."""
        return self.params if self.ema is None else self.ema


def abstract_state(task: Task, config: TrainConfig, mesh: Mesh | AbstractMesh, rules: Rules) -> TrainState:
    """The state's shapes, dtypes and shardings (ShapeDtypeStructs); computes and allocates nothing.

    Raises:
      UserError: the rules do not fit the parameters or the mesh (see `parallel.strategies.resolve`), or a pattern of
        what is frozen fits no parameter.
    """
    return sharded_state(boxed_shapes(task, config), mesh, rules)


def boxed_shapes(task: Task, config: TrainConfig) -> TrainState:
    """The state's shapes and dtypes with their logical axes (Linen's boxes), before any mesh."""
    return jax.eval_shape(lambda: _boxed_state(task, config))


def sharded_state(boxed: TrainState, mesh: Mesh | AbstractMesh, rules: Rules) -> TrainState:
    """What `boxed_shapes` returns, laid over a mesh: see `abstract_state`."""
    shardings = resolve(boxed, mesh, rules)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        meta.unbox(boxed),
        shardings,
    )


def create_state(task: Task, config: TrainConfig, abstract: TrainState) -> TrainState:
    """The state before the first step. Unless drawn first, every array is born on its devices, never whole on one."""
    drawn = None
    if task.drawn_first:
        drawn = jax.device_get(_draw(task, config))  # of the host: several hosts may share a state, but no device
    make = jax.jit(lambda drawn: meta.unbox(_boxed_state(task, config, drawn)), out_shardings=state_shardings(abstract))
    return make(drawn)


def state_shardings(abstract: TrainState) -> TrainState:
    """The tree of shardings of `abstract_state`'s result."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def _draw(task: Task, config: TrainConfig) -> tuple[PyTree, PyTree]:
    return task.init(jax.random.key(config.seed))


def _boxed_state(task: Task, config: TrainConfig, drawn: tuple[PyTree, PyTree] | None = None) -> TrainState:
    """The initial state with Linen's boxes left on: moments and average inherit the parameters' logical axes."""
    params, model_state = _draw(task, config) if drawn is None else drawn
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        total_steps=jnp.asarray(0 if config.seconds is not None else config.last_step, jnp.int32),
        examples_seen=zero,
        data_offset=zero,
        skipped_steps=zero,
        skipped_in_a_row=zero,
        params=params,
        opt_state=make_optimizer(config.optimizer).init(partition(params, config.frozen)[0]),
        ema=None if config.optimizer.ema_decay is None else create_ema(params),
        model_state=model_state,
        loss_scale=create_loss_scale() if config.optimizer.loss_scale == "dynamic" else None,
    )


def to_parts(state: TrainState) -> dict[str, PyTree]:
    """The state as the separately loadable parts of a checkpoint: weights can be read without the rest."""
    trainer = {name: getattr(state, name) for name in _COUNTERS}
    if state.loss_scale is not None:  # absent rather than empty, as in checkpoints of runs without one
        trainer["loss_scale"] = state.loss_scale
    return {
        "params": state.params,
        "ema": state.ema,
        "model_state": state.model_state,
        "trainer": {"opt_state": state.opt_state, **trainer},
    }


def from_parts(parts: dict[str, PyTree]) -> TrainState:
    """The inverse of `to_parts`."""
    return TrainState(params=parts["params"], ema=parts["ema"], model_state=parts["model_state"], **parts["trainer"])


_COUNTERS = ("step", "total_steps", "examples_seen", "data_offset", "skipped_steps", "skipped_in_a_row")
