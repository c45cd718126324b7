"""What is measured: training steps and codec passes of the original's configurations, on random data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from jukebox_jax.interop.released import PRIOR_5B, SMALL_PRIOR, SMALL_UPSAMPLER, SMALL_VQVAE, UPSAMPLER_LEVEL_0, VQVAE
from jukebox_jax.models.losses import Bandwidth, CodecLossConfig
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.models.vqvae import Codec, VQVAEConfig, decode, encode, init_codec
from jukebox_jax.parallel.mesh import make_mesh
from jukebox_jax.parallel.strategies import get_strategy
from jukebox_jax.training.codec_task import codec_task
from jukebox_jax.training.config import TrainConfig
from jukebox_jax.training.prior_task import prior_task
from jukebox_jax.training.state import abstract_state, create_state
from jukebox_jax.training.step import make_train_step
from jukebox_jax.training.task import Task


@dataclass(frozen=True)
class Work:
    """Something to run again and again.

    Attributes:
      step: jitted, (state, batch) → (state, anything), to be called with the mesh of one device set; it may use the
        state up.
      create: makes the first state.
      batch: what every step gets.
      units: how many of `unit` a step handles.
    """

    step: Callable
    create: Callable[[], Any]
    batch: Any
    units: int
    unit: str


@dataclass(frozen=True)
class Case:
    """A named piece of work; `original_seconds`: of the original under PyTorch 2.13 on two cores of this kind."""

    name: str
    make: Callable[[], Work]
    original_seconds: float | None = None


def cpu_cases() -> tuple[Case, ...]:
    """Those whose seconds are known of the original, in float32."""
    dots = partial(replace, remat="dots")
    return (
        Case("vqvae_step", partial(codec_step, SMALL_VQVAE, 4, 65_536), 2.04),
        Case("vqvae_encode", partial(codec_encode, VQVAE, 262_144), 2.56),
        Case("vqvae_decode_0", partial(codec_decode, VQVAE, 262_144, 0), 1.25),
        Case("vqvae_decode_1", partial(codec_decode, VQVAE, 262_144, 1), 0.24),
        Case("vqvae_decode_2", partial(codec_decode, VQVAE, 262_144, 2), 0.24),
        Case("prior_2048_step", partial(prior_step, dots(SMALL_PRIOR, n_ctx=2048), 1), 15.7),
        Case("prior_step", partial(prior_step, dots(SMALL_PRIOR), 1), 74.4),
        Case("upsampler_step", partial(prior_step, dots(SMALL_UPSAMPLER), 1), 77.9),
    )


def accelerator_cases() -> tuple[Case, ...]:
    """In bfloat16, with batches for one device of 80 GB; the last may not fit."""
    half = partial(replace, dtype="bfloat16")
    upsampler = half(UPSAMPLER_LEVEL_0, remat="dots")
    return (
        Case("vqvae_step", partial(codec_step, SMALL_VQVAE, 4, 65_536)),
        Case("released_vqvae_step", partial(codec_step, VQVAE, 8, 393_216)),
        Case("prior_step", partial(prior_step, half(SMALL_PRIOR, remat="dots"), 4)),
        Case("upsampler_step", partial(prior_step, half(SMALL_UPSAMPLER, remat="dots"), 4)),
        Case("released_upsampler_step", partial(prior_step, upsampler, 2)),
        Case("5b_step", partial(prior_step, half(PRIOR_5B, remat="block"), 1)),
    )


def prior_step(model: PriorConfig, batch: int) -> Work:
    """A training step of a prior."""
    return train_step(prior_task(model), batch, batch * model.n_ctx, "tokens")


def codec_step(model: VQVAEConfig, batch: int, samples: int) -> Work:
    """A training step of a codec with mean squared error and spectral losses."""
    task = codec_task(model, CodecLossConfig(loss="l2"), Bandwidth(), samples)
    return train_step(task, batch, batch * samples, "samples")


def train_step(task: Task, batch: int, units: int, unit: str) -> Work:
    """The trainer's step on one device: loss, gradients, AdamW, clipping."""
    config, mesh, rules = TrainConfig(batch_size=batch), make_mesh((1,)), get_strategy("single").rules
    abstract = abstract_state(task, config, mesh, rules)
    step = make_train_step(task, config, mesh, rules, abstract)
    return Work(step, lambda: create_state(task, config, abstract), random_batch(task, batch), units, unit)


def codec_encode(model: VQVAEConfig, samples: int) -> Work:
    """Audio to the codes of all levels."""
    audio = random_audio(1, samples)
    return Work(
        jax.jit(lambda codec, x: (codec, encode(model, codec, x))), lambda: codec(model), audio, samples, "samples"
    )


def codec_decode(model: VQVAEConfig, samples: int, level: int) -> Work:
    """Codes of one level to audio."""
    codes = np.random.default_rng(0).integers(0, model.codes, (1, samples // model.hops[level])).astype(np.int32)
    step = jax.jit(lambda codec, codes: (codec, decode(model, codec, codes, level)))
    return Work(step, lambda: codec(model), codes, samples, "samples")


def codec(model: VQVAEConfig) -> Codec:
    """A codec with random weights and codes, of which nothing is known but their size."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> jax.Array:
        # So that layers neither blow signals up nor let them fade.
        return jnp.asarray(rng.standard_normal(shape) / prod(shape[:-1]) ** 0.5, jnp.float32)

    shapes = meta.unbox(jax.eval_shape(partial(init_codec, model), jax.random.key(0)))
    params = jax.tree.map(lambda leaf: draw(*leaf.shape), shapes)
    return Codec(params, tuple(draw(model.codes, model.emb_width) for _ in range(model.levels)))


def random_batch(task: Task, batch: int) -> dict[str, np.ndarray]:
    """Noise, or whole numbers that every table of labels has."""
    rng = np.random.default_rng(0)
    made = {}
    for name, spec in task.batch_spec.items():
        if jnp.issubdtype(spec.dtype, jnp.floating):
            made[name] = random_audio(batch, spec.shape[0])
        else:
            most = 1000 if name in ("tokens", "upper") else 60
            made[name] = rng.integers(0, most, (batch, *spec.shape)).astype(np.int32)
    return made


def random_audio(batch: int, samples: int) -> np.ndarray:
    """Noise as loud as music."""
    return (0.1 * np.random.default_rng(0).standard_normal((batch, samples, 1))).astype(np.float32)
