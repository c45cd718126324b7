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
    long                                           a top prior that sees three minutes of a song, 65,536 tokens, at once
                                                   (below): one billion parameters.
    demo_long                                      a small one for the demo's data: 12 seconds over eight devices.

Hardware that the large ones are made for, and what a run costs there if it reaches 40% of the chips' bfloat16 peak
(arithmetic from the model's FLOPs, nothing that was measured; v5e 197, v5p 459, v6e 918 TFLOP/s):

    variant        chips                      windows a step   FLOPs a step   the whole run, in chip hours
    5b             64: v5p:4x4x4 or v6e:8x8   512              1.26e17        59,000 of v5p (38 days), 30,000 of v6e
    5b_lyrics      64, as 5b                  448              1.19e17        28,500 of v5p (19 days)
    1b_lyrics      64: v5e:8x8                512              1.85e16        20,300 (13 days)
    upsampler_1    64: v5e:8x8                192              7.61e15        7,100 (4.6 days)
    upsampler_0    64: v5e:8x8                192              7.61e15        7,500 (4.9 days)
    small and      one of 16 GB               4                3.0e13         27 of v5e in bfloat16
    its like                                                                  (--config.model.dtype=bfloat16)

The memory that these take of each chip, by the TPU compiler, stands in experiments/tpu_plans/README.md; `train` prints
it before the first step. Parameters lie over groups of 16 chips (of the 1B models 8), with a copy in every group: with
all 64 chips as one group the compiler has more sent. Any number of such groups will do, also in several slices
(experiments/launch). On v5e:8x8, whose chips have half the memory of v6e, 5b fits as one group only:
--config.train.mesh="(1,64,1,1)".

`long` is for what 24 seconds cannot hold: a chorus that returns. Its window, 65,536 tokens of the released codec's top
level or 190 seconds, is laid out as 256 rows of 256: no layer looks at more than 256 tokens, and every third reaches
back to the beginning. Songs must be as long as the window (shorter ones are left out, and `train` says how many) and
shorter than labels.max_duration_seconds. One window's activations are much for one chip, so four share it (strategy
fsdp_sp); parameters lie over two such groups, with a copy in every eight chips. A batch of 64 windows has as many
tokens as that of 5b: on 64 chips every group of four has four windows at once, on 256 one. For another context change
n_ctx, blocks (the rows; `sequence` should divide them, and n_ctx / blocks) and labels.min_duration_seconds (at most the
window's length).

`demo_long` is the same in small, on the demo's tokens. It needs eight devices, which one CPU can be:

    XLA_FLAGS=--xla_force_host_platform_device_count=8 jukebox-jax train --config configs/prior.py:demo_long \\
        --data demo/data/tokens --out runs/long

Labels take the names of the dataset: `model.labels.artists=0` means as many rows as it has names. To go on from
released weights, import them (`jukebox-jax import-openai`) and add --init-from FOLDER: the labels are then the
checkpoint's, and behind these the names of the dataset that it does not know. On several hosts add --hosts auto
(experiments/launch).
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
        "5b_lyrics": partial(top, released.PRIOR_5B_LYRICS, batch_size=448, steps=158_000),
        "1b_lyrics": partial(top, released.PRIOR_1B_LYRICS, group=8),
        "upsampler_1": partial(upsampler, released.UPSAMPLER_LEVEL_1, steps=265_000),
        "upsampler_0": partial(upsampler, released.UPSAMPLER_LEVEL_0, steps=279_000),
        "long": long,
        "demo_long": demo_long,
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


def top(
    model: PriorConfig, b2: float = 0.999, batch_size: int = 512, steps: int = 310_500, group: int = 16
) -> PriorRun:
    """Windows of 18 to 24 seconds; bfloat16 activations, fully sharded; batches and steps of the paper, or nearly so
    (448 instead of 440 with lyrics, which 64 chips divide)."""
    return PriorRun(
        model=_over_this_dataset(model),
        train=TrainConfig(
            batch_size=batch_size,
            accumulate=batch_size // 64,
            steps=steps,
            eval_every=1000,
            checkpoint_every=1000,
            strategy="fsdp",
            mesh=(-1, group, 1, 1),
            optimizer=OptimizerConfig(learning_rate=1.5e-4, weight_decay=0.002, b2=b2),
        ),
    )


def upsampler(model: PriorConfig, steps: int) -> PriorRun:
    """Windows of 8192 tokens (6 and 1.5 seconds), conditioned on the level above. The paper's batches are 192 and, at
    level 0, 184, which 64 chips do not divide."""
    return PriorRun(
        model=_over_this_dataset(model),
        train=TrainConfig(
            batch_size=192,
            accumulate=3,
            steps=steps,
            eval_every=1000,
            checkpoint_every=1000,
            strategy="fsdp",
            mesh=(-1, 8, 1, 1),
            optimizer=OptimizerConfig(learning_rate=3e-4, ema_decay=0.999),
        ),
    )


def long() -> PriorRun:
    """65,536 tokens at once: about the 1B model without lyrics, with heads as wide as TPUs multiply (128). Tokens of a
    batch and number of steps are those of 5b."""
    model = dataclasses.replace(
        released.PRIOR_1B_LYRICS,
        n_ctx=65_536,
        heads=4,
        blocks=256,
        attention_order=2,
        labels=dataclasses.replace(released.PRIOR_5B.labels, min_duration_seconds=190.0),
        lyrics=None,
    )
    run = top(model, batch_size=64)
    return dataclasses.replace(run, train=dataclasses.replace(run.train, strategy="fsdp_sp", mesh=(-1, 2, 4, 1)))


def demo_long() -> PriorRun:
    """4096 tokens of the demo's codec over eight devices, four for each window."""
    run = prior_run(2)
    return dataclasses.replace(
        run,
        model=dataclasses.replace(run.model, n_ctx=4096, blocks=64, depth=6, remat="block"),
        train=dataclasses.replace(
            run.train, batch_size=4, steps=200, seconds=None, strategy="fsdp_sp", mesh=(1, 2, 4, 1)
        ),
    )


def _over_this_dataset(model: PriorConfig) -> PriorConfig:
    """The released model with label tables of the dataset's (or, with --init-from, the checkpoint's) size."""
    labels = dataclasses.replace(model.labels, artists=0, genres=0)
    return dataclasses.replace(model, labels=labels, dtype="bfloat16")
