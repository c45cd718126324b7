"""A run that meets bad data: it skips single bad steps, and twice goes back to a checkpoint and past the data.

python -m experiments.fault_drill.bad_numbers RUN STEPS
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jukebox_jax.config import to_dict
from jukebox_jax.training.config import OptimizerConfig, TrainConfig
from jukebox_jax.training.loop import train
from jukebox_jax.training.task import Task

WIDTH, BATCH, MAX_SKIPPED = 16, 8, 3
STEP_SECONDS = 0.02  # so that a kill finds the way between two steps


def bad_batches(steps: int) -> set[int]:
    """Of the data, not of the run: numbers of batches that hold NaN."""
    single, first, second = steps // 5, steps // 3, 2 * steps // 3
    return {single, *range(first, first + MAX_SKIPPED), *range(second, second + MAX_SKIPPED)}


def make_task() -> Task:
    """Linear regression with noise."""

    def init(key):
        return {"w": jax.random.normal(key, (WIDTH, WIDTH))}, {}

    def loss(params, model_state, batch, key):
        x = batch["x"] + 0.1 * jax.random.normal(key, batch["x"].shape)
        return jnp.mean(jnp.square(x @ params["w"] - batch["x"])), model_state, {}

    return Task(init, loss, 6.0 * WIDTH**2, {"x": jax.ShapeDtypeStruct((WIDTH,), jnp.float32)})


def main(run_dir: str, steps: str) -> None:
    bad = bad_batches(int(steps))

    def batches(position: int) -> Iterator[dict[str, np.ndarray]]:
        while True:
            x = np.random.default_rng((7, position)).standard_normal((BATCH, WIDTH), dtype=np.float32)
            if position // BATCH in bad:
                x[0, 0] = np.nan
            time.sleep(STEP_SECONDS)
            yield {"x": x}
            position += BATCH

    config = TrainConfig(
        batch_size=BATCH,
        steps=int(steps),
        log_every=1,
        checkpoint_every=7,
        max_skipped=MAX_SKIPPED,
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=3, ema_decay=0.9),
    )
    train(make_task(), config, batches, Path(run_dir), run_config={"train": to_dict(config)}, progress=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
