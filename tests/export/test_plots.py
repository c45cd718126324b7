"""Spectrogram pictures and curves."""

from __future__ import annotations

import base64
import io
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from jukebox_jax.export import plots

RATE = 44_100


def sine(hz: float, seconds: float, amplitude: float = 1.0) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


@pytest.mark.parametrize("hz", [500, 1000, 4000, 8000])
def test_a_sine_lies_at_its_tick_with_its_level(hz):
    decibels = plots.spectrogram_db(sine(hz, 2.0, 0.1), RATE, width=40, height=160)
    column = decibels[:, 20]
    label = f"{hz} Hz" if hz < 1000 else f"{hz // 1000} kHz"
    fraction = {text: at for at, text in plots.frequency_ticks(RATE)}[label]
    assert abs((159.5 - column.argmax()) / 160 - fraction) < 2 / 160
    # Amplitude 0.1 is -20 dB; a wide band averages the peak with its empty neighbours.
    assert -32 < column.max() < -19.9


def test_columns_follow_time_however_long_the_recording():
    """A click in the last quarter shows there, in short and in long recordings (several frames a column)."""
    for seconds in (0.5, 4.0, 90.0):
        audio = np.zeros(round(seconds * RATE), np.float32)
        audio[int(0.8 * len(audio))] = 1.0
        loudness = plots.spectrogram_db(audio, RATE, width=100, height=20).max(axis=0)
        assert abs(loudness.argmax() - 80) <= max(1, 1024 / len(audio) * 100)


def test_silence_and_clips_shorter_than_a_window_are_finite():
    for length in (1, 100, 3000):
        assert np.isfinite(plots.spectrogram_db(np.zeros(length, np.float32), RATE)).all()


def test_pictures_share_one_scale():
    """The same sound 20 dB softer is darker: nothing is normalised picture by picture."""
    from PIL import Image

    def brightness(audio):
        image = Image.open(io.BytesIO(plots.spectrogram_image(audio, RATE, width=80, height=40)))
        assert image.size == (80, 40)
        return np.asarray(image.convert("L"), np.float32).mean()

    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    assert brightness(0.1 * noise) > brightness(0.01 * noise) + 10


def test_low_sample_rates_end_at_half_their_rate():
    assert [label for _, label in plots.frequency_ticks(8000)] == ["500 Hz", "1 kHz", "2 kHz", "4 kHz"]
    assert plots.frequency_ticks(8000)[-1][0] == pytest.approx(1)
    assert plots.spectrogram_db(np.zeros(8000, np.float32), 8000).shape == (160, 560)


def test_time_ticks_are_round_and_inside():
    assert plots.time_ticks(15) == [(0, "0 s"), (5 / 15, "5 s"), (10 / 15, "10 s"), (1, "15 s")]
    for seconds in (0.3, 1.0, 5.94, 61.7, 3600.0):
        ticks = plots.time_ticks(seconds)
        assert 2 <= len(ticks) <= 6
        assert all(0 <= at <= 1 for at, _ in ticks)


def points(svg: str) -> list[list[tuple[float, float]]]:
    ElementTree.fromstring(svg)
    lines = re.findall(r'points="([^"]*)" style="fill:none;stroke-linejoin:round;stroke:var\(--(?:accent|second)', svg)
    return [[tuple(map(float, pair.split(","))) for pair in line.split()] for line in lines]


def test_loss_curve_draws_falling_values_downwards_and_held_out_points():
    curve = plots.LossCurve("m", "u", [(s, 10 - s / 100) for s in range(500)], [(100, 9.5), (400, 6.5)])
    faint, smooth, held_out = points(plots.loss_curve_svg(curve))
    for line in (faint, smooth, held_out):
        assert line[-1][1] > line[0][1]
        assert line == sorted(line)
    assert plots.loss_curve_svg(curve).count("<circle") == 2
    assert "logarithmic" not in plots.loss_curve_svg(curve)
    # A straight line's running mean is the line itself where windows are symmetric.
    on_line = dict(faint)
    shared = [(x, y) for x, y in smooth if x in on_line and x < 330]
    assert shared
    assert all(abs(on_line[x] - y) < 0.2 for x, y in shared)


