"""Weights as decoding reads them: layer by layer, in the precision and the order in which they are read fastest."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jukebox_jax.errors import UserError
from jukebox_jax.models.layers import Packed
from jukebox_jax.models.prior import PriorConfig

#: How a prior's weights are kept and multiplied. Embeddings, conditioning, norms, softmax and logits stay float32, on
#: CPUs also what passes between layers and is cached. "bfloat16" weights are multiplied by factors of bfloat16, "int8"
#: ones, which have a scale per output, by factors of 15 bits on CPUs and of bfloat16 elsewhere.
Precision = Literal["float32", "bfloat16", "int8"]


def check_precision(precision: str) -> None:
    """Raises a UserError for an unknown precision."""
    if precision not in get_args(Precision):
        raise UserError(f"precision {precision!r} is unknown: choose one of {', '.join(get_args(Precision))}.")


def decoding_config(config: PriorConfig, precision: Precision) -> PriorConfig:
    """The config of the same prior, computing in what `precision` means on this machine."""
    # XLA's CPU compiler writes a bfloat16 key into a cache by converting the whole cache, there and back.
    half = precision != "float32" and jax.default_backend() != "cpu"
    return dataclasses.replace(config, dtype="bfloat16" if half else "float32")


def pack(params: dict[str, Any], config: PriorConfig, precision: Precision, batch_size: int) -> dict[str, Any]:
    """A prior's parameters for decoding `batch_size` songs at once. The models take them like any others.

    Each stack of kernels is taken apart and given up before the next, so that beside the result there is never more
    than one; `params` must not be used afterwards.
    """
    layers = params["decoder"]["transformer"]["layers"]
    depth = config.depth
    dtype = jnp.dtype("bfloat16" if precision == "bfloat16" else decoding_config(config, precision).dtype)
    # A single row of factors meets outputs one by one, as do factors of fewer bits; several of float32 meet all outputs
    # of an input.
    by_output = precision != "float32" or batch_size == 1
    packed: list[dict[str, Any]] = [{} for _ in range(depth)]
    for name in sorted(layers):
        for kind in sorted(layers[name]):
            stack = layers[name].pop(kind)
            for index in range(depth):
                if kind != "kernel":
                    leaf = stack[index]
                elif precision == "int8":
                    leaf = _quantized(stack, index)
                else:
                    leaf = _arranged(stack, index, dtype, by_output)
                packed[index].setdefault(name, {})[kind] = leaf
            del stack
    decoder = params["decoder"] | {"transformer": {"layers": tuple(packed)}}
    result = params | {"decoder": decoder}
    if "lyrics" in params and dtype != jnp.float32:
        result["lyrics"] = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf.astype(dtype) if path[-1].key == "kernel" else leaf, params["lyrics"]
        )
    return result


@partial(jax.jit, static_argnums=(2, 3))
def _arranged(
    stack: Float[Array, "l d ..."], index: int | Array, dtype: Any, by_output: bool
) -> Packed | Float[Array, "d ..."]:
    kernel = jax.lax.dynamic_index_in_dim(stack, index, keepdims=False).astype(dtype)
    return Packed(jnp.moveaxis(kernel, 0, -1)) if by_output else kernel


@jax.jit
def _quantized(stack: Float[Array, "l d ..."], index: int | Array) -> Packed:
    kernel = jnp.moveaxis(jax.lax.dynamic_index_in_dim(stack, index, keepdims=False), 0, -1).astype(jnp.float32)
    scale = jnp.max(jnp.abs(kernel), axis=-1) / 127
    values = jnp.round(kernel / jnp.where(scale == 0, 1, scale)[..., None]).astype(jnp.int8)
    return Packed(values, scale)


def weight_bytes(weights: Any) -> int:
    """Bytes of all arrays of a tree, or of their descriptions."""
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(weights))
