"""Monotone paths by brute force; which heads count as following the lyrics."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cascade import CODEC, lyric_config, random_model
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jukebox_jax.errors import UserError
from jukebox_jax.evaluation.alignment import alignment
from jukebox_jax.evaluation.monotone import monotone_path, order_score, path_weight, search_heads
from jukebox_jax.sampling.requests import Request

small = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 4)),
    elements=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)


@given(small)
def test_no_other_path_collects_more(weights):
    rows, columns = weights.shape
    paths = list(itertools.combinations_with_replacement(range(columns), rows))
    path = monotone_path(weights)
    most = max(sum(weights[row, column] for row, column in enumerate(one)) for one in paths)
    assert tuple(path.tolist()) in paths
    assert weights[np.arange(rows), path].sum() == most
    assert path_weight(weights) == pytest.approx(most / rows)


def test_a_path_moves_on_when_there_is_something_to_see():
    weights = np.zeros((6, 5), np.float32)
    weights[1, 1] = weights[4, 3] = 1
    assert monotone_path(weights).tolist() == [0, 1, 1, 1, 3, 3]


def following(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Attention that moves over all columns at an uneven pace, part of it elsewhere."""
    places = np.sort(rng.integers(0, columns, rows))
    return 0.6 * np.eye(columns)[places] + 0.4 * rng.dirichlet(np.ones(columns), rows)


def wandering(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Attention that stays at a random column for a while, then jumps to another."""
    return np.eye(columns)[np.repeat(rng.integers(0, columns, rows // 10), 10)]


@pytest.mark.parametrize("seed", range(3))
def test_a_head_that_follows_the_lyrics_is_preferred(seed):
    rng, rows, columns = np.random.default_rng(seed), 200, 30
    followed = order_score(following(rows, columns, rng))
    fixed = 0.9 * np.eye(columns)[np.full(rows, 7)] + 0.1 * rng.dirichlet(np.ones(columns), rows)
    drifting = np.linspace(0.9, 0.95, rows)[:, None] * np.eye(columns)[np.full(rows, 7)]
    others = {
        "uniform": np.full((rows, columns), 1 / columns),
        "one character": fixed,
        "one character, ever more": drifting,
        "random": rng.dirichlet(np.ones(columns), rows),
        "sharp and random": np.eye(columns)[rng.integers(0, columns, rows)],
        "on padding": np.zeros((rows, columns)),
    }
    for name, weights in others.items():
        assert abs(order_score(weights)) < 0.1, name
        assert followed > order_score(weights) + 0.4, name
    assert followed > order_score(wandering(rows, columns, rng)) + 0.2
    assert order_score(following(rows, columns, rng)[::-1]) < -0.4


def test_all_heads_are_scored_by_all_songs():
    level = random_model("separate").levels[2]
    rng = np.random.default_rng(0)
    tokens = [rng.integers(0, CODEC.codes, length).astype(np.int32) for length in (50, 20)]
    songs = [Request(0, 9000, 0, "Bach", "song", "It was the best of times"), Request(1, 6000, lyrics="la la")]
    found = search_heads(level, tokens, songs, 0.25)
    assert [(one.layer, one.head) for one in found] in ([(3, 0), (3, 1)], [(3, 1), (3, 0)])
    assert found[0].score >= found[1].score
    for one in found:
        matrices = [
            alignment(level, codes[None], [song], 0.25, one.layer, one.head)[0]
            for codes, song in zip(tokens, songs, strict=True)
        ]
        assert one.score == pytest.approx(np.mean([order_score(matrix) for matrix in matrices]), abs=1e-6)
    # A song without lyrics has nothing to say.
    assert search_heads(level, [*tokens, tokens[0]], [*songs, Request(2, 9000)], 0.25) == found


def test_what_cannot_be_searched():
    tokens, song = np.zeros(20, np.int32), Request(0, 6000, lyrics="la")
    with pytest.raises(UserError, match="takes no lyrics"):
        search_heads(random_model().levels[2], [tokens], [song], 0.25)
    with pytest.raises(UserError, match="None of the songs has lyrics"):
        search_heads(random_model("separate").levels[2], [tokens], [Request(0, 6000)], 0.25)
    assert lyric_config("single").attention_order == 0
    with pytest.raises(UserError, match="No layer of this prior looks at the lyrics"):
        search_heads(random_model("single").levels[2], [tokens], [song], 0.25)
