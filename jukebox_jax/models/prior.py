"""A prior: an autoregressive model of one level's codes, told labels, lyrics and upper codes (spec: priors)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import log
from typing import get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key

from jukebox_jax.errors import UserError
from jukebox_jax.models.attention import LayerCache, Layout, Pattern, slot_count
from jukebox_jax.models.autoregressive import Autoregressive, Conditioning
from jukebox_jax.models.conditioning import ConditionerConfig, LabelConfig, LabelEmbedding, UpperConditioner
from jukebox_jax.models.lyrics import LyricConfig, LyricEncoder
from jukebox_jax.models.transformer import Dtype, Remat, TransformerConfig


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
    spread: int = 0
    attention_multiplier: float = 0.25
    mlp_multiplier: float = 1.0
    init_scale: float = 0.7
    residual_scale: bool = False
    merged_decoder: bool = False
    labels: LabelConfig | None = None
    lyrics: LyricConfig | None = None
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
        for name, choices in (("dtype", get_args(Dtype)), ("remat", get_args(Remat))):
            if getattr(self, name) not in choices:
                raise UserError(f"model.{name}={getattr(self, name)} is unknown: choose one of {', '.join(choices)}.")
        if self.conditioner is not None and self.n_ctx % self.conditioner.ratio:
            raise UserError(
                f"model.n_ctx={self.n_ctx} is not a multiple of {self.conditioner.ratio}, the number of tokens for one "
                "of the level above: change it."
            )
        patterns = self.transformer.patterns
        if self.lyrics is not None and self.lyrics.encoder is not None:
            self.lyrics.encoder.transformer(self.lyrics.tokens, self.dtype, self.remat)  # refuses what cannot be
        if Pattern.PRIME in patterns and not self.single:
            raise UserError(
                f"model.attention_order={self.attention_order} looks at lyrics in the same sequence, but there are "
                "none: choose another, or give model.lyrics without an encoder."
            )

    @property
    def single(self) -> bool:
        """Whether lyrics and music are one sequence, the lyrics first, in one vocabulary."""
        return self.lyrics is not None and self.lyrics.encoder is None

    @property
    def prefix(self) -> int:
        """Lyric tokens before the music in the decoder's sequence."""
        return self.lyrics.tokens if self.single else 0

    @property
    def shift(self) -> int:
        """What is added to a music code in the decoder's vocabulary: the lyric symbols come first."""
        return self.lyrics.vocabulary if self.single else 0

    @property
    def transformer(self) -> TransformerConfig:
        """The decoder's transformer."""
        own = {f.name for f in fields(TransformerConfig)} - {"context", "prime", "encoded", "where"}
        return TransformerConfig(
            context=self.prefix + self.n_ctx,
            prime=self.prefix,
            encoded=0 if self.lyrics is None or self.single else self.lyrics.tokens,
            where="model",
            **{name: getattr(self, name) for name in own},
        )

    @property
    def has_timing(self) -> bool:
        """Timing embeddings belong to a labelled top level."""
        return self.labels is not None and self.conditioner is None


@struct.dataclass
class Bits:
    """Mean cross-entropy of each item's music tokens and lyric tokens (0 without lyrics), in bits per token."""

    music: Float[Array, " b"]
    lyrics: Float[Array, " b"]


