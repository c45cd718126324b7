"""Every kind of file that a folder of music may hold, good and bad."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float

RATE = 22_050
OK = "ok"
# One recording: the same samples, and what is the same to the ear.
DUPLICATES = ("duplicate.wav", "duplicate.flac", "whole.wav")
NEAR_DUPLICATES = ("near duplicate.mp3", "near duplicate.ogg", "whole.flac", "whole.aiff")


def make_zoo(folder: Path) -> dict[str, str]:
    """Fills a folder; returns file name → "ok", or words that stand in its verdict (at least a second asked for).

    Files that this system cannot make are left out: FIFOs, sockets, names that are no Unicode.
    """
    folder.mkdir(parents=True, exist_ok=True)
    expected: dict[str, str] = {}

    def put(name: str, content: bytes, verdict: str) -> None:
        (folder / name).write_bytes(content)
        expected[name] = verdict

    def sound(name: str, samples: np.ndarray, verdict: str, rate: int = RATE, **how: str) -> bytes:
        soundfile.write(folder / name, samples, rate, **how)
        expected[name] = verdict
        return (folder / name).read_bytes()

    # Good ones, some of them strange.
    sound("mono 8 kHz.wav", melody(3, 8_000, seed=1), OK, 8_000)
    sound("six channels 192 kHz.flac", np.stack([melody(2, 192_000, seed=s) for s in range(6)], 1), OK, 192_000)
    sound("five channels.ogg", np.stack([melody(2, seed=s) for s in range(10, 15)], 1), OK)
    sound("eight bits.wav", melody(2, seed=20), OK, subtype="PCM_U8")
    sound("float, too loud.wav", 4 * melody(2, seed=21), OK, subtype="FLOAT")
    sound("caf.caf", melody(2, seed=22), OK)
    sound("aiff.aiff", melody(2, seed=23), OK)
    sound("opus.opus", melody(2, 48_000, seed=24), OK, 48_000, format="OGG", subtype="OPUS")
    sound("Ελληνικά 音楽 🎵.flac", melody(2, seed=25), OK)
    sound("two\nlines.flac", melody(2, seed=26), OK)
    sound("-rf --help.wav", melody(2, seed=27), OK)
    sound("no suffix", melody(2, seed=28), OK, format="WAV")
    sound("really flac.mp3", melody(2, seed=29), OK, format="FLAC")
    if os.name == "posix" and os.fsencode("\udcff") == b"\xff":
        os.rename(folder / "caf.caf", folder / "latin-1 \udce9.caf")
        expected["latin-1 \udce9.caf"] = expected.pop("caf.caf")

    # One recording under several names.
    music = np.rint(32_767 * melody(8, seed=2)).astype(np.int16)
    sound("duplicate.wav", music, OK)
    sound("duplicate.flac", music, OK)
    mp3 = sound("near duplicate.mp3", music, OK, bitrate_mode="CONSTANT")
    ogg = sound("near duplicate.ogg", music, OK)

    # No audio at all.
    put("empty.wav", b"", "empty")
    put("text.wav", b"These are words, not sounds.\n" * 200, "cannot be read as audio")
    put("playlist.m4a", b"#EXTM3U\n#EXTINF:1\nduplicate.wav\n", "cannot be read as audio")
    put("noise.mp3", np.random.default_rng(3).bytes(20_000), ":")
    put("zeros.flac", bytes(5_000), "cannot be read as audio")
    put("notes.mid", b"MThd\0\0\0\6\0\0\0\1\0\x60MTrk\0\0\0\4\0\xff\x2f\0", "MIDI")

    # Cut short, or damaged half way.
    wav = sound("whole.wav", music, OK)
    flac = sound("whole.flac", music // 2, OK)
    put("cut.wav", wav[: len(wav) // 2], "ends early")
    put("cut.flac", flac[: len(flac) // 2], "ends early")
    put("cut.mp3", mp3[: len(mp3) // 2], "ends early (3.")
    put("cut.ogg", ogg[: len(ogg) // 2], "ends early")
    aiff = sound("whole.aiff", music // 4, OK)
    put("cut.aiff", aiff[: len(aiff) // 2], "ends early")
    put("only a header.wav", wav[:44], "ends early")
    put("only a header.flac", flac[:200], ":")
    put(
        "damaged.flac",
        flac[: len(flac) // 2] + bytes(3_000) + flac[len(flac) // 2 + 3_000 :],
        "ends early or is damaged",
    )

    # Headers that lie.
    put("no frames.wav", _wav(1, RATE, b""), "no samples")
    put("zero hertz.wav", _wav(1, 0, bytes(800)), ":")
    put("one hertz.wav", _wav(1, 1, bytes(800)), "1 samples a second")
    put("ten megahertz.wav", _wav(1, 10_000_000, bytes(800)), "10000000 samples a second")
    put("255 channels.wav", _wav(255, RATE, bytes(255 * 2 * 40)), "255 channels")
    put("seven channels.wav", _wav(7, RATE, b"\1\2" * (7 * 2 * RATE)), "7 channels")
    put("a trillion frames.w64", _endless_w64(), "ends early")

    # Sound that is no use.
    sound("not a number.wav", _with(melody(3), np.nan), "not finite", subtype="FLOAT")
    sound("infinite.wav", _with(melody(3), np.inf), "not finite", subtype="FLOAT")
    sound("silence.flac", np.zeros(3 * RATE), "silent")
    sound("too short.wav", melody(0.1, seed=4), "0.10 seconds")

    # No files, or none to be read, not even by root.
    (folder / "folder.wav").mkdir()
    expected["folder.wav"] = "folder"
    (folder / "dangling.flac").symlink_to("nowhere.flac")
    expected["dangling.flac"] = "link to a file that does not exist"
    (folder / "loop.flac").symlink_to("loop.flac")
    expected["loop.flac"] = "cannot be read"
    sound("unreadable.wav", melody(2, seed=5), OK)
    (folder / "unreadable.wav").chmod(0)
    if not os.access(folder / "unreadable.wav", os.R_OK):
        expected["unreadable.wav"] = "cannot be read"
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "fifo.wav")
        expected["fifo.wav"] = "pipe or device"
        here = os.getcwd()
        with socket.socket(socket.AF_UNIX) as listener:
            os.chdir(folder)  # the path of a socket may have only about 100 bytes
            try:
                listener.bind("socket.wav")
            finally:
                os.chdir(here)
        expected["socket.wav"] = "pipe or device"
    return expected


def melody(seconds: float, rate: int = RATE, *, seed: int = 0, tempo: float = 1.0) -> Float[np.ndarray, " t"]:
    """Plucked tones of a scale, five a second at tempo 1: the same tune at every tempo."""
    time = np.arange(round(seconds * rate)) / rate
    note = np.floor(time * 5 * tempo).astype(int)
    scale = 220 * 2 ** (np.array([0, 2, 3, 5, 7, 8, 10, 12, 14, 15, 17, 19]) / 12)
    pitch = scale[np.random.default_rng(seed).integers(len(scale), size=note.max() + 1)][note]
    since = time - note / (5 * tempo)
    tones = sum(np.sin(2 * np.pi * k * pitch * since) / k for k in range(1, 5))
    return (0.3 * tones * np.exp(-6 * since) * np.minimum(1, since * 200)).astype(np.float32)


def _with(samples: Float[np.ndarray, " t"], value: float) -> Float[np.ndarray, " t"]:
    samples = samples.copy()
    samples[len(samples) // 2] = value
    return samples


def _wav(channels: int, rate: int, data: bytes) -> bytes:
    """A WAV of 16 bits with any dimensions."""
    form = struct.pack("<HHIIHH", 1, channels, rate, min(rate * channels * 2, 2**32 - 1), (channels * 2) % 2**16, 16)
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _endless_w64() -> bytes:
    """A Wave64 whose data chunk claims 10^12 frames, and whose outermost size is unknown."""
    tail = b"\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
    form = struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)
    return (
        b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
        + struct.pack("<Q", 2 * 10**12 + 104)
        + b"wave" + tail
        + b"fmt " + tail + struct.pack("<Q", 24 + 16) + form
        + b"data" + tail + struct.pack("<Q", 24 + 2 * 10**12) + bytes(2_000)
    )  # fmt: skip
