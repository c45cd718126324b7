"""The VQ-VAE: audio to codes and back.

    jukebox-jax train --config configs/vqvae.py:VARIANT --data DATASET --out RUN

Variants
    demo      what `make demo` trains, on its music: about three minutes on two CPU cores.
    small     the original's `small_vqvae` recipe: two levels (hops 32 and 256) at 22,050 Hz, for one accelerator.
              Prepare the music at that rate.
    released  the released model's architecture and losses: three levels (hops 8, 32, 128) at 44,100 Hz, 9-second
              windows, batch 256 over all devices. Made for 64 chips, four windows each; `train` prints their memory
              before the first step. 2.0e14 FLOPs a step; the whole run takes 470 chip hours of v6e (7 hours on 64) if
              convolutions of so few channels reach 5% of the bfloat16 peak of 918 TFLOP/s: arithmetic, nothing that was
              measured.
"""

from jukebox_jax.errors import UserError
from jukebox_jax.interop.released import SMALL_VQVAE, VQVAE
from jukebox_jax.models.losses import CodecLossConfig
from jukebox_jax.recipe import codec_run
from jukebox_jax.training.config import OptimizerConfig, TrainConfig
from jukebox_jax.training.run import CodecData, CodecRun


def get_config(variant: str = "demo") -> CodecRun:
    """The run of a variant."""
    variants = {"demo": codec_run, "small": small, "released": released}
    if variant not in variants:
        raise UserError(f"configs/vqvae.py has no variant {variant!r}: choose one of {', '.join(variants)}.")
    return variants[variant]()


def small() -> CodecRun:
    """Two levels, mean squared error and multi-resolution spectral loss."""
    return CodecRun(
        model=SMALL_VQVAE,
        loss=CodecLossConfig(loss="l2"),
        data=CodecData(window_samples=262_144),
        train=TrainConfig(
            batch_size=4,
            steps=400_000,
            eval_every=5000,
            checkpoint_every=5000,
            optimizer=OptimizerConfig(learning_rate=3e-4, ema_decay=0.9995),
        ),
    )


def released() -> CodecRun:
    """The architecture of the released codec."""
    return CodecRun(
        model=VQVAE,
        data=CodecData(window_samples=393_216),
        train=TrainConfig(
            batch_size=256,
            steps=384_618,
            eval_every=5000,
            checkpoint_every=5000,
            strategy="dp",
            optimizer=OptimizerConfig(learning_rate=3e-4, ema_decay=0.999),
        ),
    )
