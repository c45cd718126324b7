"""Random weights and windows to decode with."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jukebox_jax.models.prior import PriorConfig, batch_spec
from jukebox_jax.planning.decode_counts import packed_shapes
from jukebox_jax.sampling.weights import Precision


def random_weights(config: PriorConfig, precision: Precision, batch: int) -> dict[str, Any]:
    """Weights as `pack` arranges them, drawn in their own precision: of the 5B there is never a float32 copy."""
    keys = iter(jax.random.split(jax.random.key(0), 10_000))

    def one(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        # Deviations as training leaves them: no overflow, and nothing so small that a processor slows down.
        if leaf.dtype == jnp.int8:
            return _integers(next(keys), leaf.shape)
        last = path[-1]
        if getattr(last, "name", None) == "scale":  # of int8 weights
            return jnp.full(leaf.shape, 1 / (64 * config.width**0.5), leaf.dtype)
        return _normal(next(keys), leaf.shape, leaf.dtype, float(getattr(last, "key", None) == "scale"))

    return jax.tree_util.tree_map_with_path(one, packed_shapes(config, precision, batch))


@partial(jax.jit, static_argnums=1)
def _integers(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.lax.bitcast_convert_type(jax.random.bits(key, shape, jnp.uint8), jnp.int8)


@partial(jax.jit, static_argnums=(1, 2))
def _normal(key: jax.Array, shape: tuple[int, ...], dtype: Any, mean: float) -> jax.Array:
    return (mean + 0.02 * jax.random.normal(key, shape, dtype)).astype(dtype)


def random_entry(config: PriorConfig) -> dict[str, np.ndarray]:
    """The `batch` of an `Entry`: random codes; labels, times and lyrics are all zero, which costs the same."""
    rng = np.random.default_rng(0)
    drawn = {"tokens", "upper"}
    return {
        name: rng.integers(0, config.codes if name in drawn else 1, spec.shape).astype(np.int32)
        for name, spec in batch_spec(config).items()
    }
