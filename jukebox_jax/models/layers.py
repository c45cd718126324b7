"""What the transformers and their conditioning are made of: linear layers, layer norms, embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped


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


@struct.dataclass
class Packed:
    """A kernel arranged for decoding, where reading it is all the work: output by output, and perhaps in int8.

    Attributes:
      values: the kernel with its input axis last; divided by `scale` if there is one.
      scale: of each output; None: `values` are the weights themselves.
    """

    values: Shaped[Array, "*f d"]
    scale: Float[Array, "*f"] | None = None


#: More rows than these are worth a conversion of int8 weights to floating point, after which products are fast.
_MANY_ROWS = 64


def product(x: Float[Array, "*b d"], kernel: Packed | Shaped[Array, d * f]) -> Float[Array, ...]:
    """x times a kernel, (*b, *f), in the dtype of x.

    Half-precision factors meet packed weights that are converted to their dtype, as accelerators convert them on the
    way from memory. A processor would not, so float32 factors are brought to the weights' dtype: to bfloat16, or of
    int8 to two each (15 bits of the largest in their row), whose products it sums exactly. It is as fast or faster than
    with floating-point numbers of 32 bits.
    """
    if not isinstance(kernel, Packed):
        return jnp.tensordot(x, kernel.astype(x.dtype), 1)
    values, scale = kernel.values, kernel.scale
    if scale is None:
        if values.dtype == x.dtype:
            return _with_last(x, values)
        return _four_rows_with_last(x.astype(values.dtype), values, x.dtype)
    if x.dtype != jnp.float32 or x.size > _MANY_ROWS * x.shape[-1]:
        return (_with_last(x, values.astype(x.dtype), jnp.float32) * scale).astype(x.dtype)
    step = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 127
    factors = x / jnp.where(step == 0, 1, step)
    coarse = jnp.round(factors)
    fine = jnp.round((factors - coarse) * 254)
    sums = _four_rows_with_last(jnp.stack([coarse, fine]).astype(jnp.int8), values, jnp.int32).astype(jnp.float32)
    return (sums[0] + sums[1] / 254) * step.reshape(*step.shape[:-1], *(1,) * scale.ndim) * scale


def _four_rows_with_last(x: Shaped[Array, "*b d"], values: Shaped[Array, "*f d"], dtype: DTypeLike) -> Array:
    """`_with_last` of four rows or more: for fewer of 8 or 16 bits, XLA's CPU compiler emits a slow loop of its own."""
    rows = x.reshape(-1, x.shape[-1])
    out = _with_last(jnp.pad(rows, ((0, max(0, 4 - len(rows))), (0, 0))), values, dtype)
    return out[: len(rows)].reshape(*x.shape[:-1], *values.shape[:-1])


def _with_last(x: Shaped[Array, "*b d"], values: Shaped[Array, "*f d"], dtype: DTypeLike | None = None) -> Array:
    def plain(x, values):
        axes = (((x.ndim - 1,), (values.ndim - 1,)), ((), ()))
        return jax.lax.dot_general(x, values, axes, preferred_element_type=dtype)

    def as_matrix(x, values):
        return plain(x, values.reshape(-1, values.shape[-1])).reshape(*x.shape[:-1], *values.shape[:-1])

    if values.ndim == 2:
        return plain(x, values)
    # Of a kernel of more axes, XLA's CPU compiler turns the whole kernel round at every product. Elsewhere the axes
    # stay apart, as devices may divide the kernel along one of them.
    return jax.lax.platform_dependent(x, values, cpu=as_matrix, default=plain)


def given_or_drawn(module: nn.Module, name: str, init: Callable[..., Any], *arguments: Any) -> Any:
    """A parameter of a module, drawn by `init` if it is not given, which may be in an arrangement for decoding."""
    given = module.get_variable("params", name, None)
    return given if isinstance(given, Packed | tuple) else module.param(name, init, *arguments)


class Linear(nn.Module):
    """y = x w + b with float32 parameters used in the dtype of x; w is (in, out) with std `std`, b starts at zero."""

    features: int
    std: float
    axes: tuple[str, str]

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b f"]:
        init = nn.with_logical_partitioning(nn.initializers.normal(self.std), self.axes)
        kernel = given_or_drawn(self, "kernel", init, (x.shape[-1], self.features), jnp.float32)
        bias_init = nn.with_logical_partitioning(nn.initializers.zeros, (self.axes[1],))
        bias = self.param("bias", bias_init, (self.features,), jnp.float32)
        return product(x, kernel) + bias.astype(x.dtype)


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
        kernel = given_or_drawn(self, "kernel", init, (x.shape[-1], *shape), jnp.float32)
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, axes), shape, jnp.float32)
        part = slice(first, last + 1)
        if isinstance(kernel, Packed):
            kernel = jax.tree.map(lambda leaf: leaf[part], kernel)
        else:
            kernel = kernel[:, part]
        y = product(x, kernel) + bias[part].astype(x.dtype)
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
