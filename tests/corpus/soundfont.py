"""A soundfont of one instrument, a sine: the smallest that a synthesiser takes."""

from __future__ import annotations

import struct

import numpy as np


def sine_soundfont() -> bytes:
    """SoundFont 2.01: one preset, one instrument, one looped sample of 441 Hz."""
    rate, period = 44_100, 100
    frames = 40 * period
    wave = (12_000 * np.sin(2 * np.pi * np.arange(frames) / period)).astype("<i2").tobytes() + bytes(2 * 46)
    info = _chunk(b"ifil", struct.pack("<HH", 2, 1)) + _chunk(b"isng", b"EMU8000\0") + _chunk(b"INAM", b"Sine\0\0")
    hydra = b"".join(
        [
            _chunk(b"phdr", _preset("Sine", 0) + _preset("EOP", 1)),
            _chunk(b"pbag", struct.pack("<4H", 0, 0, 1, 0)),
            _chunk(b"pmod", bytes(10)),
            _chunk(b"pgen", struct.pack("<4H", 41, 0, 0, 0)),  # 41: instrument
            _chunk(b"inst", _name("Sine") + struct.pack("<H", 0) + _name("EOI") + struct.pack("<H", 1)),
            _chunk(b"ibag", struct.pack("<4H", 0, 0, 2, 0)),
            _chunk(b"imod", bytes(10)),
            _chunk(b"igen", struct.pack("<6H", 54, 1, 53, 0, 0, 0)),  # 54: looped, 53: sample
            _chunk(
                b"shdr",
                _name("Sine")
                + struct.pack("<5IBbHH", 0, frames, 2 * period, frames - 2 * period, rate, 69, 0, 0, 1)
                + _name("EOS")
                + bytes(26),
            ),
        ]
    )
    lists = (b"INFO" + info, b"sdta" + _chunk(b"smpl", wave), b"pdta" + hydra)
    return _chunk(b"RIFF", b"sfbk" + b"".join(_chunk(b"LIST", content) for content in lists))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def _name(name: str) -> bytes:
    return name.encode().ljust(20, b"\0")


def _preset(name: str, bag: int) -> bytes:
    return _name(name) + struct.pack("<3H3I", 0, 0, bag, 0, 0, 0)
