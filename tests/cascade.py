"""A whole cascade small enough to sample in a test, with random weights."""

from __future__ import annotations

import functools

import jax
import numpy as np
from flax.core import meta

from jukebox_jax.api import Model
from jukebox_jax.checkpoint.models import TrainedCodec, TrainedPrior
from jukebox_jax.labels.ids import LabelTable
from jukebox_jax.models.conditioning import ConditionerConfig, LabelConfig
from jukebox_jax.models.prior import PriorConfig, init_params
from jukebox_jax.models.vqvae import Codec, VQVAEConfig, init_codec

CODEC = VQVAEConfig(sample_rate=8000, widths=(4, 4, 4), depths=(1, 1, 1), emb_width=4, codes=24)
LABELS = LabelTable.of(["Bach", "Corelli", "Monteverdi"], ["Song", "Dance"])


def prior_config(level: int) -> PriorConfig:
    return PriorConfig(
        level=level,
        codes=CODEC.codes,
        n_ctx=32,
        width=16,
        depth=3,
        heads=2,
        blocks=4,
        init_scale=6.0,
        labels=LabelConfig(4, 3, time_bins=8, max_duration_seconds=20.0),
        conditioner=None if level == 2 else ConditionerConfig(width=8, depth=2),
    )


def random_codec(config: VQVAEConfig = CODEC) -> Codec:
    params = meta.unbox(jax.jit(init_codec, static_argnums=0)(config, jax.random.key(0)))
    books = jax.random.normal(jax.random.key(1), (config.levels, config.codes, config.emb_width)) * 0.05
    return Codec(params, tuple(books))


def random_prior(level: int) -> TrainedPrior:
    config = prior_config(level)
    params = meta.unbox(jax.jit(init_params, static_argnums=0)(config, jax.random.key(level)))
    # Artists louder than anything: in a fresh model they hardly show.
    params["labels"]["artist"] *= 100
    return TrainedPrior(config, params, LABELS, "tiny")


@functools.cache
def random_model() -> Model:
    """The codec and three priors, sharing the hash "tiny"."""
    return Model(TrainedCodec(CODEC, random_codec(), "tiny"), tuple(random_prior(level) for level in range(3)))


def equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool((a == b).all())
