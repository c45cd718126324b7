"""Learning rate, clipping, average of the weights, loss scale, and the updates against references in numpy.

Recorded numbers of the original, where they lie beside this repository, are compared with, too.
"""

from __future__ import annotations

import dataclasses
import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec
from recorded import recorded

from jukebox_jax.config import from_dict, to_dict
from jukebox_jax.errors import UserError
from jukebox_jax.parallel.mesh import make_mesh
from jukebox_jax.parallel.strategies import get_strategy
from jukebox_jax.training import optimizer
from jukebox_jax.training.config import OptimizerConfig, TrainConfig
from jukebox_jax.training.loss_scale import LossScale, create_loss_scale, update_loss_scale
from jukebox_jax.training.state import abstract_state, create_state, to_parts
from jukebox_jax.training.step import make_train_step
from jukebox_jax.training.task import Task
from jukebox_jax.training.telemetry import read_metrics
from tests.training import toy


@pytest.fixture(scope="module")
def golden():
    path = recorded("i_train_utils.json")
    return json.loads(path.read_text())["extra"], np.load(path.with_suffix(".npz"))


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


# ---- The original's rule ------------------------------------------------------------------------------------------


def original(**changes) -> OptimizerConfig:
    return OptimizerConfig(rule="original", **changes)


def descend(config, params, gradients, rate, loss_scale=None):
    """Yields (parameters, first element of the optimizer's state) after each update."""
    transform = optimizer.make_optimizer(config)
    state = transform.init(params)
    for gradient in gradients:
        norm = optimizer.global_norm(gradient)
        if loss_scale is not None:
            norm = norm / loss_scale
        clipped = optimizer.clip(config, gradient, norm, loss_scale)
        direction, state = transform.update(clipped, state, params)
        params = jax.tree.map(lambda p, d: (p - rate * d).astype(p.dtype), params, direction)
        yield params, state[0]


def test_three_original_updates_equal_the_recorded_ones():
    config = original(weight_decay=0.01, clip_norm=None)
    gradients = [8.0 * jnp.asarray(g) for g in ([0.1, -0.2, 0.3], [0.05, 0.4, -0.3], [0.0, 0.1, 0.2])]
    *_, (params, state) = descend(config, jnp.asarray([1.0, -2.0, 0.5]), gradients, 3e-4, loss_scale=jnp.float32(8.0))
    np.testing.assert_allclose(params, [0.999201894, -1.999930024, 0.499643952], rtol=1e-7)
    assert int(state.count) == 3


