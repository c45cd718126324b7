"""What is trained: a codec of one level, and a top prior that reads lyrics through an encoder of their own."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.lyric_alignment.speech import SAMPLE_RATE
from jukebox_jax.labels.lyrics import LyricText
from jukebox_jax.models.conditioning import LabelConfig
from jukebox_jax.models.losses import CodecLossConfig
from jukebox_jax.models.lyrics import LyricConfig, LyricEncoderConfig
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.models.vqvae import VQVAEConfig
from jukebox_jax.training.config import OptimizerConfig, TrainConfig
from jukebox_jax.training.run import CodecData, CodecRun, PriorRun

CODEC = VQVAEConfig(
    sample_rate=SAMPLE_RATE, downs=(6,), strides=(2,), widths=(32,), depths=(2,), emb_width=32, codes=128
)
HOP = CODEC.hops[0]
N_CTX = 512
#: A clip is one window: 5.46 s.
CLIP_SAMPLES = N_CTX * HOP
#: Characters of a window; every clip's lyrics are shorter, and so are read whole.
LYRIC_TOKENS = 96
#: The original's scale of initial weights, 0.7, is meant for models ten times as wide. In one so narrow, queries and
#: keys then begin so small that attention to the lyrics is the same everywhere, and stays so for thousands of steps.
INIT_SCALE = 4.0


@dataclass(frozen=True)
class Effort:
    """How much is trained, and on how much. The defaults take half an hour or so on two cores."""

    codec_steps: int = 600
    prior_steps: int = 3500
    train_clips: int = 3000
    test_clips: int = 128


def codec_run(effort: Effort) -> CodecRun:
    """11 ms a code, 128 codes."""
    return CodecRun(
        model=CODEC,
        loss=CodecLossConfig(
            multispectral_n_fft=(512, 256, 128),
            multispectral_hop=(60, 30, 15),
            multispectral_window=(300, 150, 60),
            codebook_decay=0.9,
            revival_threshold=0.1,
        ),
        data=CodecData(window_samples=8192),
        train=TrainConfig(
            batch_size=4,
            steps=effort.codec_steps,
            checkpoint_every=200,
            optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=50, schedule="cosine"),
        ),
    )


def prior_run(effort: Effort) -> PriorRun:
    """Four layers, of which the last looks at the lyrics."""
    text = LyricText("v3", "anyascii")
    encoder = LyricEncoderConfig(
        width=64,
        depth=3,
        heads=4,
        blocks=1,
        attention_order=0,
        attention_multiplier=1.0,
        mlp_multiplier=2.0,
        init_scale=INIT_SCALE,
    )
    return PriorRun(
        model=PriorConfig(
            level=0,
            codes=CODEC.codes,
            n_ctx=N_CTX,
            width=128,
            depth=4,
            heads=4,
            blocks=16,
            attention_order=6,
            attention_multiplier=1.0,
            mlp_multiplier=2.0,
            init_scale=INIT_SCALE,
            labels=LabelConfig(0, 0, time_bins=64, min_duration_seconds=1.0, max_duration_seconds=60.0),
            lyrics=LyricConfig(LYRIC_TOKENS, text.size, text, encoder),
            remat="none",
        ),
        train=TrainConfig(
            batch_size=8,
            steps=effort.prior_steps,
            eval_every=500,
            checkpoint_every=250,
            optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=200, schedule="cosine", b2=0.98),
        ),
    )
