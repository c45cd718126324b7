"""What a decode step reads and what a prefill computes, counted from the model."""

from __future__ import annotations

from functools import reduce
from operator import getitem
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import meta

from jukebox_jax.models.attention import Layout, Pattern, slot_count
from jukebox_jax.models.prior import Prior, PriorConfig, batch_spec, init_params
from jukebox_jax.planning.work import executed_flops
from jukebox_jax.sampling.engine import prefill_rows
from jukebox_jax.sampling.weights import Precision, pack, weight_bytes


def packed_shapes(config: PriorConfig, precision: Precision, batch: int) -> dict[str, Any]:
    """What `pack` makes of a prior's parameters, as ShapeDtypeStructs."""

    def packed() -> dict[str, Any]:
        params = meta.unbox(init_params(config, jax.random.key(0)))
        return pack(lambda *names: reduce(getitem, names, params), config, precision, batch)

    return jax.eval_shape(packed)


def slots_read(pattern: Pattern, layout: Layout) -> int:
    """Slots of a layer's cache that a step reads for each sequence, those included that it then masks."""
    if pattern == Pattern.COLUMN:
        return layout.blocks
    if pattern == Pattern.PREVIOUS_ROW:
        return layout.block_ctx
    return slot_count(pattern, layout)


def cache_bytes_read(config: PriorConfig, batch: int) -> int:
    """Bytes of keys and values that a step reads; `config` is the one of `decoding_config`."""
    t = config.transformer
    slots = sum(slots_read(pattern, t.layout) for pattern in t.patterns)
    return batch * slots * 2 * t.state * jnp.dtype(config.dtype).itemsize


def weight_bytes_read(config: PriorConfig, weights: dict[str, Any], batch: int) -> int:
    """Bytes of weights that a step reads: the decoder's layers and output projection, and a row of each embedding for
    each sequence. Keys and values of a lyric encoder are in the caches."""
    decoder, t = weights["decoder"], config.transformer
    read = weight_bytes(decoder["transformer"])
    for pattern, layer in zip(t.patterns, decoder["transformer"]["layers"], strict=True):
        if pattern == Pattern.ENCODER:
            read -= weight_bytes(layer["qkv"]) * 2 // 3
    read += weight_bytes(decoder["output" if config.merged_decoder else "tokens"])
    return read + 2 * batch * config.width * 4


def prefill_flops(config: PriorConfig, weights: dict[str, Any], known: int) -> float:
    """Operations of taking `known` tokens (lyrics in the sequence included) into an empty window: of the conditioning
    and of whole chunks, less the logits, which nobody reads and the compiler drops."""
    prior, rows = Prior(config), prefill_rows(config)
    size = rows * config.transformer.block_ctx
    example = {name: jax.ShapeDtypeStruct((1, *spec.shape), spec.dtype) for name, spec in batch_spec(config).items()}

    def condition(weights, batch):
        conditioning = prior.apply({"params": weights}, batch, method="condition")
        return conditioning, prior.apply({"params": weights}, 1, conditioning, method="empty_caches")

    def chunk(weights, caches, previous, row, count, conditioning):
        return prior.apply({"params": weights}, caches, previous, row, count, conditioning, method="rows")

    conditioning, caches = jax.eval_shape(condition, weights, example)
    whole = jax.ShapeDtypeStruct((), jnp.int32)
    previous = jax.ShapeDtypeStruct((1, size), jnp.int32)
    one = executed_flops(chunk, weights, caches, previous, whole, whole, conditioning)
    one -= 2.0 * size * config.width * (config.shift + config.codes)
    return executed_flops(condition, weights, example) + -(-known // size) * one
