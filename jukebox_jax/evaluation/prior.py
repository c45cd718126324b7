"""How well a prior does: held-out bits per token, beside what counting tokens achieves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from jukebox_jax.evaluation.placement import everywhere, placed
from jukebox_jax.models.prior import Prior, PriorConfig

#: The codes of one song at one level.
Codes = Int[np.ndarray, " _"]

#: At most this many windows are evaluated while training; always the same ones.
EVALUATION_WINDOWS = 64


@runtime_checkable
class Windows(Protocol):
    """What is read of an unshuffled `pipeline.stream.Stream`."""

    n_windows: int
    batch_size: int

    def batch(self, seed: int, position: int) -> dict[str, np.ndarray]:
        """The windows from number `position` on; after the last comes the first."""


def prior_evaluation(model: PriorConfig, stream: Windows) -> Callable[[dict, dict], Mapping[str, float]]:
    """A function (params, model_state) → `bits_per_token` over the first held-out windows of `stream`."""

    def evaluate(params, model_state) -> Mapping[str, float]:
        del model_state
        return {"bits_per_token": held_out_bits(model, params, stream, EVALUATION_WINDOWS)}

    return evaluate


def held_out_bits(
    model: PriorConfig,
    params: dict,
    stream: Windows,
    max_windows: int | None = None,
    change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = lambda batch: batch,
) -> float:
    """Mean bits per music token over the windows of an unshuffled stream; `change` may alter the labels first.

    Under the mesh and the rules of training it computes there, a part of each batch on every device; on several hosts,
    all of them call it.
    """
    windows = stream.n_windows if max_windows is None else min(stream.n_windows, max_windows)
    bits = [_bits(model, params, placed(change(batch))) for batch in held_out_batches(stream, windows)]
    return float(np.mean(np.concatenate(jax.device_get(bits))[:windows]))


def held_out_batches(stream: Windows, windows: int | None = None) -> Iterator[dict[str, np.ndarray]]:
    """Batches of the first `windows` windows (all by default) of an unshuffled stream.

    The last one wraps around to the first windows, so that every batch has the one compiled size.
    """
    for position in range(0, stream.n_windows if windows is None else windows, stream.batch_size):
        yield stream.batch(0, position)


def with_other_artist(batch: dict[str, np.ndarray], artists: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The batch with every artist replaced by a random other one of a table of `artists` names, of which the first,
    "unknown", is never taken."""
    known = artists - 1
    other = (batch["artist"] - 1 + rng.integers(1, known, batch["artist"].shape)) % known + 1
    return batch | {"artist": other.astype(np.int32)}


def unigram_bits(train: Sequence[Codes], held_out: Sequence[Codes], codes: int) -> float:
    """Held-out cross-entropy in bits per token under the add-one-smoothed unigram of the training songs."""
    counts = 1.0 + sum(np.bincount(song, minlength=codes) for song in train)
    log_probability = np.log2(counts / counts.sum())
    return float(-np.mean(log_probability[np.concatenate(held_out)]))


def bigram_bits(train: Sequence[Codes], held_out: Sequence[Codes], codes: int) -> float:
    """The same under the add-one-smoothed bigram; a song's first token has no predecessor and is not counted."""
    counts = np.ones((codes, codes))
    for song in train:
        np.add.at(counts, (song[:-1], song[1:]), 1.0)
    log_probability = np.log2(counts / counts.sum(axis=1, keepdims=True))
    return float(-np.mean(np.concatenate([log_probability[song[:-1], song[1:]] for song in held_out])))


@partial(jax.jit, static_argnums=0)
def _bits(model: PriorConfig, params: dict, batch: dict[str, Array]) -> Float[Array, " b"]:
    return everywhere(Prior(model).apply({"params": params}, batch, method="bits").music)
