"""The factored transformer: blocks of attention and MLP, scanned in segments (spec: priors, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from jukebox_jax.errors import UserError
from jukebox_jax.models.attention import (
    LayerCache,
    Layout,
    Pattern,
    attend_all,
    attend_next,
    attend_rows,
    attention_patterns,
    empty_cache,
    record_weights,
)
from jukebox_jax.models.layers import Heads, LayerNorm, Linear, given_or_drawn, quick_gelu

Dtype = Literal["float32", "bfloat16", "float16"]
#: What the backward pass finds of each layer: everything ("none"), its input only, from which it computes the whole
#: layer again ("block"), or also its matrix products, so that none but attention's small ones is computed twice: in the
#: device's memory ("dots"), or in the host's ("offload"; on the CPU these are one and the same).
Remat = Literal["none", "block", "dots", "offload"]

# Products of the linear layers that their derivatives are computed from. That of `mlp_out` is not among them: it is
# only added to what the next layer starts from, which the scan keeps anyway.
_SAVED = ("qkv", "attention_out", "mlp_in")
_POLICIES = {
    "block": None,
    "dots": jax.checkpoint_policies.save_only_these_names(*_SAVED),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=list(_SAVED),
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a transformer over `context` tokens laid out as `blocks` rows.

    `spread`, `prime` and `encoded` matter to the attention orders that contain such layers (see `attention.Layout`);
    `where` is the config key that messages name.
    """

    context: int
    width: int
    depth: int
    heads: int
    blocks: int
    attention_order: int = 2
    spread: int = 0
    prime: int = 0
    encoded: int = 0
    attention_multiplier: float = 0.25
    mlp_multiplier: float = 1.0
    init_scale: float = 1.0
    residual_scale: bool = False
    dtype: Dtype = "float32"
    remat: Remat = "block"
    where: str = "model"

    def __post_init__(self):
        c = self.where
        if self.context % self.blocks:
            raise UserError(
                f"{c}.blocks={self.blocks} does not divide the sequence of {self.context} tokens (model.n_ctx, with "
                "lyrics in it model.lyrics.tokens more; of a lyric encoder model.lyrics.tokens): change one."
            )
        for name, features in (("attention_multiplier", self.state), ("mlp_multiplier", self.hidden)):
            if features < 1:
                raise UserError(
                    f"{c}.{name}={getattr(self, name)} leaves no features of {c}.width={self.width}: "
                    "choose a larger one."
                )
        if self.state % self.heads:
            raise UserError(
                f"{c}.heads={self.heads} does not divide the attention's {self.state} features "
                f"({c}.attention_multiplier times {c}.width): change one."
            )
        if Pattern.SUMMARY_SPREAD in self.patterns and not 1 <= self.spread <= self.block_ctx:
            raise UserError(f"{c}.spread={self.spread} does not fit rows of {self.block_ctx} tokens: choose 1 to that.")
        if Pattern.ENCODER in self.patterns and not self.encoded:
            raise UserError(
                f"{c}.attention_order={self.attention_order} looks at a lyric encoder, but there is none: "
                "choose another order, or give model.lyrics an encoder."
            )

    @property
    def layout(self) -> Layout:
        return Layout(self.context, self.blocks, self.spread, self.prime, self.encoded)

    @property
    def state(self) -> int:
        """Width of queries, keys and values, all heads together."""
        return int(self.attention_multiplier * self.width)

    @property
    def hidden(self) -> int:
        return int(self.mlp_multiplier * self.width)

    @property
    def block_ctx(self) -> int:
        return self.context // self.blocks

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        return attention_patterns(self.attention_order, self.depth)


class Segment(NamedTuple):
    """`repeats` copies of a run of layers, starting at layer `start`."""

    start: int
    patterns: tuple[int, ...]
    repeats: int

    @property
    def stop(self) -> int:
        return self.start + len(self.patterns) * self.repeats


def segments(patterns: tuple[int, ...]) -> tuple[Segment, ...]:
    """Splits layers into repeated runs so that as few layers as possible have to be compiled."""
    depth = len(patterns)
    # cost[i] = (layers compiled, segments) of the best split of patterns[i:], found from the end backwards.
    cost: list[tuple[int, int]] = [(0, 0)] * (depth + 1)
    choice: list[Segment | None] = [None] * depth
    for start in reversed(range(depth)):
        options = []
        for period in range(1, depth - start + 1):
            run, stop, repeats = patterns[start : start + period], start, 0
            while patterns[stop : stop + period] == run:
                stop, repeats = stop + period, repeats + 1
                compiled, parts = cost[stop]
                options.append(((compiled + period, parts + 1), Segment(start, run, repeats)))
        cost[start], choice[start] = min(options, key=lambda option: option[0])
    result, layer = [], 0
    while layer < depth:
        result.append(choice[layer])
        layer = choice[layer].stop
    return tuple(result)


