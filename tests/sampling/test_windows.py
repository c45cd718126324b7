"""Windows: the specification's examples, and that they cover every token once and in order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jukebox_jax.errors import UserError
from jukebox_jax.sampling.windows import hop_tokens, window_starts


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


def test_hop_fractions():
    assert hop_tokens(8192, 0.5, 4, 27560, 1) == 4096
    with pytest.raises(UserError, match=r"hop fraction 0.1 of level 0.*use 0.10009765625"):
        hop_tokens(8192, 0.1, 4, 110240, 0)
    assert hop_tokens(8192, 0.10009765625, 4, 110240, 0) == 820  # the advice can be taken
    with pytest.raises(UserError, match=r"not in \(0, 1\]"):
        hop_tokens(8192, 1.5, 1, 8192, 2)
