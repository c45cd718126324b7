"""The codec as a task: what the trainer needs to know of the VQ-VAE."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jukebox_jax.models.losses import Bandwidth, CodecLossConfig, codec_losses
from jukebox_jax.models.vqvae import VQVAEConfig, flops_per_sample, init_codec, untrained_codebooks
from jukebox_jax.training.task import Alarm, Task

#: A codebook collapses when fewer than this part of its codes is in use, for so many steps.
COLLAPSED_FRACTION, COLLAPSED_STEPS = 0.1, 100


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
        unit="audio_seconds",
        units_per_example=window_samples / model.sample_rate,
        alarms=tuple(_collapse(model, level) for level in range(model.levels)),
        drawn_first=True,
        batch_spec={"audio": jax.ShapeDtypeStruct((window_samples, 1), jnp.float32)},
    )


def _collapse(model: VQVAEConfig, level: int) -> Alarm:
    """Told of the codes whose moving count keeps them from being replaced (`usage`)."""
    return Alarm(
        f"usage_l{level + 1}",
        f"Level {level} uses {{value:.0f}} of {model.codes} codes at step {{step}}, and has done so for "
        f"{COLLAPSED_STEPS} steps: its codebook is collapsing. Lower train.optimizer.learning_rate, raise "
        "train.batch_size, lower loss.revival_threshold (a code is replaced when a step uses it fewer times, on "
        "average), or look for recordings that are nearly silent.",
        below=COLLAPSED_FRACTION * model.codes,
        patience=COLLAPSED_STEPS,
        after=COLLAPSED_STEPS,  # a new codebook finds its codes first
    )
