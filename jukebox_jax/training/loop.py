"""The training loop, for any task. Read `train` from top to bottom."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np

from jukebox_jax import config as config_lib
from jukebox_jax.checkpoint import store
from jukebox_jax.errors import UserError
from jukebox_jax.files import folder_lock
from jukebox_jax.parallel.mesh import make_mesh
from jukebox_jax.parallel.plan import out_of_memory_told, plan
from jukebox_jax.parallel.strategies import batch_sharding, get_strategy
from jukebox_jax.training.config import TrainConfig
from jukebox_jax.training.log import Log, due
from jukebox_jax.training.pace import Pace
from jukebox_jax.training.state import TrainState, abstract_state, create_state, from_parts, to_parts
from jukebox_jax.training.step import make_train_step
from jukebox_jax.training.task import Task
from jukebox_jax.training.telemetry import Telemetry

PyTree = Any
Batches = Callable[[int], Iterator[Mapping[str, np.ndarray]]]
Evaluate = Callable[[PyTree, PyTree], Mapping[str, float]]

# What may differ between a run folder's config and a resumed run's: it changes how long, how often and where,
# not what is computed from an example.
MAY_CHANGE = (
    *("batch_size", "steps", "seconds", "min_steps", "log_every", "eval_every", "checkpoint_every"),
    *("keep_checkpoints", "max_skipped", "strategy", "mesh"),
)


def train(
    task: Task,
    config: TrainConfig,
    batches: Batches,
    run_dir: os.PathLike | str,
    *,
    start: Callable[[TrainState], TrainState] | None = None,
    evaluate: Evaluate | None = None,
    run_config: Mapping[str, Any],
    progress: bool = True,
) -> TrainState:
    """Trains until `config` is fulfilled, from the run folder's latest checkpoint if it has one.

    The same command continues an interrupted run and ends with the same bits, whatever interrupted it. SIGINT and
    SIGTERM save a checkpoint first.

    Args:
      batches: from a position in the data, in examples, to batches without end: dicts of numpy arrays (this host's
        part of `config.batch_size` examples) as in `task.batch_spec`. Must depend on the position alone.
      run_dir: gets `config.json`, `checkpoints/`, `metrics.jsonl` and TensorBoard events; one process at a time.
      start: what a new run's fresh state is passed through before the first step; to start from trained weights.
      evaluate: (parameters or their average, model_state) → metrics, logged with the prefix `eval_`; called every
        `config.eval_every` steps and at the end.
      run_config: the whole run as a JSON-able dict, with this `TrainConfig` under `train`; kept as `config.json`.
      progress: whether to draw a progress line on stderr.

    Raises:
      UserError: a folder in use or of another config, a strategy that does not fit, data that does not, a damaged
        folder, or `config.max_skipped` steps in a row without a finite loss.
      KeyboardInterrupt: after SIGINT, once the checkpoint is on disk (SystemExit 143 after SIGTERM).
    """
    started = time.monotonic()
    run_dir = Path(run_dir)
    primary = jax.process_index() == 0

    with contextlib.ExitStack() as stack:
        # ---- The folder is ours, and is the folder of this config ------------------------------------------------
        if primary:
            stack.enter_context(folder_lock(run_dir))
        changed = _check_config(run_dir, run_config)

        # ---- Devices, and the state on them ----------------------------------------------------------------------
        strategy = get_strategy(config.strategy)
        mesh = make_mesh(config.mesh or strategy.mesh_shape)
        stack.enter_context(jax.set_mesh(mesh))
        sharding = batch_sharding(mesh, strategy.rules, config.batch_size)
        abstract = abstract_state(task, config, mesh, strategy.rules)

        restored = store.restore_latest(run_dir, to_parts(abstract))
        if restored is not None:
            state = from_parts(restored[1])
        else:
            state = create_state(task, config, abstract)
            state = state if start is None else start(state)
        if primary:
            store.save_config(run_dir, run_config)
        checkpoints = stack.enter_context(store.TrainingCheckpoints(run_dir, config.keep_checkpoints))

        # The host counts along, so that it never waits for a device to know where it is.
        counters = (state.step, state.examples_seen, state.data_offset, state.total_steps)
        step, examples_seen, data_offset, chosen_steps = map(int, jax.device_get(counters))
        if config.seconds is None:
            chosen_steps = config.last_step
        elif "train.seconds" in changed:
            chosen_steps = 0  # another budget: measure again
        total_steps = chosen_steps or config.last_step
        state = _set_total_steps(state, chosen_steps, abstract)

        telemetry = stack.enter_context(Telemetry(run_dir, step, total_steps, primary, progress))
        if step:
            telemetry.say(f"Resuming {run_dir} at step {step}.")
        if step >= total_steps:
            return state

        # ---- Compile before the first batch is asked for ---------------------------------------------------------
        batch_spec = {
            name: jax.ShapeDtypeStruct((config.batch_size, *spec.shape), spec.dtype, sharding=sharding)
            for name, spec in task.batch_spec.items()
        }
        train_step = make_train_step(task, config, mesh, strategy.rules, abstract).lower(abstract, batch_spec)
        with out_of_memory_told():
            train_step = train_step.compile()
        parts = {"parameters": abstract.params, "optimizer": abstract.opt_state, "average": abstract.ema}
        telemetry.say(str(plan(train_step, {**parts, "batch": batch_spec}, mesh)))

        # ---- Steps -----------------------------------------------------------------------------------------------
        stop = stack.enter_context(_stop_signals())
        stream = batches(examples_seen + data_offset)
        log = Log(task, config, telemetry, step)
        pace = Pace(config, step, started) if not chosen_steps else None
        saved = evaluated = step
        running: dict[str, jax.Array] | None = None  # metrics of the step that the devices are at

        batch = _place(_next_batch(stream, step), batch_spec)
        while step < total_steps and not stop:
            with jax.transfer_guard("disallow"):  # nothing moves between host and devices unless we say so
                state, metrics = train_step(state, batch)
            if step + 1 < total_steps:
                batch = _place(_next_batch(stream, step + 1), batch_spec)  # moves to the devices while they compute
            if running is not None:
                log.step(step, running, total_steps)  # read the previous step's metrics while this one runs
            step, running = step + 1, metrics

            if pace is not None and (chosen_steps := pace.steps_within_budget(step)):
                total_steps, pace = chosen_steps, None
                state = _set_total_steps(state, total_steps, abstract)
                telemetry.say(f"{config.seconds:g} s are enough for {total_steps} steps.")

            checkpoint = due(step, config.checkpoint_every)
            evaluation = evaluate is not None and due(step, config.eval_every)
            if checkpoint or evaluation:
                log.step(step, running, total_steps)  # a checkpoint never knows more than the log
                running = None
            if checkpoint:
                checkpoints.save(step, to_parts(state))
                saved = step
            if evaluation:
                log.evaluation(step, evaluate(state.eval_params, state.model_state))
                evaluated = step

        # ---- The end, or a stop from outside ---------------------------------------------------------------------
        if running is not None:
            log.step(step, running, total_steps)
        if saved != step:
            checkpoints.save(step, to_parts(state))
        if evaluate is not None and evaluated != step and not stop:
            log.evaluation(step, evaluate(state.eval_params, state.model_state))
        checkpoints.wait()
        if stop:
            if primary:
                print(f"\nStopped after step {step}; the same command resumes {run_dir}.", file=sys.stderr)
            raise KeyboardInterrupt if stop[0] == signal.SIGINT else SystemExit(128 + stop[0])
        return state


def _check_config(run_dir: Path, run_config: Mapping[str, Any]) -> list[str]:
    """Compares with the folder's config; returns the dotted keys that differ and may.

    Raises:
      UserError: the folder's checkpoints come from another config; names the keys.
    """
    has_checkpoints = bool(store.steps(run_dir))
    if not (run_dir / store.CONFIG_FILE).exists():
        if has_checkpoints:
            raise UserError(f"{run_dir} has checkpoints but no {store.CONFIG_FILE}: restore it or use another folder.")
        return []
    changed = config_lib.differences(store.load_config(run_dir), dict(run_config))
    refused = [key for key in changed if key not in {f"train.{name}" for name in MAY_CHANGE}]
    if refused and has_checkpoints:
        raise UserError(
            f"{run_dir} was trained with another config, which differs in {', '.join(refused)}: "
            "use the same values, or another run folder."
        )
    return changed


def _set_total_steps(state: TrainState, total_steps: int, abstract: TrainState) -> TrainState:
    return state.replace(total_steps=jax.device_put(np.int32(total_steps), abstract.total_steps.sharding))


def _next_batch(stream: Iterator[Mapping[str, np.ndarray]], step: int) -> Mapping[str, np.ndarray]:
    try:
        return next(stream)
    except StopIteration:
        raise UserError(f"The data ended after step {step}: training needs a stream without end.") from None


def _place(batch: Mapping[str, np.ndarray], spec: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Puts this host's part of a batch on its devices."""
    placed = {}
    for name, wanted in spec.items():
        if name not in batch:
            raise UserError(f"The data has no {name!r}, which this model needs: prepare the data for this model.")
        array = batch[name]
        local = (wanted.shape[0] // jax.process_count(), *wanted.shape[1:])
        if array.shape != local or array.dtype != wanted.dtype:
            raise UserError(
                f"The data's {name!r} is {array.dtype}{list(array.shape)} and this model needs "
                f"{wanted.dtype}{list(local)}: prepare the data for this model."
            )
        placed[name] = jax.make_array_from_process_local_data(wanted.sharding, array, wanted.shape)
    return placed


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Yields a list to which the first SIGINT or SIGTERM is added; a second one acts as if we were not here."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only there can handlers be set
        yield received
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)
        restore()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    for number in previous:
        signal.signal(number, note)
    try:
        yield received
    finally:
        restore()