def test_wide_ranges_are_logarithmic_and_stay_inside_the_frame():
    svg = plots.loss_curve_svg(plots.LossCurve("m", "loss", [(s, 1e4 / s**2) for s in range(1, 400)], [(399, 0.2)]))
    assert "loss (logarithmic)" in svg
    assert all(0 <= x <= 360 and 0 <= y <= 220 for line in points(svg) for x, y in line)


@pytest.mark.parametrize("train", [[], [(1, math.nan)], [(0, 2.0)], [(5, 0.0), (6, 0.0)], [(1, -3.0), (2, 4.0)]])
def test_degenerate_curves_are_drawn_without_nan(train):
    svg = plots.loss_curve_svg(plots.LossCurve("m", "u", train))
    ElementTree.fromstring(svg)
    assert "nan" not in svg
    assert "inf" not in svg.replace("infinite", "")
    assert ("no finite values" in svg) == (not any(math.isfinite(v) for _, v in train))


def test_codebook_usage_counts_used_codes_and_perplexity():
    uniform = plots.CodebookUsage(1, np.array([7] * 64 + [0] * 64))
    assert plots.perplexity(uniform) == pytest.approx(64)
    svg = plots.codebook_usage_svg(uniform)
    ElementTree.fromstring(svg)
    assert "64 of 128 codes used, perplexity 64" in svg
    [outline] = re.findall(r'<polygon points="([^"]*)"', svg)
    # Half of the codes are used: the area ends in the middle of the axis.
    assert float(outline.split()[-1].split(",")[0]) == pytest.approx((44 + 344) / 2)
    assert "no code used" in plots.codebook_usage_svg(plots.CodebookUsage(0, np.zeros(8, int)))


def test_a_band_of_what_is_normal_stands_behind_a_curve():
    curve = plots.LossCurve(
        "prior", "bits", [(1, 9.0), (100, 8.0)], band=[(1, 8.5, 9.5), (50, 8.0, 9.0), (200, 7.0, 8.0)]
    )
    drawn = plots.loss_curve_svg(curve)
    (drawn_band,) = re.findall(r'<polygon points="([^"]+)"', drawn)
    assert len(drawn_band.split()) == 4  # what lies beyond the run's last step is not drawn
    assert "<polygon" not in plots.loss_curve_svg(plots.LossCurve("prior", "bits", [(1, 9.0), (100, 8.0)]))


def test_values_over_time_and_none():
    series = plots.Series("Surprise <of> it", "bits", [0.0, 0.5, 1.0], [3.0, float("nan"), 5.0])
    drawn = plots.series_svg(series)
    assert "Surprise &lt;of&gt; it" in drawn
    assert drawn.count("<polyline") >= 2
    assert "no finite values" in plots.series_svg(plots.Series("a", "b", [], []))


def test_attention_is_a_picture_with_its_words():
    from PIL import Image

    weights = np.eye(40, dtype=np.float32)
    words = [(0, "first"), (1, "hidden"), (20, "<script>"), (39, "extraordinarily")]
    svg = plots.attention_svg(plots.Attention(weights, words, 4.0))
    ElementTree.fromstring(svg)
    assert "first" in svg
    assert "hidden" not in svg  # no room
    assert "&lt;script&gt;" in svg
    assert "extraordina…" in svg
    [data] = re.findall(r'href="data:image/webp;base64,([^"]*)"', svg)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L"), np.float32)
    assert pixels.shape == (40, 40)
    assert np.diag(pixels).mean() > 4 * pixels[np.triu_indices(40, 4)].mean()
    assert "no lyrics" in plots.attention_svg(plots.Attention(weights[:, :0], [], 4.0))
