"""How a token is drawn from logits: temperature, top-k, top-p, and a key of its own (spec: sampling, section 5)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key

from jukebox_jax.errors import UserError


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


@struct.dataclass
class Drawing:
    """How the tokens of each sequence are drawn: a `SamplingConfig` and a key of `song_keys` for each."""

    key: Key[Array, " b"]
    temperature: Float[Array, " b"]
    top_k: Int[Array, " b"]
    top_p: Float[Array, " b"]


def song_keys(seed: int | Int[Array, " b"], songs: Int[Array, " b"], level: int) -> Key[Array, " b"]:
    """One key for each song and level, from which the key of every position is folded."""
    base = jax.vmap(jax.random.key)(jnp.broadcast_to(jnp.asarray(seed, jnp.uint32), songs.shape))
    return jax.vmap(lambda key, song: jax.random.fold_in(jax.random.fold_in(key, song), level))(base, songs)


def draw(logits: Float[Array, "b v"], drawing: Drawing, where: Int[Array, " b"]) -> Int[Array, " b"]:
    """A token of each sequence; `where` are their positions in the whole level, from which their keys are folded."""
    logits = logits / drawing.temperature[:, None]
    # Sorting costs more than everything else here, and is hardly ever asked for.
    some = jnp.any((drawing.top_k > 0) | (drawing.top_p > 0))
    logits = jax.lax.cond(some, lambda x: filter_logits(x, drawing.top_k, drawing.top_p), lambda x: x, logits)
    keys = jax.vmap(jax.random.fold_in)(drawing.key, where)
    return jax.vmap(jax.random.categorical)(keys, logits)


def filter_logits(
    logits: Float[Array, "b v"], top_k: int | Int[Array, " b"] = 0, top_p: float | Float[Array, " b"] = 0.0
) -> Float[Array, "b v"]:
    """Sets to -inf what may not be drawn.

    `top_k` keeps the k largest and all ties with the k-th, 0 all; `top_p` keeps the most likely tokens up to and
    including the one whose cumulative probability crosses p, 0 all.
    """
    top_k, top_p = (jnp.broadcast_to(jnp.asarray(x), logits.shape[:1])[:, None] for x in (top_k, top_p))
    order = jnp.argsort(-logits, axis=-1)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    large = logits >= jnp.take_along_axis(ranked, jnp.clip(top_k - 1, 0, logits.shape[-1] - 1), axis=-1)
    crossed = jnp.cumsum(jax.nn.softmax(ranked, axis=-1), axis=-1) > top_p
    crossed = jnp.pad(crossed[:, :-1], ((0, 0), (1, 0)))
    likely = ~jnp.take_along_axis(crossed, jnp.argsort(order, axis=-1), axis=-1)
    return jnp.where((large | (top_k == 0)) & (likely | (top_p == 0)), logits, -jnp.inf)
