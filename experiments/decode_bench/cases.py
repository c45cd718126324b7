"""What is measured: the engine with the original's priors, in several precisions and batch sizes."""

from __future__ import annotations

from dataclasses import dataclass

from jukebox_jax.interop.released import (
    PRIOR_1B_LYRICS,
    PRIOR_5B,
    PRIOR_5B_LYRICS,
    SMALL_PRIOR,
    SMALL_UPSAMPLER,
    SMALL_VQVAE,
    UPSAMPLER_LEVEL_0,
    UPSAMPLER_LEVEL_1,
    VQVAE,
)
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.models.vqvae import VQVAEConfig
from jukebox_jax.sampling.weights import Precision


@dataclass(frozen=True)
class Case:
    """A prior in a precision and at a batch size.

    Attributes:
      prefill: whether to measure prefill too; it takes windows one by one, so one batch size per layout of the weights
        is enough.
      original_step_seconds, original_prefill: of the original in float32 under PyTorch 2.13 on two cores of this kind;
        prefill in tokens a second.
    """

    model: str
    config: PriorConfig
    precision: Precision
    batch: int
    prefill: bool
    original_step_seconds: float | None = None
    original_prefill: float | None = None

    @property
    def name(self) -> str:
        return f"{self.model}/{self.precision}/{self.batch}"


@dataclass(frozen=True)
class Cascade:
    """Models that make sound together; `priors`: names of the cases' models, the top one first."""

    name: str
    codec: VQVAEConfig
    priors: tuple[str, ...]


def cpu_cases() -> tuple[Case, ...]:
    """Those whose seconds are known of the original."""
    precisions: tuple[Precision, ...] = ("float32", "bfloat16", "int8")
    steps = {1: 0.040, 4: 0.072, 16: 0.096}
    return (
        *(
            Case("small_prior", SMALL_PRIOR, precision, batch, batch != 4, seconds, 211.0)
            for precision in precisions
            for batch, seconds in steps.items()
        ),
        *(Case("small_upsampler", SMALL_UPSAMPLER, precision, 1, False, 0.039) for precision in precisions),
    )


def accelerator_cases() -> tuple[Case, ...]:
    """The released priors, for one device of 80 GB; what does not fit is said to."""
    models = {
        "upsampler_level_0": UPSAMPLER_LEVEL_0,
        "upsampler_level_1": UPSAMPLER_LEVEL_1,
        "prior_1b_lyrics": PRIOR_1B_LYRICS,
        "prior_5b": PRIOR_5B,
        "prior_5b_lyrics": PRIOR_5B_LYRICS,
    }
    precisions: tuple[Precision, ...] = ("bfloat16", "int8")
    return tuple(
        Case(model, config, precision, batch, batch != 8)
        for model, config in models.items()
        for precision in precisions
        for batch in ((1,) if model == "upsampler_level_1" else (1, 8, 64))
    )


CPU_CASCADES = (Cascade("small", SMALL_VQVAE, ("small_prior", "small_upsampler")),)
ACCELERATOR_CASCADES = (
    Cascade("1b_lyrics", VQVAE, ("prior_1b_lyrics", "upsampler_level_1", "upsampler_level_0")),
    Cascade("5b_lyrics", VQVAE, ("prior_5b_lyrics", "upsampler_level_1", "upsampler_level_0")),
)
