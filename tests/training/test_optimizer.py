"""Learning rate, clipping, average of the weights, and the update against a reference in numpy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jukebox_jax.errors import UserError
from jukebox_jax.training import optimizer
from jukebox_jax.training.config import OptimizerConfig, TrainConfig


def rates(config, total, steps=None):
    return [float(optimizer.learning_rate(config, jnp.int32(s), jnp.int32(total))) for s in steps or range(total)]


def test_warm_up_is_linear_and_starts_above_zero():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4)
    np.testing.assert_allclose(rates(config, 6), [0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


@pytest.mark.parametrize(("schedule", "middle"), [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)])
def test_schedules_reach_the_middle_and_the_end_of_the_run(schedule, middle):
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=0, schedule=schedule)
    start, half, end = rates(config, 100, [0, 50, 100])
    assert start == pytest.approx(2.0)
    assert half == pytest.approx(2.0 * middle)
    assert end == pytest.approx(2.0 if schedule == "constant" else 0.0, abs=1e-6)
    floor = dataclasses.replace(config, final_learning_rate=0.1)
    assert rates(floor, 100, [100])[0] == pytest.approx(2.0 if schedule == "constant" else 0.2)


def test_the_schedule_follows_a_run_length_given_at_run_time():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=0, schedule="linear")
    compiled = jax.jit(lambda step, total: optimizer.learning_rate(config, step, total))
    assert float(compiled(jnp.int32(5), jnp.int32(10))) == pytest.approx(0.5)
    assert float(compiled(jnp.int32(5), jnp.int32(20))) == pytest.approx(0.75)
    assert compiled._cache_size() == 1


def test_clipping_scales_down_to_the_norm_and_never_up():
    gradients = {"a": jnp.asarray([3.0, 0.0]), "b": jnp.asarray([[4.0]])}
    norm = optimizer.global_norm(gradients)
    assert float(norm) == 5.0
    clipped = optimizer.clip(OptimizerConfig(clip_norm=1.0), gradients, norm)
    np.testing.assert_allclose(clipped["a"], [0.6, 0.0], rtol=1e-6)
    for loose in (10.0, None):
        same = optimizer.clip(OptimizerConfig(clip_norm=loose), gradients, norm)
        np.testing.assert_array_equal(same["b"], gradients["b"])


def test_the_norm_of_half_precision_gradients_does_not_overflow():
    assert float(optimizer.global_norm({"a": jnp.full(4, 300.0, jnp.float16)})) == 600.0


def test_three_updates_equal_adamw_written_out():
    config = OptimizerConfig(b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.1)
    transform = optimizer.make_optimizer(config)
    params = jnp.asarray([1.0, -2.0, 0.5])
    state = transform.init(params)
    want, m, v = np.asarray(params, np.float64), np.zeros(3), np.zeros(3)
    for t, gradient in enumerate([[0.1, -0.2, 0.3], [0.05, 0.4, -0.3], [0.0, 0.1, 0.2]], start=1):
        direction, state = transform.update(jnp.asarray(gradient), state, params)
        params = params - 0.01 * direction
        g = np.asarray(gradient)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        want -= 0.01 * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8) + 0.1 * want)
    np.testing.assert_allclose(params, want, rtol=1e-5)


def test_the_average_moves_by_one_minus_decay():
    ema = optimizer.update_ema(OptimizerConfig(ema_decay=0.75), {"w": jnp.zeros(2)}, {"w": jnp.ones(2)})
    np.testing.assert_allclose(ema["w"], 0.25)
    assert optimizer.update_ema(OptimizerConfig(), None, {"w": jnp.ones(2)}) is None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TrainConfig(batch_size=0), "train.batch_size cannot be 0"),
        (lambda: TrainConfig(seconds=0.0), "train.seconds"),
        (lambda: TrainConfig(seconds=1.0, steps=5, min_steps=6), "train.min_steps"),
        (lambda: OptimizerConfig(ema_decay=1.0), "train.optimizer.ema_decay"),
        (lambda: OptimizerConfig(clip_norm=0.0), "train.optimizer.clip_norm"),
    ],
)
def test_values_that_cannot_work_are_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()
