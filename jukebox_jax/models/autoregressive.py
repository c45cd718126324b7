"""The autoregressive core: tokens in, next tokens out (spec: priors, section 2).

It is the music decoder of every prior, and without its output also the lyric encoder.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from jukebox_jax.models.attention import LayerCache
from jukebox_jax.models.convolution import uniform_init
from jukebox_jax.models.layers import embedding, look_up
from jukebox_jax.models.transformer import Transformer, TransformerConfig


@struct.dataclass
class Conditioning:
    """What stays the same while tokens change.

    Attributes:
      start: (b, d), stands where the first token has no predecessor; None: the core's own start embedding.
      inputs: (b, t or 1, d), added at every position; None: nothing.
      encoded: (b, s, d), the states of a lyric encoder; None: there is none.
    """

    start: Float[Array, "b d"] | None = None
    inputs: Float[Array, "b _ d"] | None = None
    encoded: Float[Array, "b s d"] | None = None


class Autoregressive(nn.Module):
    """Embeddings, transformer, and the output projection: the token embeddings again, or its own if `merged`.

    `merged` is what the configurations of the two 5B models call merged_decoder: they also add `inputs` only before
    the transformer, where the others add them once more after it.
    """

    config: TransformerConfig
    vocabulary: int
    merged: bool = False
    own_start: bool = True

    def setup(self):
        c = self.config
        self.tokens = embedding(self, "tokens", self.vocabulary, c.width, 0.02 * c.init_scale, "vocab")
        self.positions = embedding(self, "positions", c.context, c.width, 0.01 * c.init_scale)
        self.transformer = Transformer(c)
        if self.own_start:
            self.start = embedding(self, "start", 1, c.width, 0.01 * c.init_scale)
        if self.merged:
            init = nn.with_logical_partitioning(uniform_init(c.width), ("vocab", "width"))
            self.output = self.param("output", init, (self.vocabulary, c.width), jnp.float32)

    def __call__(self, tokens: Int[Array, "b t"], conditioning: Conditioning) -> Float[Array, "b t v"]:
        """Teacher-forced logits: those at position i predict `tokens[:, i]` from the tokens before it."""
        return self.logits(self.states(tokens, conditioning))

    def states(self, tokens: Int[Array, "b t"], conditioning: Conditioning) -> Float[Array, "b t d"]:
        """What stands before the output projection; causal and shifted: state i has seen the tokens before i."""
        return self.hidden(tokens, conditioning, self.config.depth)

    def hidden(self, tokens: Int[Array, "b t"], conditioning: Conditioning, layer: int) -> Float[Array, "b t d"]:
        """The teacher-forced pass up to `layer`: 0 are the embeddings, `config.depth` is `states`."""
        h = self.transformer.hidden(self._embed_all(tokens, conditioning), layer, conditioning.encoded)
        return h if layer < self.config.depth else self._leave(h, conditioning.inputs)

    def logits(self, states: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
        """The output projection."""
        table = nn.with_logical_constraint(self.output if self.merged else self.tokens, ("vocab", None))
        return jnp.einsum("...d,vd->...v", states, table)

    def weights(self, tokens: Int[Array, "b t"], conditioning: Conditioning, layer: int) -> Float[Array, "*c h q _"]:
        """Attention weights of one layer of the teacher-forced pass (see `attention.record_weights`)."""
        return self.transformer.weights(self._embed_all(tokens, conditioning), layer, conditioning.encoded)

    def empty_caches(self, batch: int, conditioning: Conditioning) -> tuple[LayerCache, ...]:
        """Caches before the first token."""
        return self.transformer.empty_caches(batch, conditioning.encoded)

    def rows(
        self,
        caches: tuple[LayerCache, ...],
        previous: Int[Array, "b t"],
        row: Int[Array, ""],
        count: Int[Array, ""],
        conditioning: Conditioning,
    ) -> tuple[Float[Array, "b t v"], tuple[LayerCache, ...]]:
        """Logits of the tokens of whole rows from `row` on, given for each the one before it; only the first `count`
        are real: the logits of the others are without meaning."""
        where = row * self.config.block_ctx + jnp.arange(previous.shape[1])
        inputs = conditioning.inputs
        if inputs is None:
            here = jnp.zeros((1, 1, self.config.width), jnp.float32)
        else:  # one row of inputs stands for all positions
            here = jnp.take(inputs, jnp.minimum(where, inputs.shape[1] - 1), axis=1)
        tokens = jnp.where((where == 0)[:, None], self._start(conditioning)[:, None], self.tokens[previous])
        h, caches = self.transformer.rows(tokens + self.positions[where] + here, caches, row, count)
        return self.logits(self._leave(h, here)), caches

    def step(
        self,
        caches: tuple[LayerCache, ...],
        previous: Int[Array, " b"],
        position: Int[Array, " b"],
        conditioning: Conditioning,
    ) -> tuple[Float[Array, "b v"], tuple[LayerCache, ...]]:
        """Logits of one token of each sequence, the one at its `position`, given the one before it (ignored at
        position 0)."""
        inputs = conditioning.inputs
        if inputs is None:
            here = jnp.zeros((1, self.config.width), jnp.float32)
        else:
            here = inputs[jnp.arange(len(inputs)), jnp.minimum(position, inputs.shape[1] - 1)]
        token = jnp.where((position == 0)[:, None], self._start(conditioning), self.tokens[previous])
        h, caches = self.transformer.step(token + self.positions[position] + here, caches, position)
        return self.logits(self._leave(h, here)), caches

    def _start(self, conditioning: Conditioning) -> Float[Array, "_ d"]:
        if conditioning.start is not None:
            return conditioning.start
        return nn.with_logical_constraint(self.start, (None, None))

    def _embed_all(self, tokens: Int[Array, "b t"], conditioning: Conditioning) -> Float[Array, "b t d"]:
        start = jnp.broadcast_to(self._start(conditioning), (tokens.shape[0], self.config.width))
        previous = jnp.concatenate([start[:, None], look_up(self.tokens, tokens[:, :-1])], axis=1)
        h = previous + nn.with_logical_constraint(self.positions, (None, None))
        if conditioning.inputs is not None:
            h = h + conditioning.inputs
        return nn.with_logical_constraint(h, ("batch", "time", "width"))

    def _leave(self, h: Float[Array, "*b d"], inputs: Array | None) -> Float[Array, "*b d"]:
        return h if self.merged or inputs is None else h + inputs
