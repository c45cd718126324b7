"""Set i: optimiser steps, averages of the weights, learning rates, loss scales, and how training data is cut."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count, takewhile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity.fixture import Reader
from experiments.parity.report import JSON_NUMBER, OTHER, STEP, Check
from jukebox_jax.pipeline.bandwidth import bandwidth_of
from jukebox_jax.pipeline.order import window_chunks
from jukebox_jax.pipeline.stream import mono
from jukebox_jax.training.config import OptimizerConfig
from jukebox_jax.training.loss_scale import create_loss_scale, update_loss_scale
from jukebox_jax.training.optimizer import clip, create_ema, global_norm, learning_rate, make_optimizer, update_ema

#: The original's defaults of the learning rate's schedule.
_SCHEDULE = {
    "lr_warmup": 100,
    "lr_gamma": 1.0,
    "lr_decay": 1e10,
    "lr_scale": 1.0,
    "lr_use_linear_decay": False,
    "lr_start_linear_decay": 0,
}


def checks(recorded: Reader) -> Iterator[Check]:
    extra = recorded.extra
    for run in sorted({name.split("/")[0] for name in recorded if name.startswith("adam")}):
        yield from _adam(recorded, run)
    for index, case in enumerate(extra["lr"]):
        yield Check(f"extra/lr/{index}/lr_at_step", _learning_rates(case), JSON_NUMBER)
    for index, case in enumerate(extra["loss_scaler"]):
        yield Check(f"extra/loss_scaler/{index}/scales", _loss_scales(case), JSON_NUMBER)
    yield from _bandwidth(recorded)
    yield from _chunks(extra["index_offset"])
    stereo = recorded["mix/in/x"]
    mixed = np.empty((*stereo.shape[:2], 1), np.float32)
    for item, out in zip(stereo, mixed, strict=True):
        mono(np.float32(2**15) * item, 0.5, out)  # a power of two: exact
    yield Check("mix/out/x", mixed, OTHER)


def _adam(recorded: Reader, run: str) -> Iterator[Check]:
    facts = recorded.extra[run]
    names = list(takewhile(lambda i: f"{run}/in/p{i}" in recorded, count()))
    steps = list(takewhile(lambda step: f"{run}/in/grad0_step{step}" in recorded, count()))
    config = OptimizerConfig(
        rule="original",
        b1=float(facts["beta1"]),
        b2=float(facts["beta2"]),
        eps=float(facts["eps"]),
        weight_decay=float(facts["weight_decay"]),
        clip_norm=float(facts["clip"]),
    )
    optimizer = make_optimizer(config)
    params = {i: jnp.asarray(recorded[f"{run}/in/p{i}"]) for i in names}
    state, ema, slow_ema = optimizer.init(params), create_ema(params), create_ema(params)
    decay, slow_decay = _average(recorded, f"{run}/out/ema0_step0"), _average(recorded, f"{run}/out/cpuema0_step0")
    norms, divisors = [], []
    for step in steps:
        gradients = {i: jnp.asarray(recorded[f"{run}/in/grad{i}_step{step}"]) for i in names}
        norm = global_norm(gradients)
        norms.append(float(norm))
        divisors.append(1 / float(clip(config, jnp.ones(()), norm)))
        directions, state = optimizer.update(clip(config, gradients, norm), state, params)
        params = {i: params[i] - facts["lr"] * directions[i] for i in names}
        ema = update_ema(ema, params, state[0].count, *decay)
        slow_ema = update_ema(slow_ema, params, state[0].count, *slow_decay)
        for i in names:
            yield Check(f"{run}/out/p{i}_step{step}", params[i], STEP)
            yield Check(f"{run}/out/ema{i}_step{step}", ema[i], STEP)
            yield Check(f"{run}/out/cpuema{i}_step{step}", slow_ema[i], STEP)
    for i in names:
        yield Check(f"{run}/out/exp_avg{i}", state[0].mu[i], STEP)
        yield Check(f"{run}/out/exp_avg_sq{i}", state[0].nu[i], STEP)
    yield Check(f"extra/{run}/grad_norms", norms, JSON_NUMBER)
    yield Check(f"extra/{run}/scales", divisors, JSON_NUMBER)


def _average(recorded: Reader, name: str) -> tuple[float, int]:
    """Decay and period of an average, which its description names: "CPUEMA(mu=0.9, freq=2) state"."""
    described = recorded.fixture.tree["arrays"][name]["desc"]
    period = re.search(r"freq=(\d+)", described)
    return float(re.search(r"mu=([\d.]*\d)", described)[1]), int(period[1]) if period else 1


def _learning_rates(case: dict[str, Any]) -> list[float]:
    hps = _SCHEDULE | case["hps"]
    # A decay over so many steps that float32 does not see it is none.
    decays = hps["lr_decay"] < 2**31
    linear = bool(hps["lr_use_linear_decay"]) and decays
    config = OptimizerConfig(
        learning_rate=float(case["base_lr"] * hps["lr_scale"]),
        warmup_steps=int(hps["lr_warmup"]),
        schedule="original_linear" if linear else "original",
        decay_factor=float(hps["lr_gamma"]),
        decay_steps=int(hps["lr_decay"]) if decays else None,
        decay_start=int(hps["lr_start_linear_decay"]),
    )
    steps = len(case["lr_at_step"])
    return [float(learning_rate(config, jnp.int32(step), jnp.int32(steps))) for step in range(steps)]


def _loss_scales(case: dict[str, Any]) -> list[float]:
    """The scale before the first step and after each."""
    arguments = case["args"]
    if arguments.get("loss_scale") is not None:
        fixed = OptimizerConfig(loss_scale=float(arguments["loss_scale"])).loss_scale
        return [fixed] * (len(case["overflows"]) + 1)
    # The recorded scales are float64; over many steps those of float32 drift away by more than the tolerance.
    with jax.enable_x64(True):
        state = create_loss_scale()
        state = state.replace(scale=jnp.float64(state.scale))
        scales = [float(state.scale)]
        for overflow in case["overflows"]:
            factor, window = float(arguments.get("scale_factor", 2.0)), arguments.get("scale_window", 1)
            state = update_loss_scale(state, jnp.asarray(bool(overflow)), factor, window)
            scales.append(float(state.scale))
    return scales


def _bandwidth(recorded: Reader) -> Iterator[Check]:
    facts = recorded.extra["bandwidth"]
    names = takewhile(recorded.__contains__, (f"bandwidth/in/x{index}" for index in count()))
    constants = bandwidth_of([recorded[name] for name in names], int(facts["sr"] * facts["duration"]))
    yield Check("extra/bandwidth/result", constants, JSON_NUMBER)


def _chunks(facts: dict[str, Any]) -> Iterator[Check]:
    window, ends = facts["sample_length"], np.cumsum(facts["durations"], dtype=np.int64)
    yield Check("extra/index_offset/n_items", int(ends[-1]) // window)
    for name in ("no_shift", "with_shift"):
        table = np.asarray(facts[name], np.int64)
        items, shifts = table[:, 0], table[:, 1] if name == "with_shift" else np.zeros(len(table), np.int64)
        songs, offsets = window_chunks(items, shifts, ends, window)
        yield Check(f"extra/index_offset/{name}", np.column_stack([table[:, :-2], songs, offsets]).tolist())
