"""Small models with everything that a checkpoint must keep, some steps of which take a second on two CPU cores.

    jukebox-jax train --config experiments/fault_drill/config.py:VARIANT …

`prior` is an upsampler with labels, `codec` a VQ-VAE of two levels. Every step is logged, and checkpoints come so
often that a kill seldom costs much and often meets one that is being written.
"""

from jukebox_jax.errors import UserError
from jukebox_jax.models.conditioning import ConditionerConfig, LabelConfig
from jukebox_jax.models.losses import CodecLossConfig
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.models.vqvae import VQVAEConfig
from jukebox_jax.training.config import OptimizerConfig, TrainConfig
from jukebox_jax.training.run import CodecData, CodecRun, PriorRun

CODES = 64
TRAIN = TrainConfig(
    batch_size=8,
    log_every=1,
    eval_every=20,
    checkpoint_every=7,
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=20, schedule="cosine", ema_decay=0.9),
)


def get_config(variant: str = "prior") -> CodecRun | PriorRun:
    """The run of a variant."""
    if variant == "codec":
        # Codes are revived at nearly every step, by draws that follow from the step.
        loss = CodecLossConfig(
            codebook_decay=0.9,
            revival_threshold=0.1,
            multispectral_n_fft=(256,),
            multispectral_hop=(64,),
            multispectral_window=(256,),
        )
        model = VQVAEConfig(downs=(2, 2), strides=(2, 2), widths=(8, 8), depths=(1, 1), emb_width=8, codes=CODES)
        return CodecRun(model, loss, CodecData(window_samples=4096), TRAIN)
    if variant == "prior":
        labels = LabelConfig(0, 0, time_bins=16, max_duration_seconds=600.0)
        model = PriorConfig(
            level=1,
            codes=CODES,
            n_ctx=128,
            width=32,
            depth=3,
            heads=2,
            blocks=8,
            attention_order=2,
            labels=labels,
            conditioner=ConditionerConfig(width=16, depth=2),
            remat="none",
        )
        return PriorRun(model, TRAIN)
    raise UserError(f"experiments/fault_drill/config.py has no variant {variant!r}: choose codec or prior.")
