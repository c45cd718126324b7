"""Weights as decoding reads them: layer by layer, in the precision and the order in which they are read fastest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from jukebox_jax.errors import UserError
from jukebox_jax.models.layers import Packed
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.parallel.mesh import make_mesh
from jukebox_jax.sampling.devices import weight_shardings

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


def pack(
    read: Callable[..., Any], config: PriorConfig, precision: Precision, batch_size: int, mesh: Mesh | None = None
) -> dict[str, Any]:
    """A prior's parameters for decoding `batch_size` songs at once, on a mesh, by default of one device. The models
    take them like any others.

    A kernel of one layer at a time goes to the devices, to each its part, and is arranged there; of what is read, the
    host never holds more than one stack of kernels.

    Args:
      read: gives the part of the parameters under some names (see `TrainedPrior.open_params`).

    Raises:
      UserError: see `devices.weight_shardings`; or the parameters cannot be read.
    """
    shardings = weight_shardings(config, make_mesh() if mesh is None else mesh)
    decoder = shardings["decoder"]
    layers = decoder.pop("transformer")["layers"]
    depth = config.depth
    dtype = jnp.dtype("bfloat16" if precision == "bfloat16" else decoding_config(config, precision).dtype)
    # A single row of factors meets outputs one by one, as do factors of fewer bits; several of float32 meet all outputs
    # of an input.
    by_output = precision != "float32" or batch_size == 1
    packed: list[dict[str, Any]] = [{} for _ in range(depth)]
    for name in sorted(layers):
        for kind in sorted(layers[name]):
            stack = read("decoder", "transformer", "layers", name, kind)
            lies = _without_layers(layers[name][kind], stack.ndim)
            for index in range(depth):
                leaf = jax.device_put(stack[index], lies)
                if kind == "kernel" and precision == "int8":
                    leaf = _quantized(leaf, _outputs_first(lies))
                elif kind == "kernel":
                    leaf = _arranged(leaf, dtype, _outputs_first(lies) if by_output else None)
                packed[index].setdefault(name, {})[kind] = leaf
            del stack
    result = {
        part: jax.tree.map(jax.device_put, read(part), lie) for part, lie in shardings.items() if part != "decoder"
    }
    result["decoder"] = {name: jax.device_put(read("decoder", name), lie) for name, lie in decoder.items()}
    result["decoder"]["transformer"] = {"layers": tuple(packed)}
    if "lyrics" in result and dtype != jnp.float32:
        result["lyrics"] = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf.astype(dtype) if path[-1].key == "kernel" else leaf, result["lyrics"]
        )
    return result


def _without_layers(sharding: NamedSharding, rank: int) -> NamedSharding:
    """Of one layer, in a stack of so many dimensions with this sharding."""
    spec = [*sharding.spec, *[None] * (rank - len(sharding.spec))]
    return NamedSharding(sharding.mesh, PartitionSpec(*spec[1:]))


def _outputs_first(sharding: NamedSharding) -> NamedSharding:
    """Of a kernel whose input axis has become the last."""
    first, *others = sharding.spec
    return NamedSharding(sharding.mesh, PartitionSpec(*others, first))


@partial(jax.jit, static_argnums=(1, 2))
def _arranged(
    kernel: Float[Array, "d ..."], dtype: Any, by_output: NamedSharding | None
) -> Packed | Float[Array, "d ..."]:
    kernel = kernel.astype(dtype)
    if by_output is None:
        return kernel
    return Packed(jax.lax.with_sharding_constraint(jnp.moveaxis(kernel, 0, -1), by_output))


@partial(jax.jit, static_argnums=1)
def _quantized(kernel: Float[Array, "d ..."], by_output: NamedSharding) -> Packed:
    kernel = jnp.moveaxis(kernel, 0, -1).astype(jnp.float32)
    scale = jnp.max(jnp.abs(kernel), axis=-1) / 127
    values = jnp.round(kernel / jnp.where(scale == 0, 1, scale)[..., None]).astype(jnp.int8)
    per_output = NamedSharding(by_output.mesh, PartitionSpec(*by_output.spec[:-1]))
    return jax.lax.with_sharding_constraint(Packed(values, scale), Packed(by_output, per_output))


def weight_bytes(weights: Any) -> int:
    """Bytes of all arrays of a tree, or of their descriptions."""
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(weights))
