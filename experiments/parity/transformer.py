"""Set b: the autoregressive core under every attention order: teacher-forced, its gradients, and greedy sampling."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from experiments.parity.fixture import Reader
from experiments.parity.report import ACTIVATIONS, BITS, DEEP_ACTIVATIONS, GRADIENT, Check
from jukebox_jax.interop.layout import decoder_layout, from_state, to_state
from jukebox_jax.models.attention import Layout, Pattern
from jukebox_jax.models.autoregressive import Autoregressive, Conditioning
from jukebox_jax.models.prior import bits_per_item
from jukebox_jax.models.transformer import TransformerConfig
from jukebox_jax.training.optimizer import global_norm

DEEP_ORDERS = (7, 10, 11, 12)


def checks(recorded: Reader) -> Iterator[Check]:
    config = recorded.config
    tolerance = DEEP_ACTIVATIONS if config["attn_order"] in DEEP_ORDERS else ACTIVATIONS
    transformer = TransformerConfig(
        context=config["n_ctx"],
        width=config["width"],
        depth=config["depth"],
        heads=config["heads"],
        blocks=config["blocks"] or 1,
        attention_order=config["attn_order"],
        spread=config["spread"] or 0,
        prime=config["prime_len"] or 0,
        encoded=config["encoder_dims"] or 0,
        attention_multiplier=float(config["m_attn"]),
        mlp_multiplier=float(config["m_mlp"]),
        residual_scale=config["res_scale"],
    )
    own_start = not config["y_cond"]
    model = Autoregressive(transformer, config["bins"], config["merged_decoder"], own_start)
    tokens = jnp.asarray(recorded["in/x"])
    conditioning = Conditioning(
        start=jnp.asarray(recorded["in/y_cond"])[:, 0] if config["y_cond"] else None,
        inputs=jnp.asarray(recorded["in/x_cond"]) if config["x_cond"] else None,
        encoded=jnp.asarray(recorded["in/encoder_kv"]) if config["encoder_dims"] else None,
    )
    layout = decoder_layout(transformer, config["merged_decoder"], own_start)
    abstract = jax.eval_shape(partial(model.init, jax.random.key(0)), tokens, conditioning)["params"]
    params = from_state(layout, meta.unbox(abstract), recorded.below("sd/"), "sd")
    params = jax.tree.map(jnp.asarray, params)

    yield Check("extra/attn_funcs", [int(pattern) for pattern in transformer.patterns])
    yield from _teacher_forced(recorded, model, layout, params, tokens, conditioning, tolerance)
    # The original samples no order with summaries and so records no weights of theirs either.
    if not {Pattern.SUMMARY, Pattern.SUMMARY_SPREAD} & set(transformer.patterns):
        last = transformer.depth - 1
        weights = model.apply({"params": params}, tokens, conditioning, last, method="weights")
        weights = _as_recorded(transformer.patterns[last], transformer.layout, weights)
        yield Check("out/attn_w_last", weights, tolerance)
        yield from _sampled(recorded, model, params, tokens, conditioning, tolerance)


def _teacher_forced(recorded: Reader, model, layout, params, tokens, conditioning, tolerance) -> Iterator[Check]:
    (loss, (states, logits)), (gradient, gradient_in) = _loss_and_gradients(model, params, conditioning, tokens)
    yield Check("out/loss", loss, BITS)
    yield Check("out/logits", logits, tolerance)
    yield Check("out/acts", states, tolerance)
    if prime := recorded.config["prime_len"]:
        yield Check("out/prime_loss", jnp.mean(bits_per_item(logits[:, :prime], tokens[:, :prime])), BITS)
        yield Check("out/gen_loss", jnp.mean(bits_per_item(logits[:, prime:], tokens[:, prime:])), BITS)
    if conditioning.inputs is not None:
        short = conditioning.replace(inputs=conditioning.inputs[:, :1])
        yield Check("out/loss_xcond_len1", _loss(model, params, short, tokens)[0], BITS)
        yield Check("grad_in/x_cond", gradient_in.inputs, GRADIENT)
    if conditioning.start is not None:
        yield Check("grad_in/y_cond", gradient_in.start[:, None], GRADIENT)
    # Where no layer looks at the encoder there is no gradient to record.
    if Pattern.ENCODER in model.config.patterns:
        yield Check("grad_in/encoder_kv", gradient_in.encoded, GRADIENT)
    yield from gradient_checks(recorded, to_state(layout, gradient), gradient)


def gradient_checks(recorded: Reader, gradients: dict[str, np.ndarray], tree: Any) -> Iterator[Check]:
    """Gradients by the original's names: their norms, and those that are recorded whole."""
    norms = [np.linalg.norm(gradients[name]) for name in recorded.extra["gradnorm_names"]]
    yield Check("gradnorm", np.asarray(norms, np.float32), GRADIENT)
    yield Check("gradnorm_total", global_norm(tree), GRADIENT)
    for name in sorted(name for name in recorded if name.startswith("grad/")):
        yield Check(name, gradients[name.removeprefix("grad/")], GRADIENT)


