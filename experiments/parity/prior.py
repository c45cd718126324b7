"""Set c: whole priors: conditioning, losses, gradients, lyric alignment, and greedy sampling of a window."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity.fixture import Reader
from experiments.parity.report import ACTIVATIONS, BITS, DEEP_ACTIVATIONS, Check
from experiments.parity.transformer import DEEP_ORDERS, gradient_checks
from jukebox_jax.interop.hparams import codec_config, prior_config
from jukebox_jax.interop.layout import conditioner_names, prior_from_state, prior_to_state
from jukebox_jax.labels.timing import timing_bins
from jukebox_jax.models.prior import Prior, PriorConfig, music_codes, prior_loss, sequence
from jukebox_jax.models.vqvae import VQVAEConfig
from jukebox_jax.sampling.drawing import SamplingConfig, song_keys
from jukebox_jax.sampling.engine import sample_window


def checks(recorded: Reader) -> Iterator[Check]:
    hps, codec = recorded.config["hps"], codec_config(recorded.config["vqvae"])
    config = prior_config(hps, codec)
    state = recorded.below("sd/")
    params = jax.tree.map(jnp.asarray, prior_from_state(config, state))
    hop = codec.hops[config.level]
    batch = {"tokens": jnp.asarray(recorded["in/z"])}
    if config.conditioner is not None:
        batch["upper"] = jnp.asarray(recorded["in/z_cond"])
    if config.labels is not None:
        sample_rate = hps.get("sr", codec.sample_rate)
        batch |= label_arrays(config, recorded["in/y"], sample_rate)
    tolerance = DEEP_ACTIVATIONS if config.attention_order in DEEP_ORDERS else ACTIVATIONS

    yield from _facts(config, codec, hop)
    (loss, (bits, logits, conditioning)), gradient = _loss_and_gradient(config, params, batch)
    if conditioning.start is not None:
        yield Check("out/y_cond", conditioning.start[:, None], tolerance)
    if conditioning.inputs is not None:
        yield Check("out/x_cond", conditioning.inputs[:, config.prefix :], tolerance)
    if conditioning.encoded is not None:
        yield Check("out/encoder_kv", conditioning.encoded, tolerance)
    if config.single:
        yield Check("out/merged_tokens", sequence(config, batch))
        yield Check("out/merged_x_cond", conditioning.inputs, tolerance)
        yield Check("out/postprocess", music_codes(config, jnp.asarray(recorded["in/postprocess"])))
    yield Check("out/loss", loss, BITS)
    yield Check("out/bpd", jnp.mean(bits.music), BITS)
    yield Check("out/gen_loss", jnp.mean(bits.music), BITS)
    yield Check("out/prime_loss", jnp.mean(bits.lyrics), BITS)
    yield Check("out/logits", logits, tolerance)
    names = conditioner_names(state)
    yield from gradient_checks(recorded, prior_to_state(config, gradient, names), gradient)
    if "out/alignment_attn" in recorded.fixture.declared:
        weights = Prior(config).apply({"params": params}, batch, config.lyrics.alignment_layer, method="alignment")
        yield Check("out/alignment_attn", weights, tolerance)
    yield from _sampled(recorded, config, params, batch)


def label_arrays(config: PriorConfig, y: np.ndarray, sample_rate: int) -> dict[str, jax.Array]:
    """The original's label vectors (b, 4 + genres + lyric tokens) as the prior takes them."""
    labels, lyrics = config.labels, 4 + config.labels.max_genres
    arrays: dict[str, Any] = {"artist": y[:, 3], "genres": y[:, 4:lyrics]}
    if config.has_timing:
        bins = [
            timing_bins(
                *(int(number) for number in row[:3]),
                config.n_ctx,
                labels.time_bins,
                labels.min_duration_seconds,
                labels.max_duration_seconds,
                sample_rate,
            )
            for row in y
        ]
        names = ("total", "absolute", "relative")
        arrays |= {f"{name}_bins": np.stack([getattr(b, name) for b in bins]) for name in names}
    if config.lyrics is not None:
        arrays["lyrics"] = y[:, lyrics:]
    return {name: jnp.asarray(array, jnp.int32) for name, array in arrays.items()}


def _facts(config: PriorConfig, codec: VQVAEConfig, hop: int) -> Iterator[Check]:
    window = config.n_ctx * hop
    lyrics = 0 if config.lyrics is None else config.lyrics.tokens
    facts = {
        "n_ctx": config.n_ctx,
        "raw_to_tokens": hop,
        "sample_length": window,
        "cond_downsample": None if config.conditioner is None else config.conditioner.ratio,
        "z_shapes": [[window // other] for other in codec.hops],
        "attn_funcs": [int(pattern) for pattern in config.transformer.patterns],
        "prime_loss_dims": lyrics,
        "gen_loss_dims": config.n_ctx,
        "total_loss_dims": lyrics + config.n_ctx,
    }
    if config.single:
        facts["prior_bins_shift"] = [0, config.shift]
    for name, value in facts.items():
        yield Check(f"extra/{name}", value)


@partial(jax.jit, static_argnums=0)
def _loss_and_gradient(config: PriorConfig, params: Mapping[str, Any], batch: dict[str, jax.Array]):
    def loss(params):
        model, variables = Prior(config), {"params": params}
        bits = model.apply(variables, batch, method="bits")
        observed = (bits, model.apply(variables, batch), model.apply(variables, batch, method="condition"))
        return prior_loss(config, bits), observed

    return jax.value_and_grad(loss, has_aux=True)(params)


def _sampled(recorded: Reader, config: PriorConfig, params, batch: dict[str, jax.Array]) -> Iterator[Check]:
    greedy = SamplingConfig(temperature=1.0, top_k=1)
    codes = batch["tokens"]
    keys = song_keys(0, jnp.arange(len(codes)), config.level)
    prime = recorded.extra["prime"]
    declared = recorded.fixture.declared
    for name, given in (("greedy", 0), ("primed_greedy", prime), ("primed_greedy_partial", prime)):
        target = declared[f"out/{name}"][0][1]
        # What is not given must not matter.
        window = batch | {"tokens": jnp.where(jnp.arange(config.n_ctx) < given, codes, 0)}
        sampled = _window(config, greedy, given, target, params, window, keys)
        yield Check(f"out/{name}", np.asarray(sampled)[:, :target])


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _window(config: PriorConfig, sampling: SamplingConfig, given: int, target: int, params, window, keys):
    return sample_window(config, sampling, params, window, keys, given=given, target=target, first=0)
