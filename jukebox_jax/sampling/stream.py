"""Sound while it is being sampled: each level's tokens are decoded as far as what follows cannot change it any more."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32

from jukebox_jax.checkpoint.models import TrainedCodec
from jukebox_jax.models.vqvae import Codec, VQVAEConfig, decode
from jukebox_jax.sampling.cascade import Finished
from jukebox_jax.sampling.order import LevelDone

# Tokens decoded at once, beside the margins on both sides; always as many, so that nothing is compiled twice.
_PIECE = 4096


@dataclass(frozen=True)
class Chunk:
    """A piece of a song's sound, decoded from one level alone; the pieces of a level follow each other.

    Attributes:
      audio: float32 (t,).
      last: whether the level of this song ends with it.
    """

    song: int
    level: int
    start_seconds: float
    audio: Float[np.ndarray, " t"]
    sample_rate: int
    last: bool


@dataclass(eq=False)
class Streamer:
    """Turns the events of `sampling.order.sample_order` into sound.

    Attributes:
      codec: what decodes.
      songs: how many there are.
      sounded: tokens of (level, song) that have been heard.
    """

    codec: TrainedCodec
    songs: int
    sounded: dict[tuple[int, int], int] = field(default_factory=dict)

    def heard(self, event: tuple[int, Finished] | LevelDone) -> Iterator[Chunk]:
        """What can be heard of an event that could not before. Segments sampled side by side are heard at the end."""
        if isinstance(event, LevelDone):
            for song, tokens in enumerate(event.tokens):
                yield from self._to(event.level, song, tokens, len(tokens), last=True)
            return
        level, finished = event
        part = finished.part
        if part.number == 0 and finished.new.stop < len(part.tokens):
            end = finished.new.stop - reach(self.codec.config, level)
            yield from self._to(level, part.song, part.tokens[: finished.new.stop], end, last=False)

    def _to(self, level: int, song: int, tokens: Int32[np.ndarray, " t"], end: int, last: bool) -> Iterator[Chunk]:
        config, start = self.codec.config, self.sounded.get((level, song), 0)
        while start < end:
            stop = min(end, start + _PIECE)
            self.sounded[level, song] = stop
            audio = decode_piece(self.codec, level, tokens, start, stop, whole=last)
            seconds = start * config.hops[level] / config.sample_rate
            yield Chunk(song, level, seconds, audio, config.sample_rate, last and stop == end)
            start = stop


def reach(config: VQVAEConfig, level: int) -> int:
    """How many tokens before and after its own a sample depends on, in the decoder of a level."""
    cycle = config.dilation_cycle or config.depths[level]
    residual = sum(config.dilation_growth ** (i % cycle) for i in range(config.depths[level]))
    tokens, width = 0.0, 1.0  # so far, and the size of a position there, in tokens
    for block in reversed(range(level + 1)):
        tokens += width  # its first convolution, of three taps
        for _ in range(config.downs[block]):
            tokens += residual * width + width
            width /= config.strides[block]
        tokens += width
    return math.ceil(tokens + width)


def decode_piece(
    codec: TrainedCodec, level: int, tokens: Int32[np.ndarray, " t"], start: int, stop: int, whole: bool = True
) -> Float[np.ndarray, " s"]:
    """The sound of tokens `start` .. `stop` - 1, a piece's at most, as it is within all of them.

    Args:
      whole: whether the song ends with `tokens`; else it goes on beyond what can be heard from here.
    """
    hop, margin = codec.config.hops[level], reach(codec.config, level)
    if not whole:  # what comes is not heard, and sizes that do not grow are compiled once
        tokens = np.pad(tokens, (0, max(0, _PIECE + 2 * margin - len(tokens))))
    if len(tokens) <= _PIECE + 2 * margin:
        first, piece = 0, tokens
    else:
        first = min(max(0, start - margin), len(tokens) - _PIECE - 2 * margin)
        piece = tokens[first : first + _PIECE + 2 * margin]
    return decode_level(codec, level, piece)[(start - first) * hop : (stop - first) * hop]


def decode_pieces(
    codec: TrainedCodec, level: int, tokens: Int32[np.ndarray, " t"]
) -> Iterator[Float[np.ndarray, " s"]]:
    """The sound of all tokens of a level, piece by piece: as `decode_level` but for rounding, in little memory."""
    for start in range(0, len(tokens), _PIECE):
        yield decode_piece(codec, level, tokens, start, min(start + _PIECE, len(tokens)))


def decode_level(codec: TrainedCodec, level: int, tokens: Int32[np.ndarray, " t"]) -> Float[np.ndarray, " s"]:
    """The sound of all tokens of a level, in one piece."""
    return np.asarray(_decode(codec.config, codec.codec, jnp.asarray(tokens)[None], level))[0, :, 0]


@partial(jax.jit, static_argnums=(0, 3))
def _decode(config: VQVAEConfig, codec: Codec, codes: Int[Array, "b u"], level: int) -> Float[Array, "b t 1"]:
    return decode(config, codec, codes, level)
