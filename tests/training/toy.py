"""A small real task: regression with noise in its loss and a running mean as model state. Also runs as a program."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jukebox_jax.config import to_dict
from jukebox_jax.training.config import OptimizerConfig, TrainConfig
from jukebox_jax.training.loop import train
from jukebox_jax.training.task import Task

WIDTH = 16
OPTIMIZER = OptimizerConfig(
    learning_rate=1e-2, warmup_steps=3, schedule="cosine", weight_decay=0.01, clip_norm=0.5, ema_decay=0.9
)


class MLP(nn.Module):
    hidden: int = 24

    @nn.compact
    def __call__(self, x):
        def dense(features, axes):
            init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), axes)
            return nn.Dense(features, kernel_init=init)

        x = nn.with_logical_constraint(x, ("batch", "width"))
        x = nn.relu(dense(self.hidden, ("width", "hidden"))(x))
        x = nn.with_logical_constraint(x, ("batch", "hidden"))
        return dense(WIDTH, ("hidden", "width"))(x)


def make_task(hidden: int = 24, noise: float = 0.1) -> Task:
    model = MLP(hidden)

    def init(key):
        mean = nn.LogicallyPartitioned(jnp.zeros(WIDTH), names=("width",))
        return model.init(key, jnp.zeros((1, WIDTH)))["params"], {"mean": mean}

    def loss(params, model_state, batch, key):
        x = batch["x"] + noise * jax.random.normal(key, batch["x"].shape)
        error = jnp.mean(jnp.square(model.apply({"params": params}, x) - batch["y"]))
        mean = 0.9 * model_state["mean"] + 0.1 * batch["x"].mean(0)
        return error, {"mean": mean}, {"x_mean": batch["x"].mean()}

    spec = jax.ShapeDtypeStruct((WIDTH,), jnp.float32)
    return Task(init, loss, flops_per_example=6.0 * 2 * WIDTH * hidden, batch_spec={"x": spec, "y": spec})


def make_batches(batch_size: int, on_batch=None):
    """Data that depend on the position alone; `on_batch(position)` is called before a batch is given."""

    def batches(position: int) -> Iterator[dict[str, np.ndarray]]:
        while True:
            if on_batch is not None:
                on_batch(position)
            rows = [
                np.random.default_rng((7, i)).standard_normal(WIDTH) for i in range(position, position + batch_size)
            ]
            x = np.stack(rows).astype(np.float32)
            yield {"x": x, "y": np.roll(x, 1, axis=1) * 0.5}
            position += batch_size

    return batches


def make_config(**changes) -> TrainConfig:
    base = TrainConfig(seed=1, batch_size=8, steps=10, log_every=1, optimizer=OPTIMIZER)
    return dataclasses.replace(base, **changes)


def run(run_dir, config: TrainConfig, on_batch=None, task: Task | None = None, **keywords):
    """Trains the toy without a progress line."""
    keywords = {"progress": False, "run_config": {"model": {"hidden": 24}, "train": to_dict(config)}, **keywords}
    return train(task or make_task(), config, make_batches(config.batch_size, on_batch), run_dir, **keywords)


def main(run_dir: str, steps: str, event: str, at_step: str, watchdog_minutes: str) -> None:
    """Trains; at a step, kills itself, tells that it is there and waits for a line on stdin, gets stuck, or does
    nothing."""

    def on_batch(position: int) -> None:
        if position // 8 != int(at_step):
            return
        if event == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if event == "wait":
            print("waiting", flush=True)
            sys.stdin.readline()
        if event == "stuck":
            time.sleep(600)

    config = make_config(steps=int(steps), checkpoint_every=3, watchdog_minutes=float(watchdog_minutes))
    run(run_dir, config, on_batch)


if __name__ == "__main__":
    main(*sys.argv[1:])
