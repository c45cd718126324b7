"""What a prior is told besides its own tokens: labels, timing, codes of the level above (spec: priors, 6 and 7)."""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jukebox_jax.errors import UserError
from jukebox_jax.models.convolution import Conv, ConvTranspose, ResidualStack, dilations
from jukebox_jax.models.layers import LayerNorm, embedding, look_up


@dataclass(frozen=True)
class LabelConfig:
    """Sizes of the label tables (0: as many rows as the dataset has names); durations bound the song lengths (seconds)
    that the timing bins cover."""

    artists: int
    genres: int
    max_genres: int = 1
    time_bins: int = 64
    min_duration_seconds: float = 0.0
    max_duration_seconds: float = 600.0

    def __post_init__(self):
        for name, least in (("artists", 0), ("genres", 0), ("max_genres", 1), ("time_bins", 1)):
            if getattr(self, name) < least:
                raise UserError(f"model.labels.{name}={getattr(self, name)} is too small: choose at least {least}.")
        if not 0 <= self.min_duration_seconds < self.max_duration_seconds:
            raise UserError(
                f"model.labels.min_duration_seconds={self.min_duration_seconds:g} must be 0 or more, and less than "
                f"model.labels.max_duration_seconds={self.max_duration_seconds:g}: change one."
            )


@dataclass(frozen=True)
class ConditionerConfig:
    """The upsampler's network over the codes of the level above; `stride` ** `downs` codes here per code there."""

    width: int = 1024
    depth: int = 16
    downs: int = 2
    stride: int = 2
    dilation_growth: int = 3
    dilation_cycle: int | None = 8
    hidden_multiplier: float = 1.0
    residual_scale: bool = False

    def __post_init__(self):
        for name in ("width", "depth", "downs", "dilation_growth"):
            if getattr(self, name) < 1:
                raise UserError(f"model.conditioner.{name}={getattr(self, name)} is too small: choose at least 1.")
        if self.dilation_cycle is not None and self.dilation_cycle < 1:
            raise UserError(
                f"model.conditioner.dilation_cycle={self.dilation_cycle} is too small: choose at least 1, or none."
            )
        # A kernel of 2 * stride taps with padding stride // 2 multiplies lengths exactly only if it is even.
        if self.stride < 2 or self.stride % 2:
            raise UserError(f"model.conditioner.stride={self.stride} must be an even number, 2 or more: change it.")
        if int(self.hidden_multiplier * self.width) < 1:
            raise UserError(
                f"model.conditioner.hidden_multiplier={self.hidden_multiplier} leaves no channels of "
                f"model.conditioner.width={self.width}: choose a larger one."
            )

    @property
    def ratio(self) -> int:
        return self.stride**self.downs


class LabelEmbedding(nn.Module):
    """Artist and genre as the start of the sequence, and where in the song each token lies."""

    config: LabelConfig
    width: int
    init_scale: float
    timing: bool

    def setup(self):
        c, std = self.config, 0.01 * self.init_scale
        self.artist = embedding(self, "artist", c.artists, self.width, std)
        self.genre = embedding(self, "genre", c.genres, self.width, std)
        if self.timing:
            self.total = embedding(self, "total_length", c.time_bins, self.width, std)
            self.absolute = embedding(self, "absolute_position", c.time_bins, self.width, std)
            self.relative = embedding(self, "relative_position", c.time_bins, self.width, std)

    def start(self, artist: Int[Array, " b"], genres: Int[Array, "b g"]) -> Float[Array, "b d"]:
        """Sum of the artist's and the genres' embeddings; genre slots of -1 are empty."""
        used = (genres >= 0)[..., None]
        genre = jnp.sum(jnp.where(used, look_up(self.genre, jnp.maximum(genres, 0)), 0.0), axis=1)
        return genre + look_up(self.artist, artist)

    def times(
        self, total: Int[Array, " b"], absolute: Int[Array, "b t"], relative: Int[Array, "b t"]
    ) -> Float[Array, "b t d"]:
        """Embeddings of the song's length and of each position, from bins computed on the host."""
        length = look_up(self.total, total)[:, None]
        return length + look_up(self.absolute, absolute) + look_up(self.relative, relative)


class UpperConditioner(nn.Module):
    """Codes of the level above, upsampled to this level's rate: embedding, dilated convolutions, layer norm."""

    config: ConditionerConfig
    codes: int
    width: int
    init_scale: float

    @nn.compact
    def __call__(self, upper: Int[Array, "b u"]) -> Float[Array, "b t d"]:
        c = self.config
        table = embedding(self, "embedding", self.codes, self.width, 0.02 * self.init_scale, "vocab")
        spread = dilations(c.depth, c.dilation_growth, c.dilation_cycle)
        scale = c.depth**-0.5 if c.residual_scale else 1.0
        h = nn.with_logical_constraint(look_up(table, upper), ("batch", "time", None))
        h = Conv(c.width, 3, padding=1, name="in")(h)
        for stage in range(c.downs):
            h = ResidualStack(spread, c.hidden_multiplier, scale, name=f"stage_{stage}_residual")(h)
            features = self.width if stage == c.downs - 1 else c.width
            h = ConvTranspose(features, c.stride, name=f"stage_{stage}_up")(h)
            h = nn.with_logical_constraint(h, ("batch", "time", None))
        return LayerNorm(name="norm")(h)
