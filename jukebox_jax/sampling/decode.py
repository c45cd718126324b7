"""One window of tokens: what is given is taken in by chunks, then a compiled loop samples a token a turn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jukebox_jax.errors import UserError
from jukebox_jax.models.attention import LayerCache
from jukebox_jax.models.autoregressive import Conditioning
from jukebox_jax.models.prior import Prior, PriorConfig, music_codes, sequence
from jukebox_jax.sampling.windows import chunk_sizes

#: Known tokens taken in at once: enough to keep an accelerator busy, few enough for its memory.
PREFILL_CHUNK = 512


@dataclass(frozen=True)
class SamplingConfig:
    """How a token is drawn. `top_k` 0 and `top_p` 0.0 are off; both at once is an error."""

    temperature: float = 0.99
    top_k: int = 0
    top_p: float = 0.0

    def __post_init__(self):
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UserError(f"temperature {self.temperature} is not positive and finite: 0.9 to 1 is usual.")
        if self.top_k < 0 or not 0 <= self.top_p <= 1:
            raise UserError(f"top_k {self.top_k} must be 0 or more, and top_p {self.top_p} between 0 and 1.")
        if self.top_k and self.top_p:
            raise UserError("top_k and top_p exclude each other: set one of them to 0.")


def filter_logits(logits: Float[Array, "b v"], top_k: int = 0, top_p: float = 0.0) -> Float[Array, "b v"]:
    """Sets to -inf what may not be drawn (spec: sampling, section 5).

    `top_k` keeps the k largest and all ties with the k-th; `top_p` keeps the most likely tokens up to and including
    the one whose cumulative probability crosses p.
    """
    if top_k:
        smallest = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][..., -1:]
        return jnp.where(logits < smallest, -jnp.inf, logits)
    if top_p:
        order = jnp.argsort(-logits, axis=-1)
        probability = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
        removed = jnp.cumsum(probability, axis=-1) > top_p
        removed = jnp.pad(removed[..., :-1], ((0, 0), (1, 0)))
        return jnp.where(jnp.take_along_axis(removed, jnp.argsort(order, axis=-1), axis=-1), -jnp.inf, logits)
    return logits


def song_keys(seed: int, songs: Int[Array, " b"], level: int) -> Key[Array, " b"]:
    """One key for each song and level, from which the key of every position is folded."""
    base = jax.random.key(seed)
    return jax.vmap(lambda song: jax.random.fold_in(jax.random.fold_in(base, song), level))(songs)


def sample_window(
    config: PriorConfig,
    sampling: SamplingConfig,
    params: dict,
    batch: dict[str, Array],
    keys: Key[Array, " b"],
    *,
    given: int,
    target: int,
    first: int,
    chunk: int = PREFILL_CHUNK,
) -> Int[Array, "b t"]:
    """Samples codes `given` .. `target` - 1 of a window.

    Args:
      batch: `tokens` (b, n_ctx), of which the first `given` are read, and the conditioning inputs of `Prior.condition`.
      keys: one per song, of `song_keys`.
      first: position in the whole level of the window's first code; a code's key is folded from its own position,
        so it depends neither on the other songs of the batch nor on how windows are cut.
      chunk: known tokens taken in at once; it bounds memory and changes results by rounding only.

    Returns:
      `tokens` with the new codes filled in.
    """
    conditioning = _condition(config, params, batch)
    tokens = sequence(config, batch)
    caches = _empty(config, params, tokens.shape[0], conditioning)
    known = config.prefix + given
    position, chunk = 0, min(chunk, config.transformer.context)
    for count in chunk_sizes(known, chunk):
        caches = _prefill(
            config, chunk, params, caches, tokens, jnp.asarray(position), jnp.asarray(count), conditioning
        )
        position += count
    scalars = [jnp.asarray(x, jnp.int32) for x in (known, config.prefix + target, first - config.prefix)]
    return music_codes(config, _decode(config, sampling, params, caches, tokens, conditioning, keys, *scalars))


@partial(jax.jit, static_argnums=0)
def _condition(config: PriorConfig, params: dict, batch: dict[str, Array]) -> Conditioning:
    return Prior(config).apply({"params": params}, batch, method="condition")


@partial(jax.jit, static_argnums=(0, 2))
def _empty(config: PriorConfig, params: dict, batch: int, conditioning: Conditioning) -> tuple[LayerCache, ...]:
    return Prior(config).apply({"params": params}, batch, conditioning, method="empty_caches")


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _prefill(config, chunk, params, caches, tokens, position, count, conditioning) -> tuple[LayerCache, ...]:
    # A token's predecessor is its input; the first one's is ignored.
    previous = jnp.pad(tokens, ((0, 0), (1, chunk)))
    previous = jax.lax.dynamic_slice_in_dim(previous, position, chunk, axis=1)
    arguments = (caches, previous, position, count, conditioning)
    return Prior(config).apply({"params": params}, *arguments, method="chunk")[1]


@partial(jax.jit, static_argnums=(0, 1))
def _decode(config, sampling, params, caches, tokens, conditioning, keys, position, target, first):
    prior = Prior(config)

    def not_done(carry):
        return carry[0] < target

    def step(carry):
        position, tokens, caches = carry
        previous = jax.lax.dynamic_index_in_dim(tokens, jnp.maximum(position - 1, 0), axis=1, keepdims=False)
        logits, caches = prior.apply({"params": params}, caches, previous, position, conditioning, method="step")
        logits = filter_logits(logits / sampling.temperature, sampling.top_k, sampling.top_p)
        here = jax.vmap(jax.random.fold_in, (0, None))(keys, first + position)
        token = jax.vmap(jax.random.categorical)(here, logits).astype(tokens.dtype)
        tokens = jax.lax.dynamic_update_index_in_dim(tokens, token, position, axis=1)
        return position + 1, tokens, caches

    return jax.lax.while_loop(not_done, step, (position, tokens, caches))[1]