class Prior(nn.Module):
    """The decoder with the conditioning networks that the config asks for."""

    config: PriorConfig

    def setup(self):
        c = self.config
        self.decoder = Autoregressive(c.transformer, c.shift + c.codes, c.merged_decoder, own_start=c.labels is None)
        if c.labels is not None:
            self.labels = LabelEmbedding(c.labels, c.width, c.init_scale, c.has_timing)
        if c.conditioner is not None:
            self.conditioner = UpperConditioner(c.conditioner, c.codes, c.width, c.init_scale)
        if c.lyrics is not None and not c.single:
            self.lyrics = LyricEncoder(c.lyrics, c.width, c.init_scale, c.dtype, c.remat)

    def __call__(self, batch: dict[str, Array]) -> Float[Array, "b t v"]:
        """Teacher-forced logits of the decoder's sequence: those at position i predict token i from those before it.

        The sequence is `batch["tokens"]`, behind the lyrics where they are part of it (see `sequence`).
        """
        return self.decoder(sequence(self.config, batch), self.condition(batch))

    def bits(self, batch: dict[str, Array]) -> Bits:
        """How well the batch is predicted, teacher-forced."""
        c, conditioning = self.config, self.condition(batch)
        tokens = sequence(c, batch)
        logits = self.decoder(tokens, conditioning)
        music = bits_per_item(logits[:, c.prefix :], tokens[:, c.prefix :])
        if c.single:
            return Bits(music, bits_per_item(logits[:, : c.prefix], tokens[:, : c.prefix]))
        if c.lyrics is not None:
            return Bits(music, bits_per_item(self.lyrics.logits(conditioning.encoded), batch["lyrics"]))
        return Bits(music, jnp.zeros_like(music))

    def condition(self, batch: dict[str, Array]) -> Conditioning:
        """Everything that stays the same while the tokens of a window are sampled.

        Reads, as the config needs them, `artist` (b), `genres` (b, g), `total_bins` (b), `absolute_bins` and
        `relative_bins` (b, t), `lyrics` (b, s), and `upper` (b, t / ratio), the codes of the level above. With
        `weights` (b, m), `artist` (b, m) and `genres` (b, m, g) are m of which the start is a blend.
        """
        c, start = self.config, None
        if c.labels is not None and "weights" in batch:
            artist, genres = batch["artist"], batch["genres"]
            starts = self.labels.start(artist.reshape(-1), genres.reshape(-1, genres.shape[-1]))
            start = jnp.einsum("bm,bmd->bd", batch["weights"], starts.reshape(*artist.shape, -1))
        elif c.labels is not None:
            start = self.labels.start(batch["artist"], batch["genres"])
        inputs = None
        if c.conditioner is not None:
            inputs = self.conditioner(batch["upper"])
        elif c.has_timing:
            inputs = self.labels.times(batch["total_bins"], batch["absolute_bins"], batch["relative_bins"])
        if c.prefix and inputs is not None:
            inputs = jnp.pad(inputs, ((0, 0), (c.prefix, 0), (0, 0)))
        encoded = self.lyrics(batch["lyrics"]) if c.lyrics is not None and not c.single else None
        return Conditioning(start, inputs, encoded)

    def hidden(self, batch: dict[str, Array], layer: int) -> Float[Array, "b t d"]:
        """Activations after `layer` layers at the music tokens, teacher-forced and in float32: 0 are the embeddings,
        `config.depth` is what stands before the output projection. State i has seen the tokens before i."""
        c = self.config
        return self.decoder.hidden(sequence(c, batch), self.condition(batch), layer)[:, c.prefix :]

    def alignment(self, batch: dict[str, Array], layer: int) -> Float[Array, "b h t s"]:
        """How much each music token looks at each lyric token, in a layer that looks at lyrics."""
        c, conditioning = self.config, self.condition(batch)
        weights = self.decoder.weights(sequence(c, batch), conditioning, layer)
        return weights[:, :, c.prefix :, : c.lyrics.tokens]

    def empty_caches(self, batch: int, conditioning: Conditioning) -> tuple[LayerCache, ...]:
        """Caches before the first token of the decoder's sequence."""
        return self.decoder.empty_caches(batch, conditioning)

    def rows(
        self,
        caches: tuple[LayerCache, ...],
        previous: Int[Array, "b t"],
        row: Int[Array, ""],
        count: Int[Array, ""],
        conditioning: Conditioning,
    ) -> tuple[Float[Array, "b t v"], tuple[LayerCache, ...]]:
        """Known tokens of whole rows at once; see `Autoregressive.rows`."""
        return self.decoder.rows(caches, previous, row, count, conditioning)

    def step(
        self,
        caches: tuple[LayerCache, ...],
        previous: Int[Array, " b"],
        position: Int[Array, " b"],
        conditioning: Conditioning,
    ) -> tuple[Float[Array, "b v"], tuple[LayerCache, ...]]:
        """Logits of one token of each sequence, given the one before it; see `Autoregressive.step`."""
        return self.decoder.step(caches, previous, position, conditioning)


