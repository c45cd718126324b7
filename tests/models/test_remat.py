"""What the backward pass of a transformer keeps changes its memory and nothing else."""

from __future__ import annotations

import dataclasses
from functools import cache

import jax
import numpy as np
import pytest

from jukebox_jax.models.prior import Prior, PriorConfig, prior_loss
from tests.models.test_prior import SEPARATE, make_batch, make_params

# Large enough for memory to be that of the layers.
SCANNED = PriorConfig(
    level=2, codes=20, n_ctx=256, width=32, depth=6, heads=2, blocks=16, attention_order=1, init_scale=2.0
)
# Not scanned, and with layers that look at an encoder, which is a transformer too.
_ENCODER = dataclasses.replace(SEPARATE.lyrics.encoder, depth=1)
ENCODER = dataclasses.replace(SEPARATE, labels=None, lyrics=dataclasses.replace(SEPARATE.lyrics, encoder=_ENCODER))
MODELS = {"scanned": SCANNED, "encoder": ENCODER}


@cache
def with_remat(name: str, remat: str):
    """Loss, gradients and bytes of temporary memory."""
    config = dataclasses.replace(MODELS[name], remat=remat)
    batch, params = make_batch(config), make_params(MODELS[name])

    def loss(params):
        return prior_loss(config, Prior(config).apply(params, batch, method="bits"))

    step = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
    value, gradients = step(params)
    return float(value), gradients, step.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    ("name", "remat"),
    [
        *(("scanned", remat) for remat in ("block", "dots", "offload")),
        pytest.param("encoder", "dots", marks=pytest.mark.slow),
    ],
)
def test_loss_and_gradients_are_those_without_remat(name, remat):
    expected, expected_gradients, _ = with_remat(name, "none")
    value, gradients, _ = with_remat(name, remat)
    assert value == pytest.approx(expected, rel=1e-6)
    for found, wanted in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True):
        assert np.linalg.norm(found - wanted) <= 1e-6 * np.linalg.norm(wanted)


def test_the_more_is_computed_twice_the_less_is_kept():
    block, dots, none = (with_remat("scanned", remat)[2] for remat in ("block", "dots", "none"))
    assert block < dots < none
