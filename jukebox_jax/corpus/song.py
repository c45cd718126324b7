"""One piece becomes stored samples and a Finding: decoded, mixed, resampled, measured, block by block.

file ──open_audio──▶ float32 blocks ──mix──▶ 1 or 2 channels ──soxr──▶ at the stored rate ──▶ int16 blocks ──▶ write
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int16

from jukebox_jax.audio.decode import (
    BLOCK_FRAMES,
    HIGHEST_RATE,
    LOWEST_RATE,
    MIDI_REMEDY,
    NOT_FINITE,
    AudioStream,
    BadAudio,
    open_audio,
    resampled,
)
from jukebox_jax.audio.files import to_float32, to_int16
from jukebox_jax.corpus.fingerprint import Fingerprinter
from jukebox_jax.corpus.piece import Finding, Piece
from jukebox_jax.errors import UserError
from jukebox_jax.remote import local_copy

TFDS_PREFIX = "tfds:"

# ITU-R BS.775-4, table 2 (3/2 to 2/0): centre and surrounds at -3 dB, no LFE; all scaled so that nothing can clip.
_TO_STEREO = {
    count: (np.array(rows, np.float32).T / np.float32(1 + 2 * 0.5**0.5))
    for count, rows in {
        5: [[1, 0, 0.5**0.5, 0.5**0.5, 0], [0, 1, 0.5**0.5, 0, 0.5**0.5]],
        6: [[1, 0, 0.5**0.5, 0, 0.5**0.5, 0], [0, 1, 0.5**0.5, 0, 0, 0.5**0.5]],
    }.items()
}


@dataclass(frozen=True)
class SongSettings:
    """How pieces are stored.

    Attributes:
      sample_rate: in Hz.
      channels: 1 mixes everything to mono; 2 and None keep mono as mono and mix what has more than two to stereo.
      min_seconds: shorter pieces are left out.
      soundfont: a local .sf2 or .sf3 file, by which MIDI is rendered.
      data_dir: where datasets prepared with TFDS lie; None for TFDS's own place.
    """

    sample_rate: int = 44_100
    channels: int | None = None
    min_seconds: float = 1.0
    soundfont: str | None = None
    data_dir: str | None = None


def check_settings(settings: SongSettings) -> None:
    """To be called once, before any piece.

    Raises:
      UserError: settings out of range; a soundfont that is missing, unreadable or none, or without the synthesiser.
    """
    if not LOWEST_RATE <= settings.sample_rate <= HIGHEST_RATE:
        raise UserError(
            f"A sample rate of {settings.sample_rate} Hz cannot be stored: "
            f"choose one of {LOWEST_RATE} to {HIGHEST_RATE}."
        )
    if settings.channels not in (None, 1, 2):
        raise UserError(f"{settings.channels} channels cannot be stored: choose 1 or 2.")
    if not 0 <= settings.min_seconds < float("inf"):
        raise UserError(f"A least length of {settings.min_seconds} seconds makes no sense: choose 0 or more.")
    if settings.soundfont is None:
        return
    if not os.path.isfile(settings.soundfont):
        raise UserError(f"The soundfont {settings.soundfont} is no file: name a local .sf2 or .sf3 file.")
    try:
        from tinysoundfont import Synth
    except ImportError:
        raise UserError(f"A soundfont is of no use without its synthesiser: {MIDI_REMEDY}.") from None
    try:
        Synth().sfload(settings.soundfont)
    except (OSError, RuntimeError):
        raise UserError(f"{settings.soundfont} cannot be read as a soundfont: name a .sf2 or .sf3 file.") from None


def decode_song(piece: Piece, settings: SongSettings, write: Callable[[Int16[np.ndarray, "t c"]], None]) -> Finding:
    """Decodes a piece in bounded memory.

    The same file gives the same blocks. What is wrong with a piece is a verdict, which begins where its name ends, and
    raises nothing; what was written before it came out is to be thrown away.

    Args:
      write: takes the samples, int16 (frames, 1 or 2), block by block; what it raises passes through.

    Raises:
      UserError: a bucket that cannot be reached, which says nothing about the piece.
    """
    found = Finding("ok")
    try:
        with _open_piece(piece, settings) as stream:
            found = replace(found, source_rate=stream.sample_rate, source_channels=stream.channels)
            mixed = _mixed(stream, settings.channels)
            return _store(mixed, found, settings, write)
    except BadAudio as error:
        return replace(found, verdict=str(error))


def _store(
    stream: AudioStream, found: Finding, settings: SongSettings, write: Callable[[Int16[np.ndarray, "t c"]], None]
) -> Finding:
    """Writes an open piece of 1 or 2 channels, measuring what passes."""
    rate = settings.sample_rate
    digest = hashlib.sha256(f"{rate} Hz, {stream.channels} channels, int16\n".encode())
    fingerprint = Fingerprinter(rate)
    frames, clipped, peak, squares, loudest = 0, 0, 0.0, 0.0, 0
    for block in _guarded(resampled(stream, rate)):
        if not len(block):
            continue
        block_peak = float(max(block.max(), -block.min()))  # NaN and infinity reach it
        if not np.isfinite(block_peak):
            raise BadAudio(NOT_FINITE)
        if block_peak > 1 + 0.5 / 32_768:  # full scale itself is no overflow, though it is rounded down
            clipped += int(np.count_nonzero(np.abs(block) > 1 + 0.5 / 32_768))
        stored = to_int16(block)
        # Whole numbers in float64 are summed without rounding, so in any order: the same on every machine.
        exact = stored.astype(np.float64).ravel()
        squares += float(exact @ exact)
        loudest = max(loudest, int(stored.max()), -int(stored.min()))
        peak = max(peak, block_peak)
        frames += len(block)
        digest.update(stored.astype("<i2", copy=False).tobytes())
        fingerprint.add(to_float32(stored))
        write(stored)
    if frames < settings.min_seconds * rate or not frames:
        raise BadAudio(
            f"lasts {frames / rate:.2f} seconds, less than the {settings.min_seconds:g} asked for: "
            "remove it, or ask for less"
        )
    if not loudest:
        raise BadAudio("is silent from beginning to end: remove it, or export it again")
    return replace(
        found,
        channels=stream.channels,
        samples=frames,
        sha256=digest.hexdigest(),
        fingerprint=fingerprint.finish(),
        peak=peak,
        rms=float(np.sqrt(squares / (frames * stream.channels)) / 32_768),
        notes=tuple(_notes(found, stream.channels, rate, clipped)),
    )


def _notes(found: Finding, channels: int, sample_rate: int, clipped: int) -> Iterator[str]:
    if found.source_channels != channels:
        yield f"{found.source_channels} channels mixed to {channels}"
    if found.source_rate < sample_rate:
        yield f"holds nothing above {found.source_rate / 2000:g} kHz"
    if clipped:
        yield f"clipped: {clipped} samples"


@contextlib.contextmanager
def _open_piece(piece: Piece, settings: SongSettings) -> Iterator[AudioStream]:
    if piece.path.startswith(TFDS_PREFIX):
        yield _tfds_item(piece.path, settings.data_dir)
        return
    with contextlib.ExitStack() as stack:
        try:
            path = stack.enter_context(local_copy(piece.path))
        except FileNotFoundError:
            raise BadAudio("does not exist: check the path") from None
        yield stack.enter_context(open_audio(path, soundfont=settings.soundfont, midi_rate=settings.sample_rate))


def _tfds_item(path: str, data_dir: str | None) -> AudioStream:
    from jukebox_jax.corpus.sources.tfds_items import read_tfds_item

    try:
        samples, rate = read_tfds_item(path, data_dir)
    except Exception as error:  # TFDS's readers have many
        reason = " ".join(str(error).split()).rstrip(".")
        raise BadAudio(f"cannot be read ({reason}): prepare that dataset with TFDS again, or leave it out") from None
    blocks = (samples[start : start + BLOCK_FRAMES] for start in range(0, len(samples), BLOCK_FRAMES))
    return AudioStream(rate, samples.shape[1], len(samples), blocks)


def _mixed(stream: AudioStream, channels: int | None) -> AudioStream:
    """Fewer channels, before there is the work of resampling them.

    Raises:
      BadAudio: a number of channels whose order is anybody's guess.
    """
    count = stream.channels
    if channels == 1 and count > 1:
        # What stereo would be made of, in mono; of an unknown order the mean.
        matrix = _TO_STEREO.get(count, np.eye(count, dtype=np.float32)).mean(axis=1, keepdims=True)
    elif count <= 2:
        return stream
    elif count in _TO_STEREO:
        matrix = _TO_STEREO[count]
    else:
        raise BadAudio(
            f"has {count} channels, of which nothing says how to mix them: export it in stereo, or ask for mono"
        )
    return replace(stream, channels=matrix.shape[1], blocks=(_mix(block, matrix) for block in stream.blocks))


def _mix(block: Float[np.ndarray, "t c1"], matrix: Float[np.ndarray, "c1 c2"]) -> Float[np.ndarray, "t c2"]:
    # Added up channel by channel: a matrix product may add in another order on another machine.
    mixed = np.zeros((len(block), matrix.shape[1]), np.float32)
    for channel, gains in enumerate(matrix):
        for out in np.flatnonzero(gains):
            mixed[:, out] += block[:, channel] * gains[out]
    return mixed


def _guarded(blocks: Iterator[Float[np.ndarray, "t c"]]) -> Iterator[Float[np.ndarray, "t c"]]:
    """Whatever else a decoder raises for a bad file is bad audio too; what happens to the blocks afterwards is not."""
    try:
        yield from blocks
    except (BadAudio, GeneratorExit):
        raise
    except Exception as error:
        raise BadAudio(f"cannot be decoded ({type(error).__name__}: {error}): export it again, or remove it") from None
