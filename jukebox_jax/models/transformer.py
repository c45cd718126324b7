"""The factored transformer: blocks of attention and MLP, scanned in segments (spec: priors, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta
from jaxtyping import Array, Float, Int

from jukebox_jax.models.attention import (
    LayerCache,
    Pattern,
    attend_all,
    attend_next,
    attention_patterns,
    empty_cache,
    fill_cache,
)

Dtype = Literal["float32", "bfloat16", "float16"]
Remat = Literal["none", "block"]


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a transformer over `context` tokens laid out as `blocks` rows."""

    context: int
    width: int
    depth: int
    heads: int
    blocks: int
    attention_order: int = 2
    attention_multiplier: float = 0.25
    mlp_multiplier: float = 1.0
    init_scale: float = 1.0
    residual_scale: bool = False
    dtype: Dtype = "float32"
    remat: Remat = "block"

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


class Linear(nn.Module):
    """y = x w + b with float32 parameters used in the dtype of x; w is (in, out) with std `std`, b starts at zero."""

    features: int
    std: float
    axes: tuple[str, str]

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b f"]:
        init = nn.with_logical_partitioning(nn.initializers.normal(self.std), self.axes)
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32)
        bias_init = nn.with_logical_partitioning(nn.initializers.zeros, (self.axes[1],))
        bias = self.param("bias", bias_init, (self.features,), jnp.float32)
        return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation (eps 1e-5, biased variance) in float32, returned in the dtype of x."""

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, ("width",)), shape, jnp.float32)
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("width",)), shape, jnp.float32)
        h = x.astype(jnp.float32)
        h = h - jnp.mean(h, axis=-1, keepdims=True)
        h = h * jax.lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + 1e-5)
        return (h * scale + bias).astype(x.dtype)


class Block(nn.Module):
    """One layer: h + a + m, with a = attention(norm(h)) and m = mlp(norm(h + a))."""

    config: TransformerConfig

    def setup(self):
        c = self.config
        std = 0.02 * c.init_scale
        self.norm_attention = LayerNorm()
        self.norm_mlp = LayerNorm()
        self.qkv = Linear(3 * c.state, std, ("width", "heads"))
        self.attention_out = Linear(c.width, std, ("heads", "width"))
        self.mlp_in = Linear(c.hidden, std, ("width", "hidden"))
        self.mlp_out = Linear(c.width, std, ("hidden", "width"))

    def __call__(self, h: Float[Array, "b t d"], pattern: Pattern) -> tuple[Float[Array, "b t d"], tuple[Array, Array]]:
        """The layer over a full sequence; also its keys and values (b, t, h, k), from which a cache can be filled."""
        q, k, v = self._project(h)
        attended = attend_all(pattern, q, k, v, self.config.blocks)
        return self._finish(h, attended), (k, v)

    def step(
        self, h: Float[Array, "b d"], pattern: Pattern, cache: LayerCache, position: Int[Array, ""]
    ) -> tuple[Float[Array, "b d"], LayerCache]:
        """The layer for the one token at `position`."""
        c = self.config
        q, k, v = self._project(h)
        attended, cache = attend_next(pattern, cache, q, k, v, c.blocks, c.block_ctx, position)
        return self._finish(h, attended), cache

    def _project(self, h: Float[Array, "*b d"]) -> list[Float[Array, "*b h k"]]:
        heads = self.config.heads
        qkv = self.qkv(self.norm_attention(h))
        return [x.reshape(*x.shape[:-1], heads, -1) for x in jnp.split(qkv, 3, axis=-1)]

    def _finish(self, h: Float[Array, "*b d"], attended: Float[Array, "*b h k"]) -> Float[Array, "*b d"]:
        a = self.attention_out(attended.reshape(*h.shape[:-1], -1))
        m = self.mlp_out(quick_gelu(self.mlp_in(self.norm_mlp(h + a))))
        if self.config.residual_scale:
            return h + (a + m) / self.config.depth
        return h + a + m


def quick_gelu(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """x * sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


