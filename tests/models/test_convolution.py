from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

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
