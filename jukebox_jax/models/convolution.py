"""One-dimensional convolutions, the residual stack, and how each is computed fast (spec: VQ-VAE, section 2).

Kernels are stored as (taps, channels in, channels out), audio and features as (batch, time, channels). All are
correlations with zero padding and a bias, in float32.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_LAYOUT = ("NWC", "WIO", "NWC")


def uniform_init(fan_in: int):
    """Uniform within fan_in ** -0.5: how the original's framework draws weights and biases by default."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Conv(nn.Module):
    """Convolution to `features` channels and (t + 2 padding - dilation (taps - 1) - 1) // stride + 1 positions."""

    features: int
    taps: int
    stride: int = 1
    dilation: int = 1
    padding: int = 0
    zero_init: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b u d"]:
        channels = x.shape[-1]
        init = nn.initializers.zeros if self.zero_init else uniform_init(channels * self.taps)
        axes = (None, None, "channels") if self.features > 1 else (None, "channels", None)
        kernel = self.param(
            "kernel", nn.with_logical_partitioning(init, axes), (self.taps, channels, self.features), jnp.float32
        )
        bias = self.param("bias", nn.with_logical_partitioning(init, (None,)), (self.features,), jnp.float32)
        return convolve(x, kernel, self.stride, self.dilation, self.padding) + bias


class ConvTranspose(nn.Module):
    """Transposed convolution with 2 * stride taps and padding stride // 2: `stride` times longer for an even stride."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b u d"]:
        channels, taps = x.shape[-1], 2 * self.stride
        init = uniform_init(self.features * taps)
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(init, (None, None, "channels")),
            (taps, channels, self.features),
            jnp.float32,
        )
        bias = self.param("bias", nn.with_logical_partitioning(init, (None,)), (self.features,), jnp.float32)
        return upsample(x, kernel, self.stride) + bias


def convolve(
    x: Float[Array, "b t c"], kernel: Float[Array, "k c d"], stride: int, dilation: int, padding: int
) -> Float[Array, "b u d"]:
    """Zero-padded correlation, by whichever formulation is fastest for its shape."""
    taps, channels, features = kernel.shape
    if taps == 1 and stride == 1 and padding == 0:
        return _pointwise(x, kernel[0])
    if channels == 1 or features == 1:
        # Convolution libraries are poor at a single channel: gather or add shifted copies around one matmul.
        length = (x.shape[1] + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
        span = stride * (length - 1) + 1
        if channels == 1:
            padded = jnp.pad(x[..., 0], ((0, 0), (padding, padding)))
            shifted = [padded[:, dilation * k : dilation * k + span : stride] for k in range(taps)]
            return jnp.stack(shifted, axis=-1) @ kernel[:, 0]
        products = jnp.pad(x @ kernel[:, :, 0].T, ((0, 0), (padding, padding), (0, 0)))
        return sum(products[:, dilation * k : dilation * k + span : stride, k, None] for k in range(taps))
    return _correlate(x, kernel, stride, dilation, padding)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _correlate(
    x: Float[Array, "b t c"], kernel: Float[Array, "k c d"], stride: int, dilation: int, padding: int
) -> Float[Array, "b u d"]:
    """By the platform's library, but on TPUs as products: of a dilated convolution of few channels XLA's TPU compiler
    makes many copies, in layouts that fill the channels up to 128 (experiments/sharding_lab, "The codec")."""
    sizes = {"stride": stride, "dilation": dilation, "padding": padding}
    ways = {"tpu": partial(by_products, **sizes), "default": partial(by_library, **sizes)}
    return jax.lax.platform_dependent(x, kernel, **ways)


def _correlate_forward(x: Array, kernel: Array, *sizes: int) -> tuple[Array, tuple[Array, Array]]:
    return _correlate(x, kernel, *sizes), (x, kernel)


def _correlate_backward(
    stride: int, dilation: int, padding: int, saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    # Each platform differentiates its own way: jax would differentiate the choice, and keep both ways' values.
    def gradients(function, x, kernel, gradient):
        _, backward = jax.vjp(partial(function, stride=stride, dilation=dilation, padding=padding), x, kernel)
        return backward(gradient)

    ways = {"tpu": partial(gradients, by_products), "default": partial(gradients, by_library)}
    return jax.lax.platform_dependent(*saved, gradient, **ways)


_correlate.defvjp(_correlate_forward, _correlate_backward)


def by_library(
    x: Float[Array, "b t c"], kernel: Float[Array, "k c d"], stride: int, dilation: int, padding: int
) -> Float[Array, "b u d"]:
    """XLA's convolution."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride,), [(padding, padding)], rhs_dilation=(dilation,), dimension_numbers=_LAYOUT
    )


