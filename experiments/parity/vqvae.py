"""Set a: the VQ-VAE: codes, audio, spectral measures, losses with their gradients, and the learning codebooks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from math import prod

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity.fixture import Reader
from experiments.parity.report import (
    AUDIO,
    CODEBOOK,
    GRADIENT,
    NEAR_TIE,
    OTHER,
    SPECTRAL,
    Check,
    Tolerance,
)
from jukebox_jax.audio.spectral import (
    REFERENCE,
    item_norm,
    log_magnitude_distance,
    magnitude_stfts,
    spectral_convergence,
    spectral_distance,
)
from jukebox_jax.interop.hparams import codec_config, codec_loss_config
from jukebox_jax.interop.layout import codec_from_state, codec_to_state
from jukebox_jax.models.codebook import Codebook, RandomRows
from jukebox_jax.models.losses import Bandwidth, CodecLossConfig, codec_losses
from jukebox_jax.models.vqvae import VQVAE, Codec, VQVAEConfig, decode, encode
from jukebox_jax.training.optimizer import global_norm

_SUMMED = ("recons_loss", "spectral_loss", "multispectral_loss")
_SINGLE = ("spectral_convergence", "l2_loss", "l1_loss", "linf_loss", "commit_loss")
_QUANTISER = ("fit", "pn", "entropy", "used_curr", "usage", "dk")


def checks(recorded: Reader) -> Iterator[Check]:
    config = codec_config(recorded.config["hps"])
    loss = codec_loss_config(recorded.config["hps"])
    bandwidth = Bandwidth(**{name: float(recorded.config["bandwidth"][name]) for name in ("l1", "l2", "spec")})
    codec = jax.tree.map(jnp.asarray, codec_from_state(config, recorded.below("sd/")))
    audio = jnp.asarray(recorded["in/x"])
    yield from _codes(recorded, config, codec, audio)
    yield from _spectra(recorded, loss, audio)
    yield from _evaluation(recorded, config, loss, bandwidth, codec, audio)
    for case in ("ema_norestart", "ema_restart", "ema_tile", "ema_init"):
        yield from _training(recorded, case, config, loss, bandwidth, codec, audio)
    described = recorded.fixture.tree["arrays"]["out/restore_k/k_sum"].get("desc", "")
    tokens = int(re.search(r"num_tokens=(\d+)", described)[1])
    restored = Codebook.restored(codec.codebooks[0], tokens / config.codes)
    yield Check("out/restore_k/k_sum", restored.sums, CODEBOOK)
    yield Check("out/restore_k/k_elem", restored.counts, CODEBOOK)


def _codes(recorded: Reader, config: VQVAEConfig, codec: Codec, audio: jax.Array) -> Iterator[Check]:
    for level in range(config.levels):
        latents = _latents(config, codec, audio, level)
        yield Check(f"out/enc_l{level}", latents.transpose(0, 2, 1), AUDIO)
        given = recorded[f"out/z_l{level}"]
        codes = np.asarray(encode(config, codec, audio, (level,))[0])
        codes = settled_codes(config, codec, audio, level, codes, given)
        yield Check(f"out/z_l{level}", codes)
        yield Check(f"out/dec_from_l{level}", decode(config, codec, jnp.asarray(given), level), AUDIO)
    random_top = jnp.asarray(recorded["in/z_rand_top"])
    yield Check("out/dec_rand_top", decode(config, codec, random_top, config.levels - 1), AUDIO)


def settled_codes(
    config: VQVAEConfig, codec: Codec, audio: jax.Array, level: int, codes: np.ndarray, recorded: np.ndarray
) -> np.ndarray:
    """The codes, or where the recorded ones are as near to the latents but for rounding, those."""
    if recorded.shape != codes.shape or recorded.min() < 0 or recorded.max() >= config.codes:
        return codes
    distance = _distances(_latents(config, codec, audio, level), codec.codebooks[level])
    chosen = np.take_along_axis(distance, recorded.reshape(-1, 1), axis=1)[:, 0]
    tied = (chosen - distance.min(axis=1)).reshape(codes.shape) < NEAR_TIE
    return np.where(tied, recorded, codes)


def _spectra(recorded: Reader, loss: CodecLossConfig, audio: jax.Array) -> Iterator[Check]:
    target, prediction = audio[..., 0], jnp.asarray(recorded["out/dec_from_l0"])[..., 0]
    resolutions = (REFERENCE, *loss.resolutions)
    targets = magnitude_stfts(resolutions, target)
    predictions = magnitude_stfts(resolutions, prediction, targets[-1])
    yield Check("out/specnorm_default", item_norm(targets[0]), SPECTRAL)
    for index, spectrum in enumerate(targets[1:]):
        yield Check(f"out/specnorm_ms{index}", item_norm(spectrum), SPECTRAL)
    yield Check("out/spec_in_lastms_item0", targets[-1][0].T, OTHER)
    distance, *distances = (spectral_distance(*pair) for pair in zip(targets, predictions, strict=True))
    yield Check("out/spectral_loss_vec", distance, SPECTRAL)
    yield Check("out/multispectral_loss_vec", sum(distances) / len(distances), SPECTRAL)
    yield Check("out/spectral_convergence_vec", spectral_convergence(targets[0], predictions[0]), SPECTRAL)
    yield Check("out/log_magnitude_loss", jnp.mean(log_magnitude_distance(targets[0], predictions[0])), OTHER)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _evaluate(config, loss, kinds, bandwidth, params, codebooks, audio):
    """Loss and metrics for every kind of waveform loss, and the gradient of the configured one."""

    def of_kind(params, kind):
        value, _, metrics = codec_losses(config, replace(loss, loss=kind), bandwidth, params, codebooks, audio, None)
        return value, metrics

    return {kind: of_kind(params, kind) for kind in kinds}, jax.grad(of_kind, has_aux=True)(params, loss.loss)[0]


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _learn(config, loss, bandwidth, differentiate, params, codebooks, rows, audio):
    """Loss, codebooks after the step and metrics, with the gradient if asked to `differentiate`."""

    def total(params):
        value, after, metrics = codec_losses(config, loss, bandwidth, params, codebooks, audio, None, rows)
        return value, (after, metrics)

    if differentiate:
        return jax.value_and_grad(total, has_aux=True)(params)
    return total(params), None


def _evaluation(
    recorded: Reader, config: VQVAEConfig, loss: CodecLossConfig, bandwidth: Bandwidth, codec: Codec, audio: jax.Array
) -> Iterator[Check]:
    codebooks = tuple(Codebook.restored(codes, 1.0) for codes in codec.codebooks)
    kinds = {name.split("/")[2] for name in recorded if name.startswith("out/eval/")} | {loss.loss}
    results, gradient = _evaluate(config, loss, tuple(sorted(kinds)), bandwidth, codec.params, codebooks, audio)
    for kind, (value, metrics) in results.items():
        yield Check(f"out/eval/{kind}/loss", value, OTHER)
        yield from _metrics(f"out/eval/{kind}", config, metrics)
    yield from _gradient_norms(recorded, config, codec, gradient, "gradnorm_eval")


def _training(
    recorded: Reader,
    case: str,
    config: VQVAEConfig,
    loss: CodecLossConfig,
    bandwidth: Bandwidth,
    codec: Codec,
    audio: jax.Array,
) -> Iterator[Check]:
    """One training forward with the original's random draws, and the codebooks after it."""
    audio = audio[:1] if case == "ema_tile" else audio
    loss = replace(loss, revival_threshold=float(recorded.extra[f"{case}_threshold"]))
    before, rows = _codebooks_before(recorded, case, config, codec)
    if case == "ema_init":
        rows = tuple(
            own.replace(index=jnp.asarray(_choices(recorded, level, latents, loss.codebook_decay)))
            for level, own in enumerate(rows)
            for latents in [_latents(config, codec, audio, level)]
        )

    differentiate = case == "ema_norestart"
    (value, (after, metrics)), gradient = _learn(
        config, loss, bandwidth, differentiate, codec.params, before, rows, audio
    )
    if differentiate:
        yield from _gradient_norms(recorded, config, codec, gradient, "gradnorm_train")
        gradients = codec_to_state(config, codec.replace(params=gradient))
        for name in sorted(name for name in recorded if name.startswith("grad_train/")):
            yield Check(name, gradients[name.removeprefix("grad_train/")], GRADIENT)

    moved = []
    for level in range(config.levels):
        latents = _latents(config, codec, audio, level)
        yield from _draws(recorded, f"out/{case}/perm_l{level}", f"out/{case}/k_rand_l{level}", latents)
        groups = np.arange(config.codes)
        if case == "ema_init":
            yield from _draws(recorded, f"out/{case}/init_perm_l{level}", f"out/{case}/init_k_l{level}", latents)
            counts = recorded[f"out/{case}/k_elem_l{level}"]
            if not np.allclose(counts, after[level].counts, rtol=0, atol=CODEBOOK.absolute):
                groups = _near_duplicates(latents, np.asarray(rows[level].init))
        codes = np.asarray(after[level].codes)
        if len(np.unique(groups)) < config.codes:
            # Which of the copies is alive is not determined, but each must follow from its own statistics.
            own = _codes_of_statistics(recorded, case, level, loss.revival_threshold)
            codes = np.where(np.bincount(groups, minlength=config.codes)[groups, None] > 1, own, codes)
            metrics["dk"] = None
        yield Check(f"out/{case}/k_l{level}", codes, CODEBOOK)
        together = np.equal.outer(np.unique(groups), groups).astype(np.float32)
        for name, statistic in (("k_elem", after[level].counts), ("k_sum", after[level].sums)):
            yield Check(f"out/{case}/{name}_l{level}", together @ np.asarray(statistic), CODEBOOK, together.__matmul__)
        first = codec.codebooks[level] if case != "ema_init" else rows[level].init
        moved.append(np.sqrt(np.mean(np.square(recorded[f"out/{case}/k_l{level}"] - first))))
    if metrics["dk"] is None:
        metrics["dk"] = np.mean(moved, dtype=np.float32)
    yield Check(f"out/{case}/loss", value, OTHER)
    yield from _metrics(f"out/{case}/metrics", config, metrics)
    for name in _QUANTISER:
        yield Check(f"out/{case}/metrics/{name}", metrics[name], CODEBOOK)


