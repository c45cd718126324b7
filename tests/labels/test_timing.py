from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jukebox_jax.errors import UserError
from jukebox_jax.labels.timing import timing_bins


def test_by_hand():
    # A song of 20 s at 1000 Hz, a window of 4 s from 10 s, in a model of 10 to 40 s with 8 bins.
    bins = timing_bins(20_000, 10_000, 4_000, 4, 8, 10.0, 40.0, 1000)
    assert bins.total == 2  # 8 · (20 - 10) / 30 = 2.67
    assert bins.absolute.tolist() == [2, 2, 2, 2]  # 8 · 10..13 / 40 = 2.0, 2.2, 2.4, 2.6
    assert bins.relative.tolist() == [4, 4, 4, 5]  # 8 · 0.50, 0.55, 0.60, 0.65 = 4.0, 4.4, 4.8, 5.2
    assert bins.total.dtype == bins.absolute.dtype == bins.relative.dtype == np.int32


def test_the_end_of_a_window_past_the_song_is_clamped():
    bins = timing_bins(12_000, 10_000, 4_000, 4, 12, 10.0, 40.0, 1000)
    # From 10/12 to 1 instead of 14/12, in quarters: 10.0, 10.5, 11.0, 11.5 twelfths.
    assert bins.relative.tolist() == [10, 10, 11, 11]
    assert bins.absolute.tolist() == [3, 3, 3, 3]


# Windows of the released models in which float32 puts one token into another bin than exact arithmetic does.
TRAPS = [
    # time_bins, n_ctx, min_duration, total_length, offset, which, token
    (128, 8192, 60.0, 21_994_053, 20_158_976, "absolute", 7237),
    (128, 8192, 60.0, 14_272_014, 8_042_880, "relative", 1626),
    (128, 8192, 23.8, 22_865_127, 20_112_512, "absolute", 7600),
    (128, 8192, 23.8, 5_359_554, 2_608_896, "relative", 1208),
    (64, 6144, 17.84, 25_474_003, 20_476_416, "absolute", 4757),
    (64, 6144, 17.84, 3_554_211, 1_142_272, "relative", 621),
]


@pytest.mark.parametrize(("bins", "n", "low", "total", "offset", "which", "token"), TRAPS)
def test_float32_one_operation_at_a_time(bins, n, low, total, offset, which, token):
    window, rate, f = 128 * n, 44_100, np.float32
    got = timing_bins(total, offset, window, n, bins, low, 600.0, rate)
    if which == "absolute":
        start, end, span = f(offset), f(offset + window), f(600 * rate)
    else:
        start, end, span = f(f(offset) / f(total)), min(f(f(offset + window) / f(total)), f(1)), f(1)
    scalar = []
    for i in range(n):
        position = f(start + f(f(end - start) * f(f(i) / f(n))))
        scalar.append(int(np.floor(f(f(bins) * f(f(position - f(0)) / span)))))
    assert getattr(got, which).tolist() == scalar
    # All else is far from a bin's edge; this token is where the precision shows.
    place = Fraction(offset + token * 128, 600 * rate if which == "absolute" else total)
    assert abs(getattr(got, which)[token] - floor(bins * place)) == 1


@settings(max_examples=200, deadline=None)
@given(st.integers(10_000, 39_999), st.data())
def test_bins_are_in_range_and_never_go_back(total, data):
    offset = data.draw(st.integers(0, min(total - 1, 36_000)))
    bins = timing_bins(total, offset, 4_000, 16, 8, 10.0, 40.0, 1000)
    for sequence in (bins.absolute, bins.relative):
        assert sequence.min() >= 0
        assert sequence.max() < 8
        assert (np.diff(sequence) >= 0).all()
    assert 0 <= bins.total < 8


@pytest.mark.parametrize(
    ("total", "offset", "message"),
    [
        (9_999, 0, "10 to 40 s"),
        (40_000, 0, "10 to 40 s"),
        (20, 0, r"20 samples \(0.02 s"),  # seconds given for samples
        (20_000, -1, "outside"),
        (39_000, 36_001, "outside"),
        (20_000, 20_000, "past the end"),
    ],
)
def test_ranges(total, offset, message):
    with pytest.raises(UserError, match=message):
        timing_bins(total, offset, 4_000, 4, 8, 10.0, 40.0, 1000)


def test_the_lower_bound_and_the_last_window_are_allowed():
    assert timing_bins(10_000, 0, 4_000, 4, 8, 10.0, 40.0, 1000).total == 0
    assert timing_bins(39_999, 36_000, 4_000, 4, 8, 10.0, 40.0, 1000).absolute.tolist() == [7, 7, 7, 7]
