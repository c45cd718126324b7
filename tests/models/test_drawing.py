"""Drawing parameters one after another gives those of a compiled initialisation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from jukebox_jax.models import drawing
from jukebox_jax.models.vqvae import VQVAE, VQVAEConfig, init_codec

ONE_LEVEL = VQVAEConfig(downs=(1,), strides=(2,), widths=(4,), depths=(1,), emb_width=4, codes=8)


def test_the_numbers_are_those_of_the_compiled_initialisation():
    compiled = jax.jit(lambda key: VQVAE(ONE_LEVEL).init(key, jnp.zeros((1, 2, 1)))["params"])
    key = jax.random.key(3)
    drawn, expected = meta.unbox(init_codec(ONE_LEVEL, key)), meta.unbox(compiled(key))
    assert jax.tree.structure(drawn) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, drawn, expected)


def test_what_no_parameter_needs_is_left_out():
    def init(key):
        drawn = jax.random.uniform(key, (3,))
        jax.debug.callback(forwarded.append, drawn @ drawn)
        return {"drawn": drawn}

    forwarded: list = []
    drawing.draw(init, jax.random.key(0))
    jax.effects_barrier()
    assert forwarded == []