def _codebooks_before(
    recorded: Reader, case: str, config: VQVAEConfig, codec: Codec
) -> tuple[tuple[Codebook, ...], tuple[RandomRows, ...]]:
    before, rows = [], []
    for level in range(config.levels):
        restart = jnp.asarray(recorded[f"out/{case}/k_rand_l{level}"])
        if case == "ema_init":
            before.append(Codebook.empty(config.codes, config.emb_width))
            rows.append(RandomRows(restart, jnp.asarray(recorded[f"out/{case}/init_k_l{level}"])))
        else:
            sums, counts = (jnp.asarray(recorded[f"in/{case}/{name}_l{level}"]) for name in ("k_sum", "k_elem"))
            before.append(Codebook(codec.codebooks[level], sums, counts, jnp.asarray(True)))
            rows.append(RandomRows(restart, jnp.zeros_like(restart)))
    return tuple(before), tuple(rows)


def _metrics(prefix: str, config: VQVAEConfig, metrics: dict[str, jax.Array]) -> Iterator[Check]:
    suffixes = [f"_l{level + 1}" for level in reversed(range(config.levels))]
    for name in [f"{name}{suffix}" for suffix in suffixes for name in _SUMMED] + [*_SUMMED, *_SINGLE]:
        yield Check(f"{prefix}/{name}", metrics[name], SPECTRAL if "spectral" in name else OTHER)


