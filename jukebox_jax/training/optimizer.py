"""The descent direction, the learning rate, clipping, and the average of the weights.

The learning rate is not part of the optax transformation: it is a function of (step, total steps), and the latter is
known only once a time budget has been measured, long after compilation.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import meta
from jaxtyping import Array, Float, Int

from jukebox_jax.training.config import OptimizerConfig

PyTree = Any


# ---- Direction --------------------------------------------------------------------------------------------------


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """The descent direction for already clipped gradients; scale it with minus the learning rate.

    Whatever the rule, the first element of its state has the `count` of the updates so far; those of "adamw" and
    "original" have `mu` and `nu`, too. Bytes of state per float32 parameter of the 5b prior, from the shapes: 8.0;
    with `moment_dtype=bfloat16` 6.0; "adafactor" 4.0 or 2.0, and 0.005 without a first moment (b1 = 0).
    """
    if config.rule == "original":
        return optax.chain(scale_by_original_adam(config.b1, config.b2, config.eps, config.weight_decay))
    if config.rule == "adafactor":
        moment = [optax.ema(config.b1, accumulator_dtype=config.moment_dtype)] if config.b1 else []
        return optax.chain(
            scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            *moment,
            optax.add_decayed_weights(config.weight_decay),
        )
    return optax.chain(
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps, mu_dtype=config.moment_dtype),
        optax.add_decayed_weights(config.weight_decay),
    )


def scale_by_factored_rms() -> optax.GradientTransformation:
    """Adafactor's second moment (Shazeer and Stern 2018, https://arxiv.org/abs/1804.04235, sections 3 and 7).

    Of a matrix whose sides are both `_FACTORED_FROM` or more, only the means over its rows and over its columns are
    kept (of an array with more axes, over its two longest ones); decay 1 − t^−0.8.

    optax's transformation, whose state here keeps the logical axes of the parameters' boxes, so that it is sharded
    like them: the mean over an axis has the names of the others.
    """
    inner = optax.scale_by_factored_rms(min_dim_size_to_factor=_FACTORED_FROM)

    def init(params: PyTree) -> optax.FactoredState:
        state = inner.init(meta.unbox(params))

        def boxed(moments: PyTree, dropped: int | None) -> PyTree:
            return jax.tree.map(
                lambda param, moment: _box_of_the_rest(param, moment, dropped),
                params,
                moments,
                is_leaf=lambda leaf: isinstance(leaf, meta.AxisMetadata),
            )

        return state._replace(v_row=boxed(state.v_row, -1), v_col=boxed(state.v_col, -2), v=boxed(state.v, None))

    return optax.GradientTransformation(init, inner.update)


_FACTORED_FROM = 128


def _box_of_the_rest(param: PyTree, moment: Array, dropped: int | None) -> PyTree:
    """A moment in its parameter's box, less the axis that its mean is over: -1 for the longest one, -2 for the next."""
    if not isinstance(param, meta.AxisMetadata):
        return moment
    (value,) = jax.tree.leaves(param)
    axes = list(range(value.ndim))
    if dropped is not None and len(axes) > 1:
        axes.remove(int(np.argsort(value.shape)[dropped]))
    # Where a parameter needs no such moment, optax keeps a vector of length 1 in its place.
    needed = moment.shape == tuple(value.shape[axis] for axis in axes)
    return param.replace_boxed(moment).replace(names=tuple(param.names[axis] for axis in axes) if needed else (None,))


class ScaledHalf(NamedTuple):
    """A moment of a float16 parameter: float16 `values`, to be multiplied by the float32 scalar `scale`."""

    values: PyTree
    scale: PyTree


def scale_by_original_adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """The original's Adam (spec training 2): sqrt(1 − b2^t) / (1 − b1^t) · (m / (sqrt(v) + eps) + weight_decay · p).

    Textbook Adam adds eps to the root of the *corrected* second moment, and corrects no weight decay.

    Gradients may be of any floating dtype. Directions are float32, and so are the moments, except those of float16
    parameters, which are stored as `ScaledHalf`. The state is optax's `ScaleByAdamState`.
    """

    def init(params: PyTree) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(_zero_moment, params, is_leaf=lambda leaf: isinstance(leaf, meta.AxisMetadata))
        return optax.ScaleByAdamState(count=jnp.int32(0), mu=zeros, nu=jax.tree.map(jnp.copy, zeros))

    def update(
        gradients: PyTree, state: optax.ScaleByAdamState, params: PyTree
    ) -> tuple[PyTree, optax.ScaleByAdamState]:
        count = optax.safe_increment(state.count)
        gradients = jax.tree.map(lambda g: g.astype(jnp.float32), gradients)
        mu = jax.tree.map(lambda g, m: b1 * _load(m) + (1 - b1) * g, gradients, state.mu)
        nu = jax.tree.map(lambda g, v: b2 * _load(v) + (1 - b2) * jnp.square(g), gradients, state.nu)
        correction = jnp.sqrt(_one_minus_power(b2, count)) / _one_minus_power(b1, count)

        def direction(p: Array, m: Array, v: Array) -> Array:
            return correction * (m / (jnp.sqrt(v) + eps) + weight_decay * p.astype(jnp.float32))

        stored = optax.ScaleByAdamState(
            count=count, mu=jax.tree.map(_store, params, mu), nu=jax.tree.map(_store, params, nu)
        )
        return jax.tree.map(direction, params, mu, nu), stored

    return optax.GradientTransformation(init, update)


