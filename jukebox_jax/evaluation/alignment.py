"""Where in the lyrics a top prior looks as it listens to each token (spec: sampling, section 10)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from jukebox_jax.errors import UserError
from jukebox_jax.models.attention import Pattern
from jukebox_jax.models.prior import Prior, PriorConfig
from jukebox_jax.sampling.requests import Level, Request, SongLabels, song_labels, window_conditioning, window_lyrics
from jukebox_jax.sampling.windows import hop_tokens, window_starts


def alignment(
    level: Level,
    tokens: Int[np.ndarray, "n t"],
    songs: Sequence[Request] | Sequence[SongLabels],
    hop_fraction: float,
    layer: int | None = None,
    head: int | None = None,
) -> list[Float32[np.ndarray, "t _"]]:
    """For each song, how much each token (t) looks at each character of the cleaned lyrics: one head's attention.

    Where windows overlap, the earlier one counts, at the characters that it can see; characters that none sees at a
    token have 0 there. What the prior looks at in place i has seen the characters before i, so whoever shows
    characters shifts them by one.

    Args:
      tokens: codes of the top level; fewer than a window are followed by code 0.
      songs: what the songs were sampled by.
      hop_fraction: as the songs were sampled.
      layer, head: where attention follows the lyrics; by default where the prior's config says.

    Raises:
      UserError: a prior without lyrics, or a layer or head that does not look at them.
    """
    config = level.prior.config
    layer, head = _where(config, layer, head)
    count = tokens.shape[1]
    padded = np.pad(tokens, ((0, 0), (0, max(0, config.n_ctx - count)))).astype(np.int32)
    total = padded.shape[1]
    hop = hop_tokens(config.n_ctx, hop_fraction, level.ratio, total, config.level)
    params, results = level.prior.read_params(), []
    for codes, song in zip(padded, songs, strict=True):
        labels = song_labels(level.prior, song)
        characters = len(labels.lyrics)
        matrix = np.zeros((total, characters + 1), np.float32)  # the last column, index -1, takes what falls on padding
        for start in reversed(window_starts(total, config.n_ctx, hop)):
            end = start + config.n_ctx
            batch = {"tokens": codes[None, start:end], **window_conditioning(level, [labels], start)}
            weights = _weights(config, params, {name: jnp.asarray(x) for name, x in batch.items()}, layer)
            matrix[start:end, window_lyrics(level, labels, start).indices] = np.asarray(weights[0, head])
        results.append(matrix[:count, :characters])
    return results


def _where(config: PriorConfig, layer: int | None, head: int | None) -> tuple[int, int]:
    if config.lyrics is None:
        raise UserError("This prior takes no lyrics, so nothing can be aligned: use one that does.")
    layer = config.lyrics.alignment_layer if layer is None else layer
    head = config.lyrics.alignment_head if head is None else head
    patterns = config.transformer.patterns
    lookers = [i for i, pattern in enumerate(patterns) if pattern in (Pattern.ENCODER, Pattern.PRIME)]
    if layer not in lookers:
        raise UserError(
            f"layer={layer} does not look at the lyrics: give one of {', '.join(map(str, lookers)) or 'none'}."
        )
    if head is None or not 0 <= head < config.heads:
        raise UserError(f"head={head} is none of layer {layer}: give one from 0 to {config.heads - 1}.")
    return layer, head


@partial(jax.jit, static_argnums=(0, 3))
def _weights(config: PriorConfig, params: dict, batch: dict[str, Array], layer: int) -> Float[Array, "1 h t s"]:
    return Prior(config).apply({"params": params}, batch, layer, method="alignment")