def by_products(
    x: Float[Array, "b t c"], kernel: Float[Array, "k c d"], stride: int, dilation: int, padding: int
) -> Float[Array, "b u d"]:
    """One matrix product for each tap, shifted in time and summed. With a stride, `stride` positions are one of as many
    times the channels, and the taps those of a shorter kernel."""
    if stride > 1 and (dilation > 1 or x.shape[1] % stride):
        return by_library(x, kernel, stride, dilation, padding)
    offsets = [dilation * tap - padding for tap in range(len(kernel))]
    length = (x.shape[1] + 2 * padding - dilation * (len(kernel) - 1) - 1) // stride + 1
    if stride > 1:
        taps = dict(zip(offsets, kernel, strict=True))
        nothing = jnp.zeros_like(kernel[0])
        offsets = sorted({offset // stride for offset in offsets})
        phases = [[taps.get(stride * offset + phase, nothing) for phase in range(stride)] for offset in offsets]
        kernel = jnp.stack([jnp.concatenate(matrices) for matrices in phases])
        x = x.reshape(x.shape[0], x.shape[1] // stride, stride * x.shape[2])
    return _sum_of_products(x, kernel, tuple(offsets), length)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _sum_of_products(
    x: Float[Array, "b t c"], kernel: Float[Array, "k c d"], offsets: tuple[int, ...], length: int
) -> Float[Array, "b u d"]:
    """Position u is the sum of x[u + offset] @ kernel[k] over the offsets."""
    return sum(_moved(x @ matrix, -offset, length) for offset, matrix in zip(offsets, kernel, strict=True))


def _sum_of_products_backward(
    offsets: tuple[int, ...], length: int, saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    """With the moved gradients side by side: two products in place of twice as many as taps, each of which the compiler
    would take its time for."""
    x, kernel = saved
    taps, channels, features = kernel.shape
    moved = jnp.concatenate([_moved(gradient, offset, x.shape[1]) for offset in offsets], axis=-1)
    by_kernel = jnp.einsum("btc,btd->cd", x, moved).reshape(channels, taps, features)
    return moved @ jnp.swapaxes(kernel, 1, 2).reshape(taps * features, channels), jnp.moveaxis(by_kernel, 1, 0)


_sum_of_products.defvjp(
    lambda x, kernel, *sizes: (_sum_of_products(x, kernel, *sizes), (x, kernel)), _sum_of_products_backward
)


def _moved(x: Float[Array, "b t c"], by: int, length: int) -> Float[Array, "b u c"]:
    """x[t] at t + by, zeros where nothing comes to lie. As padding, and cropping where that is negative: devices that
    divide the time then send their neighbours `by` positions and no more."""
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (by, length - x.shape[1] - by, 0), (0, 0, 0)])


@jax.custom_vjp
def _pointwise(x: Float[Array, "b t c"], kernel: Float[Array, "c d"]) -> Float[Array, "b t d"]:
    """x @ kernel, whose derivative by the kernel is a product for each item and their sum.

    In one product over items and time, which it would be otherwise, XLA's CPU backend first transposes x: that takes as
    long as the multiplication.
    """
    return x @ kernel


def _pointwise_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return gradient @ kernel.T, jnp.sum(jnp.einsum("btc,btd->bcd", x, gradient), axis=0)


_pointwise.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _pointwise_backward)


def upsample(x: Float[Array, "b t c"], kernel: Float[Array, "k c d"], stride: int) -> Float[Array, "b u d"]:
    """Transposed correlation, k = 2 * stride taps and padding stride // 2; length (t - 1) stride - 2 padding + k."""
    taps, channels, features = kernel.shape
    padding = stride // 2
    if stride % 2:
        edge = taps - 1 - padding
        return jax.lax.conv_general_dilated(
            x, kernel[::-1], (1,), [(edge, edge)], lhs_dilation=(stride,), dimension_numbers=_LAYOUT
        )
    # Polyphase: output stride * m + r sees only inputs m - 1, m, m + 1, so one three-tap convolution yields all
    # `stride` phases side by side and no multiplication with inserted zeros is done.
    phases = []
    for r in range(stride):
        phase = jnp.zeros((3, channels, features), kernel.dtype)
        for tap in range(taps):
            shift, remainder = divmod(r + padding - tap, stride)
            if remainder == 0:
                phase = phase.at[1 + shift].set(kernel[tap])
        phases.append(phase)
    out = convolve(x, jnp.concatenate(phases, axis=-1), 1, 1, 1)
    return out.reshape(x.shape[0], x.shape[1] * stride, features)


class ResidualStack(nn.Module):
    """For each dilation: x + scale * conv1(relu(conv3(relu(x)))). No normalisation anywhere.

    With `valid`, items end after so many positions: see `zero_beyond`.
    """

    dilations: tuple[int, ...]
    hidden_multiplier: float = 1.0
    scale: float = 1.0
    zero_out: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b t c"], valid: Int[Array, " b"] | None = None) -> Float[Array, "b t c"]:
        width = x.shape[-1]
        hidden = int(self.hidden_multiplier * width)
        for index, dilation in enumerate(self.dilations):
            # Here, where it costs 1 % of the time, and not on the sum below, where it would part what XLA fuses (10 %).
            h = zero_beyond(nn.relu(x), valid)
            h = Conv(hidden, 3, dilation=dilation, padding=dilation, name=f"dilated_{index}")(h)
            h = Conv(width, 1, zero_init=self.zero_out, name=f"pointwise_{index}")(nn.relu(h))
            x = x + self.scale * h
        return zero_beyond(x, valid)


def zero_beyond(x: Float[Array, "b t c"], valid: Int[Array, " b"] | None) -> Float[Array, "b t c"]:
    """x with zeros from position valid[b] on, as a convolution's padding would have them; None leaves it as it is."""
    if valid is None:
        return x
    return jnp.where((jnp.arange(x.shape[1]) < valid[:, None])[..., None], x, 0)


def dilations(depth: int, growth: int, cycle: int | None = None, *, reverse: bool = False) -> tuple[int, ...]:
    """growth ** d for d = 0..depth-1, with d taken modulo `cycle` where one is set; reversed for a decoder."""
    powers = tuple(growth ** (d if cycle is None else d % cycle) for d in range(depth))
    return powers[::-1] if reverse else powers
