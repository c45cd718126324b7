"""Priors: transformers over the codes of one level.

    jukebox-jax train --config configs/prior.py:VARIANT --data TOKENS --codec CODEC --out RUN

Variants
    demo_top, demo_upsampler_1, demo_upsampler_0   what `make demo` trains: a minute each on two CPU cores.
    small, small_upsampler                         the original's recipes for one accelerator, over a two-level codec
                                                   (levels 1 and 0), without labels.
    small_labelled, small_lyrics, small_lyrics_encoder
                                                   a small top prior over the released codec, with labels, and with
                                                   lyrics in the same sequence or through an encoder of their own.
    5b, 5b_lyrics, 1b_lyrics                       the released top priors: 5.0, 5.6 and 0.9 billion parameters.
    upsampler_1, upsampler_0                       the released upsamplers, one billion parameters each.

Labels take the names of the dataset: `model.labels.artists=0` means as many rows as it has names. To go on from
released weights, import them (`jukebox-jax import-openai`) and add --init-from FOLDER: the labels are then the
checkpoint's, and behind these the names of the dataset that it does not know.
"""

import dataclasses
from functools import partial

from jukebox_jax.errors import UserError
from jukebox_jax.interop import released
from jukebox_jax.labels.lyrics import LyricText
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.recipe import prior_run
from jukebox_jax.training.config import OptimizerConfig, TrainConfig
from jukebox_jax.training.run import PriorRun


def get_config(variant: str = "demo_top") -> PriorRun:
    """The run of a variant."""
    variants = {
        "demo_top": partial(prior_run, 2),
        "demo_upsampler_1": partial(prior_run, 1),
        "demo_upsampler_0": partial(prior_run, 0),
        "small": partial(small, released.SMALL_PRIOR),
        "small_upsampler": partial(small, released.SMALL_UPSAMPLER),
        "small_labelled": partial(small, released.SMALL_LABELLED_PRIOR),
        "small_lyrics": partial(small, released.SMALL_SINGLE_ENC_DEC_PRIOR),
        "small_lyrics_encoder": partial(small, released.SMALL_SEP_ENC_DEC_PRIOR),
        "5b": partial(top, released.PRIOR_5B, b2=0.925),
        "5b_lyrics": partial(top, released.PRIOR_5B_LYRICS),
        "1b_lyrics": partial(top, released.PRIOR_1B_LYRICS),
        "upsampler_1": partial(upsampler, released.UPSAMPLER_LEVEL_1),
        "upsampler_0": partial(upsampler, released.UPSAMPLER_LEVEL_0),
    }
    if variant not in variants:
        raise UserError(f"configs/prior.py has no variant {variant!r}: choose one of {', '.join(variants)}.")
    return variants[variant]()


def small(model: PriorConfig) -> PriorRun:
    """About 1024 wide and 48 layers deep; a new model spells lyrics without the GPL transliterator."""
    if model.lyrics is not None:
        lyrics = dataclasses.replace(model.lyrics, text=LyricText("v3", "anyascii"))
        model = dataclasses.replace(model, lyrics=lyrics)
    return PriorRun(
        model=model,
        train=TrainConfig(
            batch_size=4,
            steps=250_000,
            eval_every=1000,
            checkpoint_every=1000,
            optimizer=OptimizerConfig(learning_rate=3e-4, weight_decay=0.01, ema_decay=0.9995),
        ),
    )


def top(model: PriorConfig, b2: float = 0.999) -> PriorRun:
    """Windows of 18 to 24 seconds; bfloat16 activations, fully sharded."""
    return PriorRun(
        model=_over_this_dataset(model),
        train=TrainConfig(
            batch_size=512,
            steps=310_500,
            eval_every=1000,
            checkpoint_every=1000,
            strategy="fsdp",
            optimizer=OptimizerConfig(learning_rate=1.5e-4, weight_decay=0.002, b2=b2),
        ),
    )


def upsampler(model: PriorConfig) -> PriorRun:
    """Windows of 8192 tokens, conditioned on the level above."""
    return PriorRun(
        model=_over_this_dataset(model),
        train=TrainConfig(
            batch_size=184,
            steps=279_000,
            eval_every=1000,
            checkpoint_every=1000,
            strategy="fsdp",
            optimizer=OptimizerConfig(learning_rate=3e-4, ema_decay=0.999),
        ),
    )


def _over_this_dataset(model: PriorConfig) -> PriorConfig:
    """The released model with label tables of the dataset's (or, with --init-from, the checkpoint's) size."""
    labels = dataclasses.replace(model.labels, artists=0, genres=0)
    return dataclasses.replace(model, labels=labels, dtype="bfloat16")
