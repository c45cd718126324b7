"""Any audio file as a stream of blocks: soundfile decodes, PyAV what it cannot, a soundfont synthesises MIDI.

Never more than a block is in memory, however long the file is, or says that it is.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

# Frames decoded at a time. A constant, so that what is made of the blocks is a function of the file alone.
BLOCK_FRAMES = 65_536

NOT_FINITE = "holds samples that are not finite numbers: export it again, or remove it"

MIDI_SUFFIXES = frozenset({".mid", ".midi"})
# What libsndfile has no decoder for, and PyAV has.
AV_SUFFIXES = frozenset({".m4a", ".m4b", ".aac", ".mp4", ".mov", ".wma", ".ape", ".wv", ".mka", ".mkv", ".webm"})

AV_REMEDY = 'install PyAV (pip install "jukebox-jax[av]"), or convert it to FLAC'
# tinysoundfont asks for PyAudio, which plays aloud, is not needed here, and has to be compiled.
MIDI_REMEDY = "install tinysoundfont (pip install --no-deps tinysoundfont), or render it to FLAC yourself"

# Beyond these a header is damaged or a joke. Real files: 4 kHz (telephone archives) to 768 kHz.
LOWEST_RATE, HIGHEST_RATE = 2_000, 768_000
MOST_CHANNELS = 32

# From the order of Vorbis (L C R Ls Rs LFE) to that of WAV, FLAC and ffmpeg (L R C LFE Ls Rs).
_XIPH_ORDER = {3: [0, 2, 1], 5: [0, 2, 1, 3, 4], 6: [0, 2, 1, 5, 3, 4]}

# What ffmpeg may open: plain containers of sound. Its playlists and concatenations would read other files.
_AV_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,asf,aac,ape,wv,mp3,flac,ogg,wav,w64,aiff,caf,au,ac3,eac3,dts,tta,mpc,mpc8"
)
# Their lengths are guesses from the bit rate.
_AV_GUESSED_LENGTH = frozenset({"aac", "mp3", "ac3", "eac3", "dts"})
_MIDI_LONGEST_SECONDS = 3 * 3600
_MIDI_LARGEST_BYTES = 4 * 2**20
_MIDI_GAIN_DB = -10  # headroom for an orchestra
_MIDI_TAIL_SECONDS = 10


class BadAudio(Exception):
    """A file that cannot be used; the text goes on after its name: "ends early (1 of 5 seconds): download it again"."""


@dataclass(frozen=True)
class AudioStream:
    """An open audio file.

    Attributes:
      sample_rate: in Hz, LOWEST_RATE to HIGHEST_RATE.
      channels: 1 to MOST_CHANNELS, in the order of WAV: 5 are L R C Ls Rs, 6 are L R C LFE Ls Rs.
      frames: samples per channel that the header promises; 0 where it promises nothing.
      blocks: float32 (frames, channels), nominally in [-1, 1]; BLOCK_FRAMES frames each but the last. To be consumed
        once, while the file is open. Raises BadAudio where decoding fails, or ends before what was promised.
    """

    sample_rate: int
    channels: int
    frames: int
    blocks: Iterator[Float[np.ndarray, "t c"]]


@contextlib.contextmanager
def open_audio(
    path: os.PathLike | str, *, soundfont: os.PathLike | str | None = None, midi_rate: int = 44_100
) -> Iterator[AudioStream]:
    """Opens a local audio file of any kind and reads its header.

    Args:
      soundfont: .sf2 or .sf3, by which MIDI is rendered, in stereo at `midi_rate` Hz.

    Raises:
      BadAudio: missing, not a regular file, not readable, empty, cut short, not audio, or of absurd dimensions.
    """
    path = Path(path)
    _check_whole(path)
    with contextlib.ExitStack() as stack:
        if path.suffix.lower() in MIDI_SUFFIXES:
            stream = _render_midi(path, soundfont, midi_rate)
        else:
            stream = _open_sound(path, stack)
        if not LOWEST_RATE <= stream.sample_rate <= HIGHEST_RATE:
            raise BadAudio(
                f"claims {stream.sample_rate} samples a second, which no music has "
                f"({LOWEST_RATE} to {HIGHEST_RATE}): export it again, or remove it"
            )
        if not 1 <= stream.channels <= MOST_CHANNELS:
            raise BadAudio(
                f"claims {stream.channels} channels (at most {MOST_CHANNELS}): export it again, or remove it"
            )
        yield stream


def resampled(stream: AudioStream, sample_rate: int) -> Iterator[Float[np.ndarray, "t c"]]:
    """The blocks of a stream at another rate; the same samples whatever the sizes of the blocks."""
    if stream.sample_rate == sample_rate:
        yield from stream.blocks
        return
    import soxr

    resampler = soxr.ResampleStream(stream.sample_rate, sample_rate, stream.channels, dtype="float32", quality="HQ")
    for block in stream.blocks:
        yield resampler.resample_chunk(np.ascontiguousarray(block))
    yield resampler.resample_chunk(np.zeros((0, stream.channels), np.float32), last=True)


def seconds(frames: int, sample_rate: int) -> str:
    """A length for people: "12.3"."""
    return f"{frames / sample_rate:.1f}"


def _check_whole(path: Path) -> None:
    """Refuses what opening might hang on, what cannot be opened, and containers shorter than they say."""
    try:
        status = path.stat()  # follows links
    except FileNotFoundError:
        if path.is_symlink():
            raise BadAudio("is a link to a file that does not exist: put the file in its place, or remove it") from None
        raise BadAudio("does not exist: check the path") from None
    except (OSError, ValueError) as error:
        raise BadAudio(f"cannot be read ({_reason(error)}): check the path and its permissions") from None
    if not stat.S_ISREG(status.st_mode):  # a FIFO or a device would block
        kind = "folder" if stat.S_ISDIR(status.st_mode) else "pipe or device"
        raise BadAudio(f"is not a file but a {kind}: name an audio file")
    if status.st_size == 0:
        raise BadAudio("is empty (0 bytes): copy or download it again, or remove it")
    try:
        with path.open("rb") as file:
            head = file.read(28)
    except OSError as error:
        raise BadAudio(f"cannot be read ({_reason(error)}): allow reading it, or remove it") from None
    promised = _promised_bytes(head)
    if promised > status.st_size + 1:  # +1: a missing pad byte is harmless
        raise BadAudio(f"ends early ({status.st_size} of {promised} bytes): copy or download it again, or remove it")


def _promised_bytes(head: bytes) -> int:
    """The size of the whole file by its container's header, or 0. libsndfile reads what is cut short without a word."""
    # 0 and the largest number are what recorders write while still recording.
    if head[:4] in (b"RIFF", b"FORM") and len(head) >= 8:
        size = int.from_bytes(head[4:8], "little" if head[:4] == b"RIFF" else "big")
        return size + 8 if size not in (0, 2**32 - 1) else 0
    if head[:4] in (b"RF64", b"BW64") and head[12:16] == b"ds64" and len(head) >= 28:
        size = int.from_bytes(head[20:28], "little")
        return size + 8 if size not in (0, 2**64 - 1) else 0
    if head[:4] == b"riff" and len(head) >= 24:  # Sony Wave64: a GUID of 16 bytes, then the size of all
        return int.from_bytes(head[16:24], "little")
    if head[:4] == b".snd" and len(head) >= 12:
        size = int.from_bytes(head[8:12], "big")
        return size + int.from_bytes(head[4:8], "big") if size not in (0, 2**32 - 1) else 0
    return 0


