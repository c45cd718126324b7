"""Songs as files to send: a chosen loudness, fades, and peaks that stay below what players can draw."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from jukebox_jax import config
from jukebox_jax.errors import UserError
from jukebox_jax.export.encoding import FORMATS, Format, decode, encode
from jukebox_jax.export.loudness import (
    GATE_SECONDS,
    can_measure_loudness,
    decibels,
    factor,
    integrated_loudness,
    true_peak,
)

Number = int | float
Samples = Float[np.ndarray, "t channels"]
_Resampled = Float[np.ndarray, "out channels"]

#: What streaming services ask for, lest their own coding clips.
TRUE_PEAK_DBTP = -1.0
# Coding changes peaks and, of odd sounds, loudness: it is done again, a little quieter, until both are right.
_ROUNDS = 8
_MARGIN_DB = 0.02  # doubles every round, so that the last ones find a way
_NEAR_LU = 0.1
_FULL_SCALE = 32_767 / 32_768
LOUDNESS_REMEDY = 'install it (pip install "jukebox-jax[export]"), or leave the loudness as it is'


@dataclass(frozen=True)
class Finish:
    """What is done to the samples before they are written.

    Attributes:
      loudness_lufs: the loudness to turn the song to, as far as its peaks allow; None: as it is.
      true_peak_dbtp: what no peak of the file as it is played may pass, 0 at most. None: of a lossless format, where no
        loudness is asked for, the samples as they are, unless they go beyond full scale; else `TRUE_PEAK_DBTP`.
      fade_in_seconds, fade_out_seconds: along half a cosine; 0: none.

    Raises:
      UserError: values that make no sense.
    """

    loudness_lufs: Number | None = None
    true_peak_dbtp: Number | None = None
    fade_in_seconds: Number = 0
    fade_out_seconds: Number = 0

    def __post_init__(self):
        if self.loudness_lufs is not None and not -70 < self.loudness_lufs < 0:
            raise UserError(f"A loudness of {self.loudness_lufs} LUFS is none: give -23 to -9, as -14 for streaming.")
        if self.true_peak_dbtp is not None and not -70 < self.true_peak_dbtp <= 0:
            raise UserError(f"A true peak of {self.true_peak_dbtp} dBTP is none: give 0 or less, as -1 for streaming.")
        for fade in (self.fade_in_seconds, self.fade_out_seconds):
            if not (math.isfinite(fade) and fade >= 0):
                raise UserError(f"A fade of {fade} s is none: give a finite number of seconds, 0 or more.")


PLAIN = Finish()


@dataclass(frozen=True)
class Treatment:
    """What was done to the samples of a file, in this order: resampled to the rate, faded, turned by the gain, encoded.
    Loudness and true peak are what was asked for (None: nothing was)."""

    format: str
    sample_rate: int
    fade_in_seconds: float
    fade_out_seconds: float
    gain_db: float
    loudness_lufs: float | None
    true_peak_dbtp: float | None


@dataclass(frozen=True)
class Rendered:
    """A file's bytes, how they came about, and what the user should know of it."""

    data: bytes
    treatment: Treatment
    remarks: tuple[str, ...]


def render(
    samples: Float[np.ndarray, " t *channels"],
    sample_rate: int,
    format: Format,
    finish: Finish = PLAIN,
    tell: Callable[[float], object] = lambda seconds: None,
) -> Rendered:
    """A song as a file of a format.

    Args:
      samples: (t,) or (t, channels), nominally in [-1, 1].
      tell: called with how many seconds have been encoded; it may take several rounds.

    Raises:
      UserError: no samples, or such as the format cannot hold; fades longer than the song; a loudness for less than
        `GATE_SECONDS` of sound, for more than five channels, or without pyloudnorm.
    """
    samples, rate = _checked(samples, format), _rate(format, sample_rate)
    target, ceiling, remarks = finish.loudness_lufs, finish.true_peak_dbtp, []
    if ceiling is None and (format.lossy or target is not None):
        ceiling = TRUE_PEAK_DBTP
    if target is not None:
        _check_measurable(samples, sample_rate)
    if rate != sample_rate:
        remarks.append(f"{format.name} does not take {sample_rate} Hz: resampled to {rate} Hz.")
    samples = _prepared(samples, sample_rate, rate, finish.fade_in_seconds, finish.fade_out_seconds)

    wanted_db = 0.0
    if target is not None:
        loudness = integrated_loudness(samples, rate)
        if loudness == -math.inf:
            remarks.append("The song is silent: it has no loudness to change.")
            target = None
        else:
            wanted_db = target - loudness
    if ceiling is None:
        highest = float(np.abs(samples).max())
        gain_db = decibels(_FULL_SCALE / highest) if highest > 1 else 0.0
        data = encode(_turned(samples, gain_db), rate, format, tell)
    else:
        start_db = min(wanted_db, ceiling - _MARGIN_DB - true_peak(samples, rate))
        gain_db, data = _below(samples, rate, format, start_db, ceiling, target, tell)
    if gain_db < wanted_db - _NEAR_LU:
        limit = "full scale" if ceiling is None else f"{ceiling:g} dBTP"
        less = wanted_db - gain_db
        came = f"turned down by {less:.1f} dB" if target is None else f"it comes to {target - less:.1f} LUFS"
        remarks.append(f"The song's peaks would pass {limit}: {came}.")
    treatment = Treatment(
        format=format.name,
        sample_rate=rate,
        fade_in_seconds=float(finish.fade_in_seconds),
        fade_out_seconds=float(finish.fade_out_seconds),
        gain_db=gain_db,
        loudness_lufs=None if target is None else float(target),
        true_peak_dbtp=None if ceiling is None else float(ceiling),
    )
    return Rendered(data, treatment, tuple(remarks))


