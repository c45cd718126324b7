"""The VQ-VAE: independent encoders and decoders, one pair and one codebook per level (spec: VQ-VAE, section 2)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key

from jukebox_jax.errors import UserError
from jukebox_jax.models.codebook import Codebook, look_up, nearest
from jukebox_jax.models.convolution import Conv, ConvTranspose, ResidualStack, dilations, zero_beyond
from jukebox_jax.models.drawing import draw


@dataclass(frozen=True)
class VQVAEConfig:
    """The released model's numbers by default; level 0 (finest) first in every tuple."""

    sample_rate: int = 44100
    downs: tuple[int, ...] = (3, 2, 2)
    strides: tuple[int, ...] = (2, 2, 2)
    widths: tuple[int, ...] = (64, 32, 32)
    depths: tuple[int, ...] = (8, 4, 4)
    emb_width: int = 64
    codes: int = 2048
    hidden_multiplier: float = 1.0
    dilation_growth: int = 3
    dilation_cycle: int | None = None
    reverse_decoder_dilation: bool = True

    def __post_init__(self):
        if not self.downs:
            raise UserError("model.downs is empty: give a number of downsamplings for each level.")
        for name in ("strides", "widths", "depths"):
            if len(getattr(self, name)) != len(self.downs):
                raise UserError(
                    f"model.{name}={getattr(self, name)} has {len(getattr(self, name))} entries, but "
                    f"model.downs={self.downs} makes {len(self.downs)} levels: give one entry for each level."
                )
        for name in ("sample_rate", "emb_width", "codes", "dilation_growth"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name}={getattr(self, name)} is too small: it must be at least 1.")
        if self.dilation_cycle is not None and self.dilation_cycle < 1:
            raise UserError(f"model.dilation_cycle={self.dilation_cycle} is too small: choose at least 1, or none.")
        for name in ("widths", "depths"):
            if min(getattr(self, name)) < 1:
                raise UserError(f"model.{name}={getattr(self, name)}: every entry must be at least 1.")
        if self.downs[0] < 1 or min(self.downs) < 0:
            raise UserError(f"model.downs={self.downs}: the first entry must be at least 1, the others 0 or more.")
        # Kernels of 2 * stride taps with padding stride // 2 divide and multiply lengths exactly only if it is even.
        if any(stride < 2 or stride % 2 for stride in self.strides):
            raise UserError(f"model.strides={self.strides}: every entry must be an even number, 2 or more.")
        if int(self.hidden_multiplier * min(self.widths)) < 1:
            raise UserError(
                f"model.hidden_multiplier={self.hidden_multiplier} leaves no channels of model.widths={self.widths}: "
                "choose a larger one."
            )

    @property
    def levels(self) -> int:
        return len(self.downs)

    @property
    def hops(self) -> tuple[int, ...]:
        """Samples per code at each level."""
        ratios = [stride**down for stride, down in zip(self.strides, self.downs, strict=True)]
        return tuple(prod(ratios[: level + 1]) for level in range(self.levels))


# Devices may hold parts of an item's time; neighbours then exchange what a convolution reaches over.
_AXES = ("batch", "time", None)


