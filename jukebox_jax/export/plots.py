"""Pictures for the listening page: spectrograms, loss curves, codebook use.

Spectrograms are bare pixels (WebP); whoever shows them draws the axes from `frequency_ticks` and `time_ticks`, so that
labels stay sharp, follow the page's colours and keep their size on a phone. Curves are SVG text without a fixed
palette: they take `currentColor` and the custom properties `--accent`, `--second`, `--grid` where a page sets them.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8

WINDOW_SAMPLES = 2048
TOP_HZ = 16_000
# One scale for every picture, in dB relative to a full-scale sine, so that colours can be compared across a page.
SCALE_DB = (-100.0, -20.0)
COLOURMAP = "magma"
_SHADES = 64

Number = int | float
Tick = tuple[float, str]  # (position as a fraction of the axis, label)


#: (step, lowest, highest) value that is normal there.
Band = Sequence[tuple[int, Number, Number]]


@dataclass(frozen=True)
class LossCurve:
    """Values of one model against training steps; points that are not finite are left out of the drawing. Behind them,
    a `band` of what is normal."""

    model: str
    unit: str
    train: Sequence[tuple[int, Number]]
    held_out: Sequence[tuple[int, Number]] = ()
    band: Band = ()


@dataclass(frozen=True)
class CodebookUsage:
    """How often each code of one level occurred; `counts` has one entry per code."""

    level: int
    counts: Int[np.ndarray, " v"]


# ---------------------------------------------------------------------------------------------- spectrograms


def spectrogram_db(
    audio: Float[np.ndarray, " t"], sample_rate: int, *, width: int = 560, height: int = 160
) -> Float[np.ndarray, "height width"]:
    """Power in mel-spaced bands from 0 Hz to 16 kHz, in dB relative to a full-scale sine; the first row is the top.

    Columns share the time axis evenly; a long recording averages several frames into one column, so nothing falls
    between two of them.
    """
    hops_per_column = max(1, math.ceil(len(audio) / width / (WINDOW_SAMPLES // 2)))
    frames = width * hops_per_column
    padded = np.pad(audio.astype(np.float32), WINDOW_SAMPLES // 2)
    starts = ((np.arange(frames) + 0.5) * len(audio) / frames).astype(np.int64)
    window = np.hanning(WINDOW_SAMPLES).astype(np.float32)
    bands = _mel_bands(sample_rate, height)
    columns = []
    # In pieces: all frames of an hour at once would not fit in memory.
    for piece in np.array_split(starts, math.ceil(frames / 2048)):
        cut = np.lib.stride_tricks.sliding_window_view(padded, WINDOW_SAMPLES)[piece]
        power = np.abs(np.fft.rfft(cut * window) * (2 / window.sum())) ** 2
        columns.append(power @ bands.T)
    power = np.concatenate(columns).reshape(width, hops_per_column, height).mean(axis=1)
    return 10 * np.log10(np.maximum(power.T[::-1], 1e-20))


def spectrogram_image(
    audio: Float[np.ndarray, " t"], sample_rate: int, *, width: int = 560, height: int = 160
) -> bytes:
    """A WebP picture of `spectrogram_db` on the common scale, without axes."""
    from PIL import Image

    low, high = SCALE_DB
    level = (spectrogram_db(audio, sample_rate, width=width, height=height) - low) / (high - low)
    shade = np.clip(level * (_SHADES - 1), 0, _SHADES - 1).round().astype(np.uint8)
    buffer = io.BytesIO()
    # Lossy on purpose: half the bytes of a palette PNG, and the loss is below what 64 shades show.
    Image.fromarray(palette()[shade]).save(buffer, "WEBP", quality=60, method=4)
    return buffer.getvalue()


def palette() -> UInt8[np.ndarray, "shades 3"]:
    """The colours of the scale from its lowest to its highest dB value."""
    from matplotlib import colormaps

    return (colormaps[COLOURMAP](np.linspace(0, 1, _SHADES))[:, :3] * 255).round().astype(np.uint8)


def frequency_ticks(sample_rate: int) -> list[Tick]:
    """Labels in Hz, as fractions of the picture's height from the bottom."""
    top = _mel(_top_hz(sample_rate))
    marks = [(500, "500 Hz"), (1000, "1 kHz"), (2000, "2 kHz"), (4000, "4 kHz"), (8000, "8 kHz"), (16000, "16 kHz")]
    return [(float(_mel(hz) / top), label) for hz, label in marks if hz <= _top_hz(sample_rate)]