def treatments(provenance: Mapping[str, Any]) -> tuple[Treatment, ...]:
    """What was done to a song from one file to the next, by the "export" of its provenance.

    Raises:
      UserError: that is no list of treatments.
    """
    steps = provenance.get("export", [])
    found = None
    if isinstance(steps, list) and all(isinstance(step, Mapping) for step in steps):
        with contextlib.suppress(UserError):
            found = tuple(config.from_dict(Treatment, step) for step in steps)
    if found is None or not all(one.format in FORMATS and abs(one.gain_db) < 100 for one in found):
        raise UserError("What the song says of how it was exported was changed: give the file as it was exported.")
    return found


def treated(samples: Float[np.ndarray, " t *_"], sample_rate: int, treatment: Treatment) -> tuple[_Resampled, int]:
    """Samples resampled, faded and turned as those of a file were, ready to be encoded, and their rate.

    Raises:
      UserError: a treatment that these samples cannot have.
    """
    format = FORMATS[treatment.format]
    samples, rate = _checked(samples, format), _rate(format, sample_rate)
    samples = _prepared(samples, sample_rate, rate, treatment.fade_in_seconds, treatment.fade_out_seconds)
    return _turned(samples, treatment.gain_db), rate


def _checked(samples: Float[np.ndarray, " t *channels"], format: Format) -> Samples:
    samples = np.asarray(samples, np.float32)
    samples = samples[:, None] if samples.ndim == 1 else samples
    if samples.ndim != 2 or not len(samples) or not np.isfinite(samples).all():
        raise UserError("A song is written from finite samples of shape (t,) or (t, channels): give at least one.")
    if not 1 <= samples.shape[1] <= format.most_channels:
        raise UserError(
            f"{format.name} holds 1 to {format.most_channels} channels, not {samples.shape[1]}: choose another format."
        )
    return samples


def _check_measurable(samples: Samples, sample_rate: int) -> None:
    if not can_measure_loudness():
        raise UserError(f"Loudness is measured by pyloudnorm, which is missing: {LOUDNESS_REMEDY}.")
    if samples.shape[1] > 5:
        raise UserError(f"Loudness is defined for up to 5 channels, not {samples.shape[1]}: leave it as it is.")
    if len(samples) < GATE_SECONDS * sample_rate:
        raise UserError(
            f"The song lasts {len(samples) / sample_rate:.2f} s, and loudness is measured over at least "
            f"{GATE_SECONDS} s: leave it as it is."
        )


def _rate(format: Format, sample_rate: int) -> int:
    return sample_rate if not format.rates or sample_rate in format.rates else format.rates[-1]


def _prepared(samples: Samples, sample_rate: int, rate: int, fade_in: Number, fade_out: Number) -> _Resampled:
    """Resampled and faded."""
    lasts = len(samples) / sample_rate
    if not (fade_in >= 0 and fade_out >= 0 and fade_in + fade_out <= lasts):
        raise UserError(
            f"Fades of {fade_in:g} and {fade_out:g} s are longer than the song ({lasts:.2f} s): shorten them."
        )
    if rate != sample_rate:
        import soxr

        samples = soxr.resample(np.ascontiguousarray(samples), sample_rate, rate)
    rising, falling = (round(seconds * rate) for seconds in (fade_in, fade_out))
    if rising or falling:
        samples = samples.copy()
        samples[:rising] *= _fade(rising)
        samples[len(samples) - falling :] *= _fade(falling)[::-1]
    return samples


def _fade(frames: int) -> Float[np.ndarray, "t 1"]:
    """From silence to the full sound along half a cosine."""
    return (0.5 - 0.5 * np.cos(np.pi * (np.arange(frames)[:, None] + 0.5) / max(frames, 1))).astype(np.float32)


def _turned(samples: Samples, gain_db: float) -> Samples:
    return samples * np.float32(factor(gain_db)) if gain_db else samples


def _below(
    samples: Samples,
    rate: int,
    format: Format,
    gain_db: float,
    ceiling: Number,
    target: Number | None,
    tell: Callable[[float], object],
) -> tuple[float, bytes]:
    """The gain, and the file, whose peaks stay below a ceiling as the file is played; near the target, if there is one
    and peaks allow it."""
    lowered = corrected = False
    for attempt in range(_ROUNDS):
        data = encode(_turned(samples, gain_db), rate, format, tell)
        heard, _ = decode(data)
        above = true_peak(heard, rate) - ceiling
        if above >= 0:
            gain_db -= above + _MARGIN_DB * 2**attempt
            lowered = True
            continue
        if target is not None and format.lossy and not (lowered or corrected):
            off = target - integrated_loudness(heard, rate)
            if _NEAR_LU < off < -above or -math.inf < off < -_NEAR_LU:
                gain_db += off
                corrected = True
                continue
        return gain_db, data
    raise UserError(
        f"Coded as {format.name}, the song's peaks pass {ceiling:g} dBTP at any gain: choose another format."
    )