class Encoder(nn.Module):
    """Audio to latents at one level's hop.

    With `valid`, an item ends after so many samples, a multiple of the hop: its latents up to there are those of the
    shorter audio alone, because every layer finds zeros behind it; what stands further on means nothing.
    """

    config: VQVAEConfig
    level: int

    @nn.compact
    def __call__(self, audio: Float[Array, "b t 1"], valid: Int[Array, " b"] | None = None) -> Float[Array, "b u e"]:
        c = self.config
        width, h = c.widths[self.level], nn.with_logical_constraint(zero_beyond(audio, valid), _AXES)
        spread = dilations(c.depths[self.level], c.dilation_growth, c.dilation_cycle)
        for block in range(self.level + 1):
            if c.downs[block] == 0:
                continue
            stride = c.strides[block]
            for stage in range(c.downs[block]):
                name = f"block_{block}_stage_{stage}"
                valid = None if valid is None else valid // stride
                h = Conv(width, 2 * stride, stride=stride, padding=stride // 2, name=f"{name}_down")(h)
                h = ResidualStack(spread, c.hidden_multiplier, name=f"{name}_residual")(h, valid)
                h = nn.with_logical_constraint(h, _AXES)
            h = zero_beyond(Conv(c.emb_width, 3, padding=1, name=f"block_{block}_out")(h), valid)
        return h


class Decoder(nn.Module):
    """Code vectors of one level to audio; unbounded, no final activation."""

    config: VQVAEConfig
    level: int

    @nn.compact
    def __call__(self, h: Float[Array, "b u e"]) -> Float[Array, "b t 1"]:
        c = self.config
        width, h = c.widths[self.level], nn.with_logical_constraint(h, _AXES)
        spread = dilations(
            c.depths[self.level], c.dilation_growth, c.dilation_cycle, reverse=c.reverse_decoder_dilation
        )
        for block in reversed(range(self.level + 1)):
            if c.downs[block] == 0:
                continue
            h = Conv(width, 3, padding=1, name=f"block_{block}_in")(h)
            for stage in range(c.downs[block]):
                name = f"block_{block}_stage_{stage}"
                features = c.emb_width if stage == c.downs[block] - 1 else width
                h = ResidualStack(spread, c.hidden_multiplier, name=f"{name}_residual")(h)
                h = ConvTranspose(features, c.strides[block], name=f"{name}_up")(h)
                h = nn.with_logical_constraint(h, _AXES)
        return Conv(1, 3, padding=1, name="out")(h)


class VQVAE(nn.Module):
    """All encoders and decoders. Codebooks are passed in: they are state of training, not parameters."""

    config: VQVAEConfig

    def setup(self):
        levels = range(self.config.levels)
        self.encoders = [Encoder(self.config, level) for level in levels]
        self.decoders = [Decoder(self.config, level) for level in levels]

    def __call__(self, audio: Float[Array, "b t 1"]) -> list[Float[Array, "b t 1"]]:
        """Passes audio through every level without quantising it; `init` uses it to make all parameters."""
        return [self.decode_latents(self.encode_latents(audio, i), i) for i in range(self.config.levels)]

    def encode_latents(
        self, audio: Float[Array, "b t 1"], level: int, valid: Int[Array, " b"] | None = None
    ) -> Float[Array, "b u e"]:
        """Latents of one level before quantisation; t, and `valid` if given, must be multiples of the level's hop."""
        return self.encoders[level](audio, valid)

    def decode_latents(self, latents: Float[Array, "b u e"], level: int) -> Float[Array, "b t 1"]:
        """Audio from code vectors (or latents) of one level."""
        return self.decoders[level](latents)


@struct.dataclass
class Codec:
    """A trained VQ-VAE ready for use: parameters and codebooks (codes, e), level 0 first."""

    params: dict
    codebooks: tuple[Array, ...]


def encode(
    config: VQVAEConfig,
    codec: Codec,
    audio: Float[Array, "b t 1"],
    levels: tuple[int, ...] | None = None,
    valid: Int[Array, " b"] | None = None,
) -> list[Int[Array, "b _"]]:
    """Codes of the given levels (all by default), each (b, t / hop). t must be a multiple of the largest hop.

    With `valid`, item b ends after valid[b] samples, a multiple of the largest hop: its first valid[b] / hop codes are
    those of encoding it alone, whatever follows in `audio`, and the others mean nothing.
    """
    levels = tuple(range(config.levels)) if levels is None else levels
    model = VQVAE(config)
    latents = [model.apply({"params": codec.params}, audio, level, valid, method="encode_latents") for level in levels]
    return [nearest(x, codec.codebooks[level])[0] for x, level in zip(latents, levels, strict=True)]


def decode(config: VQVAEConfig, codec: Codec, codes: Int[Array, "b u"], level: int) -> Float[Array, "b t 1"]:
    """Audio from the codes of one level alone, as the model always decodes."""
    latents = look_up(codec.codebooks[level], codes)
    return VQVAE(config).apply({"params": codec.params}, latents, level, method="decode_latents")


def untrained_codebooks(config: VQVAEConfig) -> tuple[Codebook, ...]:
    """Codebooks that the first training batch will initialise."""
    return tuple(Codebook.empty(config.codes, config.emb_width) for _ in range(config.levels))


def init_codec(config: VQVAEConfig, key: Key[Array, ""]) -> dict:
    """Fresh parameters, boxed with their logical axes. Not to be compiled: see `drawing`."""
    shortest = jnp.zeros((1, config.hops[-1], 1), jnp.float32)
    return draw(lambda key: VQVAE(config).init(key, shortest)["params"], key)


def flops_per_sample(config: VQVAEConfig) -> float:
    """Floating-point operations of all encoders and decoders, forward, per sample of audio (convolutions only)."""
    total = 0.0
    for level in range(config.levels):
        width, depth = config.widths[level], config.depths[level]
        hidden = int(config.hidden_multiplier * width)
        residual = depth * (3 * width * hidden + hidden * width)
        rate, channels = 1.0, 1  # positions per sample, and the encoder's channels at that rate
        for block in range(level + 1):
            stride = config.strides[block]
            for stage in range(config.downs[block]):
                rate /= stride
                up = config.emb_width if stage == config.downs[block] - 1 else width
                total += rate * (2 * stride * channels * width + 2 * residual + 2 * stride * width * up)
                channels = width
            if config.downs[block]:
                total += rate * 2 * 3 * width * config.emb_width
                channels = config.emb_width
        total += 3 * config.emb_width
    return 2 * total


def encoder_reach(config: VQVAEConfig) -> int:
    """How many samples a code can depend on beyond its own hop, to either side, at any level."""
    reaches = []
    for level in range(config.levels):
        residual = sum(dilations(config.depths[level], config.dilation_growth, config.dilation_cycle))
        reach, rate = 0, 1
        for block in range(level + 1):
            stride = config.strides[block]
            for _ in range(config.downs[block]):
                reach += (2 * stride - 1 - stride // 2) * rate
                rate *= stride
                reach += residual * rate
            reach += rate
        reaches.append(reach)
    return max(reaches)
