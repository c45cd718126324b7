"""Where a window lies in its song, as bins (spec/prior.md 7).

Bin edges are decided by float32 rounding, so everything here is plain numpy float32, one operation at a time and in
the order of the specification: a compiler that fuses or reorders could move a token into the next bin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32

from jukebox_jax.errors import UserError


@dataclass(frozen=True)
class TimingBins:
    """Bins in [0, time_bins) of the song's length, and of each token's position in seconds and relative to the song."""

    total: Int32[np.ndarray, ""]
    absolute: Int32[np.ndarray, " n_ctx"]
    relative: Int32[np.ndarray, " n_ctx"]


def timing_bins(
    total_length: int,
    offset: int,
    window_samples: int,
    n_ctx: int,
    time_bins: int,
    min_duration_seconds: float,
    max_duration_seconds: float,
    sample_rate: int,
) -> TimingBins:
    """Bins of the window [offset, offset + window_samples) in a song of `total_length` samples.

    `window_samples` is the model's full window (n_ctx · hop) even where fewer tokens are sampled; a window may reach
    past the song's end, where the relative position stays 1 at most.

    Raises:
      UserError: a length or an offset outside the range the model was built for.
    """
    low, high = min_duration_seconds * sample_rate, max_duration_seconds * sample_rate
    check_total_length(total_length, min_duration_seconds, max_duration_seconds, sample_rate)
    total = np.float32(total_length)
    start, end = np.float32(offset), np.float32(offset + window_samples)
    if not (0 <= start < np.float32(high) and end <= np.float32(high)):
        raise UserError(
            f"A window from {offset / sample_rate:.2f} s to {(offset + window_samples) / sample_rate:.2f} s lies "
            f"outside the model's 0 to {max_duration_seconds:g} s: give lengths in samples, and a shorter song."
        )
    relative_start, relative_end = start / total, np.clip(end / total, np.float32(0), np.float32(1))
    if not 0 <= relative_start < 1:
        raise UserError(
            f"A window at {offset / sample_rate:.2f} s starts past the end of a song of "
            f"{total_length / sample_rate:.2f} s: use a smaller offset or a longer total length."
        )
    fraction = np.arange(n_ctx, dtype=np.float32) / np.float32(n_ctx)
    return TimingBins(
        total=_bin(np.asarray(total), low, high, time_bins),
        absolute=_bin(start + (end - start) * fraction, 0.0, high, time_bins),
        relative=_bin(relative_start + (relative_end - relative_start) * fraction, 0.0, 1.0, time_bins),
    )


def check_total_length(
    total_length: int, min_duration_seconds: float, max_duration_seconds: float, sample_rate: int
) -> None:
    """Raises UserError unless the model's range [min, max) holds a song of `total_length` samples (as float32)."""
    low, high = np.float32(min_duration_seconds * sample_rate), np.float32(max_duration_seconds * sample_rate)
    if not low <= np.float32(total_length) < high:
        seconds = total_length // sample_rate
        if np.float32(total_length) < low:
            remedy = f"min_duration_seconds={seconds}"
        else:
            remedy = f"max_duration_seconds={seconds + 2}"  # a second to spare for float32's rounding of samples
        raise UserError(
            f"A song of {total_length} samples ({total_length / sample_rate:.2f} s at {sample_rate} Hz) is outside the "
            f"model's range of {min_duration_seconds:g} to {max_duration_seconds:g} s: leave it out, or train with "
            f"--config.model.labels.{remedy}."
        )


def _bin(position: Float32[np.ndarray, "*n"], low: float, high: float, time_bins: int) -> Int32[np.ndarray, "*n"]:
    low_32, range_32 = np.float32(low), np.float32(high - low)
    return np.asarray(np.floor(np.float32(time_bins) * ((position - low_32) / range_32)), np.int32)