@pytest.mark.parametrize("case", ["adam0", "adam1"])
def test_clipped_updates_and_both_averages_equal_the_original(golden, case):
    extra, arrays = golden
    told = extra[case]
    config = original(
        b1=told["beta1"], b2=told["beta2"], eps=told["eps"], weight_decay=told["weight_decay"], clip_norm=told["clip"]
    )
    steps = len(told["grad_norms"])
    gradients = [[jnp.asarray(arrays[f"{case}/in/grad{i}_step{n}"]) for i in (0, 1)] for n in range(steps)]
    for gradient, norm, scale in zip(gradients, told["grad_norms"], told["scales"], strict=True):
        np.testing.assert_allclose(optimizer.global_norm(gradient), norm, rtol=1e-6)
        np.testing.assert_allclose(max(1.0, norm / told["clip"]), scale, rtol=1e-6)
    params = [jnp.asarray(arrays[f"{case}/in/p{i}"]) for i in (0, 1)]
    ema = cpu_ema = optimizer.create_ema(params)
    for n, (updated, state) in enumerate(descend(config, params, gradients, told["lr"])):
        ema = optimizer.update_ema(ema, updated, state.count, decay=0.9)
        cpu_ema = optimizer.update_ema(cpu_ema, updated, state.count, decay=0.9, every=2)
        for name, tree in (("p", updated), ("ema", ema), ("cpuema", cpu_ema)):
            for i in (0, 1):
                np.testing.assert_allclose(tree[i], arrays[f"{case}/out/{name}{i}_step{n}"], rtol=0, atol=1e-6)
    for name, tree in (("exp_avg", state.mu), ("exp_avg_sq", state.nu)):
        for i in (0, 1):
            np.testing.assert_allclose(tree[i], arrays[f"{case}/out/{name}{i}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("eps", [1e-8, 0.1])
def test_original_updates_equal_the_formula_also_where_eps_and_b2_matter(eps):
    gradients = [0.5, -0.1, 0.3]
    steps = descend(original(eps=eps, weight_decay=0.1), jnp.asarray([2.0]), [jnp.asarray([g]) for g in gradients], 0.5)
    p, m, v = 2.0, 0.0, 0.0
    for t, (g, (params, _)) in enumerate(zip(gradients, steps, strict=True), start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        p -= 0.5 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * (m / (math.sqrt(v) + eps) + 0.1 * p)
        np.testing.assert_allclose(params, [p], rtol=5e-7)


def test_half_parameters_move_in_place_with_half_moments():
    rng = np.random.default_rng(3)
    config = original(weight_decay=0.1, clip_norm=None)
    gradients = [{"w": rng.normal(size=(3, 4)) * 1e-5, "b": rng.normal(size=4)} for _ in range(4)]
    params = {"w": jnp.asarray(rng.normal(size=(3, 4)), jnp.float16), "b": jnp.asarray(rng.normal(size=4), jnp.float32)}
    scale = 65536.0  # without it these gradients would lose most of their bits in float16
    scaled = [{"w": jnp.asarray(g["w"] * scale, jnp.float16), "b": jnp.float32(g["b"] * scale)} for g in gradients]
    *_, (got, state) = descend(config, params, scaled, 1e-2, loss_scale=jnp.float32(scale))

    w = np.asarray(params["w"])
    m, v = np.zeros((3, 4), np.float16), np.zeros((3, 4), np.float16)
    m_scale = v_scale = np.float32(1e-8)
    for t, g in enumerate(scaled, start=1):
        g = np.asarray(g["w"], np.float32) / np.float32(scale)
        mean = np.float32(0.9) * (m.astype(np.float32) * m_scale) + np.float32(0.1) * g
        square = np.float32(0.999) * (v.astype(np.float32) * v_scale) + np.float32(0.001) * g * g
        rate = np.float32(1e-2 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t))
        wide = w.astype(np.float32)
        w = (wide - rate * (mean / (np.sqrt(square) + np.float32(1e-8)) + np.float32(0.1) * wide)).astype(np.float16)
        m_scale, v_scale = (np.float32(1e-8 + np.abs(x).max() / 65504) for x in (mean, square))
        m, v = (mean / m_scale).astype(np.float16), (square / v_scale).astype(np.float16)
    assert got["w"].dtype == jnp.float16
    step = np.spacing(np.abs(w))  # one unit in the last place, where float32 rounds differently
    assert np.all(np.abs(got["w"] - w) <= step)
    assert np.mean(got["w"] != w) < 0.2
    assert not np.array_equal(w, params["w"])
    for moment, values, its_scale in ((state.mu["w"], m, m_scale), (state.nu["w"], v, v_scale)):
        assert moment.values.dtype == jnp.float16
        np.testing.assert_allclose(moment.scale, its_scale, rtol=1e-4)
        np.testing.assert_allclose(moment.values.astype(np.float32), values.astype(np.float32), rtol=2e-3)
    assert state.mu["b"].dtype == state.nu["b"].dtype == jnp.float32
    # A float32 parameter moves as it would without a half one beside it.
    *_, (alone, _) = descend(config, params["b"], [g["b"] for g in scaled], 1e-2, loss_scale=jnp.float32(scale))
    np.testing.assert_array_equal(got["b"], alone)


def test_adamw_keeps_its_bits_whatever_the_original_needs():
    config = OptimizerConfig(weight_decay=0.1)
    params, gradient = {"w": jnp.asarray([1.0, -2.0])}, {"w": jnp.asarray([3.0, 4.0])}
    (updated, state), *_ = descend(config, params, [gradient], 0.01)
    clipped = gradient["w"] / 5.0
    mu, nu = 0.1 * clipped, 0.001 * clipped**2
    want = params["w"] - 0.01 * (mu / (1 - 0.9) / (jnp.sqrt(nu / (1 - 0.999)) + 1e-8) + 0.1 * params["w"])
    np.testing.assert_allclose(updated["w"], want, rtol=1e-6)
    assert jax.tree.structure(state) == jax.tree.structure(optimizer.make_optimizer(original()).init(params)[0])


# ---- The original's learning rate ---------------------------------------------------------------------------------


def original_schedule(hps, base_rate):
    """The config for options of the original; its `lr_scale` is a factor of our learning rate."""
    linear = hps.get("lr_use_linear_decay", False)
    return OptimizerConfig(
        learning_rate=base_rate * hps.get("lr_scale", 1.0),
        warmup_steps=int(hps.get("lr_warmup", 100)),
        schedule="original_linear" if linear else "original",
        decay_factor=hps.get("lr_gamma", 1.0),
        decay_steps=int(hps["lr_decay"]) if "lr_decay" in hps else None,
        decay_start=hps.get("lr_start_linear_decay", 0),
    )


def test_learning_rates_equal_the_original(golden):
    assert len(golden[0]["lr"]) >= 5
    for case in golden[0]["lr"]:
        config = original_schedule(case["hps"], case["base_lr"])
        compiled = jax.jit(lambda n, config=config: optimizer.learning_rate(config, n, jnp.int32(7)))
        got = [float(compiled(jnp.int32(n))) for n in range(len(case["lr_at_step"]))]
        np.testing.assert_allclose(got, case["lr_at_step"], rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    step=st.integers(0, 3_000_000),
    warmup=st.integers(1, 5000),
    decay=st.integers(1, 2_000_000),
    start=st.integers(0, 2_000_000),
    linear=st.booleans(),
)
def test_original_schedules_are_the_formulas_of_the_specification(step, warmup, decay, start, linear):
    hps = {"lr_warmup": warmup, "lr_decay": decay, "lr_gamma": 0.5, "lr_start_linear_decay": start}
    config = original_schedule({**hps, "lr_use_linear_decay": linear}, 1.0)
    want = min(1.0, step / warmup) * (max(0, 1 - max(0, step - start) / decay) if linear else 0.5 ** (step // decay))
    got = float(optimizer.learning_rate(config, jnp.int32(step), jnp.int32(1)))
    assert got == pytest.approx(want, rel=1e-6, abs=1e-37)


def test_a_linear_decay_ends_the_run_before_the_learning_rate_is_zero():
    schedule = OptimizerConfig(schedule="original_linear", decay_start=12, decay_steps=10, warmup_steps=4)
    config = TrainConfig(steps=1000, optimizer=schedule)
    last = config.last_step
    assert last == 22
    assert rates(schedule, 1, [last])[0] == 0.0
    assert all(rate > 0 for rate in rates(schedule, 1, range(1, last)))
    assert dataclasses.replace(config, steps=15).last_step == 15
    assert TrainConfig(steps=1000).last_step == 1000


def test_no_warm_up_means_a_full_first_step():
    assert rates(OptimizerConfig(learning_rate=1.0, warmup_steps=0, schedule="original"), 2) == [1.0, 1.0]
    assert rates(OptimizerConfig(learning_rate=1.0, warmup_steps=1, schedule="original"), 2) == [0.0, 1.0]


# ---- Average of the weights ---------------------------------------------------------------------------------------


def test_the_average_moves_by_one_minus_decay():
    ema = optimizer.update_ema({"w": jnp.zeros(2)}, {"w": jnp.ones(2)}, jnp.int32(1), decay=0.75)
    np.testing.assert_allclose(ema["w"], 0.25)


def test_a_rare_average_moves_on_every_so_manieth_update_by_as_much():
    ema, moves = jnp.float32(0.0), []
    for update in range(1, 8):
        ema = optimizer.update_ema(ema, jnp.float32(1.0), jnp.int32(update), decay=0.5, every=3)
        moves.append(float(ema))
    first, second = 1 - 0.5**3, 1 - 0.5**6
    np.testing.assert_allclose(moves, [0, 0, first, first, first, second, second], rtol=1e-6)


def test_the_average_of_half_parameters_is_kept_in_float32():
    params = jnp.ones(3, jnp.float16)
    ema = optimizer.create_ema(params)
    assert ema.dtype == jnp.float32
    moved = optimizer.update_ema(ema, params * 2, jnp.int32(1), decay=0.99999)
    np.testing.assert_allclose(moved, 1.00001, rtol=1e-6)  # float16 knows no number between 1 and 1.001


def test_the_originals_decay_depends_on_the_whole_batch():
    assert optimizer.default_ema_decay(4) == pytest.approx(0.9995)
    assert optimizer.default_ema_decay(256) == pytest.approx(0.968)


# ---- Loss scale ---------------------------------------------------------------------------------------------------


def scales(overflows, factor, window=1):
    state, seen = create_loss_scale(), []
    compiled = jax.jit(lambda s, o: update_loss_scale(s, o, factor, window))
    for overflow in overflows:
        seen.append(float(state.scale))
        state = compiled(state, jnp.asarray(bool(overflow)))
    return [*seen, float(state.scale)]


def test_loss_scales_equal_the_original(golden):
    dynamic = [case for case in golden[0]["loss_scaler"] if case["args"]["loss_scale"] is None]
    assert len(dynamic) >= 2
    for case in dynamic:
        got = scales(case["overflows"], case["args"]["scale_factor"], case["args"].get("scale_window", 1))
        np.testing.assert_allclose(got, case["scales"], rtol=1e-6)


def test_a_loss_scale_halves_grows_after_its_window_and_has_a_ceiling():
    assert scales([1, 1], 2.0) == [2.0**16, 2.0**15, 2.0**14]
    assert scales([0, 0, 1, 0, 0, 0, 0], 2.0, 3) == [2.0**n for n in (16, 16, 16, 15, 15, 15, 16, 16)]
    assert scales([0] * 12, 2.0)[-4:] == [2.0**24] * 4
    assert scales([0] * 250, 2 ** (1 / 250))[-1] == pytest.approx(2.0**17, rel=1e-4)


def faulty_task() -> Task:
    """A parameter to be made zero; batches are good (0), or NaN in the gradient (1) or the loss (2), or steep (3)."""

    def loss(params, model_state, batch, key):
        kind = batch["kind"][0]
        bad_gradient = jnp.sqrt(jnp.where(kind == 1, 0.0, 1.0) * params["w"] ** 2) * 0.0
        bad_loss = jnp.where(kind == 2, jnp.nan, 0.0)
        steep = jnp.where(kind == 3, 1000.0, 1.0)
        return steep * jnp.sum(params["w"] ** 2 + bad_gradient) + bad_loss, {"seen": model_state["seen"] + 1}, {}

    def init(key):
        return {"w": jnp.asarray([1.0, 2.0])}, {"seen": jnp.int32(0)}

    return Task(init, loss, 1.0, {"kind": jax.ShapeDtypeStruct((), jnp.int32)})


def take_steps(kinds, **changes):
    """States and metrics after each step on batches of these kinds; states[0] is the first one."""
    config = TrainConfig(batch_size=1, optimizer=original(schedule="constant", warmup_steps=0, **changes))
    mesh, rules = make_mesh((1, 1, 1, 1)), get_strategy("single").rules
    with jax.set_mesh(mesh):
        abstract = abstract_state(faulty_task(), config, mesh, rules)
        state = create_state(faulty_task(), config, abstract)
        step = make_train_step(faulty_task(), config, mesh, rules, abstract)
        states, metrics = [jax.device_get(state)], []
        for kind in kinds:
            state, seen = step(state, {"kind": jnp.asarray([kind], jnp.int32)})
            states.append(jax.device_get(state))
            metrics.append({name: float(value) for name, value in seen.items()})
    return states, metrics


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


LEARNED = ("params", "opt_state", "ema", "model_state")


def test_a_step_halves_the_scale_on_overflow_of_the_gradients_and_not_of_the_loss():
    kinds = [0, 1, 0, 2, 0]
    states, metrics = take_steps(kinds, loss_scale="dynamic", loss_scale_window=1, ema_decay=0.5, ema_every=2)
    assert [m["loss_scale_log2"] for m in metrics] == [16, 17, 16, 17, 17]
    assert [m["skipped"] for m in metrics] == [0, 1, 0, 1, 0]
    assert metrics[0]["loss"] == 5.0
    assert metrics[0]["grad_norm"] == pytest.approx(math.sqrt(20), rel=1e-6)
    assert [int(s.opt_state[0].count) for s in states] == [0, 1, 1, 2, 2, 3]
    for n in (1, 3):
        for name in LEARNED:
            assert_same_bits(getattr(states[n], name), getattr(states[n + 1], name))
    assert_same_bits(states[3].loss_scale, states[4].loss_scale)
    # The average moves on the second update that was taken, which is the third step.
    averages = [s.ema["w"][0] for s in states]
    assert averages[1] == averages[2] == 1.0
    assert averages[3] == pytest.approx(1 + 0.75 * (states[3].params["w"][0] - 1), rel=1e-6)
    assert averages[5] == averages[3]


def test_a_scaled_loss_trains_as_an_unscaled_one():
    plain, _ = take_steps([0, 0, 3], weight_decay=0.1)
    for scale in (1024.0, "dynamic"):
        scaled, _ = take_steps([0, 0, 3], weight_decay=0.1, loss_scale=scale)
        np.testing.assert_allclose(scaled[-1].params["w"], plain[-1].params["w"], rtol=1e-6)
    assert "loss_scale_log2" not in take_steps([0])[1][0]
    assert take_steps([0, 1], loss_scale=1024.0)[1][1]["loss_scale_log2"] == 10.0
    assert plain[0].loss_scale is None


def test_steep_gradients_are_ignored_on_request_and_leave_the_scale():
    states, metrics = take_steps([0, 3, 0], ignore_grad_norm=100.0, loss_scale="dynamic", loss_scale_window=1)
    assert [m["skipped"] for m in metrics] == [0, 1, 0]
    assert metrics[1]["grad_norm"] > 100
    for name in LEARNED:
        assert_same_bits(getattr(states[1], name), getattr(states[2], name))
    assert [float(s.loss_scale.scale) for s in states] == [2.0**n for n in (16, 17, 18, 19)]
    assert int(states[-1].skipped_steps) == 1


# ---- All of it in a run -------------------------------------------------------------------------------------------


def half_task() -> Task:
    """The toy with float16 matrices."""
    task = toy.make_task()

    def init(key):
        params, model_state = task.init(key)
        return jax.tree.map(lambda p: p.astype(jnp.float16) if p.ndim == 2 else p, params), model_state

    return dataclasses.replace(task, init=init)


HALF = OptimizerConfig(
    rule="original",
    learning_rate=1e-2,
    warmup_steps=3,
    schedule="original",
    weight_decay=0.01,
    ema_decay="original",
    ema_every=3,
    loss_scale="dynamic",
    loss_scale_window=4,
)


def test_half_training_with_a_dynamic_scale_resumes_to_the_bit(tmp_path):
    config = toy.make_config(steps=8, optimizer=HALF)
    whole = toy.run(tmp_path / "whole", config, task=half_task())
    toy.run(tmp_path / "parts", dataclasses.replace(config, steps=5), task=half_task())
    assert_same_bits(jax.device_get(toy.run(tmp_path / "parts", config, task=half_task())), jax.device_get(whole))
    rows = read_metrics(tmp_path / "whole")
    assert rows[0]["learning_rate"] == 0.0
    assert rows[0]["loss_scale_log2"] == 16.0
    assert isinstance(whole.loss_scale, LossScale)
    assert int(whole.opt_state[0].count) == 8 - int(whole.skipped_steps)
    assert whole.opt_state[0].mu["Dense_0"]["kernel"].values.dtype == jnp.float16
    assert whole.ema["Dense_0"]["kernel"].dtype == jnp.float32


def test_half_training_learns(tmp_path):
    config = toy.make_config(steps=150, log_every=50, optimizer=HALF)
    toy.run(tmp_path / "run", config, task=half_task())
    rows = read_metrics(tmp_path / "run")
    assert rows[-1]["loss"] < 0.4 * rows[0]["loss"]


def test_half_moments_are_sharded_like_their_parameters():
    config = toy.make_config(optimizer=HALF)
    abstract = abstract_state(half_task(), config, make_mesh((1, 1, 1, 1)), get_strategy("fsdp").rules)
    kernel = abstract.params["Dense_0"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec("fsdp", None)
    for moment in (abstract.opt_state[0].mu, abstract.opt_state[0].nu):
        half, bias = moment["Dense_0"]["kernel"], moment["Dense_0"]["bias"]
        assert (half.values.shape, half.values.dtype) == (kernel.shape, jnp.float16)
        assert half.values.sharding == kernel.sharding
        assert half.scale.sharding.spec == PartitionSpec()
        assert bias.dtype == jnp.float32
    assert not any(isinstance(leaf, nn.meta.AxisMetadata) for leaf in jax.tree.leaves(abstract.opt_state))


def test_a_run_without_dynamic_scale_has_the_checkpoint_it_always_had():
    abstract = abstract_state(toy.make_task(), toy.make_config(), make_mesh((1, 1, 1, 1)), get_strategy("single").rules)
    counters = {"step", "total_steps", "examples_seen", "data_offset", "skipped_steps", "skipped_in_a_row"}
    assert set(to_parts(abstract)["trainer"]) == {"opt_state"} | counters


def test_the_config_survives_json():
    assert from_dict(OptimizerConfig, json.loads(json.dumps(to_dict(HALF)))) == HALF


SHORT = OptimizerConfig(schedule="original_linear", decay_steps=5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TrainConfig(batch_size=0), "train.batch_size cannot be 0"),
        (lambda: TrainConfig(seconds=0.0), "train.seconds"),
        (lambda: TrainConfig(seconds=1.0, steps=5, min_steps=6), "train.min_steps"),
        (lambda: OptimizerConfig(ema_decay=1.0), "train.optimizer.ema_decay"),
        (lambda: OptimizerConfig(clip_norm=0.0), "train.optimizer.clip_norm"),
        (lambda: OptimizerConfig(ignore_grad_norm=-1.0), "train.optimizer.ignore_grad_norm"),
        (lambda: OptimizerConfig(ema_every=0), "train.optimizer.ema_every"),
        (lambda: OptimizerConfig(loss_scale=0.0), "train.optimizer.loss_scale"),
        (lambda: OptimizerConfig(loss_scale=math.nan), "train.optimizer.loss_scale"),
        (lambda: OptimizerConfig(loss_scale_window=0), "train.optimizer.loss_scale_window"),
        (lambda: OptimizerConfig(decay_factor=0.0), "train.optimizer.decay_factor"),
        (lambda: OptimizerConfig(decay_steps=10**10), "train.optimizer.decay_steps"),
        (lambda: OptimizerConfig(schedule="original_linear"), "decay_steps cannot be None.*for original_linear"),
        (lambda: OptimizerConfig(decay_start=-1), "train.optimizer.decay_start"),
        (lambda: TrainConfig(batch_size=8001, optimizer=HALF), "train.batch_size"),
        (lambda: TrainConfig(seconds=1.0, min_steps=9, optimizer=SHORT), "at most the run's steps \\(5\\)"),
    ],
)
def test_values_that_cannot_work_are_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()
