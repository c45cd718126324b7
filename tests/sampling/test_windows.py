"""Windows: the specification's examples, the original's plans, and that every token is sampled once and in order."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import recorded

from jukebox_jax.errors import UserError
from jukebox_jax.sampling.windows import Window, hop_tokens, plan, segments, window_starts


@pytest.mark.parametrize(
    ("total", "n_ctx", "hop", "starts"),
    [
        (8192, 8192, 1024, [0]),
        (10335, 8192, 1024, [0, 1024, 2048, 2143]),
        (27560, 8192, 4096, [0, 4096, 8192, 12288, 16384, 19368]),
        (6890, 6144, 768, [0, 746]),
        (100, 8192, 1024, [0]),
    ],
)
def test_examples_of_the_specification(total, n_ctx, hop, starts):
    assert window_starts(total, n_ctx, hop) == starts


@given(st.integers(1, 300), st.integers(1, 64), st.data())
def test_windows_are_full_and_leave_nothing_out(total, n_ctx, data):
    hop = data.draw(st.integers(1, n_ctx))
    starts = window_starts(total, n_ctx, hop)
    assert starts == sorted(set(starts))
    filled = 0
    for start in starts:
        assert start <= filled  # every window continues what is there
        end = min(start + n_ctx, total)
        assert end > filled
        filled = end
    assert filled == total
    if total >= n_ctx:
        assert starts[-1] + n_ctx == total


@given(st.integers(1, 300), st.integers(1, 64), st.integers(0, 320), st.data())
def test_a_plan_samples_every_token_once(total, n_ctx, have, data):
    windows = plan(total, n_ctx, data.draw(st.integers(1, n_ctx)), have)
    filled = have
    for window in windows:
        assert 0 <= window.given < window.target <= n_ctx
        assert window.start + window.given == filled  # all that is known is before all that is new
        filled = window.start + window.target
        assert window.target == n_ctx or (total < n_ctx and window.start == 0)
    assert filled == max(have, total)


@given(st.integers(1, 63), st.integers(0, 200), st.data())
def test_an_overrun_adds_as_many_tokens_as_were_asked_for(total, have, data):
    n_ctx = data.draw(st.integers(total + 1, 64))
    (window,) = plan(total, n_ctx, 1, have, overrun=True)
    assert window.start + window.given == have
    assert window.target - window.given == total
    assert window.given >= 0
    assert window.target == n_ctx or (window.start == 0 and window.target < n_ctx)
    assert plan(n_ctx + total, n_ctx, 1, have, overrun=True) == plan(n_ctx + total, n_ctx, 1, have)


def test_examples_of_plans():
    assert plan(20, 32, 16, 25, overrun=True) == [Window(13, 12, 32)]
    assert plan(20, 32, 16, 25) == plan(20, 32, 16, 20) == plan(64, 32, 16, 64) == []
    assert plan(6890, 8192, 1024, 4134) == [Window(0, 4134, 6890)]
    (quirk,) = plan(6890, 8192, 1024, 4134, overrun=True)
    assert quirk.start + quirk.target == 11024  # the specification's example


def test_plans_are_the_original_ones():
    numbers = json.loads(recorded("f_sampling_plan.json").read_text())
    for case in numbers["starts"]:
        assert window_starts(case["total_length"], case["n_ctx"], case["hop_length"]) == case["starts"]
    for case in numbers["plans"]:
        windows = plan(case["total"], case["n_ctx"], case["hop"], case["have"], overrun=True)
        # The original splits songs into batches, window by window; which songs share one does not matter here.
        batches = -(-case["n_samples"] // case["max_batch_size"])
        ratio = case["cond_downsample"]
        for window, call in zip([w for w in windows for _ in range(batches)], case["calls"], strict=True):
            assert (window.start, window.given) == (call["start"], call["prime_tokens"])
            assert window.target - window.given == call["new_tokens"]
            assert call["sample_tokens"] in (None, window.target)
            assert call["y_offset_added"] == window.start * (8, 32, 128)[case["level"]]
            above = ratio and [window.start // ratio, (window.start + case["n_ctx"]) // ratio]
            assert call["z_cond_range"] == above
        assert case["final_tokens"] == max([case["have"], *(w.start + w.target for w in windows)])


@given(st.data())
def test_segments_cover_a_level_between_them(data):
    total, n_ctx = data.draw(st.integers(32, 200)), 32
    have, hop = data.draw(st.integers(0, total)), data.draw(st.sampled_from([4, 8, 16, 32]))
    windows, most = plan(total, n_ctx, hop, have), data.draw(st.integers(1, 9))
    parts = segments(windows, most)
    assert len(parts) == max(1, min(most, len(windows)))
    assert parts[0] == (windows if len(parts) == 1 else parts[0][0], 0)
    assert [w.start for part, _ in parts for w in part] == [w.start for w in windows]
    for (part, begin), (before, _) in zip(parts[1:], parts, strict=False):
        assert part[0].given == 0
        assert part[0].start <= begin == before[-1].start + before[-1].target  # no token is missing or done twice
        assert part[1:] == windows[windows.index(part[1]) :][: len(part) - 1] if part[1:] else True
    lengths = [len(part) for part, _ in parts]
    assert max(lengths) - min(lengths) <= 1


def test_hop_fractions():
    assert hop_tokens(8192, 0.5, 4, 27560, 1) == 4096
    with pytest.raises(UserError, match=r"hop fraction 0.1 of level 0.*use 0.10009765625"):
        hop_tokens(8192, 0.1, 4, 110240, 0)
    assert hop_tokens(8192, 0.10009765625, 4, 110240, 0) == 820  # the advice can be taken
    assert hop_tokens(8192, 0.1, 4, 8192, 0) == 819  # one window starts at 0, whatever the hop
    with pytest.raises(UserError, match=r"not in \(0, 1\]"):
        hop_tokens(8192, 1.5, 1, 8192, 2)
