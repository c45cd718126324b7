"""Where in the lyrics a top prior looks as it listens to each token (spec: sampling, section 10)."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from jukebox_jax.checkpoint.models import TrainedPrior
from jukebox_jax.checkpoint.store import split_step
from jukebox_jax.errors import UserError
from jukebox_jax.files import atomic_file
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
    progress: bool = False,
) -> list[Float32[np.ndarray, "t _"]]:
    """For each song, how much each token (t) looks at each character of the cleaned lyrics: one head's attention.

    Where windows overlap, the earlier one counts, at the characters that it can see; characters that none sees at a
    token have 0 there. What the prior looks at in place i has seen the characters before i, so whoever shows
    characters shifts them by one.

    Args:
      tokens: codes of the top level; fewer than a window are followed by code 0.
      songs: what the songs were sampled by.
      hop_fraction: as the songs were sampled.
      layer, head: where attention follows the lyrics; by default as `alignment_head` knows.
      progress: whether to draw a progress line on stderr, one for each song.

    Raises:
      UserError: a prior without lyrics, or a layer or head that does not look at them.
    """
    layer, head = alignment_head(level.prior, layer, head)
    params = level.prior.read_params()
    return [
        head_matrices(level, params, codes, song, hop_fraction, layer, progress)[head]
        for codes, song in zip(tokens, songs, strict=True)
    ]


def head_matrices(
    level: Level,
    params: dict,
    tokens: Int[np.ndarray, " t"],
    song: Request | SongLabels,
    hop_fraction: float,
    layer: int,
    progress: bool = False,
) -> Float32[np.ndarray, "h t _"]:
    """The `alignment` of one song in every head of a layer that looks at lyrics.

    Args:
      params: the prior's, as `read_params` gives them.
      progress: whether to draw a progress line on stderr.
    """
    from tqdm import tqdm

    config, count = level.prior.config, len(tokens)
    codes = np.pad(tokens, (0, max(0, config.n_ctx - count))).astype(np.int32)
    hop = hop_tokens(config.n_ctx, hop_fraction, level.ratio, len(codes), config.level)
    labels = song_labels(level.prior, song)
    characters = len(labels.lyrics)
    # The last column, index -1, takes what falls on padding.
    matrices = np.zeros((config.heads, len(codes), characters + 1), np.float32)
    starts = window_starts(len(codes), config.n_ctx, hop)
    for start in tqdm(starts[::-1], desc="align", unit="window", file=sys.stderr, disable=not progress):
        end = start + config.n_ctx
        batch = {"tokens": codes[None, start:end], **window_conditioning(level, [labels], start)}
        weights = _weights(config, params, {name: jnp.asarray(x) for name, x in batch.items()}, layer)
        matrices[:, start:end, window_lyrics(level, labels, start).indices] = np.asarray(weights[0])
    return matrices[:, :count, :characters]


def looking_layers(config: PriorConfig) -> list[int]:
    """The layers that look at the lyrics.

    Raises:
      UserError: a prior without lyrics, or one of whose layers none is made to look at them.
    """
    if config.lyrics is None:
        raise UserError("This prior takes no lyrics, so nothing can be aligned: use one that does.")
    return [i for i, pattern in enumerate(config.transformer.patterns) if pattern in (Pattern.ENCODER, Pattern.PRIME)]


def alignment_head(prior: TrainedPrior, layer: int | None = None, head: int | None = None) -> tuple[int, int]:
    """The layer and the head whose attention follows the lyrics: those given, or else those that a search recorded
    beside the prior, or else those of its config.

    Raises:
      UserError: a prior without lyrics, a layer or head that does not look at them, or none that is known.
    """
    config = prior.config
    lookers = looking_layers(config)
    recorded = (config.lyrics.alignment_layer, config.lyrics.alignment_head)
    if layer is None and head is None:
        recorded = recorded_head(prior) or recorded
        if None in recorded:
            raise UserError(
                "Which head of this prior follows the lyrics is not known: search for it (align --search), or give "
                f"layer ({_listed(lookers)}) and head."
            )
    layer = recorded[0] if layer is None else layer
    head = recorded[1] if head is None else head
    if layer not in lookers:
        raise UserError(f"layer={layer} does not look at the lyrics: give one of {_listed(lookers)}.")
    if head is None or not 0 <= head < config.heads:
        raise UserError(f"head={head} is none of layer {layer}: give one from 0 to {config.heads - 1}.")
    return layer, head


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers)) or "none"


# ---- What a search found ----------------------------------------------------------------------------------------


def record_head(prior: TrainedPrior, layer: int, head: int) -> Path | None:
    """Notes the head that follows the lyrics beside the prior's folder, where `alignment_head` finds it; returns the
    file, or None for a prior that is in no folder.

    The folder itself stays as it is: its files are the model, and songs are known by them.
    """
    path = _record(prior)
    if path is not None:
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps({"layer": layer, "head": head}) + "\n", encoding="utf-8")
    return path


def recorded_head(prior: TrainedPrior) -> tuple[int, int] | None:
    """What `record_head` noted, if it did.

    Raises:
      UserError: the note is damaged.
    """
    path = _record(prior)
    if path is None or not path.is_file():
        return None
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        return int(noted["layer"]), int(noted["head"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): remove it, and search again.") from None


def _record(prior: TrainedPrior) -> Path | None:
    """LEVEL.alignment.json beside the prior's folder LEVEL."""
    if not prior.source:
        return None
    folder, _ = split_step(prior.source)
    return folder.with_name(f"{folder.name}.alignment.json")


@partial(jax.jit, static_argnums=(0, 3))
def _weights(config: PriorConfig, params: dict, batch: dict[str, Array], layer: int) -> Float[Array, "1 h t s"]:
    return Prior(config).apply({"params": params}, batch, layer, method="alignment")
