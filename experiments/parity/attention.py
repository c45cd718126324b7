"""Set b0: one attention layer of each pattern, over a whole sequence, in chunks, and token by token."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity.fixture import Reader
from experiments.parity.report import ACTIVATIONS, GRADIENT, Check
from jukebox_jax.models.attention import (
    LayerCache,
    Layout,
    Pattern,
    attend_all,
    attend_next,
    attend_rows,
    empty_cache,
    held_positions,
    slot_count,
)
from jukebox_jax.models.layers import Linear

Parameters = Mapping[str, jax.Array]


def checks(recorded: Reader) -> Iterator[Check]:
    config = recorded.config
    layout = Layout(
        config["n_ctx"],
        config["blocks"],
        config["spread"] or 0,
        config["prime_len"] or 0,
        config["encoder_dims"] or 0,
    )
    patterns = {match[1] for match in map(re.compile(r"func(\d+)/").match, recorded.fixture.declared) if match}
    for number in sorted(patterns):
        yield from _pattern(recorded, f"func{number}", Pattern(int(number)), layout, config["n_head"])


def _pattern(recorded: Reader, name: str, pattern: Pattern, layout: Layout, heads: int) -> Iterator[Check]:
    params = {key: jnp.asarray(value) for key, value in recorded.below(f"{name}/sd/").items()}
    x, weight = jnp.asarray(recorded[f"{name}/in/x"]), jnp.asarray(recorded[f"{name}/in/w"])
    encoded = jnp.asarray(recorded[f"{name}/in/encoder_kv"]) if pattern == Pattern.ENCODER else None

    def whole(params: Parameters, x: jax.Array) -> jax.Array:
        q, k, v = _project(params, x, encoded, heads)
        return _linear(params, "c_proj", _joined(attend_all(pattern, q, k, v, layout)))

    yield Check(f"{name}/out/y", whole(params, x), ACTIVATIONS)
    gradients, gradient_x = jax.grad(lambda *arguments: jnp.sum(whole(*arguments) * weight), (0, 1))(params, x)
    yield Check(f"{name}/out/grad_x", gradient_x, GRADIENT)
    for key, gradient in gradients.items():
        yield Check(f"{name}/grad/{key}", gradient, GRADIENT)
    if pattern in (Pattern.SUMMARY, Pattern.SUMMARY_SPREAD):  # the original cannot sample these
        return
    # Sizes of chunks change nothing but rounding; ours are whole rows.
    for size in [1, *recorded.config["chunks"]]:
        y = _sampled(params, pattern, layout, heads, x, encoded, rows=size // 2)
        yield Check(f"{name}/out/y_chunk{size}", y, ACTIVATIONS)
    if pattern == Pattern.ENCODER:
        lengths = [slot_count(pattern, layout)] * layout.length
    else:
        lengths = [int(jnp.sum(held_positions(pattern, layout, count + 1) >= 0)) for count in range(layout.length)]
    yield Check(f"{name}/out/cache_len", np.asarray(lengths, np.int32))


def _sampled(
    params: Parameters,
    pattern: Pattern,
    layout: Layout,
    heads: int,
    x: jax.Array,
    encoded: jax.Array | None,
    rows: int,
) -> jax.Array:
    """The output of the cached path, so many rows at a time, or token by token."""
    q, k, v = _project(params, x, encoded, heads)
    if encoded is None:
        cache = empty_cache(pattern, len(x), layout, heads, q.shape[-1], x.dtype)
    else:
        cache, k, v = LayerCache.of(k, v), None, None
    parts, size = [], max(1, rows * layout.block_ctx)
    for position in range(0, layout.length, size):
        new = [None if tokens is None else tokens[:, position : position + size] for tokens in (q, k, v)]
        if rows:
            row = jnp.asarray(position // layout.block_ctx)
            part, cache = _rows(pattern, layout, cache, *new, row, jnp.asarray(size))
        else:
            new = [None if tokens is None else tokens[:, 0] for tokens in new]
            part, cache = _next(pattern, layout, cache, *new, jnp.full(len(x), position))
            part = part[:, None]
        parts.append(part)
    return _linear(params, "c_proj", _joined(jnp.concatenate(parts, axis=1)))


@partial(jax.jit, static_argnums=(0, 1))
def _next(pattern, layout, cache, q, k, v, position):
    return attend_next(pattern, cache, q, k, v, layout, position)


@partial(jax.jit, static_argnums=(0, 1))
def _rows(pattern, layout, cache, q, k, v, row, count):
    return attend_rows(pattern, cache, q, k, v, layout, row, count)


def _project(params: Parameters, x: jax.Array, encoded: jax.Array | None, heads: int) -> list[jax.Array]:
    """Queries, keys and values (b, t, h, k)."""
    projected = _linear(params, "c_attn", x)
    if encoded is None:
        parts = jnp.split(projected, 3, axis=-1)
    else:
        parts = [projected, *jnp.split(_linear(params, "c_enc_kv", encoded), 2, axis=-1)]
    return [part.reshape(*part.shape[:-1], heads, -1) for part in parts]


def _joined(attended: jax.Array) -> jax.Array:
    return attended.reshape(*attended.shape[:-2], -1)


def _linear(params: Parameters, name: str, x: jax.Array) -> jax.Array:
    kernel, bias = params[f"{name}.w"], params[f"{name}.b"]
    layer = Linear(bias.shape[0], 1.0, ("width", "width"))
    return layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)
