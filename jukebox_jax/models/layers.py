"""What the transformers and their conditioning are made of: linear layers, layer norms, embeddings."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int


def embedding(module: nn.Module, name: str, rows: int, width: int, std: float, axis: str | None = None) -> Array:
    """A (rows, width) parameter drawn with standard deviation `std`."""
    init = nn.with_logical_partitioning(nn.initializers.normal(std), (axis, "width"))
    return module.param(name, init, (rows, width), jnp.float32)


def look_up(table: Float[Array, "n d"], index: Int[Array, "*b"]) -> Float[Array, "*b d"]:
    """Rows of an embedding table.

    Where the table is divided over devices, they gather it first: it is small beside what is looked up in it, which
    would else be gathered instead.
    """
    return nn.with_logical_constraint(table, (None, None))[index]


class Linear(nn.Module):
    """y = x w + b with float32 parameters used in the dtype of x; w is (in, out) with std `std`, b starts at zero."""

    features: int
    std: float
    axes: tuple[str, str]

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b f"]:
        init = nn.with_logical_partitioning(nn.initializers.normal(self.std), self.axes)
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32)
        bias_init = nn.with_logical_partitioning(nn.initializers.zeros, (self.axes[1],))
        bias = self.param("bias", bias_init, (self.features,), jnp.float32)
        return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)


class Heads(nn.Module):
    """A linear layer to queries, keys and values (0, 1, 2), of `heads` heads each: kernel (in, 3, heads, head_dim).

    The heads have an axis of their own, so that they can be divided over devices without cutting one in two.
    """

    heads: int
    head_dim: int
    std: float

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"], first: int = 0, last: int = 2) -> list[Float[Array, "*b h k"]]:
        """Those from `first` to `last`."""
        shape, axes = (3, self.heads, self.head_dim), (None, "heads", None)
        init = nn.with_logical_partitioning(nn.initializers.normal(self.std), ("width", *axes))
        kernel = self.param("kernel", init, (x.shape[-1], *shape), jnp.float32)
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, axes), shape, jnp.float32)
        part = slice(first, last + 1)
        y = jnp.einsum("...d,dphk->...phk", x, kernel[:, part].astype(x.dtype)) + bias[part].astype(x.dtype)
        y = checkpoint_name(y, "qkv")
        return [y[..., index, :, :] for index in range(y.shape[-3])]


class LayerNorm(nn.Module):
    """Layer normalisation (eps 1e-5, biased variance) in float32, returned in the dtype of x."""

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, ("width",)), shape, jnp.float32)
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("width",)), shape, jnp.float32)
        h = x.astype(jnp.float32)
        h = h - jnp.mean(h, axis=-1, keepdims=True)
        h = h * jax.lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + 1e-5)
        return (h * scale + bias).astype(x.dtype)


def quick_gelu(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """x * sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)