def _loss(model: Autoregressive, params, conditioning: Conditioning, tokens):
    states = model.apply({"params": params}, tokens, conditioning, method="states")
    logits = model.apply({"params": params}, states, method="logits")
    return jnp.mean(bits_per_item(logits, tokens)), (states, logits)


@partial(jax.jit, static_argnums=0)
def _loss_and_gradients(model: Autoregressive, params, conditioning: Conditioning, tokens):
    return jax.value_and_grad(partial(_loss, model), (0, 1), has_aux=True)(params, conditioning, tokens)


def _as_recorded(pattern: Pattern, layout: Layout, weights: jax.Array) -> jax.Array:
    """Attention weights in the shape the original records."""
    if pattern in (Pattern.ROW, Pattern.COLUMN, Pattern.PREVIOUS_ROW):
        return weights.reshape(-1, *weights.shape[2:])
    return weights[:, :, layout.prime :, : layout.prime] if pattern == Pattern.PRIME else weights


def _sampled(recorded: Reader, model, params, tokens, conditioning, tolerance) -> Iterator[Check]:
    config, length = recorded.config, tokens.shape[1]
    greedy, logits = _greedy(model, params, conditioning, tokens[:, :0], length)
    yield Check("out/greedy", greedy)
    yield Check("out/greedy_logits", logits, tolerance)
    partial_length = recorded.fixture.declared["out/greedy_partial"][0][1]
    yield Check("out/greedy_partial", _greedy(model, params, conditioning, tokens[:, :0], partial_length)[0])
    if config["prime_tokens"] is None:
        return
    given = tokens[:, : config["prime_tokens"]]
    primed, logits = _greedy(model, params, conditioning, given, length)
    yield Check("out/primed_greedy", primed)
    yield Check("out/primed_greedy_logits", logits, tolerance)


def _greedy(model, params, conditioning, given, length: int) -> tuple[np.ndarray, np.ndarray]:
    """All tokens, `given` ones first, and the logits of each, from the cached path."""
    caches = model.apply({"params": params}, len(given), conditioning, method="empty_caches")
    known, width = given.shape[1], model.config.block_ctx
    previous = jnp.pad(given, ((0, 0), (1, width)))  # the first token has none
    logits, last = [], previous[:, known]
    for position in range(0, known, width):
        count, here = min(width, known - position), previous[:, position : position + width]
        where = jnp.asarray(position // width), jnp.asarray(count)
        part, caches = _rows(model, params, caches, here, *where, conditioning)
        logits.append(part[:, :count])
    tokens = [given]
    for position in range(given.shape[1], length):
        part, caches = _step(model, params, caches, last, jnp.full(len(given), position), conditioning)
        last = jnp.argmax(part, axis=-1).astype(given.dtype)
        logits.append(part[:, None])
        tokens.append(last[:, None])
    return np.concatenate(tokens, axis=1), np.concatenate(logits, axis=1)


@partial(jax.jit, static_argnums=0)
def _rows(model: Autoregressive, params, caches, previous, row, count, conditioning):
    return model.apply({"params": params}, caches, previous, row, count, conditioning, method="rows")


@partial(jax.jit, static_argnums=0)
def _step(model: Autoregressive, params, caches, previous, position, conditioning):
    return model.apply({"params": params}, caches, previous, position, conditioning, method="step")
