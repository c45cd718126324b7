"""A config file for `train --config`, of models small enough to be trained in a test."""

from __future__ import annotations

import dataclasses

from jukebox_jax.models.conditioning import ConditionerConfig, LabelConfig
from jukebox_jax.models.losses import CodecLossConfig
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.models.vqvae import VQVAEConfig
from jukebox_jax.training.config import OptimizerConfig, TrainConfig
from jukebox_jax.training.run import CodecData, CodecRun, PriorRun

CODEC = VQVAEConfig(sample_rate=8000, downs=(1, 1), strides=(4, 4), widths=(4, 4), depths=(1, 1), emb_width=4, codes=24)
LABELS = LabelConfig(6, 5, max_genres=2, time_bins=8, min_duration_seconds=0.25, max_duration_seconds=20.0)
TOP = PriorConfig(
    level=1, codes=24, n_ctx=32, width=16, depth=3, heads=2, blocks=4, merged_decoder=True, remat="none", labels=LABELS
)
UPSAMPLER = dataclasses.replace(
    TOP, level=0, heads=1, merged_decoder=False, conditioner=ConditionerConfig(8, 1, downs=1, stride=4)
)
LOSS = CodecLossConfig(multispectral_n_fft=(64,), multispectral_hop=(16,), multispectral_window=(64,))
# Steps so small that the weights stay where they started.
OPTIMIZER = OptimizerConfig(learning_rate=1e-6, warmup_steps=1)
TRAIN = TrainConfig(batch_size=2, steps=3, log_every=1, optimizer=OPTIMIZER)


def get_config(variant: str) -> CodecRun | PriorRun:
    """The run of "codec", "top" or "upsampler"; label tables are as large as the names, as in configs/prior.py."""
    if variant == "codec":
        return CodecRun(CODEC, LOSS, CodecData(window_samples=1024), TRAIN)
    model = {"top": TOP, "upsampler": UPSAMPLER}[variant]
    return PriorRun(dataclasses.replace(model, labels=dataclasses.replace(LABELS, artists=0, genres=0)), TRAIN)
