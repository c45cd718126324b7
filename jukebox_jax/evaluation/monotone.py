"""Paths through an attention matrix that never go back, and the head whose attention follows the lyrics best.

A path names for each token one place in the lyrics. The best one collects the most attention: found by dynamic
programming, as the Viterbi path of a chain that may stay or skip ahead, but not turn back.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Int32

from jukebox_jax.errors import UserError
from jukebox_jax.evaluation.alignment import head_matrices, looking_layers
from jukebox_jax.sampling.requests import Level, Request, SongLabels, song_labels


def monotone_path(weights: Float[np.ndarray, "t l"]) -> Int32[np.ndarray, " t"]:
    """The path (a column for each row, never falling) that collects the most weight; where several do, it moves on
    as late as it can."""
    rows, columns = weights.shape
    came_from = np.zeros((rows, columns), np.int32)
    best = weights[0].astype(np.float64)
    everywhere = np.arange(columns, dtype=np.int32)
    for row in range(1, rows):
        so_far = np.maximum.accumulate(best)
        # The first column that is as good as any up to here: where the value has risen last.
        risen = np.concatenate([[True], so_far[1:] > so_far[:-1]])
        came_from[row] = np.maximum.accumulate(np.where(risen, everywhere, 0))
        best = so_far + weights[row]
    path = np.empty(rows, np.int32)
    path[-1] = np.argmax(best)
    for row in range(rows - 1, 0, -1):
        path[row - 1] = came_from[row, path[row]]
    return path


def path_weight(weights: Float[np.ndarray, "t l"]) -> float:
    """The weight that the best monotone path collects, per token."""
    best = np.zeros(weights.shape[1])
    for row in weights:
        best = np.maximum.accumulate(best) + row
    return float(best.max()) / len(weights)


def order_score(weights: Float[np.ndarray, "t l"]) -> float:
    """How much of a head's attention follows the lyrics from beginning to end: 1 if all of it does, about 0 if it
    knows no order, below 0 if it runs backwards.

    It is what the best monotone path collects, less what it would collect if the song ran backwards. A head that looks
    at one character, at all alike, or here and there without order, collects as much both ways; correlation with time
    would reward the first two for small drifts.
    """
    return path_weight(weights) - path_weight(weights[::-1])


@dataclass(frozen=True)
class HeadScore:
    """A head that looks at the lyrics, and the mean `order_score` of its attention."""

    layer: int
    head: int
    score: float


def search_heads(
    level: Level,
    tokens: Sequence[Int[np.ndarray, " _"]],
    songs: Sequence[Request] | Sequence[SongLabels],
    hop_fraction: float,
    progress: bool = False,
) -> list[HeadScore]:
    """Every head that looks at the lyrics, the one that follows them best first.

    Args:
      tokens: codes of the top level, of each song.
      songs: what they were sampled by, or, of recordings, what is sung in them; a few with different lyrics.
      progress: whether to draw a progress line on stderr.

    Raises:
      UserError: a prior that takes no lyrics, or none of whose layers looks at them; no song with lyrics.
    """
    from tqdm import tqdm

    config = level.prior.config
    layers = looking_layers(config)
    if not layers:
        raise UserError("No layer of this prior looks at the lyrics: train one whose attention_order has such layers.")
    labels = [song_labels(level.prior, song) for song in songs]
    sung = [(codes, song) for codes, song in zip(tokens, labels, strict=True) if len(song.lyrics)]
    if not sung:
        raise UserError("None of the songs has lyrics: search with songs that are sung.")
    params, scores = level.prior.read_params(), []
    with tqdm(total=len(layers) * len(sung), desc="search", file=sys.stderr, disable=not progress) as bar:
        for layer in layers:
            of_songs = []
            for codes, song in sung:
                matrices = head_matrices(level, params, codes, song, hop_fraction, layer)
                of_songs.append([order_score(matrix) for matrix in matrices])
                bar.update()
            scores += [HeadScore(layer, head, float(score)) for head, score in enumerate(np.mean(of_songs, axis=0))]
    return sorted(scores, key=lambda found: -found.score)
