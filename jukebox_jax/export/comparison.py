"""Whether a file holds the sound of a song that was sampled again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jukebox_jax.audio.files import audio_info, read_audio
from jukebox_jax.export.audio import treated, treatments
from jukebox_jax.export.encoding import FORMATS, decode, encode

# Two encodings of one sound may have errors of their own, by another version of the encoder. This is 3 dB, where
# another song is out by as much as it is loud.
_MORE_NOISE = 2
_INT16_STEP = 1 / 32_768
_SAME_LENGTH_SECONDS = 0.01


def length_difference(path: os.PathLike | str, seconds: float) -> str | None:
    """A sentence if a file does not last as long as its song; only its header is read."""
    lasts = audio_info(path).seconds
    if abs(lasts - seconds) <= _SAME_LENGTH_SECONDS:
        return None
    return f"The file lasts {lasts:.2f} s, the song {seconds:.2f} s: it was cut or changed since it was exported."


def sound_difference(
    path: os.PathLike | str, samples: Float[np.ndarray, " t"], sample_rate: int, provenance: Mapping[str, Any]
) -> str | None:
    """A sentence if a file does not hold these samples, as they were treated for it by its provenance.

    Whatever was done on the way is done again. The file may be farther from what was encoded last than encoding it now
    is, but not by much, or by a step of 16 bits.
    """
    heard = read_audio(path, audio_info(path).sample_rate)
    meant, again = samples[:, None], samples[:, None]
    for treatment in treatments(provenance):
        meant, sample_rate = treated(again, sample_rate, treatment)
        again, _ = decode(encode(meant, sample_rate, FORMATS[treatment.format]))
    if heard.shape != again.shape:
        return f"The sound of {Path(path).name} is of another length, rate or number of channels."
    allowed = max(_MORE_NOISE * _power(again - meant), _INT16_STEP**2)
    noise = _power(heard - meant)
    if noise <= allowed:
        return None
    decibels = 10 * np.log10(noise / max(_power(meant), _INT16_STEP**2))
    return f"The sound differs: by {decibels:.1f} dB of the song's own level."


def _power(samples: Float[np.ndarray, "t c"]) -> float:
    return float(np.mean(np.square(samples, dtype=np.float64)))
