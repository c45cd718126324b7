"""What the VQ-VAE is trained on: reconstruction, multi-resolution spectral and commitment losses (spec: VQ-VAE, 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jukebox_jax.audio.spectral import (
    REFERENCE,
    STFT,
    log_magnitude_distance,
    magnitude_stfts,
    spectral_convergence,
    spectral_distance,
)
from jukebox_jax.errors import UserError
from jukebox_jax.models.codebook import Codebook, Quantised, RandomRows, draw_rows, quantise, quantise_and_learn
from jukebox_jax.models.vqvae import VQVAE, VQVAEConfig

Waveform = Literal["l1", "l2", "linf", "lmix"]


#: Magnitudes at `REFERENCE`, and at the resolutions of a config.
Spectra = tuple[Float[Array, "b _ _"], ...]


@dataclass(frozen=True)
class CodecLossConfig:
    """Weights of the terms, the transforms of the multi-resolution term, and the codebook's learning rule."""

    loss: Waveform = "lmix"
    lmix_l1: float = 0.0
    lmix_l2: float = 1.0
    lmix_linf: float = 0.02
    linf_k: int = 2048
    spectral: float = 0.0
    multispectral: float = 1.0
    commit: float = 0.02
    relative_spectral: bool = False  # True: spectral convergence in place of the absolute spectral loss
    multispectral_n_fft: tuple[int, ...] = (2048, 1024, 512)
    multispectral_hop: tuple[int, ...] = (240, 120, 50)
    multispectral_window: tuple[int, ...] = (1200, 600, 240)
    codebook_decay: float = 0.99
    revival_threshold: float = 1.0

    def __post_init__(self):
        if self.loss not in get_args(Waveform):
            raise UserError(f"loss.loss={self.loss} is unknown: choose one of {', '.join(get_args(Waveform))}.")
        weights = ("lmix_l1", "lmix_l2", "lmix_linf", "spectral", "multispectral", "commit", "revival_threshold")
        for name in weights:
            if getattr(self, name) < 0:
                raise UserError(f"loss.{name}={getattr(self, name)} is negative: choose 0 or more.")
        if self.linf_k < 1:
            raise UserError(f"loss.linf_k={self.linf_k} is too small: choose at least 1.")
        if not 0 <= self.codebook_decay < 1:
            raise UserError(f"loss.codebook_decay={self.codebook_decay} is not in [0, 1): choose a value that is.")
        names = ("multispectral_n_fft", "multispectral_hop", "multispectral_window")
        for name in names:
            sizes = getattr(self, name)
            if not sizes or len(sizes) != len(self.multispectral_n_fft):
                raise UserError(
                    f"loss.{name} has {len(sizes)} entries and loss.{names[0]} {len(self.multispectral_n_fft)}: "
                    "give both the same number, one for each transform and at least one."
                )
            if min(sizes) < 1:
                raise UserError(f"loss.{name}={sizes}: every entry must be at least 1.")
        if any(stft.window > stft.n_fft for stft in self.resolutions):
            raise UserError(
                f"loss.multispectral_window={self.multispectral_window} has an entry above the one of "
                f"loss.multispectral_n_fft={self.multispectral_n_fft}: a window cannot be longer than its transform."
            )

    @property
    def resolutions(self) -> tuple[STFT, ...]:
        """The transforms that the multi-resolution loss averages over."""
        settings = zip(self.multispectral_n_fft, self.multispectral_hop, self.multispectral_window, strict=True)
        return tuple(STFT(*setting) for setting in settings)


@dataclass(frozen=True)
class Bandwidth:
    """Scales of the data that the losses are divided by (spec: VQ-VAE, section 5)."""

    l1: float = 1.0
    l2: float = 1.0
    spec: float = 1.0


def per_item(function: Callable[..., Array]) -> Callable[..., Array]:
    """`function`, of arrays (b, …) to an array (b, …), for each device's own items of the batch.

    XLA divides neither Fourier transforms nor `top_k` over devices: every device would gather and transform all items.
    """
    if not nn.get_logical_axis_rules() or jax.sharding.get_abstract_mesh().empty:
        return function
    items = nn.logical_to_mesh_axes(("batch",))
    return jax.shard_map(function, in_specs=items, out_specs=items)


def audio_losses(
    config: CodecLossConfig, bandwidth: Bandwidth, target: Float[Array, "b t"], prediction: Float[Array, "b t"]
) -> dict[str, Float[Array, ""]]:
    """The waveform terms `l1`, `l2`, `linf` and the configured `recons`, each relative to the bandwidth."""
    residual = prediction - target
    squared = jnp.square(residual)
    largest = per_item(lambda x: jax.lax.top_k(x, min(config.linf_k, x.shape[-1]))[0])(squared)
    terms = {
        "l1": jnp.mean(jnp.abs(residual)) / bandwidth.l1,
        "l2": jnp.mean(squared) / bandwidth.l2,
        "linf": jnp.mean(largest) / bandwidth.l2,
    }
    weights = {"l1": config.lmix_l1, "l2": config.lmix_l2, "linf": config.lmix_linf}
    if config.loss == "lmix":
        terms["recons"] = sum(weight * terms[name] for name, weight in weights.items() if weight)
    else:
        terms["recons"] = terms[config.loss]
    return terms