def time_ticks(seconds: Number) -> list[Tick]:
    """Labels in seconds, as fractions of the picture's width from the left; at most six of them."""
    return [(value / seconds, f"{value:g} s") for value in _round_values(0, seconds, 5) if value <= seconds]


def _top_hz(sample_rate: int) -> float:
    return min(float(TOP_HZ), sample_rate / 2)


def _mel(hz: Number | np.ndarray) -> np.ndarray | np.floating:
    return 2595 * np.log10(1 + np.asarray(hz) / 700)


def _mel_bands(sample_rate: int, height: int) -> Float[np.ndarray, "height bins"]:
    """Triangular weights that sum to one per band; a band is never narrower than two bins of the transform."""
    bins = np.fft.rfftfreq(WINDOW_SAMPLES, 1 / sample_rate)
    edges = 700 * (10 ** (np.linspace(0, _mel(_top_hz(sample_rate)), height + 1) / 2595) - 1)
    centres = (edges[1:] + edges[:-1]) / 2
    half_width = np.maximum(np.diff(edges), bins[1])
    weights = np.maximum(0, 1 - np.abs(bins[None] - centres[:, None]) / half_width[:, None])
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


# ---------------------------------------------------------------------------------------------------- curves

_WIDTH, _HEIGHT = 360, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 344, 24, 182


