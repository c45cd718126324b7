"""Short-time Fourier transforms and the spectral measures built on them (spec: VQ-VAE, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@dataclass(frozen=True)
class STFT:
    """One resolution of the magnitude transform, all three numbers in samples."""

    n_fft: int
    hop: int
    window: int


#: The fixed transform of the spectral loss and of spectral convergence.
REFERENCE = STFT(2048, 256, 1536)

#: Below this norm a target counts as silent, and its spectral convergence as 0.
SILENCE_NORM = 2e-3


def magnitude_stft(audio: Float[Array, "b t"], stft: STFT) -> Float[Array, "b frames bins"]:
    """Magnitudes of the centred, reflect-padded, Hann-windowed, one-sided, unnormalised transform.

    `frames` is 1 + t // hop, `bins` n_fft // 2 + 1. The gradient is finite (zero) where a magnitude is zero.
    """
    padded = jnp.pad(audio, ((0, 0), (stft.n_fft // 2, stft.n_fft // 2)), mode="reflect")
    # The Hann window is shorter than n_fft and zero-padded on both sides: only its own samples are framed.
    left = (stft.n_fft - stft.window) // 2
    framed = _frames(padded[:, left:], 1 + audio.shape[1] // stft.hop, stft.hop, stft.window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(stft.window) / stft.window)
    # rfft pads with zeros on the right; the circular shift this amounts to does not change a magnitude.
    spectrum = jnp.fft.rfft(framed * hann.astype(np.float32), n=stft.n_fft)
    return safe_sqrt(jnp.square(spectrum.real) + jnp.square(spectrum.imag))


def _frames(audio: Float[Array, "b t"], frames: int, hop: int, window: int) -> Float[Array, "b frames window"]:
    """Side by side the hops that a window spans: shifted copies, as a gather, and the scatter of its gradient, take
    XLA's TPU compiler and CPUs longer."""
    spanned = -(-window // hop)
    length = (frames + spanned - 1) * hop
    audio = jnp.pad(audio[:, :length], ((0, 0), (0, max(0, length - audio.shape[1]))))
    hops = audio.reshape(audio.shape[0], -1, hop)
    return jnp.concatenate([hops[:, first : first + frames] for first in range(spanned)], axis=-1)[..., :window]


def magnitude_stfts(
    stfts: Sequence[STFT], audio: Float[Array, "b t"], after: Float[Array, "b _ _"] | None = None
) -> tuple[Float[Array, "b _ _"], ...]:
    """`magnitude_stft` at several resolutions, one after the other, and all of them after `after`, another spectrogram.

    On CPUs XLA runs at once whatever is ready, and a Fourier transform waits for threads of the pool that it runs on
    itself: two of them on two cores can wait for each other for ever (seen in jaxlib 0.11.2;
    https://github.com/openxla/xla/pull/46347 changed what prevented it). So here none is ready before the one before it
    is done, backward neither.
    """
    found = []
    for stft in stfts:
        if after is not None:
            audio = audio + 0.0 * after[:, 0, :1]
        after = magnitude_stft(audio, stft)
        found.append(after)
    return tuple(found)


def safe_sqrt(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Square root whose gradient at exactly zero is zero, as digital silence needs it."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def item_norm(magnitudes: Float[Array, "b frames bins"]) -> Float[Array, " b"]:
    """Frobenius norm of every item."""
    return safe_sqrt(jnp.sum(jnp.square(magnitudes), axis=(1, 2)))


def spectral_distance(
    target: Float[Array, "b frames bins"], prediction: Float[Array, "b frames bins"]
) -> Float[Array, " b"]:
    """Frobenius norm of the difference of two magnitude spectrograms, per item."""
    return item_norm(target - prediction)


def spectral_convergence(
    target: Float[Array, "b frames bins"], prediction: Float[Array, "b frames bins"]
) -> Float[Array, " b"]:
    """Distance of spectrograms at `REFERENCE` relative to the target's norm, per item, as a linear ratio; 0 for
    silence."""
    norm = item_norm(target)
    return spectral_distance(target, prediction) * (norm > SILENCE_NORM) / jnp.maximum(norm, SILENCE_NORM)


def log_magnitude_distance(
    target: Float[Array, "b frames bins"], prediction: Float[Array, "b frames bins"]
) -> Float[Array, " b"]:
    """Mean absolute difference of the natural-log magnitudes (offset 1e-4) at `REFERENCE`, per item."""
    return jnp.mean(jnp.abs(jnp.log(target + 1e-4) - jnp.log(prediction + 1e-4)), axis=(1, 2))
