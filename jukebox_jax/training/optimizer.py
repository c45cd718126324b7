"""AdamW's direction, the learning rate, clipping, and the average of the weights.

The learning rate is not part of the optax transformation: it is a function of (step, total steps), and the latter is
known only once a time budget has been measured, long after compilation.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jukebox_jax.training.config import OptimizerConfig

PyTree = Any


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """The descent direction of AdamW for already clipped gradients; scale it with minus the learning rate."""
    return optax.chain(
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay),
    )


def learning_rate(config: OptimizerConfig, step: Int[Array, ""], total_steps: Int[Array, ""]) -> Float[Array, ""]:
    """The learning rate of the update that follows `step` finished steps out of `total_steps`."""
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


def global_norm(gradients: PyTree) -> Float[Array, ""]:
    """The L2 norm over all gradients, in float32 (spec training 4)."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(gradients)))


def clip(config: OptimizerConfig, gradients: PyTree, norm: Float[Array, ""]) -> PyTree:
    """Divides by max(1, norm / clip_norm) (spec training 4)."""
    if config.clip_norm is None:
        return gradients
    divisor = jnp.maximum(1.0, norm / config.clip_norm)
    return jax.tree.map(lambda leaf: (leaf / divisor).astype(leaf.dtype), gradients)


def update_ema(config: OptimizerConfig, ema: PyTree | None, params: PyTree) -> PyTree | None:
    """ema · decay + params · (1 − decay); it starts as a copy of the parameters (spec training 5)."""
    if config.ema_decay is None:
        return None
    return jax.tree.map(lambda a, p: a + (1.0 - config.ema_decay) * (p - a), ema, params)
