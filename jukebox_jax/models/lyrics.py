"""Lyrics: how a prior reads them, and the encoder that some priors read them with (spec: priors, section 5)."""

from __future__ import annotations

from dataclasses import dataclass, fields

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jukebox_jax.errors import UserError
from jukebox_jax.labels.lyrics import LyricText
from jukebox_jax.models.autoregressive import Autoregressive, Conditioning
from jukebox_jax.models.layers import LayerNorm, Linear, embedding
from jukebox_jax.models.transformer import Dtype, Remat, TransformerConfig


@dataclass(frozen=True)
class LyricEncoderConfig:
    """Sizes of a lyric encoder of its own; the fields are those of the prior itself."""

    width: int = 1280
    depth: int = 18
    heads: int = 4
    blocks: int = 32
    attention_order: int = 2
    spread: int = 0
    attention_multiplier: float = 0.25
    mlp_multiplier: float = 1.0
    init_scale: float = 0.7
    residual_scale: bool = False

    def __post_init__(self):
        for name in ("width", "depth", "heads", "blocks"):
            if getattr(self, name) < 1:
                raise UserError(f"model.lyrics.encoder.{name}={getattr(self, name)} is too small: choose at least 1.")

    def transformer(self, tokens: int, dtype: Dtype, remat: Remat) -> TransformerConfig:
        """The transformer over `tokens` lyric tokens."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return TransformerConfig(context=tokens, dtype=dtype, remat=remat, where="model.lyrics.encoder", **own)


@dataclass(frozen=True)
class LyricConfig:
    """How a prior takes lyrics: with an `encoder` of their own, whose states some layers look at, or, without one,
    as the first part of one sequence with the music, in one vocabulary.

    Attributes:
      tokens: characters in a window of lyrics.
      vocabulary: size of the lyric vocabulary, 0 (padding) included.
      text: how text becomes tokens.
      loss_fraction: weight of the lyric tokens in the loss, per token, relative to the music tokens.
      alignment_layer, alignment_head: where attention follows the lyrics; None: not known.
    """

    tokens: int = 512
    vocabulary: int = 80
    text: LyricText = LyricText()
    encoder: LyricEncoderConfig | None = None
    loss_fraction: float = 0.4
    alignment_layer: int | None = None
    alignment_head: int | None = None

    def __post_init__(self):
        for name in ("tokens", "vocabulary"):
            if getattr(self, name) < 1:
                raise UserError(f"model.lyrics.{name}={getattr(self, name)} is too small: choose at least 1.")
        if self.loss_fraction < 0:
            raise UserError(f"model.lyrics.loss_fraction={self.loss_fraction} is negative: choose 0 or more.")


class LyricEncoder(nn.Module):
    """A causal transformer over the lyrics, projected to the prior's width; it also has to predict the lyrics."""

    config: LyricConfig
    width: int
    prior_init_scale: float
    dtype: Dtype
    remat: Remat

    def setup(self):
        c = self.config
        self.encoder = Autoregressive(c.encoder.transformer(c.tokens, self.dtype, self.remat), c.vocabulary)
        self.projection = Linear(self.width, 0.02 * c.encoder.init_scale, (None, "width"))
        self.norm = LayerNorm()
        std = 0.02 * self.prior_init_scale
        self.output = embedding(self, "output", c.vocabulary, self.width, std, "vocab")

    def __call__(self, lyrics: Int[Array, "b s"]) -> Float[Array, "b s d"]:
        """States (float32) for the prior to look at; state i has seen the characters before i."""
        return self.norm(self.projection(self.encoder.states(lyrics, Conditioning())))

    def logits(self, states: Float[Array, "b s d"]) -> Float[Array, "b s v"]:
        """Logits of the lyrics themselves: state i predicts character i."""
        return states.astype(jnp.float32) @ nn.with_logical_constraint(self.output, ("vocab", None)).T
