"""The demo's models and how they are trained: what fits two CPU cores and a few minutes."""

from __future__ import annotations

from dataclasses import dataclass

from jukebox_jax.models.conditioning import ConditionerConfig, LabelConfig
from jukebox_jax.models.losses import CodecLossConfig
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.models.vqvae import VQVAEConfig
from jukebox_jax.training.config import OptimizerConfig, TrainConfig
from jukebox_jax.training.run import CodecData, CodecRun, PriorRun

LEVELS = (0, 1, 2)
CODES = 512


@dataclass(frozen=True)
class Effort:
    """How long to train: the seconds per model decide the number of steps, which stays between the two bounds; without
    seconds it is the upper one."""

    codec_seconds: float | None = 150.0
    codec_steps: tuple[int, int] = (350, 4000)
    prior_seconds: float | None = 45.0
    prior_steps: tuple[int, int] = (150, 4000)


def codec_run(seed: int = 0, effort: Effort = Effort()) -> CodecRun:
    """The demo's VQ-VAE: the released one's shape at a tenth of its width and with a quarter of its codes."""
    least, most = effort.codec_steps
    return CodecRun(
        model=VQVAEConfig(widths=(24, 32, 32), depths=(3, 2, 2), emb_width=32, codes=CODES),
        # Runs of hundreds of steps need codebooks that follow fast; and with a few hundred tokens a step for 512
        # codes, a code used once in ten steps is alive.
        loss=CodecLossConfig(codebook_decay=0.9, revival_threshold=0.1),
        # Steps decide, not samples: small windows give many of them.
        data=CodecData(window_samples=8192),
        train=TrainConfig(
            seed=seed,
            batch_size=4,
            steps=most,
            seconds=effort.codec_seconds,
            min_steps=least,
            eval_every=200,
            checkpoint_every=500,
            optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=50, schedule="cosine"),
        ),
    )


def prior_run(level: int, seed: int = 0, effort: Effort = Effort()) -> PriorRun:
    """The demo's prior of one level: the top prior at level 2, upsamplers below."""
    least, most = effort.prior_steps
    top = level == LEVELS[-1]
    return PriorRun(
        model=PriorConfig(
            level=level,
            codes=CODES,
            n_ctx=512,
            width=64,
            depth=4,
            heads=2,
            blocks=16,
            attention_order=2,
            init_scale=0.7,
            labels=LabelConfig(0, 0, time_bins=64, min_duration_seconds=1.0, max_duration_seconds=600.0),
            conditioner=None if top else ConditionerConfig(width=24, depth=3, residual_scale=level == 1),
            remat="none",
        ),
        train=TrainConfig(
            seed=seed,
            batch_size=8,
            steps=most,
            seconds=effort.prior_seconds,
            min_steps=least,
            eval_every=200,
            checkpoint_every=500,
            optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=50, schedule="cosine", b2=0.98),
        ),
    )
