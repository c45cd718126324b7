"""Frozen parameters stay to the bit, cost no optimizer memory, and are named by pattern."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from jukebox_jax.checkpoint import store
from jukebox_jax.errors import UserError
from jukebox_jax.training.config import TrainConfig
from jukebox_jax.training.freezing import combine, partition
from jukebox_jax.training.telemetry import read_metrics
from tests.training import toy

TREE = {"decoder": {"in": {"kernel": 1, "bias": 2}, "out": {"kernel": 3}}, "labels": {"artist": 4, "genre": 5}}


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        ((), {}),
        (("labels",), {"labels": {"artist": 4, "genre": 5}}),
        (("labels/*",), {"labels": {"artist": 4, "genre": 5}}),
        (
            ("*/kernel", "labels/genre"),
            {"decoder": {"in": {"kernel": 1}, "out": {"kernel": 3}}, "labels": {"genre": 5}},
        ),
        (("decoder/*/bias",), {"decoder": {"in": {"bias": 2}}}),
    ],
)
def test_patterns_split_a_tree_in_two_and_it_comes_together_again(patterns, frozen):
    trained, found = partition(TREE, patterns)
    assert found == frozen
    assert len(jax.tree.leaves(trained)) == 5 - len(jax.tree.leaves(frozen))
    assert combine(trained, found) == TREE


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (("label",), "no parameter is called 'label': did you mean 'labels'"),
        (("decoder/kernel",), "no parameter is called 'decoder/kernel': did you mean"),
        (("zzz",), "the groups are decoder, labels"),
        (("decoder", "labels"), "freezes every parameter"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(patterns, words):
    with pytest.raises(UserError, match=words):
        partition(TREE, patterns)


def test_frozen_parameters_stay_and_have_no_moments(tmp_path):
    config = toy.make_config(steps=6, frozen=("Dense_0",))
    start = []

    def keep(state):
        start.append(jax.device_get(state.params))
        return state

    state = toy.run(tmp_path / "run", config, start=keep)
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(state.params["Dense_0"][name], start[0]["Dense_0"][name])
        np.testing.assert_array_equal(state.ema["Dense_0"][name], start[0]["Dense_0"][name])
        assert not np.array_equal(state.params["Dense_1"][name], start[0]["Dense_1"][name])
    assert set(state.opt_state[0].mu) == set(state.opt_state[0].nu) == {"Dense_1"}
    stored = store.load_model(tmp_path / "run")["params"]
    assert set(stored) == {"Dense_0", "Dense_1"}


def test_the_gradient_norm_is_that_of_the_trained_part(tmp_path):
    norms = {}
    for name, frozen in {"all": (), "first": ("Dense_1",), "second": ("Dense_0",)}.items():
        toy.run(tmp_path / name, toy.make_config(steps=1, frozen=frozen))
        norms[name] = read_metrics(tmp_path / name)[0]["grad_norm"]
    assert norms["first"] ** 2 + norms["second"] ** 2 == pytest.approx(norms["all"] ** 2, rel=1e-5)
    assert 0 < norms["second"] < norms["all"]


def test_a_run_with_frozen_parts_resumes_to_the_bit(tmp_path):
    optimizer = dataclasses.replace(toy.OPTIMIZER, schedule="constant")  # which does not know the run's length
    config = toy.make_config(steps=6, frozen=("*/bias",), optimizer=optimizer)
    whole = toy.run(tmp_path / "whole", config)
    toy.run(tmp_path / "parts", dataclasses.replace(config, steps=3), run_config={})
    parts = toy.run(tmp_path / "parts", config, run_config={})
    assert jax.tree.structure(whole) == jax.tree.structure(parts)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_a_misspelt_pattern_ends_the_run_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"train\.frozen: no parameter is called 'Dense_7'"):
        toy.run(tmp_path / "run", toy.make_config(frozen=("Dense_7",)))
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_keep_best_is_checked():
    with pytest.raises(UserError, match=r"train\.keep_best cannot be -1"):
        TrainConfig(keep_best=-1)
