"""How much segments that were sampled side by side show where they meet."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int32

from jukebox_jax.sampling.cascade import Part, entry_of, level_engine, make_parts
from jukebox_jax.sampling.engine import Engine
from jukebox_jax.sampling.order import Order
from jukebox_jax.sampling.requests import Level
from jukebox_jax.sampling.windows import Window

# Tokens behind a seam that are compared with those elsewhere, as a part of the window; samples of a spectrum.
_BEHIND, _FRAME = 1 / 16, 1024


def measure_seams(
    levels: Sequence[Level],
    order: Order,
    song: int,
    tokens: Sequence[Int32[np.ndarray, " _"]],
    audio: Sequence[Float[np.ndarray, " _"]],
) -> list[dict[str, Any]]:
    """Of every level that was cut into segments: where they meet (seconds), and what it costs.

    `bits_behind_seams` is how many bits the tokens right behind a seam take, given what now stands before them;
    `bits_elsewhere` the same behind the middle of segments, where tokens follow what they were drawn after, as all do
    when sampled strictly. `flux_at_seams` is how much the spectrum changes there from one frame to the next, as a
    multiple of the median of all frames.
    """
    measured = []
    for index, level in enumerate(levels):
        if order.n_segments[index] == 1 or index == len(levels) - 1:
            continue
        request, total = order.requests[song], order.sample_lengths[song] // level.hop_samples
        parts = make_parts(
            level,
            [request],
            [total],
            seeds=[order.seeds[song]],
            sampling=[order.sampling[song][index]],
            hop_fraction=order.hop_fractions[index],
            given=[order.beginning.tokens[index][song]],
            upper=[tokens[index + 1]],
            overrun=order.overrun,
            n_segments=order.n_segments[index],
        )
        seams = [part.begin for part in parts[1:]]
        if not seams:
            continue
        engine = level_engine(level, 1, order.precision)
        begins = [*(part.begin for part in parts), len(tokens[index])]
        middles = [(a + b) // 2 for a, b in itertools.pairwise(begins)]
        behind, elsewhere = (
            float(np.mean([_bits_behind(engine, level, parts[0], tokens[index], place) for place in places]))
            for places in (seams, middles)
        )
        flux = _flux(audio[index])
        at = [min(seam * level.hop_samples // _FRAME, len(flux) - 1) for seam in seams]
        measured.append(
            {
                "level": index,
                "seconds": [round(seam * level.hop_samples / level.sample_rate, 3) for seam in seams],
                "bits_behind_seams": round(behind, 4),
                "bits_elsewhere": round(elsewhere, 4),
                "flux_at_seams": round(float(np.mean(flux[at]) / max(np.median(flux), 1e-12)), 3),
            }
        )
    return measured


def _bits_behind(engine: Engine, level: Level, part: Part, tokens: Int32[np.ndarray, " t"], place: int) -> float:
    """Bits per token of those right behind a place, given as much before them as half a window holds."""
    n_ctx = level.prior.config.n_ctx
    start = min(max(0, place - n_ctx // 2), len(tokens) - n_ctx) // level.ratio * level.ratio
    entry = entry_of(level, part, Window(start, n_ctx, n_ctx), tokens)
    bits = engine.bits(entry)
    return float(np.mean(bits[place - start :][: max(1, int(_BEHIND * n_ctx))]))


def _flux(audio: Float[np.ndarray, " t"]) -> Float[np.ndarray, " f"]:
    """How much the magnitude spectrum of each frame differs from that of the frame before."""
    frames = audio[: len(audio) // _FRAME * _FRAME].reshape(-1, _FRAME) * np.hanning(_FRAME)
    spectra = np.abs(np.fft.rfft(frames, axis=1))
    return np.sqrt(np.sum(np.diff(spectra, axis=0, prepend=spectra[:1]) ** 2, axis=1))
