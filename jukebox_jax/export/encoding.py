"""Samples to the bytes of an audio file and back, by libsndfile."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jukebox_jax.audio.files import to_int16, write_blocks
from jukebox_jax.errors import UserError


@dataclass(frozen=True)
class Format:
    """A kind of audio file.

    Attributes:
      container, subtype: libsndfile's names.
      lossy: whether what is read is another sound than what was written.
      rates: the only ones that it takes, in Hz; none: any. What has another rate is resampled to the last.
      most_channels: that it takes.
      mime: its media type.
      options: of the encoder, as `soundfile.SoundFile` takes them.
    """

    name: str
    container: str
    subtype: str
    lossy: bool
    mime: str
    rates: tuple[int, ...] = ()
    most_channels: int = 8
    options: Mapping[str, Any] = field(default_factory=dict)


# libsndfile's compression level is 1 - quality / 10 for Vorbis, V / 10 for variable MP3, and for Opus a fraction of the
# way from 256 down to 6 kbit/s a channel. Chosen for good headphones: Vorbis q6, LAME V0, Opus 128 kbit/s a channel.
_FORMATS = (
    Format("wav", "WAV", "PCM_16", lossy=False, mime="audio/wav"),
    Format("flac", "FLAC", "PCM_16", lossy=False, mime="audio/flac"),
    Format("ogg", "OGG", "VORBIS", lossy=True, mime="audio/ogg", options={"compression_level": 0.4}),
    Format(
        "opus",
        "OGG",
        "OPUS",
        lossy=True,
        mime="audio/ogg",
        rates=(48_000,),  # it knows few rates, and plays all of them at this one
        options={"compression_level": 0.5},
    ),
    Format(
        "mp3",
        "MP3",
        "MPEG_LAYER_III",
        lossy=True,
        mime="audio/mpeg",
        rates=(8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000),
        most_channels=2,
        # Variable, because at constant bit rates LAME turns everything down a little.
        options={"compression_level": 0.0, "bitrate_mode": "VARIABLE"},
    ),
)
FORMATS = {format.name: format for format in _FORMATS}


def format_of(path: os.PathLike | str) -> Format:
    """The format that a file's suffix stands for.

    Raises:
      UserError: another suffix.
    """
    name = Path(path).suffix.lower().lstrip(".")
    if name not in FORMATS:
        raise UserError(f"{path}: songs are written as {', '.join(f'.{name}' for name in FORMATS)}: choose one.")
    return FORMATS[name]


def encode(
    samples: Float[np.ndarray, "t channels"],
    sample_rate: int,
    format: Format,
    tell: Callable[[float], object] = lambda seconds: None,
) -> bytes:
    """A whole file in memory; 16 bits where the format is lossless, rounded to nearest. The caller sees to it that
    nothing clips, and that the rate is one of the format's.

    Args:
      tell: called with how many seconds have been encoded, block by block.
    """
    import soundfile

    data = np.asarray(samples, np.float32) if format.lossy else to_int16(samples)
    buffer = io.BytesIO()
    with soundfile.SoundFile(
        buffer,
        "w",
        sample_rate,
        data.shape[1],
        subtype=format.subtype,
        format=format.container,
        **format.options,
    ) as file:
        write_blocks(file, data, tell)
    data = buffer.getvalue()
    return _renumbered(data) if format.container == "OGG" else data


def decode(data: bytes) -> tuple[Float[np.ndarray, "t channels"], int]:
    """The samples of a file in memory and their rate, as libsndfile reads them: without the encoder's delay."""
    import soundfile

    samples, sample_rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    return samples, sample_rate


def _renumbered(data: bytes) -> bytes:
    """An Ogg file as stream number 0. libsndfile draws a number anew each time, and the same sound should be the same
    file (RFC 3533, section 6: the number and the checksum of a page)."""
    file, start = bytearray(data), 0
    while start < len(file):
        segments = file[start + 26]
        end = start + 27 + segments + sum(file[start + 27 : start + 27 + segments])
        file[start + 14 : start + 18] = file[start + 22 : start + 26] = bytes(4)
        # Ogg's CRC-32 takes bits in the other order than zlib's, from 0, and inverts nothing.
        crc = ~zlib.crc32(file[start:end].translate(_MIRRORED), 0xFFFFFFFF) & 0xFFFFFFFF
        file[start + 22 : start + 26] = crc.to_bytes(4, "big").translate(_MIRRORED)
        start = end
    return bytes(file)


_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
