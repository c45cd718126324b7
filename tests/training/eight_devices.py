"""Trains the toy under several strategies on eight devices and prints what came out; run as a program."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np

from jukebox_jax.training.telemetry import read_metrics
from tests.training import toy

RUNS = {
    "single": {"strategy": "single"},
    "dp": {"strategy": "dp"},
    "fsdp": {"strategy": "fsdp"},
    "replicated_fsdp": {"strategy": "fsdp", "mesh": (2, 4)},
}


def arrays(state):
    parts = {
        "params": state.params,
        "ema": state.ema,
        "model_state": state.model_state,
        "moment": state.opt_state[0].mu,
    }
    leaves = jax.tree_util.tree_leaves_with_path(parts)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def summary(run_dir: Path, state, reference) -> dict:
    rows = read_metrics(run_dir)
    leaves = arrays(state)
    differences = {name: np.abs(np.asarray(leaf) - np.asarray(reference[name])).max() for name, leaf in leaves.items()}
    return {
        "losses": [row["loss"] for row in rows],
        "grad_norms": [row["grad_norm"] for row in rows],
        "difference": float(max(differences.values())),
        "shards": {name: list(leaf.addressable_shards[0].data.shape) for name, leaf in leaves.items()},
        "devices": len(state.step.sharding.device_set),
    }


def main(folder: str) -> None:
    assert jax.device_count() == 8
    root, report = Path(folder), {}
    for name, changes in RUNS.items():
        state = toy.run(root / name, toy.make_config(steps=4, **changes))
        if name == "single":
            reference = arrays(state)
        report[name] = summary(root / name, state, reference)
    # A checkpoint does not know the mesh that it was written under.
    toy.run(root / "moved", toy.make_config(steps=2, strategy="fsdp", optimizer=toy.OPTIMIZER))
    toy.run(root / "straight", toy.make_config(steps=2, strategy="dp", optimizer=toy.OPTIMIZER))
    config = toy.make_config(steps=4, strategy="dp", optimizer=toy.OPTIMIZER)
    straight = arrays(toy.run(root / "straight", config))
    report["moved"] = summary(root / "moved", toy.run(root / "moved", config), straight)
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
