"""A prior as a task: what the trainer needs to know of a transformer over codes."""

from __future__ import annotations

import jax.numpy as jnp

from jukebox_jax.models.prior import Prior, PriorConfig, batch_spec, flops_per_window, init_params, prior_loss
from jukebox_jax.training.task import Alarm, Task

# spec training 4; guessing among 2048 codes costs 11 bits.
_DIVERGING = Alarm("loss", "The loss is {value:.4g} at step {step}, above 12: training may be diverging.", above=12.0)


def prior_task(model: PriorConfig) -> Task:
    """Training on windows of codes.

    The loss is in bits per token, and so are the metrics `bits_per_token`, of the music alone, and, with lyrics,
    `lyric_bits_per_token`.
    """

    def init(key):
        return init_params(model, key), {}

    def loss_fn(params, model_state, batch, key):
        del key  # every dropout rate of the original is zero
        bits = Prior(model).apply({"params": params}, batch, method="bits")
        metrics = {"bits_per_token": jnp.mean(bits.music)}
        if model.lyrics is not None:
            metrics["lyric_bits_per_token"] = jnp.mean(bits.lyrics)
        return prior_loss(model, bits), model_state, metrics

    return Task(
        init=init,
        loss=loss_fn,
        flops_per_example=3 * flops_per_window(model),
        batch_spec=batch_spec(model),
        unit="tokens",
        units_per_example=model.n_ctx,
        alarms=(_DIVERGING,),
    )
