"""What is computed in bfloat16 and what in float32, read off the traced program."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import pytest
from flax.core import meta
from jax.extend.core import jaxprs_in_params

from jukebox_jax.models.prior import Prior, init_params, prior_loss
from tests.models.test_prior import TOP, make_batch


def operations(jaxpr) -> list[tuple[str, list]]:
    """Every primitive of a program, also inside loops and checkpoints, and its arguments' and results' types."""
    found = []
    for equation in jaxpr.eqns:
        found.append((equation.primitive.name, [value.aval for value in (*equation.invars, *equation.outvars)]))
        for inner in jaxprs_in_params(equation.params):
            found += operations(inner)
    return found


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_layers_multiply_in_their_dtype_and_the_rest_is_float32(dtype):
    config = dataclasses.replace(TOP, dtype=dtype)
    params, batch = meta.unbox(jax.eval_shape(partial(init_params, config), jax.random.key(0))), make_batch(config)

    def loss(params):
        return prior_loss(config, Prior(config).apply({"params": params}, batch, method="bits"))

    traced = jax.make_jaxpr(jax.value_and_grad(loss))(params)
    found = operations(traced.jaxpr)
    products = [types for name, types in found if name == "dot_general"]
    logits = [types for types in products if any(config.codes in value.shape for value in types)]
    layers = [types for types in products if types not in logits]
    assert len(logits) == 3  # forward, and the derivatives by states and embeddings
    assert len(layers) >= config.depth * 3 * 6
    assert {str(value.dtype) for types in logits for value in types} == {"float32"}
    assert {str(value.dtype) for types in layers for value in types} == {dtype}
    # The softmax of attention and of the loss, LayerNorm.
    for name in ("exp", "rsqrt", "log"):
        used = {str(value.dtype) for found_name, types in found if found_name == name for value in types}
        assert used == {"float32"}, name
    assert {str(leaf.dtype) for leaf in traced.out_avals} == {"float32"}