def _open_sound(path: Path, stack: contextlib.ExitStack) -> AudioStream:
    import soundfile

    # As bytes, names survive that are no text; soundfile would encode a str strictly.
    name = str(path) if os.name == "nt" else os.fsencode(path)
    try:
        file = stack.enter_context(soundfile.SoundFile(name))
    except soundfile.LibsndfileError as error:
        refusal = f"cannot be read as audio ({_reason(error)})"
    else:
        frames = file.frames if file.frames < 2**62 else 0  # a FLAC written to a pipe does not know its length
        return AudioStream(file.samplerate, file.channels, frames, _soundfile_blocks(file, frames, path))
    named_so = path.suffix.lower() in AV_SUFFIXES
    try:
        import av
    except ImportError:
        if named_so:
            raise BadAudio(f"is in a format that libsndfile cannot decode: {AV_REMEDY}") from None
        raise BadAudio(f"{refusal}: convert it to WAV or FLAC, or remove it") from None
    try:
        return _open_av(av, path, stack)
    except av.FFmpegError as error:
        if named_so:
            refusal = f"cannot be read as audio ({_reason(error)})"
        raise BadAudio(f"{refusal}: convert it to WAV or FLAC, or remove it") from None


def _soundfile_blocks(file: Any, frames: int, path: Path) -> Iterator[Float[np.ndarray, "t c"]]:
    import soundfile

    decoded = 0
    # Vorbis and Opus keep another order of channels, which libsndfile passes on.
    order = _XIPH_ORDER.get(file.channels) if file.subtype in ("VORBIS", "OPUS") else None
    while True:
        try:
            block = file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise _broken(decoded, frames, file.samplerate, error) from None
        if not len(block):
            break
        decoded += len(block)
        yield block if order is None else block[:, order]
    tolerance = 0
    if file.format == "MP3":
        # An MP3 is a stream: without the optional header its length is an estimate, and off by far at variable rates.
        # The header counts whole frames, with what the encoder put before and behind the sound, up to three of them.
        frames = _mp3_frames(path)
        tolerance = max(frames // 20, 3 * 1152)
    elif file.format == "OGG":
        _check_last_ogg_page(path)
    _check_length(decoded, frames, file.samplerate, tolerance)


def _mp3_frames(path: Path) -> int:
    """Samples per channel by the Xing or Info header of an MP3, or 0."""
    with path.open("rb") as file:
        head = file.read(10)
        tag = 0
        if head[:3] == b"ID3":  # its size: four times seven bits
            tag = 10 + sum((byte & 127) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        file.seek(tag)
        head = file.read(2048)
    sync = head.find(b"\xff")
    if sync < 0 or len(head) < sync + 200 or head[sync + 1] & 0xE0 != 0xE0:
        return 0
    mpeg1, mono = head[sync + 1] & 0x18 == 0x18, head[sync + 3] & 0xC0 == 0xC0
    side_information = {(True, False): 32, (False, True): 9}.get((mpeg1, mono), 17)  # bytes; the header stands behind
    header = head[sync + 4 + side_information :]
    if header[:4] not in (b"Xing", b"Info") or not header[7] & 1:
        return 0
    return int.from_bytes(header[8:12], "big") * (1152 if mpeg1 else 576)


def _check_last_ogg_page(path: Path) -> None:
    """libsndfile takes the last page it finds for the end; a file cut short mostly ends amid a page.

    Raises:
      BadAudio: so it does.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 2 * 65_307))  # the longest page is of 65,307 bytes
        tail = file.read()
    start = tail.rfind(b"OggS\0")
    segments = tail[start + 27 : start + 27 + tail[start + 26]] if 0 <= start < len(tail) - 26 else b""
    if not segments or len(segments) < tail[start + 26] or start + 27 + len(segments) + sum(segments) > len(tail):
        raise BadAudio("ends early (amid an Ogg page): copy or download it again, or remove it")


def _check_length(decoded: int, promised: int, sample_rate: int, tolerance: int = 0) -> None:
    if decoded < promised - tolerance:
        raise BadAudio(
            f"ends early ({seconds(decoded, sample_rate)} of {seconds(promised, sample_rate)} seconds decode): "
            "copy or download it again, or remove it"
        )
    if not decoded:
        raise BadAudio("holds no samples: remove it, or put the whole file in its place")


def _open_av(av: Any, path: Path, stack: contextlib.ExitStack) -> AudioStream:
    # As a file object: a name such as "concat:..." would mean something to ffmpeg.
    file = stack.enter_context(path.open("rb"))
    container = stack.enter_context(
        av.open(file, options={"format_whitelist": _AV_FORMATS, "protocol_whitelist": "none"})
    )
    if not container.streams.audio:
        raise BadAudio("holds no sound: remove it")
    sound = container.streams.audio[0]
    if sound.codec_context is None:
        raise BadAudio("is coded in a way that ffmpeg has no decoder for: convert it to FLAC, or remove it")
    rate, channels = sound.codec_context.sample_rate, sound.codec_context.channels
    if not rate or not channels:
        raise BadAudio("cannot be read as audio (no frame of it decodes): convert it to WAV or FLAC, or remove it")
    frames = 0
    if container.format.name not in _AV_GUESSED_LENGTH:
        if sound.duration is not None and sound.time_base is not None:
            frames = int(sound.duration * sound.time_base * rate)
        elif container.duration is not None and not container.streams.video:
            frames = int(container.duration * rate / av.time_base)
    return AudioStream(rate, channels, frames, _av_blocks(av, container, sound, frames))


def _av_blocks(av: Any, container: Any, sound: Any, promised: int) -> Iterator[Float[np.ndarray, "t c"]]:
    rate, channels = sound.codec_context.sample_rate, sound.codec_context.channels
    decoded, waiting, parts = 0, 0, []
    try:
        for frame in container.decode(sound):
            if (frame.sample_rate, frame.layout.nb_channels) != (rate, channels):
                raise BadAudio("changes its sample rate or channels on the way: convert it to FLAC, or remove it")
            parts.append(_av_samples(frame, channels))
            waiting += len(parts[-1])
            decoded += len(parts[-1])
            while waiting >= BLOCK_FRAMES:
                whole = np.concatenate(parts)
                yield whole[:BLOCK_FRAMES]
                parts, waiting = [whole[BLOCK_FRAMES:]], waiting - BLOCK_FRAMES
    except av.FFmpegError as error:
        raise _broken(decoded, promised, rate, error) from None
    if waiting:
        yield np.concatenate(parts)
    # A codec's delay and a container's rounding take a frame or two off.
    _check_length(decoded, promised, rate, tolerance=max(rate // 10, promised // 100))


def _av_samples(frame: Any, channels: int) -> Float[np.ndarray, "t c"]:
    """The samples of a frame of any format: planar or interleaved, integer or float."""
    data = frame.to_ndarray()
    data = data.T if frame.format.is_planar else data.reshape(-1, channels)
    if data.dtype == np.uint8:
        return (data.astype(np.float32) - 128) / np.float32(128)
    if np.issubdtype(data.dtype, np.integer):
        return (data / 2.0 ** (8 * data.dtype.itemsize - 1)).astype(np.float32)
    return data.astype(np.float32)


def _render_midi(path: Path, soundfont: os.PathLike | str | None, sample_rate: int) -> AudioStream:
    if soundfont is None:
        raise BadAudio("is MIDI, which is notes without sound: name a soundfont to render it by, or remove it")
    try:
        from tinysoundfont import Synth, midi
    except ImportError:
        raise BadAudio(f"is MIDI: {MIDI_REMEDY}") from None
    if path.stat().st_size > _MIDI_LARGEST_BYTES:
        raise BadAudio(f"is larger than MIDI music is ({path.stat().st_size} bytes): remove it")
    try:
        events = midi.load_memory(path.read_bytes())
    except (OSError, RuntimeError) as error:
        raise BadAudio(f"cannot be read as MIDI ({_reason(error)}): export it again, or remove it") from None
    if not any(isinstance(event.action, midi.NoteOn) and event.action.velocity for event in events):
        raise BadAudio("holds no notes: remove it")
    if events[-1].t > _MIDI_LONGEST_SECONDS:
        raise BadAudio(f"lasts {events[-1].t / 3600:.0f} hours by its time stamps: export it again, or remove it")
    synth = Synth(gain=_MIDI_GAIN_DB, samplerate=sample_rate)
    try:
        synth.sfload(str(soundfont))
    except (OSError, RuntimeError) as error:
        raise BadAudio(f"cannot be rendered: {soundfont} is no soundfont ({_reason(error)}): name another") from None
    frames = [round(event.t * sample_rate) for event in events]
    return AudioStream(sample_rate, 2, frames[-1], _midi_blocks(synth, events, frames, sample_rate))


def _midi_blocks(
    synth: Any, events: list[Any], frames: list[int], sample_rate: int
) -> Iterator[Float[np.ndarray, "t c"]]:
    """Renders from event to event; after the last one until the sound has died away."""
    from tinysoundfont import Sequencer

    sequencer = Sequencer(synth)  # only for what it knows of the kinds of events: its clock drifts by a sample an event
    for channel in range(16):  # the drums are on channel 10, counted from 1
        with contextlib.suppress(RuntimeError):  # a soundfont without such a program
            synth.program_change(channel, 0, channel == 9)
    rendered = 0
    last = frames[-1] + _MIDI_TAIL_SECONDS * sample_rate
    position = 0  # of the next event
    while rendered < last:
        block = bytearray(8 * BLOCK_FRAMES)
        done = 0
        while done < BLOCK_FRAMES:
            while position < len(events) and frames[position] <= rendered + done:
                sequencer.send(events[position])
                position += 1
            until = frames[position] - rendered if position < len(events) else BLOCK_FRAMES
            until = min(until, BLOCK_FRAMES)
            synth.generate_simple(until - done, memoryview(block)[8 * done : 8 * until])
            done = until
        samples = np.frombuffer(block, np.float32).reshape(-1, 2)[: last - rendered]
        rendered += len(samples)
        yield samples
        if position == len(events) and np.abs(samples[-1024:]).max() < 1e-4:
            break


def _broken(decoded: int, promised: int, sample_rate: int, error: Exception) -> BadAudio:
    """A decoder gave up, for one of two reasons that it cannot tell apart."""
    of = f" of {seconds(promised, sample_rate)}" if promised else ""
    return BadAudio(
        f"ends early or is damaged ({seconds(decoded, sample_rate)}{of} seconds decode: {_reason(error)}): "
        "copy or download it again, or remove it"
    )


def _reason(error: Exception) -> str:
    """What a library said, in one line and without the file's name."""
    text = str(getattr(error, "error_string", None) or getattr(error, "strerror", None) or error)
    if "possibly a pipe" in text:  # libsndfile's words for an MP3 without a whole frame; we know that the file is there
        text = "not a whole frame in it"
    return " ".join(text.split()).removeprefix("Error : ").rstrip(".")
