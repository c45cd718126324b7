"""A prior as a task: what the trainer needs to know of a transformer over codes."""

from __future__ import annotations

import jax.numpy as jnp

from jukebox_jax.models.prior import Prior, PriorConfig, batch_spec, bits_per_token, flops_per_token
from jukebox_jax.training.task import Task


def prior_task(model: PriorConfig) -> Task:
    """Training on windows of codes; the loss is in bits per token, and so is the metric `bits_per_token`."""
    spec = batch_spec(model)

    def init(key):
        batch = {name: jnp.zeros((1, *leaf.shape), leaf.dtype) for name, leaf in spec.items()}
        return Prior(model).init(key, batch)["params"], {}

    def loss_fn(params, model_state, batch, key):
        del key  # every dropout rate of the original is zero
        loss = bits_per_token(Prior(model).apply({"params": params}, batch), batch["tokens"])
        return loss, model_state, {"bits_per_token": loss}

    return Task(
        init=init,
        loss=loss_fn,
        flops_per_example=3 * flops_per_token(model) * model.n_ctx,
        batch_spec=spec,
    )