class Block(nn.Module):
    """One layer: h + a + m, with a = attention(norm(h)) and m = mlp(norm(h + a)).

    A layer that looks at the lyric encoder takes its keys and values from the encoder's states, through the same
    part of `qkv` that the other layers use for their own: all layers have the same parameters.
    """

    config: TransformerConfig

    def setup(self):
        c = self.config
        std = 0.02 * c.init_scale
        self.norm_attention = LayerNorm()
        self.norm_mlp = LayerNorm()
        self.qkv = Heads(c.heads, c.state // c.heads, std)
        self.attention_out = Linear(c.width, std, ("heads", "width"))
        self.mlp_in = Linear(c.hidden, std, ("width", "hidden"))
        self.mlp_out = Linear(c.width, std, ("hidden", "width"))

    def __call__(
        self, h: Float[Array, "b t d"], pattern: Pattern, encoded: Float[Array, "b s d"] | None = None
    ) -> Float[Array, "b t d"]:
        """The layer over a whole sequence."""
        return self._finish(h, attend_all(pattern, *self._project(h, pattern, encoded), self.config.layout))

    def weights(
        self, h: Float[Array, "b t d"], pattern: Pattern, encoded: Float[Array, "b s d"] | None = None
    ) -> Float[Array, "*c h q _"]:
        """The layer's attention weights (see `attention.record_weights`)."""
        q, k, _ = self._project(h, pattern, encoded)
        return record_weights(pattern, q, k, self.config.layout)

    def rows(
        self, h: Float[Array, "b t d"], pattern: Pattern, cache: LayerCache, row: Int[Array, ""], count: Int[Array, ""]
    ) -> tuple[Float[Array, "b t d"], LayerCache]:
        """The layer for the tokens of whole rows from `row` on, of which the first `count` are real."""
        projected = self._project(h, pattern, None)
        attended, cache = attend_rows(pattern, cache, *projected, self.config.layout, row, count)
        return self._finish(h, attended), cache

    def step(
        self, h: Float[Array, "b d"], pattern: Pattern, cache: LayerCache, position: Int[Array, " b"]
    ) -> tuple[Float[Array, "b d"], LayerCache]:
        """The layer for one token of each sequence, the one at its `position`."""
        projected = self._project(h, pattern, None)
        attended, cache = attend_next(pattern, cache, *projected, self.config.layout, position)
        return self._finish(h, attended), cache

    def encoder_cache(self, encoded: Float[Array, "b s d"]) -> LayerCache:
        """Keys and values of the encoder's states, for a layer that looks at them."""
        return LayerCache.of(*self.qkv(encoded, first=1))

    def _project(
        self, h: Float[Array, "*b d"], pattern: Pattern, encoded: Float[Array, "b s d"] | None
    ) -> list[Array | None]:
        """Queries, keys and values (*b, h, k); no keys and values for a layer whose cache already holds them."""
        normed = self.norm_attention(h)
        if pattern != Pattern.ENCODER:
            return self.qkv(normed)
        (q,) = self.qkv(normed, last=0)
        if encoded is None:
            return [q, None, None]
        return [q, *self.qkv(encoded.astype(h.dtype), first=1)]

    def _finish(self, h: Float[Array, "*b d"], attended: Float[Array, "*b h k"]) -> Float[Array, "*b d"]:
        a = checkpoint_name(self.attention_out(attended.reshape(*h.shape[:-1], -1)), "attention_out")
        hidden = checkpoint_name(self.mlp_in(self.norm_mlp(h + a)), "mlp_in")
        m = self.mlp_out(quick_gelu(hidden))
        if self.config.residual_scale:
            return h + (a + m) / self.config.depth
        return h + a + m


class Transformer(nn.Module):
    """The stack. All layers' parameters stand in one tree with a leading `layers` axis, however they are scanned; only
    those that decode may come as a tuple, layer by layer (see `sampling.weights`).

    `encoded` is, for the attention orders that need it, the states of the lyric encoder (b, s, d).
    """

    config: TransformerConfig

    def setup(self):
        self.layers = given_or_drawn(self, "layers", self._init_layers)

    def _init_layers(self, key: Array):
        c = self.config
        dummy = jnp.zeros((1, c.context, c.width), jnp.float32)
        keys = jax.random.split(key, c.depth)
        stacked = jax.vmap(lambda key: Block(c, parent=None).init(key, dummy, Pattern.ROW)["params"])(keys)
        # Layers that look at the encoder start as if they were not there.
        counts = jnp.asarray([pattern != Pattern.ENCODER for pattern in c.patterns], jnp.float32)[:, None, None]
        for name in ("attention_out", "mlp_out"):
            stacked[name]["kernel"] = jax.tree.map(lambda x: x * counts, stacked[name]["kernel"])
        return meta.add_axis(stacked, 0, {meta.PARTITION_NAME: "layers"})

    def __call__(self, h: Float[Array, "b t d"], encoded: Float[Array, "b s d"] | None = None) -> Float[Array, "b t d"]:
        """All layers over a whole sequence; float32 in and out, `config.dtype` inside."""
        return self.hidden(h, self.config.depth, encoded)

    def hidden(
        self, h: Float[Array, "b t d"], layer: int, encoded: Float[Array, "b s d"] | None = None
    ) -> Float[Array, "b t d"]:
        """What stands after the first `layer` layers of a whole sequence, in float32; the others are not computed."""
        return self._run(h, encoded, layer).astype(jnp.float32)

    def weights(
        self, h: Float[Array, "b t d"], layer: int, encoded: Float[Array, "b s d"] | None = None
    ) -> Float[Array, "*c h q _"]:
        """Attention weights of one layer (see `attention.record_weights`)."""
        h = self._run(h, encoded, layer)
        params = {"params": self._params_of(layer)}
        return Block(self.config, parent=None).apply(params, h, self.config.patterns[layer], encoded, method="weights")

    def _run(self, h: Array, encoded: Array | None, depth: int) -> Array:
        """The first `depth` layers, in `config.dtype`."""
        h = h.astype(self.config.dtype)
        for segment in segments(self.config.patterns[:depth]):
            period, scanned = len(segment.patterns), segment.repeats > 1

            def run(h, layers, patterns=segment.patterns, scanned=scanned):
                for index, pattern in enumerate(patterns):
                    layer = jax.tree.map(lambda x, index=index: x[index], layers)
                    h = self._layer(Pattern(pattern), scanned)(h, layer, encoded)
                return h, None

            def run_numbered(h, number, run=run, segment=segment, period=period):
                start = segment.start + number * period
                return run(h, jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, period), self.layers))

            layers = jax.tree.map(lambda x, s=segment: x[s.start : s.stop], self.layers)
            if not scanned:
                h, _ = run(h, layers)
            elif depth < self.config.depth:
                # Cutting the stack would copy the weights of all these layers; here each is taken out as its turn
                # comes. Gradients, which would then be added up in a whole stack at every turn, nobody asks for.
                h, _ = jax.lax.scan(run_numbered, h, jnp.arange(segment.repeats))
            else:
                grouped = jax.tree.map(lambda x, s=segment, p=period: x.reshape(s.repeats, p, *x.shape[1:]), layers)
                h, _ = jax.lax.scan(run, h, grouped)
        return h

    def _layer(self, pattern: Pattern, scanned: bool):
        def layer(h, params, encoded):
            h = nn.with_logical_constraint(h, ("batch", "time", "width"))
            return Block(self.config, parent=None).apply({"params": params}, h, pattern, encoded)

        if self.config.remat == "none":
            return layer
        # Inside a scan nothing is gained from the barriers that keep XLA from undoing the rematerialisation.
        return jax.checkpoint(layer, prevent_cse=not scanned, policy=_POLICIES[self.config.remat])

    def empty_caches(self, batch: int, encoded: Float[Array, "b s d"] | None = None) -> tuple[LayerCache, ...]:
        """Caches of all layers before the first token."""
        c, caches = self.config, []
        for index, pattern in enumerate(c.patterns):
            if pattern == Pattern.ENCODER:
                params = {"params": self._params_of(index)}
                cache = Block(c, parent=None).apply(params, encoded.astype(c.dtype), method="encoder_cache")
            else:
                cache = empty_cache(pattern, batch, c.layout, c.heads, c.state // c.heads, jnp.dtype(c.dtype))
            caches.append(cache)
        return tuple(caches)

    def rows(
        self, h: Float[Array, "b t d"], caches: tuple[LayerCache, ...], row: Int[Array, ""], count: Int[Array, ""]
    ) -> tuple[Float[Array, "b t d"], tuple[LayerCache, ...]]:
        """All layers for the tokens of whole rows from `row` on, of which the first `count` are real."""
        return self._through(h, caches, row, count, method="rows")

    def step(
        self, h: Float[Array, "b d"], caches: tuple[LayerCache, ...], position: Int[Array, " b"]
    ) -> tuple[Float[Array, "b d"], tuple[LayerCache, ...]]:
        """All layers for one token of each sequence, the one at its `position`."""
        return self._through(h, caches, position, method="step")

    def _through(self, h: Array, caches: tuple[LayerCache, ...], *where: Array, method: str):
        c, updated = self.config, []
        h = h.astype(c.dtype)
        # Unrolled: scanning would copy each layer's weights and caches out of their stack at every token.
        for index, (pattern, cache) in enumerate(zip(c.patterns, caches, strict=True)):
            params = {"params": self._params_of(index)}
            h, cache = Block(c, parent=None).apply(params, h, pattern, cache, *where, method=method)
            updated.append(cache)
        return h.astype(jnp.float32), tuple(updated)

    def _params_of(self, index: int):
        if isinstance(self.layers, tuple):
            return self.layers[index]
        return jax.tree.map(lambda x: x[index], self.layers)
