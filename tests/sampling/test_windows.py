"""Windows: the specification's examples, the original's plans, and that every token is sampled once and in order."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import recorded

from jukebox_jax.errors import UserError
from jukebox_jax.sampling.windows import Window, batch_sizes, chunk_sizes, hop_tokens, plan, window_starts


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
    assert batch_sizes(5, 2) == [2, 2, 1]


def test_plans_are_the_original_ones():
    numbers = json.loads(recorded("f_sampling_plan.json").read_text())
    for case in numbers["starts"]:
        assert window_starts(case["total_length"], case["n_ctx"], case["hop_length"]) == case["starts"]
    for case in numbers["split_batch"]:
        assert batch_sizes(case["n"], case["split"]) == case["sizes"]
    for case in numbers["split_chunks"]:
        assert chunk_sizes(case["length"], case["chunk"]) == case["sizes"]
    for case in numbers["plans"]:
        windows = plan(case["total"], case["n_ctx"], case["hop"], case["have"], overrun=True)
        calls = [(w, size) for w in windows for size in batch_sizes(case["n_samples"], case["max_batch_size"])]
        ratio = case["cond_downsample"]
        for (window, size), call in zip(calls, case["calls"], strict=True):
            assert (window.start, window.given) == (call["start"], call["prime_tokens"])
            assert window.target - window.given == call["new_tokens"]
            assert call["sample_tokens"] in (None, window.target)
            assert call["y_offset_added"] == window.start * (8, 32, 128)[case["level"]]
            assert call["n_samples"] == size
            above = ratio and [window.start // ratio, (window.start + case["n_ctx"]) // ratio]
            assert call["z_cond_range"] == above
        assert case["final_tokens"] == max([case["have"], *(w.start + w.target for w in windows)])


def test_hop_fractions():
    assert hop_tokens(8192, 0.5, 4, 27560, 1) == 4096
    with pytest.raises(UserError, match=r"hop fraction 0.1 of level 0.*use 0.10009765625"):
        hop_tokens(8192, 0.1, 4, 110240, 0)
    assert hop_tokens(8192, 0.10009765625, 4, 110240, 0) == 820  # the advice can be taken
    assert hop_tokens(8192, 0.1, 4, 8192, 0) == 819  # one window starts at 0, whatever the hop
    with pytest.raises(UserError, match=r"not in \(0, 1\]"):
        hop_tokens(8192, 1.5, 1, 8192, 2)
