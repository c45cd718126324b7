"""How well a codec does: held-out losses while it trains, spectral convergence and codebook use afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import log10

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jukebox_jax.audio.spectral import REFERENCE, magnitude_stft, magnitude_stfts, spectral_convergence
from jukebox_jax.evaluation.placement import everywhere, placed
from jukebox_jax.models.losses import Bandwidth, CodecLossConfig, codec_losses
from jukebox_jax.models.vqvae import VQVAEConfig
from jukebox_jax.pipeline.dataset import Dataset
from jukebox_jax.pipeline.stream import Stream

#: At most this many windows are evaluated while training; always the same ones.
EVALUATION_WINDOWS = 64


def codec_evaluation(
    model: VQVAEConfig,
    loss: CodecLossConfig,
    bandwidth: Bandwidth,
    dataset: Dataset,
    window_samples: int,
    batch_size: int,
) -> Callable[[dict, tuple], Mapping[str, float]] | None:
    """A function (params, codebooks) → mean losses over fixed held-out windows; None without held-out songs.

    Under the mesh and the rules of training it computes there, a part of each batch on every device; on several hosts,
    all of them call it.
    """
    if not dataset.splits["validation"]:
        return None
    stream = Stream(dataset, "validation", window_samples, batch_size=batch_size, shuffle=False, shift=False)

    @jax.jit
    def losses(params, codebooks, audio):
        total, _, metrics = codec_losses(model, loss, bandwidth, params, codebooks, audio, None)
        return everywhere(metrics | {"loss": total})

    def evaluate(params, codebooks) -> Mapping[str, float]:
        windows = min(stream.n_windows, EVALUATION_WINDOWS)
        rows = [
            jax.device_get(losses(params, codebooks, placed(stream.batch(0, position))["audio"]))
            for position in range(0, windows, batch_size)
        ]
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    return evaluate


@jax.jit
def convergence(original: Float[Array, "b t 1"], reproduced: Float[Array, "b t 1"]) -> Float[Array, " b"]:
    """Spectral convergence of every item as a linear ratio."""
    (target,) = magnitude_stfts([REFERENCE], original[..., 0])
    return spectral_convergence(target, *magnitude_stfts([REFERENCE], reproduced[..., 0], target))


def band_level_db(audio: Float[Array, "b t 1"], band_hz: tuple[float, float], sample_rate: int) -> float:
    """Mean power in dB of the frequencies in [low, high), over all items and frames; waits for it, as programs with
    transforms may no more run side by side than transforms (`magnitude_stfts`)."""
    return float(_band_level_db(audio, band_hz, sample_rate))


@partial(jax.jit, static_argnames=("band_hz", "sample_rate"))
def _band_level_db(audio: Float[Array, "b t 1"], band_hz: tuple[float, float], sample_rate: int) -> Float[Array, ""]:
    power = jnp.mean(jnp.square(magnitude_stft(audio[..., 0], REFERENCE)), axis=(0, 1))
    frequency = np.arange(power.shape[0]) * sample_rate / REFERENCE.n_fft
    inside = (frequency >= band_hz[0]) & (frequency < band_hz[1])
    return 10 * jnp.log10(jnp.mean(power[inside]) + 1e-12)


def decibel(ratio: float) -> float:
    """20 log10 of a ratio of magnitudes."""
    return 20 * log10(max(ratio, 1e-12))
