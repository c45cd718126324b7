"""Drills of `jukebox-jax train`: to the bit on one mesh, and nearly so where restarts use other meshes and hosts."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import random
import socket
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.fault_drill.engine import Comparison, Drill, Start
from experiments.fault_drill.hosts import ON_CPU, Program, verb
from jukebox_jax.checkpoint import runs
from jukebox_jax.checkpoint.reading import load_parts, stored_parts
from jukebox_jax.training.log import is_measured
from jukebox_jax.training.telemetry import METRICS_FILE, read_metrics

CONFIG = Path(__file__).with_name("config.py")
RUN, UNFINISHED = "run", ".orbax-checkpoint-tmp"
_LAST_BYTES = 4096  # more than a row of metrics has


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run is started: with which strategy, on so many hosts with so many devices each."""

    strategy: str = "single"
    devices: int = 1
    hosts: int = 1

    def __str__(self) -> str:
        devices = f"{self.hosts}×{self.devices}" if self.hosts > 1 else f"{self.devices}"
        return self.strategy if devices == "1" else f"{self.strategy} {devices}"


def training_drill(
    name: str,
    model: str,
    data: Path,
    steps: int,
    cache: Path,
    places: tuple[Place, ...] = (Place(),),
    loss_limit: float | None = None,
) -> Drill:
    """A run of the model ("prior" or "codec" of config.py) on a dataset.

    Args:
      cache: folder for compiled programs, which all starts share.
      places: of the undisturbed run and, in turn, of the restarts.
      loss_limit: the largest relative difference between the losses of a step; None: all that a run leaves must be the
        same to the bit, but for times.
    """

    def start(place: Place) -> Start:
        arguments = ("train", "--quiet", "--config", f"{CONFIG}:{model}", f"--config.train.steps={steps}")
        arguments += (f"--config.train.strategy={place.strategy}", "--data", data, "--out")
        env = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={place.devices}"} | _compiled_in(cache)

        def programs(folder: Path) -> list[Program]:
            address = f"127.0.0.1:{_free_port()}"
            hosts = [("--hosts", f"{address},{place.hosts},{host}") for host in range(place.hosts)]
            return [verb(*arguments, folder / RUN, *words, env=env) for words in (hosts if place.hosts > 1 else [()])]

        return programs

    if loss_limit is None:
        compare = compare_bits
    else:
        compare = functools.partial(compare_losses, limit=loss_limit)
    return Drill(
        name=name,
        what=f"{model}, {', '.join(map(str, places))}",
        starts=tuple(map(start, places)),
        compare=compare,
        damage=damage_latest,
        **_of_a_run(steps),
    )


def bad_numbers_drill(name: str, steps: int, cache: Path) -> Drill:
    """A run that skips steps and goes back to checkpoints, on its own account, while it is killed.

    No checkpoint is damaged: without the one that the undisturbed run goes back to, the disturbed one must go further.
    """
    words = ("-m", "experiments.fault_drill.bad_numbers")
    return Drill(
        name=name,
        what="a small task, bad data, single",
        starts=(lambda folder: [Program((*words, str(folder / RUN), str(steps)), ON_CPU | _compiled_in(cache))],),
        compare=compare_bits,
        goes_back=True,
        **_of_a_run(steps),
    )


def _of_a_run(steps: int) -> dict[str, Any]:
    """What every drill of a run of so many steps is given."""
    return {
        "total": steps,
        "seen": logged_steps,
        "kept": kept_steps,
        "writing": is_writing,
        "most_kills": max(1, steps // 4),
    }


def _compiled_in(cache: Path) -> dict[str, str]:
    return {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ---- A run, seen from outside -----------------------------------------------------------------------------------


def logged_steps(folder: Path) -> int:
    """The last step in the log."""
    try:
        with open(folder / RUN / METRICS_FILE, "rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - _LAST_BYTES))
            lines = log.read().split(b"\n")
    except FileNotFoundError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError):  # cut off by a kill, or by us
            continue
    return 0


def kept_steps(folder: Path) -> int:
    """The step of the latest complete checkpoint."""
    return max(runs.steps(folder / RUN), default=0)


def is_writing(folder: Path) -> bool:
    """Whether a checkpoint is being written, or was when the run died."""
    try:
        with os.scandir(folder / RUN / runs.CHECKPOINTS) as entries:
            return any(UNFINISHED in entry.name for entry in entries)
    except FileNotFoundError:
        return False


def damage_latest(folder: Path, rng: random.Random) -> int | None:
    """Cuts a random file of the latest of several checkpoints in half; returns the step of the one before it."""
    complete = runs.steps(folder / RUN)
    if len(complete) < 2:
        return None
    latest = folder / RUN / runs.CHECKPOINTS / str(complete[-1])
    files = sorted(path for path in latest.rglob("*") if path.is_file() and path.stat().st_size > 1)
    path = rng.choice(files)
    os.truncate(path, path.stat().st_size // 2)
    return complete[-2]


# ---- Two runs, compared -----------------------------------------------------------------------------------------


def compare_bits(whole: Path, killed: Path) -> Comparison:
    """The last checkpoints' arrays have the same bits, and the logs the same rows but for times."""
    a, b = last_state(whole / RUN), last_state(killed / RUN)
    problem, difference = None, 0.0
    for name in sorted(a.keys() | b.keys()):
        if name not in a or name not in b:
            return Comparison(math.inf, "bits", f"only one of the checkpoints has {name}")
        if a[name].dtype != b[name].dtype or a[name].tobytes() != b[name].tobytes():
            problem = problem or f"{name} differs"
            difference = max(difference, float(np.max(np.abs(np.subtract(a[name], b[name], dtype=np.float64)))))
    if problem is None and timeless(whole / RUN) != timeless(killed / RUN):
        problem = "the logs differ"
    return Comparison(difference, "bits", problem)


def compare_losses(whole: Path, killed: Path, limit: float) -> Comparison:
    """Both logs have every step once, with losses whose relative difference is at most `limit`."""
    a, b = losses(whole / RUN), losses(killed / RUN)
    if [step for step, _ in a] != [step for step, _ in b]:
        return Comparison(math.inf, "loss, relative", "the logs have other steps")
    difference = max(abs(x - y) / abs(x) for (_, x), (_, y) in zip(a, b, strict=True))
    problem = None if difference <= limit else f"the losses differ by {difference:.1e}, more than {limit:g}"
    return Comparison(difference, "loss, relative", problem)


def last_state(run_dir: Path) -> dict[str, np.ndarray]:
    """All arrays of the last checkpoint, by path, wherever they were saved."""
    folder = run_dir / runs.CHECKPOINTS / str(runs.steps(run_dir)[-1])
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype, sharding=here), stored_parts(folder)
    )
    tree = load_parts(folder, abstract)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def timeless(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of the log without what tells of the machine."""
    return [{name: row[name] for name in row if not is_measured(name)} for row in read_metrics(run_dir)]


def losses(run_dir: Path) -> list[tuple[int, float]]:
    """(step, loss) of every logged step."""
    return [(int(row["step"]), float(row["loss"])) for row in read_metrics(run_dir) if "loss" in row]