def loss_curve_svg(curve: LossCurve) -> str:
    """Training values (every point faint, their running mean bold) and held-out points against steps.

    The value axis is logarithmic when the values span more than a factor of eight.
    """
    train = _finite(curve.train)
    held_out = _finite(curve.held_out)
    label = f"{curve.model}: {curve.unit} against training steps"
    points = train + held_out
    if not points:
        return _svg(label, _text(_WIDTH / 2, _HEIGHT / 2, "no finite values recorded", "middle"))
    last = max(1, *(step for step, _ in points))
    band = [(step, float(low), float(high)) for step, low, high in curve.band if step <= last]
    values = [value for _, value in points] + [value for _, *ends in band for value in ends]
    logarithmic = min(values) > 0 and max(values) / min(values) > 8
    y_ticks = _log_values(min(values), max(values)) if logarithmic else _round_values(min(values), max(values), 5)
    scale = math.log if logarithmic else float
    x_ticks = [value for value in _round_values(0, last, 5) if value <= last]
    x = _axis(0, last, _LEFT, _RIGHT)
    y = _axis(scale(min(y_ticks[0], *values)), scale(max(y_ticks[-1], *values)), _BOTTOM, _TOP)

    drawn = [_frame([(x(v), _short(v)) for v in x_ticks], [(y(scale(v)), _short(v)) for v in y_ticks], "step")]
    drawn.append(_text(_LEFT, 12, curve.unit + (" (logarithmic)" if logarithmic else ""), "start"))
    if band:
        edge = [(step, low) for step, low, _ in band] + [(step, high) for step, _, high in reversed(band)]
        path = " ".join(f"{x(step):.1f},{y(scale(value)):.1f}" for step, value in edge)
        drawn.append(f'<polygon points="{path}" style="fill:currentColor;opacity:.16"/>')
    if train:
        faint = [(x(step), y(scale(value))) for step, value in _thinned(train, 500)]
        drawn.append(_line(faint, "stroke:var(--accent,#b4482e);stroke-width:1;opacity:.35"))
        smooth = [(x(step), y(scale(value))) for step, value in _thinned(_running_mean(train), 250)]
        drawn.append(_line(smooth, "stroke:var(--accent,#b4482e);stroke-width:2"))
    if held_out:
        dots = [(x(step), y(scale(value))) for step, value in held_out]
        drawn.append(_line(dots, "stroke:var(--second,#2d6f8f);stroke-width:1.5;stroke-dasharray:4 3"))
        style = "fill:var(--paper,#fff);stroke:var(--second,#2d6f8f);stroke-width:2"
        drawn += [f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="3.5" style="{style}"/>' for cx, cy in dots]
    return _svg(label, "".join(drawn))


@dataclass(frozen=True)
class Series:
    """Values over time, in seconds, as of a song's tokens."""

    name: str
    unit: str
    seconds: Sequence[Number]
    values: Sequence[Number]


def series_svg(series: Series) -> str:
    """Values over time: every one faint (thinned), their running mean bold."""
    points = [(float(t), float(v)) for t, v in zip(series.seconds, series.values, strict=True) if math.isfinite(v)]
    label = f"{series.name}: {series.unit} over time"
    if not points:
        return _svg(label, _text(_WIDTH / 2, _HEIGHT / 2, "no finite values recorded", "middle"))
    values = [value for _, value in points]
    x_ticks = [value for value in _round_values(0, points[-1][0], 5) if value <= points[-1][0]]
    y_ticks = _round_values(min(values), max(values), 5)
    x = _axis(0, points[-1][0] or 1, _LEFT, _RIGHT)
    y = _axis(min(y_ticks[0], *values), max(y_ticks[-1], *values), _BOTTOM, _TOP)
    numbered = [(index, value) for index, (_, value) in enumerate(points)]
    faint, bold = _thinned(numbered, 500), _thinned(_running_mean(numbered), 250)
    return _svg(
        label,
        _frame([(x(v), _short(v)) for v in x_ticks], [(y(v), _short(v)) for v in y_ticks], "seconds")
        + _text(_LEFT, 12, series.unit, "start")
        + _line([(x(points[i][0]), y(v)) for i, v in faint], "stroke:var(--accent,#b4482e);stroke-width:1;opacity:.3")
        + _line([(x(points[i][0]), y(v)) for i, v in bold], "stroke:var(--accent,#b4482e);stroke-width:2"),
    )


@dataclass(frozen=True)
class Attention:
    """Where in its lyrics a prior looks, over a song of so many seconds.

    Attributes:
      weights: how much each token looks at each character.
      words: the lyrics' words in order, each with the character at which it begins.
    """

    weights: Float[np.ndarray, "t l"]
    words: Sequence[tuple[int, str]]
    seconds: Number


def attention_svg(attention: Attention) -> str:
    """Time to the right, lyrics downwards, every token's weights relative to its highest: singing is a diagonal."""
    label = f"Attention to the lyrics over {attention.seconds:g} seconds"
    tokens, characters = attention.weights.shape
    if not tokens or not characters:
        return _svg(label, _text(_WIDTH / 2, _HEIGHT / 2, "no lyrics", "middle"))
    left = 84  # words are wider than numbers
    x, y = _axis(0, attention.seconds, left, _RIGHT), _axis(0, characters, _TOP, _BOTTOM)
    x_ticks = [value for value in _round_values(0, attention.seconds, 5) if value <= attention.seconds]
    picture = base64.b64encode(_attention_image(attention.weights)).decode()
    image = f'<image href="data:image/webp;base64,{picture}" preserveAspectRatio="none" '
    image += f'x="{left}" y="{_TOP}" width="{_RIGHT - left}" height="{_BOTTOM - _TOP}"/>'
    marks, lowest = [], -math.inf
    for at, word in attention.words:  # as many as have room
        if y(at) - lowest >= 13:
            lowest = y(at)
            shown = word if len(word) <= 12 else word[:11] + "…"
            marks.append(_text(left - 6, min(lowest + 9, _BOTTOM), shown, "end"))
    ticks = [_text(x(v), _BOTTOM + 17, _short(v), "middle") for v in x_ticks]
    title = _text((left + _RIGHT) / 2, _HEIGHT - 4, "seconds", "middle")
    return _svg(label, "".join([image, *marks, *ticks, title]))


def _attention_image(weights: Float[np.ndarray, "t l"]) -> bytes:
    """Lyrics downwards and time to the right, at most 200 × 560 pixels: the highest weights of those in one pixel."""
    from PIL import Image

    relative = weights / np.maximum(weights.max(axis=1, keepdims=True), 1e-20)
    for axis, most in ((0, 560), (1, 200)):
        starts = np.linspace(0, relative.shape[axis], min(most, relative.shape[axis]), endpoint=False).astype(int)
        relative = np.maximum.reduceat(relative, starts, axis=axis)
    shade = (np.clip(relative.T, 0, 1) * (_SHADES - 1)).round().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(palette()[shade]).save(buffer, "WEBP", quality=60, method=4)
    return buffer.getvalue()


def codebook_usage_svg(usage: CodebookUsage) -> str:
    """Codes ordered by use, in multiples of equal use on a logarithmic axis; unused codes leave a gap at the right."""
    counts = np.sort(np.asarray(usage.counts, dtype=np.float64))[::-1]
    if len(counts) == 0 or counts.sum() == 0:
        return _svg(f"Level {usage.level}: no code used", _text(_WIDTH / 2, _HEIGHT / 2, "no code used", "middle"))
    share = counts[counts > 0] / counts.sum() * len(counts)
    label = f"Level {usage.level}: {len(share)} of {len(counts)} codes used, perplexity {perplexity(usage):.0f}"
    low, high = min(0.1, share.min()), max(10.0, share.max())
    decades = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    x = _axis(0, len(counts), _LEFT, _RIGHT)
    y = _axis(math.log(low), math.log(high), _BOTTOM, _TOP)
    x_ticks = [value for value in _round_values(0, len(counts), 4) if value <= len(counts)]
    y_marks = [(y(math.log(10.0**power)), f"{10.0**power:g}×") for power in decades]
    outline = [(_LEFT, _BOTTOM)]
    for rank, value in enumerate(share):
        outline += [(x(rank), y(math.log(value))), (x(rank + 1), y(math.log(value)))]
    outline.append((outline[-1][0], _BOTTOM))
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in outline)
    return _svg(
        label,
        _frame([(x(v), _short(v)) for v in x_ticks], y_marks, "codes, most used first")
        + _text(_LEFT, 12, "use, relative to equal use of all codes", "start")
        + f'<polygon points="{path}" style="fill:var(--accent,#b4482e);opacity:.7"/>'
        + _line([(_LEFT, y(0)), (_RIGHT, y(0))], "stroke:currentColor;stroke-width:1.5;stroke-dasharray:4 3"),
    )


