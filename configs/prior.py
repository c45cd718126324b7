"""Priors: transformers over the codes of one level.

    jukebox-jax train --config configs/prior.py:VARIANT --data TOKENS --codec CODEC --out RUN

Variants
    demo_top, demo_upsampler_1, demo_upsampler_0   what `make demo` trains: a minute each on two CPU cores.
    small, small_labelled, small_upsampler         the original's recipes for one accelerator, over a two-level codec
                                                   (levels 1 and 0), without and with labels.
    5b                                             the released top prior without lyrics, 5.04 billion parameters.
    upsampler_1, upsampler_0                       the released upsamplers, one billion parameters each.

Labels take the names of the dataset: `model.labels.artists=0` means as many rows as it has names.
"""

import dataclasses
from functools import partial

from jukebox_jax.errors import UserError
from jukebox_jax.models.conditioning import ConditionerConfig, LabelConfig
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
        "small": small,
        "small_labelled": small_labelled,
        "small_upsampler": small_upsampler,
        "5b": prior_5b,
        "upsampler_1": partial(upsampler, 1),
        "upsampler_0": partial(upsampler, 0),
    }
    if variant not in variants:
        raise UserError(f"configs/prior.py has no variant {variant!r}: choose one of {', '.join(variants)}.")
    return variants[variant]()


def small() -> PriorRun:
    """1024 wide, 48 layers, over the top level of a two-level codec; 161 million parameters."""
    return PriorRun(
        model=PriorConfig(level=1, codes=1024, n_ctx=8192, width=1024, depth=48, heads=1, blocks=64),
        train=TrainConfig(
            batch_size=4,
            steps=250_000,
            eval_every=1000,
            checkpoint_every=1000,
            optimizer=OptimizerConfig(learning_rate=3e-4, weight_decay=0.01, ema_decay=0.9995),
        ),
    )


def small_labelled() -> PriorRun:
    """`small` with artist, genre and timing, for songs of one to ten minutes."""
    run = small()
    labels = LabelConfig(0, 0, time_bins=64, min_duration_seconds=60.0, max_duration_seconds=600.0)
    return dataclasses.replace(run, model=dataclasses.replace(run.model, labels=labels))


def small_upsampler() -> PriorRun:
    """Level 0 of a two-level codec, told the codes of level 1; 218 million parameters."""
    run = small()
    conditioner = ConditionerConfig(width=512, depth=16, downs=3)
    return dataclasses.replace(run, model=dataclasses.replace(run.model, level=0, conditioner=conditioner))


def prior_5b() -> PriorRun:
    """4800 wide, 72 layers, windows of 8192 tokens (23.8 s); bfloat16 activations, fully sharded."""
    return PriorRun(
        model=PriorConfig(
            level=2,
            n_ctx=8192,
            width=4800,
            depth=72,
            heads=8,
            blocks=128,
            init_scale=0.1,
            merged_decoder=True,
            labels=LabelConfig(0, 0, 5, time_bins=128, min_duration_seconds=60.0, max_duration_seconds=600.0),
            dtype="bfloat16",
        ),
        train=TrainConfig(
            batch_size=512,
            steps=310_500,
            eval_every=1000,
            checkpoint_every=1000,
            strategy="fsdp",
            optimizer=OptimizerConfig(learning_rate=1.5e-4, weight_decay=0.002, b2=0.925),
        ),
    )


def upsampler(level: int) -> PriorRun:
    """1920 wide, 72 layers, windows of 8192 tokens, conditioned on the level above."""
    return PriorRun(
        model=PriorConfig(
            level=level,
            n_ctx=8192,
            width=1920,
            depth=72,
            heads=1,
            blocks=128,
            init_scale=0.4,
            labels=LabelConfig(0, 0, 5, time_bins=128, max_duration_seconds=600.0),
            conditioner=ConditionerConfig(residual_scale=level == 1),
            dtype="bfloat16",
        ),
        train=TrainConfig(
            batch_size=184,
            steps=279_000,
            eval_every=1000,
            checkpoint_every=1000,
            strategy="fsdp",
            optimizer=OptimizerConfig(learning_rate=3e-4, ema_decay=0.999),
        ),
    )