class Transformer(nn.Module):
    """The stack. All layers' parameters stand in one tree with a leading `layers` axis, however they are scanned."""

    config: TransformerConfig

    def setup(self):
        self.layers = self.param("layers", self._init_layers)

    def _init_layers(self, key: Array):
        c = self.config
        dummy = jnp.zeros((1, c.context, c.width), jnp.float32)
        keys = jax.random.split(key, c.depth)
        stacked = jax.vmap(lambda key: Block(c, parent=None).init(key, dummy, Pattern.ROW)["params"])(keys)
        return meta.add_axis(stacked, 0, {meta.PARTITION_NAME: "layers"})

    def __call__(self, h: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """All layers over a full sequence; float32 in and out, `config.dtype` inside."""
        c = self.config
        h = h.astype(c.dtype)
        for segment in segments(c.patterns):
            period, scanned = len(segment.patterns), segment.repeats > 1

            def run(h, layers, patterns=segment.patterns, scanned=scanned):
                for index, pattern in enumerate(patterns):
                    layer = jax.tree.map(lambda x, index=index: x[index], layers)
                    h = self._layer(pattern, scanned)(h, layer)
                return h, None

            layers = jax.tree.map(lambda x, s=segment: x[s.start : s.stop], self.layers)
            if not scanned:
                h, _ = run(h, layers)
            else:
                grouped = jax.tree.map(lambda x, s=segment, p=period: x.reshape(s.repeats, p, *x.shape[1:]), layers)
                h, _ = jax.lax.scan(run, h, grouped)
        return h.astype(jnp.float32)

    def _layer(self, pattern: Pattern, scanned: bool):
        def layer(h, params):
            h = nn.with_logical_constraint(h, ("batch", "time", "width"))
            return Block(self.config, parent=None).apply({"params": params}, h, pattern)[0]

        # Inside a scan nothing is gained from the barriers that keep XLA from undoing the rematerialisation.
        return jax.checkpoint(layer, prevent_cse=not scanned) if self.config.remat == "block" else layer

    def empty_caches(self, batch: int) -> tuple[LayerCache, ...]:
        """Caches of all layers before the first token."""
        c = self.config
        sizes = (batch, c.context, c.blocks, c.heads, c.state // c.heads, jnp.dtype(c.dtype))
        return tuple(empty_cache(pattern, *sizes) for pattern in c.patterns)

    def fill_caches(self, h: Float[Array, "b t d"], position: Int[Array, ""]) -> tuple[LayerCache, ...]:
        """Caches of all layers as they stand before `position`, from one pass over a full-length input.

        Inputs at `position` and after do not matter: every pattern is causal.
        """
        c, caches = self.config, []
        h = h.astype(c.dtype)
        for index, pattern in enumerate(c.patterns):
            h, (k, v) = Block(c, parent=None).apply({"params": self._params_of(index)}, h, pattern)
            caches.append(fill_cache(pattern, k, v, c.blocks, position))
        return tuple(caches)

    def step(
        self, h: Float[Array, "b d"], caches: tuple[LayerCache, ...], position: Int[Array, ""]
    ) -> tuple[Float[Array, "b d"], tuple[LayerCache, ...]]:
        """All layers for the one token at `position`."""
        c, updated = self.config, []
        h = h.astype(c.dtype)
        # Unrolled: scanning would copy each layer's weights and caches out of their stack at every token.
        for index, (pattern, cache) in enumerate(zip(c.patterns, caches, strict=True)):
            params = {"params": self._params_of(index)}
            h, cache = Block(c, parent=None).apply(params, h, pattern, cache, position, method="step")
            updated.append(cache)
        return h.astype(jnp.float32), tuple(updated)

    def _params_of(self, index: int):
        return jax.tree.map(lambda x: x[index], self.layers)