def _gradient_norms(recorded: Reader, config: VQVAEConfig, codec: Codec, gradient: dict, name: str) -> Iterator[Check]:
    gradients = codec_to_state(config, codec.replace(params=gradient))
    norms = [np.linalg.norm(gradients[key]) for key in recorded.extra[f"{name}_names"]]
    yield Check(name, np.asarray(norms, np.float32), GRADIENT)
    yield Check(f"{name}_total", global_norm(gradient), GRADIENT)


def _draws(recorded: Reader, perm: str, drawn: str, latents: np.ndarray) -> Iterator[Check]:
    """Whether drawn rows are the latents that the drawn indices name, with noise where the latents were tiled."""
    latents = latents.reshape(-1, latents.shape[-1])
    indices, rows = recorded[perm], recorded[drawn]
    tiled = len(latents) < len(rows)
    noise = 0.01 / latents.shape[1] ** 0.5
    tolerance = Tolerance(absolute=6 * noise) if tiled else CODEBOOK
    named = latents[indices % len(latents)]
    likeliest = np.argmin(_distances(rows, latents), axis=1)
    consistent = np.all(np.abs(rows - named) <= tolerance.absolute, axis=1)
    total = len(latents) * (-(-len(rows) // len(latents)) if tiled else 1)
    _, first = np.unique(indices, return_index=True)
    distinct = np.isin(np.arange(len(indices)), first) & (indices >= 0) & (indices < total)
    yield Check(perm, np.where(consistent & distinct, indices, np.where(distinct, likeliest, -1)).astype(np.int32))
    yield Check(drawn, named, tolerance)
    if tiled:
        yield Check(
            drawn,
            np.float32(noise),
            Tolerance(absolute=0.3 * noise),
            lambda rows: np.sqrt(np.mean(np.square(rows - named))),
            aspect="rms",
        )


def _codes_of_statistics(recorded: Reader, case: str, level: int, threshold: float) -> np.ndarray:
    sums, counts = (recorded[f"out/{case}/{name}_l{level}"] for name in ("k_sum", "k_elem"))
    alive = counts[:, None] >= threshold
    return np.where(alive, sums / np.where(alive, counts[:, None], 1), recorded[f"out/{case}/k_rand_l{level}"])


def _choices(recorded: Reader, level: int, latents: np.ndarray, decay: float) -> np.ndarray:
    """The nearest code of every latent, and where copies of it are as near but for rounding, the one that the recorded
    statistics say was taken."""
    codes = recorded[f"out/ema_init/init_k_l{level}"].astype(np.float64)
    counts = (recorded[f"out/ema_init/k_elem_l{level}"].astype(np.float64) - decay) / (1 - decay)
    sums = (recorded[f"out/ema_init/k_sum_l{level}"].astype(np.float64) - decay * codes) / (1 - decay)
    x, distance = latents.reshape(-1, latents.shape[-1]).astype(np.float64), _distances(latents, codes)
    index, near = distance.argmin(axis=1), distance < distance.min(axis=1, keepdims=True) + NEAR_TIE
    open_, groups = near.sum(axis=1) > 1, _near_duplicates(latents, codes)
    for group in np.unique(groups[index[open_]]):
        members, tokens = np.flatnonzero(groups == group), np.flatnonzero(open_ & (groups[index] == group))
        settled = np.flatnonzero(~open_ & (groups[index] == group))
        options = [np.flatnonzero(near[token]) for token in tokens]
        if prod(map(len, options)) > 4096:
            continue

        def misfit(choice, members=members, tokens=tokens, settled=settled):
            taken = np.equal.outer(members, [*index[settled], *choice]).astype(float)
            of = np.concatenate([x[settled], x[tokens]])
            return np.square(taken.sum(axis=1) - counts[members]).sum() + np.square(taken @ of - sums[members]).sum()

        index[tokens] = min(product(*options), key=misfit)
    return index.reshape(latents.shape[:-1]).astype(np.int32)


def _near_duplicates(latents: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """For each code the first code of its group: codes between which some latent's choice is a near-tie."""
    distance = _distances(latents, codes)
    near = (distance < distance.min(axis=1, keepdims=True) + NEAR_TIE).astype(int)
    linked = (near.T @ near > 0) | np.eye(len(codes), dtype=bool)
    groups = np.arange(len(codes))
    while True:
        joined = np.where(linked, groups, len(codes)).min(axis=1)
        if np.array_equal(joined, groups):
            return groups
        groups = joined


def _distances(latents: np.ndarray, codes: np.ndarray) -> np.ndarray:
    x = np.asarray(latents, np.float64).reshape(-1, latents.shape[-1])
    k = np.asarray(codes, np.float64)
    return np.square(x).sum(axis=1, keepdims=True) - 2 * x @ k.T + np.square(k).sum(axis=1)


def _latents(config: VQVAEConfig, codec: Codec, audio: jax.Array, level: int) -> np.ndarray:
    """(b, u, e), before quantisation."""
    return np.asarray(VQVAE(config).apply({"params": codec.params}, audio, level, method="encode_latents"))
