"""A prior: an autoregressive model of one level's codes (spec: priors, sections 1 to 3)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import log
from typing import get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from jukebox_jax.errors import UserError
from jukebox_jax.models.attention import LayerCache, Pattern, attention_patterns
from jukebox_jax.models.conditioning import ConditionerConfig, LabelConfig, LabelEmbedding, UpperConditioner, embedding
from jukebox_jax.models.convolution import uniform_init
from jukebox_jax.models.transformer import Dtype, Remat, Transformer, TransformerConfig


@dataclass(frozen=True)
class PriorConfig:
    """A prior over windows of `n_ctx` codes of `level`. With a `conditioner` it is an upsampler."""

    level: int
    codes: int = 2048
    n_ctx: int = 8192
    width: int = 1024
    depth: int = 48
    heads: int = 1
    blocks: int = 64
    attention_order: int = 2
    attention_multiplier: float = 0.25
    mlp_multiplier: float = 1.0
    init_scale: float = 0.7
    residual_scale: bool = False
    merged_decoder: bool = False
    labels: LabelConfig | None = None
    conditioner: ConditionerConfig | None = None
    dtype: Dtype = "float32"
    remat: Remat = "block"

    def __post_init__(self):
        for name in ("codes", "n_ctx", "width", "depth", "heads", "blocks"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name}={getattr(self, name)} is too small: choose at least 1.")
        if self.level < 0:
            raise UserError(f"model.level={self.level} is no level: level 0 is the finest, choose 0 or more.")
        if self.init_scale <= 0:
            raise UserError(f"model.init_scale={self.init_scale} must be above 0: change it.")
        for name in ("attention_multiplier", "mlp_multiplier"):
            if int(getattr(self, name) * self.width) < 1:
                raise UserError(
                    f"model.{name}={getattr(self, name)} leaves no features of model.width={self.width}: "
                    "choose a larger one."
                )
        for name, choices in (("dtype", get_args(Dtype)), ("remat", get_args(Remat))):
            if getattr(self, name) not in choices:
                raise UserError(f"model.{name}={getattr(self, name)} is unknown: choose one of {', '.join(choices)}.")
        if self.n_ctx % self.blocks:
            raise UserError(f"model.n_ctx={self.n_ctx} is not a multiple of model.blocks={self.blocks}: change one.")
        if self.transformer.state % self.heads:
            raise UserError(
                f"model.heads={self.heads} does not divide the attention's {self.transformer.state} features "
                "(model.attention_multiplier times model.width): change one."
            )
        if self.conditioner is not None and self.n_ctx % self.conditioner.ratio:
            raise UserError(
                f"model.n_ctx={self.n_ctx} is not a multiple of {self.conditioner.ratio}, the number of tokens for one "
                "of the level above: change it."
            )
        attention_patterns(self.attention_order, self.depth)

    @property
    def transformer(self) -> TransformerConfig:
        shared = {f.name for f in fields(TransformerConfig)} - {"context"}
        return TransformerConfig(context=self.n_ctx, **{name: getattr(self, name) for name in shared})

    @property
    def has_timing(self) -> bool:
        """Timing embeddings belong to a labelled top level."""
        return self.labels is not None and self.conditioner is None


@struct.dataclass
class Conditioning:
    """`start` (b, d) stands where the first token has no predecessor; `inputs` (b, t or 1, d) is added everywhere."""

    start: Float[Array, "b d"]
    inputs: Float[Array, "b _ d"]


class Prior(nn.Module):
    """Embeddings, transformer and output projection, with the conditioning networks that the config asks for."""

    config: PriorConfig

    def setup(self):
        c = self.config
        self.tokens = embedding(self, "tokens", c.codes, c.width, 0.02 * c.init_scale, "vocab")
        self.positions = embedding(self, "positions", c.n_ctx, c.width, 0.01 * c.init_scale)
        self.transformer = Transformer(c.transformer)
        if c.merged_decoder:
            init = nn.with_logical_partitioning(uniform_init(c.width), ("vocab", "width"))
            self.output = self.param("output", init, (c.codes, c.width), jnp.float32)
        if c.labels is None:
            self.start = embedding(self, "start", 1, c.width, 0.01 * c.init_scale)
        else:
            self.labels = LabelEmbedding(c.labels, c.width, c.init_scale, c.has_timing)
        if c.conditioner is not None:
            self.conditioner = UpperConditioner(c.conditioner, c.codes, c.width, c.init_scale)

    def __call__(self, batch: dict[str, Array]) -> Float[Array, "b t v"]:
        """Teacher-forced logits: those at position i predict `batch["tokens"][:, i]` from the tokens before it."""
        conditioning = self.condition(batch)
        h = self.transformer(self._embed_all(batch["tokens"], conditioning))
        return self._logits(h, conditioning.inputs)

    def condition(self, batch: dict[str, Array]) -> Conditioning:
        """Everything that stays the same while the tokens of a window are sampled.

        Reads, as the config needs them, `artist` (b), `genres` (b, g), `total_bins` (b), `absolute_bins` and
        `relative_bins` (b, t), and `upper` (b, t / ratio), the codes of the level above.
        """
        c = self.config
        batch_size = batch["tokens"].shape[0]
        if c.labels is None:
            start = jnp.broadcast_to(self.start, (batch_size, c.width))
        else:
            start = self.labels.start(batch["artist"], batch["genres"])
        if c.conditioner is not None:
            inputs = self.conditioner(batch["upper"])
        elif c.has_timing:
            inputs = self.labels.times(batch["total_bins"], batch["absolute_bins"], batch["relative_bins"])
        else:
            inputs = jnp.zeros((batch_size, 1, c.width), jnp.float32)
        return Conditioning(start, inputs)

    def empty_caches(self, batch: int) -> tuple[LayerCache, ...]:
        """Caches before the first token of a window."""
        return self.transformer.empty_caches(batch)

    def prefill(
        self, tokens: Int[Array, "b t"], conditioning: Conditioning, position: Int[Array, ""]
    ) -> tuple[LayerCache, ...]:
        """Caches as they stand before `position`, given tokens[:, :position]; what stands after is ignored."""
        return self.transformer.fill_caches(self._embed_all(tokens, conditioning), position)

    def step(
        self,
        caches: tuple[LayerCache, ...],
        previous: Int[Array, " b"],
        position: Int[Array, ""],
        conditioning: Conditioning,
    ) -> tuple[Float[Array, "b v"], tuple[LayerCache, ...]]:
        """Logits of the token at `position`, given the one before it (ignored at position 0)."""
        inputs = conditioning.inputs
        here = inputs[:, 0] if inputs.shape[1] == 1 else jax.lax.dynamic_index_in_dim(inputs, position, 1, False)
        token = jnp.where(position == 0, conditioning.start, self.tokens[previous])
        h = token + jax.lax.dynamic_index_in_dim(self.positions, position, 0, False) + here
        h, caches = self.transformer.step(h, caches, position)
        return self._logits(h, here), caches

    def _embed_all(self, tokens: Int[Array, "b t"], conditioning: Conditioning) -> Float[Array, "b t d"]:
        shifted = jnp.concatenate([conditioning.start[:, None], self.tokens[tokens[:, :-1]]], axis=1)
        h = shifted + self.positions + conditioning.inputs
        return nn.with_logical_constraint(h, ("batch", "time", "width"))

    def _logits(self, h: Float[Array, "*b d"], inputs: Float[Array, "*#b d"]) -> Float[Array, "*b v"]:
        if self.config.merged_decoder:
            return h @ self.output.T
        return (h + inputs) @ self.tokens.T


def batch_spec(model: PriorConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of one example of a prior's batch, without the batch axis."""
    shapes: dict[str, tuple[int, ...]] = {"tokens": (model.n_ctx,)}
    if model.conditioner is not None:
        shapes["upper"] = (model.n_ctx // model.conditioner.ratio,)
    if model.labels is not None:
        shapes |= {"artist": (), "genres": (model.labels.max_genres,)}
    if model.has_timing:
        shapes |= {"total_bins": (), "absolute_bins": (model.n_ctx,), "relative_bins": (model.n_ctx,)}
    return {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in shapes.items()}


def bits_per_item(logits: Float[Array, "b t v"], tokens: Int[Array, "b t"]) -> Float[Array, " b"]:
    """Mean cross-entropy of each item's tokens, in bits per token."""
    log_probability = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    chosen = jnp.take_along_axis(log_probability, tokens[..., None], axis=-1)[..., 0]
    return -jnp.mean(chosen, axis=-1) / log(2)


def bits_per_token(logits: Float[Array, "b t v"], tokens: Int[Array, "b t"]) -> Float[Array, ""]:
    """Mean cross-entropy in bits."""
    return jnp.mean(bits_per_item(logits, tokens))


def flops_per_token(config: PriorConfig) -> float:
    """Floating-point operations of one token's forward pass: matrix products and attention, not the conditioner."""
    t = config.transformer
    linear = 4 * t.width * t.state + 2 * t.width * t.hidden
    keys = {
        Pattern.DENSE: t.context / 2,
        Pattern.ROW: t.block_ctx,
        Pattern.COLUMN: t.blocks,
        Pattern.PREVIOUS_ROW: t.block_ctx,
    }
    attention = sum(4 * keys[pattern] * t.state for pattern in t.patterns)
    return float(2 * (t.depth * linear + config.codes * t.width) + attention)
