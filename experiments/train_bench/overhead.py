"""What the training loop costs: steps of a tiny prior inside the whole loop, and the same compiled step alone.

    python -m experiments.train_bench.overhead

The two take turns, and the median over all turns counts. Needs tensorboardX besides jax, flax, optax and orbax.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.parallel.mesh import make_mesh
from jukebox_jax.parallel.strategies import batch_sharding, get_strategy
from jukebox_jax.training.config import TrainConfig
from jukebox_jax.training.host_memory import keep_freed_memory
from jukebox_jax.training.loop import train
from jukebox_jax.training.prior_task import prior_task
from jukebox_jax.training.state import abstract_state, create_state
from jukebox_jax.training.step import make_train_step
from jukebox_jax.training.telemetry import read_metrics

MODEL = PriorConfig(2, codes=512, n_ctx=512, width=64, depth=4, heads=2, blocks=16, remat="none")
CONFIG = TrainConfig(batch_size=8, log_every=1)
TASK = prior_task(MODEL)


def batch() -> dict[str, np.ndarray]:
    tokens = np.random.default_rng(0).integers(0, MODEL.codes, (CONFIG.batch_size, MODEL.n_ctx), np.int32)
    return {"tokens": tokens}


def seconds_alone(steps: int) -> list[float]:
    """The compiled step, called again and again: seconds of each call until its loss is there."""
    rules = get_strategy("single").rules
    mesh = make_mesh((1,))
    with jax.set_mesh(mesh):
        abstract = abstract_state(TASK, CONFIG, mesh, rules)
        state = create_state(TASK, CONFIG, abstract)
        step = make_train_step(TASK, CONFIG, mesh, rules, abstract)
        placed = jax.device_put(batch(), batch_sharding(mesh, rules, CONFIG.batch_size))
        times = []
        for _ in range(steps):
            started = time.perf_counter()
            state, metrics = step(state, placed)
            jax.block_until_ready(metrics)
            times.append(time.perf_counter() - started)
    return times[len(times) // 4 :]  # the first ones are slower


def seconds_in_the_loop(steps: int) -> list[float]:
    """The same steps inside `train`, with a row of metrics for every one, as the rows tell."""
    config = TrainConfig(batch_size=CONFIG.batch_size, steps=steps, log_every=1)
    with tempfile.TemporaryDirectory() as folder:
        train(
            TASK,
            config,
            lambda position: itertools.repeat(batch()),
            Path(folder) / "run",
            run_config={"train": {}},
            progress=False,
        )
        times = [row["step_seconds"] for row in read_metrics(Path(folder) / "run")]
    return times[len(times) // 4 :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="of each turn (default 100)")
    parser.add_argument("--turns", type=int, default=5, help="of each of the two (default 5)")
    args = parser.parse_args()
    keep_freed_memory()
    alone, inside = [], []
    for _ in range(args.turns):
        alone += seconds_alone(args.steps)
        inside += seconds_in_the_loop(args.steps)
    bare, looped = statistics.median(alone), statistics.median(inside)
    print(
        f"The step alone: {1e3 * bare:.2f} ms; in the loop: {1e3 * looped:.2f} ms, {looped / bare:.3f} times as long."
    )


if __name__ == "__main__":
    main()
