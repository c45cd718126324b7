"""How loud a corpus is: the constants by which the codec's losses are divided (spec/vqvae.md 5)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jukebox_jax import remote
from jukebox_jax.errors import UserError
from jukebox_jax.files import atomic_file
from jukebox_jax.pipeline.dataset import Dataset
from jukebox_jax.pipeline.stream import Stream

#: The windows that `prepare` computes the constants for: that of the original's VQ-VAE.
WINDOWS = (393_216,)
#: The file in a dataset folder that keeps them.
FILE = "bandwidth.json"

_FFT, _HOP, _WINDOW = 2048, 256, 1536
_STRIDE = 16

# A silent corpus would give constants near zero and losses without bound: none is smaller than that of white noise at
# -60 dB of full scale.
_FLOOR_RMS = 1e-3
FLOOR = {"l1": _FLOOR_RMS * math.sqrt(2 / math.pi), "l2": _FLOOR_RMS**2}


def bandwidth_table(dataset: Dataset, windows: Sequence[int] = WINDOWS) -> dict[int, dict[str, float]]:
    """Window in samples → its constants, for an audio dataset, by the arithmetic of `bandwidth`.

    A window longer than every training song gives way to the longest one that fits, in whole hops of 128; without
    training songs, or with none that long, the table is empty.
    """
    longest = max((song.samples for song in dataset.splits["train"]), default=0) // 128 * 128
    return {window: bandwidth(dataset, window) for window in sorted({min(w, longest) for w in windows}) if window}


def save_bandwidth(folder: os.PathLike | str, table: dict[int, dict[str, float]]) -> None:
    """Writes the table into a local dataset folder; the same table gives the same bytes."""
    with atomic_file(Path(folder) / FILE) as temporary:
        temporary.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def stored_bandwidth(dataset: Dataset, window_samples: int) -> dict[str, float] | None:
    """The constants that were stored for windows of this length, or None.

    Raises:
      UserError: the file is damaged.
    """
    path = dataset.folder / FILE
    try:
        table = json.loads(remote.read_text(path))
        if str(window_samples) not in table:
            return None
        constants = {name: float(table[str(window_samples)][name]) for name in ("l1", "l2", "spec")}
        if not all(math.isfinite(value) and value > 0 for value in constants.values()):
            raise ValueError(f"constants of {window_samples} that are not positive numbers")
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error!r}): remove it, and training computes it again.") from None
    return constants


def bandwidth(dataset: Dataset, window_samples: int, seconds: float = 600.0) -> dict[str, float]:
    """Constants {"l1", "l2", "spec"} of the training split for windows of `window_samples`.

    Reads windows 0, 16, 32, … in order, then 1, 17, …, until `seconds` of samples (both channels counted) are seen or
    every window was read once.

    Raises:
      UserError: no training song is as long as a window.
    """
    stream = Stream(dataset, "train", window_samples, batch_size=1, shuffle=False, shift=False)

    def windows() -> Iterable[Float[np.ndarray, "t channels"]]:
        for index in (i for first in range(_STRIDE) for i in range(first, stream.n_windows, _STRIDE)):
            yield stream.read_window(index)

    return bandwidth_of(windows(), math.ceil(seconds * dataset.sample_rate))


def bandwidth_of(items: Iterable[Float[np.ndarray, "t channels"]], values: int) -> dict[str, float]:
    """Constants of float32 items (t, channels): items are read until `values` numbers (of all channels) were seen."""
    total_absolute = total = total_square = 0.0
    norms: list[float] = []
    seen = frames = 0
    for item in items:
        x = item.astype(np.float64)
        total_absolute += float(np.abs(x).sum())
        total += float(x.sum())
        total_square += float(np.square(x).sum())
        norms.append(_spectral_norm(item.mean(axis=1)))
        frames = 1 + len(item) // _HOP
        seen += item.size
        if seen >= values:
            break
    # The floor of the norm: a bin of white noise has the mean square rms² · Σ hann² = rms² · 3/8 · window.
    spec_floor = _FLOOR_RMS * math.sqrt(frames * (_FFT // 2 + 1) * 3 / 8 * _WINDOW)
    return {
        "l1": max(total_absolute / seen, FLOOR["l1"]),
        "l2": max(total_square / seen - (total / seen) ** 2, FLOOR["l2"]),
        "spec": max(float(np.mean(norms)), spec_floor),
    }


def _spectral_norm(x: Float[np.ndarray, " t"]) -> float:
    """Frobenius norm of the magnitude STFT: centred, reflected at the ends, periodic Hann window, not normalised."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)
    window = np.pad(window, (_FFT - _WINDOW) // 2)
    padded = np.pad(x.astype(np.float64), _FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FFT)[::_HOP]
    spectrum = np.fft.rfft(frames * window, axis=1)
    return math.sqrt(np.square(spectrum.real).sum() + np.square(spectrum.imag).sum())
