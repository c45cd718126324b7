"""How loud sound is: loudness in LUFS (ITU-R BS.1770-4, by pyloudnorm), and the true peak between its samples."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

#: Loudness is an average over blocks of this length (BS.1770-4, annex 1); of less sound there is none.
GATE_SECONDS = 0.4
#: Peaks between samples are looked for at this many times the rate (BS.1770-4, annex 2).
OVERSAMPLING = 4


def can_measure_loudness() -> bool:
    """Whether pyloudnorm is installed."""
    try:
        import pyloudnorm  # noqa: F401
    except ImportError:
        return False
    return True


def integrated_loudness(samples: Float[np.ndarray, "t channels"], sample_rate: int) -> float:
    """Loudness in LUFS; -inf for what is shorter than `GATE_SECONDS`, or too quiet to count (below -70 LUFS).

    pyloudnorm takes up to five channels, in the order L R C Ls Rs.
    """
    import pyloudnorm

    if len(samples) < GATE_SECONDS * sample_rate:
        return -math.inf
    with np.errstate(divide="ignore"):  # of silence it takes the logarithm
        return float(pyloudnorm.Meter(sample_rate).integrated_loudness(np.asarray(samples, np.float64)))


def true_peak(samples: Float[np.ndarray, "t channels"], sample_rate: int) -> float:
    """The highest peak of the wave that a converter draws through the samples, in dBTP; -inf for silence."""
    import soxr

    between = soxr.resample(np.ascontiguousarray(samples, np.float32), sample_rate, OVERSAMPLING * sample_rate)
    return decibels(max(float(np.abs(samples).max(initial=0)), float(np.abs(between).max(initial=0))))


def decibels(amplitude: float) -> float:
    """20 log10 of an amplitude; -inf for 0."""
    return 20 * math.log10(amplitude) if amplitude > 0 else -math.inf


def factor(gain_db: float) -> float:
    """The amplitude that so many decibels stand for."""
    return 10 ** (gain_db / 20)