def spectral_losses(
    config: CodecLossConfig, bandwidth: Bandwidth, target: Spectra, prediction: Spectra
) -> dict[str, Float[Array, ""]]:
    """The `spectral` term at the reference resolution and the `multispectral` mean over the configured ones."""
    # With weight zero it is only a metric: its gradient would be computed just to be multiplied by zero.
    prediction_for_metric = prediction[0] if config.spectral else jax.lax.stop_gradient(prediction[0])
    if config.relative_spectral:
        spectral = jnp.mean(spectral_convergence(target[0], prediction_for_metric))
    else:
        spectral = jnp.mean(spectral_distance(target[0], prediction_for_metric)) / bandwidth.spec
    distances = [jnp.mean(spectral_distance(*pair)) for pair in zip(target[1:], prediction[1:], strict=True)]
    return {"spectral": spectral, "multispectral": sum(distances) / len(distances) / bandwidth.spec}


def codec_losses(
    model: VQVAEConfig,
    config: CodecLossConfig,
    bandwidth: Bandwidth,
    params: dict,
    codebooks: tuple[Codebook, ...],
    audio: Float[Array, "b t 1"],
    key: Array | None,
    rows: Sequence[RandomRows] | None = None,
) -> tuple[Float[Array, ""], tuple[Codebook, ...], dict[str, Float[Array, ""]]]:
    """The loss summed over levels, the codebooks after the step, and the metrics of the spec.

    Metrics of level l carry the suffix `_l{l + 1}`. Without a suffix the reconstruction, spectral and commitment losses
    are sums over the levels, the quantiser's metrics means, and all others those of the finest level.

    Args:
      key: of the random rows that dead codes are replaced by; None: nothing is learnt, the forward pass of evaluation,
        without quantiser metrics.
      rows: these rows of each level, in place of new ones.
    """
    vqvae = VQVAE(model)
    target = audio[..., 0].astype(jnp.float32)
    spectra = per_item(partial(magnitude_stfts, (REFERENCE, *config.resolutions)))
    target_spectra = predicted_spectra = spectra(target)
    metrics: dict[str, Float[Array, ""]] = {}
    codebooks_after = []
    quantised_levels: list[Quantised] = []
    totals = dict.fromkeys(("recons", "spectral", "multispectral"), 0.0)
    for level in range(model.levels):
        with jax.named_scope(f"level_{level}"):
            latents = vqvae.apply({"params": params}, audio, level, method="encode_latents")
            if key is None and rows is None:
                quantised, codebook = quantise(codebooks[level].codes, latents), codebooks[level]
            else:
                if rows is None:
                    drawn = draw_rows(jax.random.fold_in(key, level), latents, model.codes)
                else:
                    drawn = rows[level]
                quantised, codebook = quantise_and_learn(
                    codebooks[level], latents, drawn, config.codebook_decay, config.revival_threshold
                )
            output = vqvae.apply({"params": params}, quantised.vectors, level, method="decode_latents")
            prediction = output[..., 0].astype(jnp.float32)
            terms = audio_losses(config, bandwidth, target, prediction)
            predicted_spectra = spectra(prediction, predicted_spectra[-1])
            terms |= spectral_losses(config, bandwidth, target_spectra, predicted_spectra)
        for name in totals:
            totals[name] += terms[name]
        measured = jax.lax.stop_gradient(predicted_spectra[0])
        own = {f"{name}_loss": value for name, value in terms.items()} | {
            "commit_loss": quantised.commit_loss,
            "log_magnitude_loss": jnp.mean(log_magnitude_distance(target_spectra[0], measured)),
            "spectral_convergence": jnp.mean(spectral_convergence(target_spectra[0], measured)),
        }
        if level == 0:
            # Without a suffix these mean the finest level; the others, below, sums and means over the levels.
            metrics |= own
        metrics |= {f"{name}_l{level + 1}": value for name, value in own.items()}
        codebooks_after.append(codebook)
        quantised_levels.append(quantised)

    commit = sum(quantised.commit_loss for quantised in quantised_levels)
    loss = (
        totals["recons"]
        + config.spectral * totals["spectral"]
        + config.multispectral * totals["multispectral"]
        + config.commit * commit
    )
    metrics |= {f"{name}_loss": total for name, total in totals.items()} | {"commit_loss": commit}
    for name in quantised_levels[0].metrics:
        values = [quantised.metrics[name] for quantised in quantised_levels]
        metrics |= {f"{name}_l{level + 1}": value for level, value in enumerate(values)}
        metrics[name] = sum(values) / len(values)
    return loss, tuple(codebooks_after), metrics