def init_params(model: PriorConfig, key: Key[Array, ""]) -> dict:
    """Fresh parameters, boxed with their logical axes."""
    batch = {name: jnp.zeros((1, *spec.shape), spec.dtype) for name, spec in batch_spec(model).items()}
    return Prior(model).init(key, batch, method="bits")["params"]


def sequence(model: PriorConfig, batch: dict[str, Array]) -> Int[Array, "b t"]:
    """The decoder's tokens: the music codes, or lyrics and shifted codes in one sequence."""
    if not model.single:
        return batch["tokens"]
    return jnp.concatenate([batch["lyrics"], batch["tokens"] + model.shift], axis=1)


def music_codes(model: PriorConfig, tokens: Int[Array, "b t"]) -> Int[Array, "b u"]:
    """The codes in a decoder's sequence; a lyric symbol sampled among the music counts as code 0."""
    return jnp.maximum(tokens[:, model.prefix :] - model.shift, 0)


def batch_spec(model: PriorConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of one example of a prior's batch, without the batch axis."""
    shapes: dict[str, tuple[int, ...]] = {"tokens": (model.n_ctx,)}
    if model.conditioner is not None:
        shapes["upper"] = (model.n_ctx // model.conditioner.ratio,)
    if model.labels is not None:
        shapes |= {"artist": (), "genres": (model.labels.max_genres,)}
    if model.has_timing:
        shapes |= {"total_bins": (), "absolute_bins": (model.n_ctx,), "relative_bins": (model.n_ctx,)}
    if model.lyrics is not None:
        shapes["lyrics"] = (model.lyrics.tokens,)
    return {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in shapes.items()}


def bits_per_item(logits: Float[Array, "b t v"], tokens: Int[Array, "b t"]) -> Float[Array, " b"]:
    """Mean cross-entropy of each item's tokens, in bits per token."""
    log_probability = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    chosen = jnp.take_along_axis(log_probability, tokens[..., None], axis=-1)[..., 0]
    return -jnp.mean(chosen, axis=-1) / log(2)


def prior_loss(model: PriorConfig, bits: Bits) -> Float[Array, ""]:
    """Bits per token of music and lyrics together, a lyric token counting `loss_fraction`."""
    music = jnp.mean(bits.music)
    if model.lyrics is None:
        return music
    lyrics = model.lyrics.loss_fraction * jnp.mean(bits.lyrics)
    return (lyrics * model.lyrics.tokens + music * model.n_ctx) / (model.lyrics.tokens + model.n_ctx)


def flops_per_window(model: PriorConfig) -> float:
    """Floating-point operations of one window's forward pass: matrix products and attention, lyrics included, the
    conditioner not."""
    total = _transformer_flops(model.transformer) + model.transformer.context * 2 * model.width * (
        model.shift + model.codes
    )
    if model.lyrics is not None and model.lyrics.encoder is not None:
        lyrics, encoder = model.lyrics, model.lyrics.encoder.transformer(model.lyrics.tokens, model.dtype, model.remat)
        out = 2 * model.width * (encoder.width + lyrics.vocabulary)
        total += _transformer_flops(encoder) + lyrics.tokens * out
        readers = model.transformer.patterns.count(Pattern.ENCODER)
        # These layers project the lyrics, not the music, to keys and values.
        total += readers * 4 * model.width * model.transformer.state * (lyrics.tokens - model.n_ctx)
    return float(total)


def _transformer_flops(t: TransformerConfig) -> float:
    linear = 2 * t.depth * (4 * t.width * t.state + 2 * t.width * t.hidden)
    attention = sum(4 * _keys_computed(pattern, t.layout) * t.state for pattern in t.patterns)
    return float(t.context * (linear + attention))


def _keys_computed(pattern: Pattern, layout: Layout) -> int:
    """Keys per query in the pass over a whole sequence, masked ones included."""
    if pattern in (Pattern.ROW, Pattern.PREVIOUS_ROW):
        return layout.block_ctx
    return layout.blocks if pattern == Pattern.COLUMN else slot_count(pattern, layout)
