"""Blends of names: artists or genres with weights, the same all the time or changing from moment to moment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jukebox_jax.errors import UserError

#: A name; names with weights, `{"Bach": 0.7, "Corelli": 0.3}`; or one of both for moments of the song in seconds,
#: `{0: "Bach", 10: {"Corelli": 1}}`, between which weights change evenly. As JSON, moments are strings.
Blended = str | Mapping[Any, Any]
#: Pairs of artist and genre that a song may be a blend of.
MOST_PAIRS = 16


@dataclass(frozen=True)
class Blend:
    """Moments (seconds, ((name, weight), …)) in order; weights of a moment add up to one."""

    moments: tuple[tuple[float, tuple[tuple[str, float], ...]], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All names, each once."""
        return tuple(dict.fromkeys(name for _, mix in self.moments for name, _ in mix))

    def at(self, seconds: float) -> tuple[tuple[str, float], ...]:
        """Names and weights at a time; before the first moment and after the last those of that moment."""
        after = next((i for i, (moment, _) in enumerate(self.moments) if moment > seconds), len(self.moments))
        if after in (0, len(self.moments)):
            return self.moments[min(after, len(self.moments) - 1)][1]
        (start, before), (end, then) = self.moments[after - 1 : after + 1]
        part = (seconds - start) / (end - start)
        weights = dict.fromkeys(self.names, 0.0)
        for mix, share in ((before, 1 - part), (then, part)):
            for name, weight in mix:
                weights[name] += share * weight
        return tuple((name, weight) for name, weight in weights.items() if weight > 0)


def parse_blend(what: str, given: Blended) -> Blend:
    """A blend as users write it; `what` (artist, genre) is named in messages.

    Raises:
      UserError: weights that are not positive numbers, moments that are no times, or nothing at all.
    """
    if isinstance(given, str):
        return Blend(((0.0, ((given, 1.0),)),))
    if not isinstance(given, Mapping) or not given:
        raise UserError(f"{what} {given!r} is no blend: give a name, or names with weights such as {{'Bach': 0.7}}.")
    if all(isinstance(weight, int | float) for weight in given.values()):
        return Blend(((0.0, _weights(what, given)),))
    moments = []
    for moment, mix in given.items():
        try:
            seconds = float(moment)
        except (TypeError, ValueError):
            raise UserError(
                f"{what} has {moment!r} where a moment in seconds should stand: give {{0: 'Bach', 10: 'Corelli'}}, "
                "or a weight for each name."
            ) from None
        if not (math.isfinite(seconds) and seconds >= 0):
            raise UserError(f"{what} changes at {moment} s: give finite moments, 0 or later.")
        moments.append((seconds, ((mix, 1.0),) if isinstance(mix, str) else _weights(what, mix)))
    moments.sort(key=lambda pair: pair[0])
    if len({moment for moment, _ in moments}) < len(moments):
        raise UserError(f"{what} names a moment twice: give each once.")
    return Blend(tuple(moments))


def _weights(what: str, mix: Any) -> tuple[tuple[str, float], ...]:
    good = isinstance(mix, Mapping) and mix
    if not (good and all(isinstance(w, int | float) and math.isfinite(w) and w >= 0 for w in mix.values())):
        raise UserError(f"{what} has {mix!r} as weights: give a number of 0 or more for each name.")
    total = float(sum(mix.values()))
    if total <= 0:
        raise UserError(f"{what} gives weight to nothing: give some name more than 0.")
    return tuple((str(name), weight / total) for name, weight in mix.items() if weight > 0)
