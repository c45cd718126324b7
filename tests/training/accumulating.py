"""Trains a small prior for a step, whole and in parts, on eight devices and prints what came out; run as a program."""

from __future__ import annotations

import json

import jax
import numpy as np

from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.parallel.mesh import make_mesh
from jukebox_jax.parallel.strategies import get_strategy
from jukebox_jax.training.config import TrainConfig
from jukebox_jax.training.prior_task import prior_task
from jukebox_jax.training.state import abstract_state, create_state
from jukebox_jax.training.step import make_train_step

MODEL = PriorConfig(level=0, codes=50, n_ctx=32, width=16, depth=2, heads=2, blocks=4, init_scale=5.0)
BATCH = 32


def make_step(strategy: str, parts: int):
    """The mesh, the state before the first step, the batch, and the compiled step."""
    task = prior_task(MODEL)
    config = TrainConfig(batch_size=BATCH, accumulate=parts, strategy=strategy)
    row = get_strategy(strategy)
    mesh = make_mesh(row.mesh_shape)
    with jax.set_mesh(mesh):
        abstract = abstract_state(task, config, mesh, row.rules)
        state = create_state(task, config, abstract)
        tokens = np.random.default_rng(0).integers(0, MODEL.codes, (BATCH, MODEL.n_ctx), np.int32)
        step = make_train_step(task, config, mesh, row.rules, abstract).lower(state, {"tokens": tokens}).compile()
    return mesh, state, {"tokens": jax.device_put(tokens, step.input_shardings[0][1]["tokens"])}, step


def first_step(strategy: str, parts: int):
    """Gradients (Adam's first moment is a tenth of them), metrics, and the compiled program's text."""
    mesh, state, batch, step = make_step(strategy, parts)
    with jax.set_mesh(mesh):
        state, metrics = step(state, batch)
    return jax.tree.map(np.asarray, state.opt_state[0].mu), jax.device_get(metrics), step.as_text()


def differences(strategy: str, parts: int, reference) -> dict[str, float]:
    """Relative L2 of every gradient, and relative difference of the metrics, from those of `first_step`."""
    gradients, metrics, text = first_step(strategy, parts)
    expected, expected_metrics, whole_text = reference
    far = jax.tree.map(lambda a, b: float(np.linalg.norm(a - b) / np.linalg.norm(b)), gradients, expected)
    return {
        "gradients": max(jax.tree.leaves(far)),
        "metrics": max(abs(float(metrics[name] / value - 1)) for name, value in expected_metrics.items() if value),
        # Tokens are the only whole numbers that a step could move between devices.
        "moved": sum("s32[" in line for line in text.splitlines() if "all-to-all(" in line or "permute(" in line),
        "loops": text.count("while(") - whole_text.count("while("),
    }


def main() -> None:
    assert jax.device_count() == 8
    reference = first_step("single", 1)
    runs = [("fsdp", 4), ("dp", 2)]
    print(json.dumps({f"{strategy} {parts}": differences(strategy, parts, reference) for strategy, parts in runs}))


if __name__ == "__main__":
    main()
