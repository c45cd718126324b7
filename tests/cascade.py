"""A whole cascade small enough to sample in a test, with random weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from jukebox_jax.api import Model
from jukebox_jax.checkpoint import compact
from jukebox_jax.checkpoint.models import TrainedCodec, TrainedPrior
from jukebox_jax.config import to_dict
from jukebox_jax.labels.ids import LabelTable
from jukebox_jax.models.conditioning import ConditionerConfig, LabelConfig
from jukebox_jax.models.lyrics import LyricConfig, LyricEncoderConfig
from jukebox_jax.models.prior import PriorConfig, init_params
from jukebox_jax.models.vqvae import Codec, VQVAEConfig, init_codec

CODEC = VQVAEConfig(sample_rate=8000, widths=(4, 4, 4), depths=(1, 1, 1), emb_width=4, codes=24)
LABELS = LabelTable.of(["Bach", "Corelli", "Monteverdi"], ["Song", "Dance"])
#: A table whose genres are bags of words.
BAGS = dataclasses.replace(LABELS, normalisation="v2")

Lyrics = Literal["separate", "single"]


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


def lyric_config(kind: Lyrics) -> PriorConfig:
    """A top prior that takes 8 characters a window, and genres of two words."""
    labels = LabelConfig(4, 3, max_genres=2, time_bins=8, max_duration_seconds=20.0)
    config = dataclasses.replace(prior_config(2), labels=labels, merged_decoder=True)
    if kind == "separate":
        encoder = LyricEncoderConfig(width=8, depth=1, heads=1, blocks=2)
        lyrics = LyricConfig(8, 79, encoder=encoder, alignment_layer=3, alignment_head=1)
        return dataclasses.replace(config, depth=4, attention_order=6, lyrics=lyrics)
    return dataclasses.replace(config, depth=2, attention_order=0, lyrics=LyricConfig(8, 79))


def random_codec(config: VQVAEConfig = CODEC) -> Codec:
    params = meta.unbox(init_codec(config, jax.random.key(0)))
    books = jax.random.normal(jax.random.key(1), (config.levels, config.codes, config.emb_width)) * 0.05
    return Codec(params, tuple(books))


def random_prior(level: int) -> TrainedPrior:
    config = prior_config(level)
    params = meta.unbox(jax.jit(init_params, static_argnums=0)(config, jax.random.key(level)))
    # Artists louder than anything: in a fresh model they hardly show.
    params["labels"]["artist"] *= 100
    return TrainedPrior(config, params, LABELS, "tiny")


def loud_params(config: PriorConfig) -> dict:
    """Parameters of a `lyric_config`, drawn so that everything shows, also what a fresh model starts at zero."""
    rng = np.random.default_rng(config.depth)

    def draw(path, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return (0.5 * rng.normal(size=leaf.shape) + (path[-1].key == "scale")).astype(np.float32)

    shapes = meta.unbox(jax.eval_shape(lambda: init_params(config, jax.random.key(0))))
    params = jax.tree_util.tree_map_with_path(draw, shapes)
    if config.lyrics.encoder is not None:
        params["lyrics"]["norm"]["scale"] *= 2  # what is sung is heard
    params["decoder"]["transformer"]["layers"]["attention_out"]["kernel"] *= 10
    params["decoder"]["positions"] *= 3
    params["labels"]["genre"] *= 8  # heard at the first token only
    params["decoder"]["output"] *= 0.4  # no token is certain,
    params["decoder"]["output"][: config.shift] *= 0.1  # and music is likelier than lyrics
    return jax.tree.map(jnp.asarray, params)


@functools.cache
def lyric_prior(kind: Lyrics) -> TrainedPrior:
    config = lyric_config(kind)
    return TrainedPrior(config, loud_params(config), BAGS, "tiny")


@functools.cache
def random_model(lyrics: Lyrics | None = None) -> Model:
    """The codec and three priors, sharing the hash "tiny"; with `lyrics`, the top one takes them."""
    priors = [random_prior(level) for level in range(3)]
    if lyrics is not None:
        priors[-1] = lyric_prior(lyrics)
    return Model(TrainedCodec(CODEC, random_codec(), "tiny"), tuple(priors))


def write_model(folder: Path, levels: Sequence[int] = (0, 1, 2), lyrics: Lyrics | None = None) -> Path:
    """The codec and some priors of `random_model(lyrics)` as a folder that `api.load` reads."""
    codec = random_codec()
    books = {str(level): {"codes": codes} for level, codes in enumerate(codec.codebooks)}
    compact.save(
        folder / "vqvae", {"params": codec.params, "model_state": books}, {"kind": "codec", "model": to_dict(CODEC)}
    )
    for level in levels:
        prior = random_model(lyrics).priors[level]
        config = {"kind": "prior", "model": to_dict(prior.config), "labels": prior.labels.to_json(), "codec": ""}
        compact.save(folder / f"level_{level}", {"params": prior.params}, config)
    return folder


def equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool((a == b).all())