def perplexity(usage: CodebookUsage) -> float:
    """2 to the entropy of the codes' use: the number of equally used codes that would carry as much."""
    counts = np.asarray(usage.counts, dtype=np.float64)
    share = counts[counts > 0] / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def _svg(label: str, content: str) -> str:
    label = html.escape(label)
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}" font-size="12">{content}</svg>'


def _frame(x_marks: Sequence[tuple[Number, str]], y_marks: Sequence[tuple[Number, str]], x_label: str) -> str:
    """Horizontal grid lines with their labels, and labels along the bottom."""
    parts = []
    for py, text in y_marks:
        parts.append(_line([(_LEFT, py), (_RIGHT, py)], "stroke:var(--grid,#ddd);stroke-width:1"))
        parts.append(_text(_LEFT - 8, py + 4, text, "end"))
    parts += [_text(px, _BOTTOM + 17, text, "middle") for px, text in x_marks]
    parts.append(_text((_LEFT + _RIGHT) / 2, _HEIGHT - 4, x_label, "middle"))
    return "".join(parts)


def _text(px: Number, py: Number, text: str, anchor: str) -> str:
    return f'<text x="{px:.1f}" y="{py:.1f}" text-anchor="{anchor}" fill="currentColor">{html.escape(text)}</text>'


def _line(points: Sequence[tuple[Number, Number]], style: str) -> str:
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
    return f'<polyline points="{path}" style="fill:none;stroke-linejoin:round;{style}"/>'


def _axis(low: Number, high: Number, start: Number, end: Number) -> Callable[[Number], float]:
    """Maps [low, high] linearly onto [start, end]; an empty range maps to the middle."""
    if high == low:
        return lambda value: (start + end) / 2
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _finite(points: Sequence[tuple[int, Number]]) -> list[tuple[int, float]]:
    return [(step, float(value)) for step, value in points if math.isfinite(value)]


def _thinned(points: list[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """Every n-th point, always with the last one."""
    stride = math.ceil(len(points) / most)
    return points[-1:] if stride == 0 else points[:-1:stride] + points[-1:]


def _running_mean(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Centred mean over a twentieth of the points.

    At the start the window shrinks on both sides, because losses fall steeply there; at the end on the right only,
    because the last values decide how the run is judged and a single one is mostly noise.
    """
    half = len(points) // 40
    total = np.concatenate([[0.0], np.cumsum([value for _, value in points])])
    centre = np.arange(len(points))
    reach = np.minimum(half, centre)
    end = np.minimum(centre + reach + 1, len(points))
    mean = (total[end] - total[centre - reach]) / (end - centre + reach)
    return [(step, float(value)) for (step, _), value in zip(points, mean, strict=True)]


def _round_values(low: Number, high: Number, most: int) -> list[float]:
    """Round numbers, evenly spaced, from at most `low` to at least `high`: about `most` steps or fewer."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(m * power for m in (1, 2, 5, 10) if m * power * most >= span * (1 - 1e-9))
    return [round(i * step, 12) for i in range(math.floor(low / step), math.ceil(high / step - 1e-9) + 1)]


def _log_values(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten within [low, high]; powers of ten alone when these are many."""
    powers = [10.0**p for p in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    values = [m * p for p in powers for m in (1, 2, 5) if low <= m * p <= high]
    return values if len(values) <= 7 else [p for p in powers if low <= p <= high]


def _short(value: Number) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 10_000 else f"{value:g}"
