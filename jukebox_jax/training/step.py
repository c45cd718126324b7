"""One step of training: loss, gradients, update, as one compiled function under a mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from jukebox_jax.errors import UserError
from jukebox_jax.parallel.strategies import Rules, batch_sharding
from jukebox_jax.training import freezing
from jukebox_jax.training.config import OptimizerConfig, TrainConfig
from jukebox_jax.training.loss_scale import update_loss_scale
from jukebox_jax.training.optimizer import (
    clip,
    default_ema_decay,
    global_norm,
    learning_rate,
    make_optimizer,
    update_ema,
)
from jukebox_jax.training.state import TrainState, state_shardings
from jukebox_jax.training.task import Task

PyTree = Any
Batch = dict[str, Array]
Metrics = dict[str, Float[Array, ""]]


def make_train_step(
    task: Task, config: TrainConfig, mesh: Mesh, rules: Rules, abstract: TrainState
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Makes the jitted `step(state, batch) -> (state, metrics)`; call it inside `jax.set_mesh(mesh)`.

    The state is donated; state and batch come in and go out with fixed shardings. The step's randomness is
    `fold_in(key(seed), step)`. Metrics: the task's own, `loss`, `grad_norm` (before clipping), `learning_rate`,
    `skipped` (1 if loss or gradients were not finite, or their norm above `ignore_grad_norm`: parameters, moments,
    average and model state then stay as they were), `skipped_steps` (their number so far) and, if the loss is scaled,
    `loss_scale_log2`. Loss and norm are those without scale; what is frozen has no gradients.

    With `config.accumulate` the batch is cut into so many microbatches, and loss, gradients and metrics are the means
    of theirs: those of the whole batch, as long as the loss is a mean over examples. Each draws random numbers of its
    own.

    Args:
      abstract: from `abstract_state`; its shardings are the step's.

    Raises:
      UserError: the mesh does not divide the (micro)batch, or `accumulate` is above 1 for a task with model state.
    """
    shardings, parts = state_shardings(abstract), config.accumulate
    if parts > 1 and jax.tree.leaves(abstract.model_state):
        # Codebooks start from, restart from and average over whole batches: parts would not add up to the same.
        raise UserError(
            f"train.accumulate={parts} is not for a codec, whose codebooks learn from whole batches: set it to 1."
        )
    sharding = batch_sharding(mesh, rules, config.batch_size, parts)
    optimizer = make_optimizer(config.optimizer)
    ignored, decay = config.optimizer.ignore_grad_norm, config.optimizer.ema_decay
    if decay == "original":
        decay = default_ema_decay(config.batch_size)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        scale = _current_loss_scale(config.optimizer, state)

        trained, frozen = freezing.partition(state.params, config.frozen)
        shards = freezing.partition(shardings.params, config.frozen)[0]

        def gradients_of(batch: Batch, key: Array):
            def loss_fn(trained: PyTree):
                params = freezing.combine(trained, frozen)
                loss, model_state, metrics = task.loss(params, state.model_state, batch, key)
                return loss if scale is None else loss * scale, (loss, model_state, metrics)

            with nn.logical_axis_rules(rules):
                gradients, found = jax.grad(loss_fn, has_aux=True)(trained)
            # Without this XLA may sum whole gradients on every device before it cuts them into shards.
            return jax.lax.with_sharding_constraint(gradients, shards), found

        with jax.named_scope("loss_and_gradients"):
            if parts == 1:
                gradients, (loss, model_state, metrics) = gradients_of(batch, key)
            else:
                zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), trained)
                zeros = jax.lax.with_sharding_constraint(zeros, shards)

                def add(total: PyTree, part: tuple[Batch, Array]):
                    gradients, (loss, _, metrics) = gradients_of(*part)
                    return jax.tree.map(lambda t, g: t + g, total, gradients), (loss, metrics)

                microbatches = split(batch, parts, sharding)
                total, found = jax.lax.scan(add, zeros, (microbatches, jax.random.split(key, parts)))
                gradients = jax.tree.map(lambda t, p: (t / parts).astype(p.dtype), total, trained)
                loss, metrics = jax.tree.map(lambda values: jnp.mean(values, axis=0), found)
                model_state = state.model_state

        with jax.named_scope("update"):
            norm = global_norm(gradients)
            if scale is not None:
                norm = norm / scale
            finite = jnp.isfinite(loss) & jnp.isfinite(norm)
            taken = finite if ignored is None else finite & (norm <= ignored)
            total_steps = jnp.where(state.total_steps > 0, state.total_steps, config.last_step)
            rate = learning_rate(config.optimizer, state.step, total_steps)
            direction, opt_state = optimizer.update(
                clip(config.optimizer, gradients, norm, scale), state.opt_state, trained
            )
            moved = jax.tree.map(lambda p, d: (p - rate * d).astype(p.dtype), trained, direction)
            params = freezing.combine(moved, frozen)
            ema = None
            if decay is not None:
                ema = update_ema(state.ema, params, opt_state[0].count, decay, config.optimizer.ema_every)
            learned = (params, opt_state, ema, model_state)
            before = (state.params, state.opt_state, state.ema, state.model_state)
            params, opt_state, ema, model_state = jax.tree.map(
                lambda new, old: jnp.where(taken, new, old), learned, before
            )

        loss_scale = state.loss_scale
        if loss_scale is not None:
            adapted = update_loss_scale(loss_scale, ~jnp.isfinite(norm), 2 ** (1 / config.optimizer.loss_scale_window))
            # A loss that is not finite itself says nothing about the scale.
            loss_scale = jax.tree.map(lambda new, old: jnp.where(jnp.isfinite(loss), new, old), adapted, loss_scale)

        skipped = (~taken).astype(jnp.int32)
        state = state.replace(
            step=state.step + 1,
            examples_seen=state.examples_seen + config.batch_size,
            skipped_steps=state.skipped_steps + skipped,
            skipped_in_a_row=(state.skipped_in_a_row + 1) * skipped,
            params=params,
            opt_state=opt_state,
            ema=ema,
            model_state=model_state,
            loss_scale=loss_scale,
        )
        metrics = {
            **metrics,
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": rate,
            "skipped": skipped,
            "skipped_steps": state.skipped_steps,
        }
        if scale is not None:
            metrics["loss_scale_log2"] = jnp.log2(scale)
        return state, {name: value.astype(jnp.float32) for name, value in metrics.items()}

    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(shardings, sharding),
        out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())),
    )


def split(batch: Batch, parts: int, sharding: NamedSharding) -> Batch:
    """Cuts every (b, …) into (parts, b / parts, …), of which each part is sharded as given.

    Part i takes the rows i, i + parts, …, so that every device cuts up the rows that it has and none are moved.
    """
    stacked = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))

    def one(x: Array) -> Array:
        return jax.lax.with_sharding_constraint(x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), stacked)

    return jax.tree.map(one, batch)


def _current_loss_scale(config: OptimizerConfig, state: TrainState) -> Float[Array, ""] | None:
    if state.loss_scale is not None:
        return state.loss_scale.scale
    return None if config.loss_scale is None else jnp.float32(config.loss_scale)
