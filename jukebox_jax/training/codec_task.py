"""The codec as a task: what the trainer needs to know of the VQ-VAE."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jukebox_jax.models.losses import Bandwidth, CodecLossConfig, codec_losses
from jukebox_jax.models.vqvae import VQVAEConfig, flops_per_sample, init_codec, untrained_codebooks
from jukebox_jax.training.task import Task


def codec_task(model: VQVAEConfig, loss: CodecLossConfig, bandwidth: Bandwidth, window_samples: int) -> Task:
    """Training on windows of mono audio: batches hold `audio`, float32 (b, window_samples, 1)."""

    def init(key):
        params = init_codec(model, key)
        return params, untrained_codebooks(model)

    def loss_fn(params, codebooks, batch, key):
        return codec_losses(model, loss, bandwidth, params, codebooks, batch["audio"], key)

    return Task(
        init=init,
        loss=loss_fn,
        # The backward pass multiplies by the transposed kernels twice.
        flops_per_example=3 * flops_per_sample(model) * window_samples,
        batch_spec={"audio": jax.ShapeDtypeStruct((window_samples, 1), jnp.float32)},
    )
