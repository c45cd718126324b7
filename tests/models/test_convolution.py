from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jukebox_jax.models import convolution
from jukebox_jax.models.convolution import convolve


def test_derivatives_of_a_pointwise_convolution_are_those_of_the_product():
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel, weight = (
        jax.random.normal(k, s) for k, s in zip(keys, [(3, 40, 5), (1, 5, 7), (3, 40, 7)], strict=True)
    )

    def loss(product):
        return lambda x, kernel: jnp.sum(weight * jnp.tanh(product(x, kernel)))

    found = jax.grad(loss(lambda x, kernel: convolve(x, kernel, 1, 1, 0)), argnums=(0, 1))(x, kernel)
    expected = jax.grad(loss(lambda x, kernel: jnp.einsum("btc,kcd->btd", x, kernel)), argnums=(0, 1))(x, kernel)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("taps", "stride", "dilation", "padding", "length"),
    [
        (3, 1, 9, 9, 24),
        (3, 1, 27, 27, 24),  # beyond both ends
        (3, 1, 3, 0, 24),
        (4, 2, 1, 1, 24),
        (4, 2, 1, 3, 24),
        (8, 4, 1, 2, 24),
        (4, 2, 1, 1, 23),  # no whole number of strides
        (5, 3, 1, 0, 24),
        (3, 2, 3, 3, 24),
    ],
)
def test_products_for_tpus_are_the_convolution_and_so_are_their_derivatives(taps, stride, dilation, padding, length):
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], (2, length, 5)), jax.random.normal(keys[1], (taps, 5, 7))

    def values(way):
        out, backward = jax.vjp(lambda x, kernel: way(x, kernel, stride, dilation, padding), x, kernel)
        return out, *backward(jax.random.normal(keys[2], out.shape))

    ways = (convolve, convolution.by_products, convolution.by_library)
    found, products, library = map(values, ways)
    for a, b, c in zip(found, products, library, strict=True):
        np.testing.assert_allclose(b, c, rtol=1e-5, atol=1e-4)
        np.testing.assert_array_equal(a, c)  # here, on CPUs
