"""Gradients of a batch computed in parts are those of the whole batch, on one device and on eight."""

from __future__ import annotations

import json

import pytest

from jukebox_jax.errors import UserError
from jukebox_jax.parallel.mesh import make_mesh
from jukebox_jax.parallel.strategies import get_strategy
from jukebox_jax.training.config import TrainConfig
from jukebox_jax.training.state import abstract_state
from jukebox_jax.training.step import make_train_step
from tests.training import toy
from tests.training.on_eight import on_eight_devices


@pytest.fixture(scope="module")
def report():
    run = on_eight_devices("accumulating.py")
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["fsdp 4", "dp 2"])
def test_parts_give_the_gradients_and_metrics_of_the_whole(report, name):
    assert report[name]["gradients"] < 1e-5
    assert report[name]["metrics"] < 1e-5


def test_parts_are_computed_one_after_another_where_their_rows_are(report):
    for name in ("fsdp 4", "dp 2"):
        assert report[name]["loops"] >= 1
        assert report[name]["moved"] == 0


def test_a_batch_that_the_parts_do_not_divide_is_refused():
    with pytest.raises(UserError, match=r"train\.accumulate cannot be 3: it must be a divisor of batch_size \(8\)"):
        TrainConfig(batch_size=8, accumulate=3)


def test_a_task_whose_state_learns_from_whole_batches_is_refused():
    task, config, mesh, rules = (
        toy.make_task(),
        toy.make_config(accumulate=2),
        make_mesh((1,)),
        get_strategy("dp").rules,
    )
    with pytest.raises(UserError, match=r"train\.accumulate=2 is not for a codec"):
        make_train_step(task, config, mesh, rules, abstract_state(task, config, mesh, rules))
