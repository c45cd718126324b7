"""Whole audio files to samples and back, at any rate."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int16, Shaped

from jukebox_jax.audio.decode import AV_SUFFIXES, BLOCK_FRAMES, NOT_FINITE, BadAudio, open_audio, resampled
from jukebox_jax.errors import UserError
from jukebox_jax.files import atomic_file

if TYPE_CHECKING:
    import soundfile

READABLE_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".caf", ".w64"})
# Music files that libsndfile has no decoder for, and PyAV has: worth naming, lest they be left out in silence.
UNREADABLE_SUFFIXES = AV_SUFFIXES

_WRITABLE = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}


#: Clips by name: mono samples and their rate in Hz.
Clips = Mapping[str, tuple[Float[np.ndarray, " t"], int]]


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says; `frames` counts samples per channel at `sample_rate` Hz."""

    frames: int
    sample_rate: int
    channels: int

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate


def audio_info(path: os.PathLike | str) -> AudioInfo:
    """Reads only the header of an audio file.

    Raises:
      UserError: the file is missing, empty, cut short (WAV and its like), not audio, or holds no samples.
    """
    with _named(path), open_audio(path) as stream:
        if not stream.frames:
            raise BadAudio("holds no samples: remove it, or put the whole file in its place")
        return AudioInfo(stream.frames, stream.sample_rate, stream.channels)


def read_audio(path: os.PathLike | str, sample_rate: int = 44_100) -> Float[np.ndarray, "t c"]:
    """Decodes a whole file, resampled to `sample_rate` Hz where it has another rate.

    Returns:
      float32 (samples, channels), nominally in [-1, 1] (a lossy file or resampling may overshoot a little).

    Raises:
      UserError: the file is missing, empty, corrupt, cut short, not audio, or holds NaN or infinite samples.
    """
    with _named(path), open_audio(path) as stream:
        samples = np.concatenate([np.zeros((0, stream.channels), np.float32), *resampled(stream, sample_rate)])
        if not np.isfinite(samples).all():
            raise BadAudio(NOT_FINITE)
        if not len(samples):
            raise BadAudio(f"holds too few samples to resample to {sample_rate} Hz: remove it")
        return samples


def write_audio(path: os.PathLike | str, samples: Float[np.ndarray, " t *channels"], sample_rate: int) -> None:
    """Writes samples, clipped to [-1, 1], as 16-bit WAV or FLAC or as Ogg Vorbis, by the suffix of `path`.

    The file is whole or absent. A 16-bit file read back and written again keeps every bit.

    Args:
      samples: (t,) or (t, channels).

    Raises:
      UserError: a suffix other than .wav, .flac, .ogg.
      ValueError: samples that are not finite, or of another shape.
    """
    import soundfile

    path = Path(path)
    if path.suffix.lower() not in _WRITABLE:
        raise UserError(f"{path}: audio is written as {', '.join(sorted(_WRITABLE))}: choose one of these suffixes.")
    container, subtype = _WRITABLE[path.suffix.lower()]
    samples = np.asarray(samples, np.float32)
    if samples.ndim == 1:
        samples = samples[:, None]
    if samples.ndim != 2 or not np.isfinite(samples).all():
        raise ValueError(f"samples must be finite and of shape (t,) or (t, channels), not {samples.shape}")
    data = np.clip(samples, -1, 1) if subtype == "VORBIS" else to_int16(samples)
    with (
        atomic_file(path) as temporary,
        soundfile.SoundFile(str(temporary), "w", sample_rate, data.shape[1], subtype=subtype, format=container) as file,
    ):
        write_blocks(file, data)


def write_blocks(
    file: soundfile.SoundFile, data: Shaped[np.ndarray, "t c"], tell: Callable[[float], object] = lambda seconds: None
) -> None:
    """Writes frames block by block: a minute or more of Vorbis in one call crashes libsndfile (seen in soundfile 0.14).

    Args:
      tell: called with how many seconds have been written, after each block.
    """
    for start in range(0, len(data), BLOCK_FRAMES):
        block = data[start : start + BLOCK_FRAMES]
        file.write(block)
        tell(len(block) / file.samplerate)


def to_int16(samples: Float[np.ndarray, "*s"]) -> Int16[np.ndarray, "*s"]:
    """[-1, 1] to 16 bits, rounded to nearest and clipped; `to_float32` undoes it."""
    return np.clip(np.rint(np.asarray(samples, np.float32) * 32_768), -32_768, 32_767).astype(np.int16)


def to_float32(samples: Int16[np.ndarray, "*s"]) -> Float[np.ndarray, "*s"]:
    """16 bits to float32 in [-1, 1): exact, since the divisor is a power of two."""
    return samples.astype(np.float32) / np.float32(32_768)


@contextlib.contextmanager
def _named(path: os.PathLike | str) -> Iterator[None]:
    """Bad audio becomes a mistake of the user's, told with the file's name."""
    try:
        yield
    except BadAudio as error:
        raise UserError(f"{path} {error}.") from None
