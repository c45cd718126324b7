"""Sampled songs on a listening page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jukebox_jax.export.lyrics import Alignment
from jukebox_jax.export.page import PageContent, Sample
from jukebox_jax.export.plots import Attention, CodebookUsage, LossCurve, Series

EXPLANATION = (
    "Songs that a model made: no recording and no score stands behind them. The top prior composed level 2, and an "
    "upsampler each added the detail of levels 1 and 0.",
)


def song_sample(
    levels: Sequence[Float[np.ndarray, " _"]],
    tokens: Sequence[Int[np.ndarray, " _"]],
    codes: int,
    provenance: Mapping[str, Any],
    alignment: Alignment | None = None,
    title: str | None = None,
    series: Sequence[Series] = (),
) -> Sample:
    """A song as a page shows it. What its provenance lacks is left out.

    Args:
      levels, tokens: level 0 first.
      codes: how many there are, of each level.
      alignment: of its lyrics, which then light up as they are sung.
    """
    request, sampling = provenance.get("request") or {}, provenance.get("sampling") or [{}]
    notes = [str(provenance[name]) for name in ("precision", "mode") if name in provenance]
    notes = [note for note in notes if note not in ("float32", "ancestral")]
    notes += ["approximate"] if provenance.get("approximate") else []
    # The models' configs are longer than all the rest, and their hashes say as much.
    settings = {name: value for name, value in provenance.items() if name != "config"}
    return Sample(
        artist=_named(request.get("artist", "")),
        genre=_named(request.get("genre", "")),
        seed=int(provenance.get("seed") or 0),
        temperature=float(sampling[-1].get("temperature", 1.0)),
        levels=dict(enumerate(levels)),
        lyrics=str(request.get("lyrics", "")),
        note=", ".join(notes),
        words=() if alignment is None else alignment.words,
        codebooks=[CodebookUsage(level, np.bincount(own, minlength=codes)) for level, own in enumerate(tokens)],
        series=series,
        attention=None if alignment is None else attention_of(alignment),
        origin={name: text for name, text in flat(settings) if text},
        title=title,
    )


def attention_of(alignment: Alignment) -> Attention:
    """The attention behind an alignment, as a page draws it."""
    # What is looked at in place i has seen the characters before i.
    words = [(word.start + 1, word.text) for word in alignment.shown]
    return Attention(alignment.matrix, words, alignment.seconds)


def songs_page(samples: Sequence[Sample], sample_rate: int, curves: Sequence[LossCurve] = ()) -> PageContent:
    """The page of some songs."""
    return PageContent(
        title="Sampled songs" if len(samples) > 1 else "A sampled song",
        sample_rate=sample_rate,
        samples=samples,
        curves=curves,
        explanation=EXPLANATION,
    )


def flat(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as (dotted name, text)."""
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from flat(inner, f"{before}{name}.")
        else:
            yield f"{before}{name}", _shown(inner)


def _named(value: Any) -> str:
    """An artist, a genre or a blend; nothing where none was asked for."""
    return "" if value == "unknown" else _shown(value)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
