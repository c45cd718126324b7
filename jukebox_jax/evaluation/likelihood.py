"""How surprising a prior finds each token of a song."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int

from jukebox_jax.sampling.cascade import entry_of, level_engine, make_parts
from jukebox_jax.sampling.drawing import SamplingConfig
from jukebox_jax.sampling.requests import Level, Request, SongLabels
from jukebox_jax.sampling.windows import Window


def token_bits(
    level: Level,
    tokens: Int[np.ndarray, " t"],
    song: Request | SongLabels,
    hop_fraction: float,
    upper: Int[np.ndarray, " _"] | None = None,
) -> Float64[np.ndarray, " t"]:
    """Bits that each token takes, given those before it that the window which would draw it sees.

    Args:
      tokens: of the level.
      song: what the prior is told.
      hop_fraction: new tokens per window, as a fraction of the window.
      upper: tokens of the level above, for an upsampler.
    """
    (part,) = make_parts(
        level,
        [song],
        [len(tokens)],
        seeds=[0],
        sampling=[SamplingConfig()],
        hop_fraction=hop_fraction,
        given=[tokens[:0]],
        upper=None if upper is None else [upper],
    )
    engine, bits = level_engine(level, 1, "float32"), np.zeros(len(tokens))
    for window in part.windows:
        heard = Window(window.start, window.target, window.target)
        found = engine.bits(entry_of(level, part, heard, tokens.astype(np.int32)))
        new = slice(window.start + window.given, window.start + window.target)
        bits[new] = found[window.given : window.target]
    return bits
