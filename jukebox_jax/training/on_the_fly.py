"""Priors trained from audio: a frozen codec encodes every batch, as the original did (spec/training.md 1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jaxtyping import Array, Int

from jukebox_jax.checkpoint.models import TrainedCodec
from jukebox_jax.corpus.encode import batch_encoder
from jukebox_jax.pipeline.stream import Stream


class EncodedStream:
    """A stream of audio windows, given as what a stream of tokens gives: the codes of one level or of two.

    Windows are encoded each for itself: beyond their edges there are zeros.

    Args:
      stream: of the field "audio".
      levels: the prior's own level, and for an upsampler the one above it.
      local_batch: windows of a batch that this process has; they lie over its devices where these divide them.
    """

    def __init__(self, stream: Stream, codec: TrainedCodec, levels: tuple[int, ...], local_batch: int):
        self.n_windows, self.batch_size = stream.n_windows, stream.batch_size
        self._stream = stream
        self._encode = batch_encoder(codec.config, codec.codec, local_batch, levels)

    def batch(self, seed: int, position: int) -> dict[str, np.ndarray]:
        """`Stream.batch` with "tokens" and, with a second level, "upper" in place of "audio"."""
        batch = self._stream.batch(seed, position)
        return _with_codes(batch, self._encode(batch["audio"]))

    def batches(self, seed: int, position: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """`batch(seed, position)`, `batch(seed, position + batch_size)`, … without end.

        One batch ahead: the devices get it before the step that trains on the batch before it, so that nobody waits
        for that step to read its codes.
        """
        waiting: tuple[Mapping[str, np.ndarray], list[Array]] | None = None
        for batch in self._stream.batches(seed, position):
            codes = self._encode(batch["audio"])
            if waiting is not None:
                yield _with_codes(*waiting)
            waiting = batch, codes


def _with_codes(batch: Mapping[str, np.ndarray], codes: list[Int[Array, "b _"]]) -> dict[str, np.ndarray]:
    names = ("tokens", "upper")[: len(codes)]
    labels = {name: array for name, array in batch.items() if name != "audio"}
    return dict(zip(names, jax.device_get(codes), strict=True)) | labels