def _one_minus_power(base: float, count: Int[Array, ""]) -> Float[Array, ""]:
    """1 − base^count, exact to float32 where base^count is nearly 1."""
    return -jnp.expm1(count * (math.log(base) if base else -math.inf))


_HALF_TINY = 1e-8
_HALF_LARGEST = 65504.0


def _zero_moment(param: PyTree) -> PyTree:
    """For a parameter, or for Linen's box around one: the moments' values keep the box, a scale needs none."""
    (value,) = jax.tree.leaves(param)
    if value.dtype == jnp.float16:
        return ScaledHalf(jax.tree.map(jnp.zeros_like, param), jnp.float32(_HALF_TINY))
    return jax.tree.map(lambda leaf: jnp.zeros_like(leaf, dtype=jnp.float32), param)


def _store(param: Array, moment: Array) -> Array | ScaledHalf:
    if param.dtype != jnp.float16:
        return moment
    scale = _HALF_TINY + jnp.max(jnp.abs(moment)) / _HALF_LARGEST
    return ScaledHalf((moment / scale).astype(jnp.float16), scale)


def _load(moment: Array | ScaledHalf) -> Array:
    if isinstance(moment, ScaledHalf):
        return moment.values.astype(jnp.float32) * moment.scale
    return moment


# ---- Learning rate ----------------------------------------------------------------------------------------------


def learning_rate(config: OptimizerConfig, step: Int[Array, ""], total_steps: Int[Array, ""]) -> Float[Array, ""]:
    """The learning rate of the update that follows `step` finished steps out of `total_steps`.

    The schedules "original" and "original_linear" do not depend on the run's length; their warm-up starts at zero.
    """
    if config.schedule in ("original", "original_linear"):
        return config.learning_rate * _original_multiplier(config, step)
    step, total = jnp.asarray(step, jnp.float32), jnp.asarray(total_steps, jnp.float32)
    warmup = jnp.minimum(1.0, (step + 1) / max(config.warmup_steps, 1))
    progress = jnp.clip((step - config.warmup_steps) / jnp.maximum(total - config.warmup_steps, 1.0), 0.0, 1.0)
    remaining = {
        "constant": lambda: jnp.ones_like(progress),
        "linear": lambda: 1.0 - progress,
        "cosine": lambda: 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
    }[config.schedule]()
    final = config.final_learning_rate
    return config.learning_rate * warmup * (final + (1.0 - final) * remaining)


def _original_multiplier(config: OptimizerConfig, step: Int[Array, ""]) -> Float[Array, ""]:
    """Spec training 3, its `lr_scale` apart; whole numbers are subtracted and divided as such, hence exactly."""
    warmup = jnp.minimum(1.0, step / config.warmup_steps) if config.warmup_steps else jnp.float32(1.0)
    if config.decay_steps is None:
        return warmup
    if config.schedule == "original":
        return warmup * jnp.float32(config.decay_factor) ** (step // config.decay_steps)
    past = jnp.maximum(step - config.decay_start, 0)
    return warmup * (jnp.maximum(config.decay_steps - past, 0) / config.decay_steps)


# ---- Clipping ---------------------------------------------------------------------------------------------------


def global_norm(gradients: PyTree) -> Float[Array, ""]:
    """The L2 norm over all gradients, in float32 (spec training 4)."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(gradients)))


def clip(
    config: OptimizerConfig,
    gradients: PyTree,
    norm: Float[Array, ""],
    loss_scale: Float[Array, ""] | None = None,
) -> PyTree:
    """Divides by loss_scale · max(1, norm / clip_norm), in float32 (spec training 4).

    Args:
      norm: of the gradients without loss scale.
      loss_scale: by which the gradients are too large; None for 1.

    Returns:
      Gradients in their own dtypes, which optax wants, and in float32 for "original": what the scale has saved from
      underflow is not lost again.
    """
    divisor = None if config.clip_norm is None else jnp.maximum(1.0, norm / config.clip_norm)
    if loss_scale is not None:
        divisor = loss_scale if divisor is None else loss_scale * divisor
    if divisor is None:
        return gradients
    own = config.rule != "original"
    return jax.tree.map(lambda leaf: (leaf / divisor).astype(leaf.dtype if own else jnp.float32), gradients)


# ---- Average of the weights -------------------------------------------------------------------------------------


def default_ema_decay(batch_size: int) -> float:
    """The original's decay for a batch over all devices: 1 − (batch_size / 8) / 1000 (spec training 5)."""
    return 1.0 - (batch_size / 8) / 1000


def create_ema(params: PyTree) -> PyTree:
    """The average before the first update: a copy, in float32 at least, or half steps would be lost in it."""
    return jax.tree.map(lambda p: jnp.array(p, jnp.promote_types(p.dtype, jnp.float32)), params)


def update_ema(ema: PyTree, params: PyTree, updates: Int[Array, ""], decay: float, every: int = 1) -> PyTree:
    """The average after an update: on every `every`-th one decay^every · ema + (1 − decay^every) · params.

    Args:
      updates: number of updates so far, this one included.
    """
    weight = 1.0 - decay**every
    moved = jax.tree.map(lambda a, p: a + weight * (p - a), ema, params)
    if every == 1:
        return moved
    return jax.tree.map(lambda new, old: jnp.where(updates % every == 0, new, old), moved, ema)
