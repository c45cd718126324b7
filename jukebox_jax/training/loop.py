"""The training loop, for any task. Read `train` from top to bottom."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from jukebox_jax import config as config_lib
from jukebox_jax.audio.files import Clips
from jukebox_jax.checkpoint import runs, store
from jukebox_jax.errors import UserError
from jukebox_jax.files import folder_lock
from jukebox_jax.parallel import hosts
from jukebox_jax.parallel.plan import out_of_memory_told, plan
from jukebox_jax.training.config import TrainConfig
from jukebox_jax.training.devices import devices_of
from jukebox_jax.training.feed import Batches, Feed
from jukebox_jax.training.ledger import Ledger, summary
from jukebox_jax.training.log import Log, due
from jukebox_jax.training.pace import Pace
from jukebox_jax.training.profile import Profiler
from jukebox_jax.training.rewind import Rewind, note_rewind, offset_after, plan_rewind, read_rewinds
from jukebox_jax.training.state import TrainState, abstract_state, create_state, from_parts, to_parts
from jukebox_jax.training.step import make_train_step
from jukebox_jax.training.stopping import Watchdog, stop_signals
from jukebox_jax.training.task import Task
from jukebox_jax.training.telemetry import Telemetry, require_wandb

PyTree = Any
Evaluate = Callable[[PyTree, PyTree], Mapping[str, float]]
Listen = Callable[[PyTree, PyTree], Clips]

# What may differ between a run folder's config and a resumed run's: it changes how long, how often and where,
# not what is computed from an example.
MAY_CHANGE = (
    *("batch_size", "accumulate", "steps", "seconds", "min_steps", "log_every", "eval_every", "checkpoint_every"),
    *("checkpoint_minutes", "keep_checkpoints", "keep_best", "best_metric", "max_skipped", "watchdog_minutes"),
    *("strategy", "mesh", "audio_every", "profile", "peak_flops", "wandb_project"),
)


def train(
    task: Task,
    config: TrainConfig,
    batches: Batches,
    run_dir: os.PathLike | str,
    *,
    start: Callable[[TrainState], TrainState] | None = None,
    evaluate: Evaluate | None = None,
    listen: Listen | None = None,
    run_config: Mapping[str, Any],
    progress: bool = True,
) -> TrainState:
    """Trains until `config` is fulfilled, from the run folder's latest checkpoint if it has one.

    The same command continues an interrupted run and ends with the same bits, whatever interrupted it. SIGINT and
    SIGTERM save a checkpoint first.

    Args:
      batches: from a position in the data, in examples, to batches without end: dicts of numpy arrays (this host's
        part of `config.batch_size` examples) as in `task.batch_spec`. Must depend on the position alone.
      run_dir: gets `config.json`, `checkpoints/`, `metrics.jsonl`, `ledger.jsonl`, TensorBoard events and, where they
        are asked for, `audio/` and `profile/`; one process at a time.
      start: what a new run's fresh state is passed through before the first step; to start from trained weights.
      evaluate: (parameters or their average, model_state) → metrics, logged with the prefix `eval_`; called every
        `config.eval_every` steps and at the end, under the mesh and the strategy's rules, on all hosts.
      listen: (parameters or their average, model_state) → clips to hear; called every `config.audio_every` steps, under
        the mesh alone, on all hosts.
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
    if config.wandb_project is not None:
        require_wandb()

    with contextlib.ExitStack() as stack:
        # ---- The folder is ours, and is the folder of this config ------------------------------------------------
        with hosts.together():
            if primary:
                stack.enter_context(folder_lock(run_dir))
            changed = _check_config(run_dir, run_config)
        ledger = stack.enter_context(Ledger(run_dir, primary))

        # ---- Devices, and the state on them ----------------------------------------------------------------------
        mesh, rules, sharding = devices_of(config)
        stack.enter_context(jax.set_mesh(mesh))
        part = hosts.part_here(sharding, config.batch_size)
        abstract = abstract_state(task, config, mesh, rules)

        restored = runs.restore_latest(run_dir, to_parts(abstract))
        if restored is not None:
            state = from_parts(restored[1])
            offset = offset_after(read_rewinds(run_dir), restored[0], int(state.data_offset))
            state = _with_counters(state, data_offset=offset)
        else:
            state = create_state(task, config, abstract)
            state = state if start is None else start(state)
        if primary:
            store.save_config(run_dir, run_config)
        checkpoints = stack.enter_context(
            runs.TrainingCheckpoints(
                run_dir,
                config.keep_checkpoints,
                every=config.checkpoint_every,
                keep_best=config.keep_best,
                metric=config.best_metric,
                config=run_config,
            )
        )

        # The host counts along, so that it never waits for a device to know where it is.
        step, chosen_steps = int(state.step), int(state.total_steps)
        if config.seconds is None:
            chosen_steps = config.last_step
        elif "train.seconds" in changed:
            chosen_steps = 0  # another budget: measure again
        total_steps = chosen_steps or config.last_step
        state = _with_counters(state, total_steps=chosen_steps)

        ledger.rewind(step)
        telemetry = stack.enter_context(
            Telemetry(run_dir, step, total_steps, primary, progress, config.wandb_project, run_config)
        )
        if step:
            telemetry.say(f"Resuming {run_dir} at step {step}.")
        if step >= total_steps:
            return state

        # One host of several must not die alone: it notes a signal even while it compiles.
        early = jax.process_count() > 1
        stop = stack.enter_context(stop_signals()) if early else []

        # ---- Compile before the first batch is asked for ---------------------------------------------------------
        ledger.turn_to("compile")
        batch_spec = {
            name: jax.ShapeDtypeStruct((config.batch_size, *spec.shape), spec.dtype, sharding=sharding)
            for name, spec in task.batch_spec.items()
        }
        train_step = make_train_step(task, config, mesh, rules, abstract).lower(abstract, batch_spec)
        with out_of_memory_told():
            train_step = train_step.compile()
        parts = {"parameters": abstract.params, "optimizer": abstract.opt_state, "average": abstract.ema}
        telemetry.say(str(plan(train_step, {**parts, "batch": batch_spec}, mesh)))

        # ---- Steps -----------------------------------------------------------------------------------------------
        ledger.turn_to("other")
        stop = stop if early else stack.enter_context(stop_signals())
        watchdog = stack.enter_context(Watchdog(config.watchdog_minutes))
        ballot = hosts.Ballot(questions=3)
        log = Log(task, config, telemetry, ledger, step, int(state.skipped_in_a_row), list(mesh.devices.flat))
        profiler = stack.enter_context(Profiler(run_dir, config.profile, primary))
        pace = Pace(config, step, started) if not chosen_steps else None
        data = Feed(batches, batch_spec, part, step, int(state.examples_seen) + int(state.data_offset))
        saved, saved_at, evaluated = step, time.monotonic(), step
        running: dict[str, jax.Array] | None = None  # metrics of the step that the devices are at
        stopped = 0  # by which signal

        def evaluated_now(step: int, state: TrainState) -> dict[str, float]:
            with ledger.spending("eval"), nn.logical_axis_rules(rules):
                return log.evaluation(step, evaluate(state.eval_params, state.model_state))

        with ledger.spending("data"):
            batch = data.next()
        while step < total_steps and not stopped:
            profiler.before(step + 1, running)
            # Nothing moves between host and devices unless we say so.
            with jax.transfer_guard("disallow"), ledger.spending("step"):
                state, metrics = train_step(state, batch)
            if step + 1 < total_steps:
                with ledger.waiting_for_data(metrics["loss"]):
                    batch = data.next()  # moves to the devices while they compute
            if running is not None:
                log.step(step, running, total_steps)  # read the previous step's metrics while this one runs
                watchdog.alive()
            step, running = step + 1, metrics

            # What one host alone knows (a signal, the time) is done by all of them after the same step.
            chosen = 0 if pace is None else pace.steps_within_budget(step) or 0
            old = config.checkpoint_minutes and time.monotonic() - saved_at > 60 * config.checkpoint_minutes
            first = int(primary)
            stopped, checkpoint_due, chosen = ballot.vote([stop[0] if stop else 0, first * bool(old), first * chosen])
            if pace is not None and chosen:
                total_steps, pace = max(chosen, step), None
                state = _with_counters(state, total_steps=total_steps)
                telemetry.say(f"{config.seconds:g} s are enough for {total_steps} steps.")

            checkpoint = checkpoint_due or due(step, config.checkpoint_every)
            evaluation = evaluate is not None and due(step, config.eval_every)
            audio = listen is not None and due(step, config.audio_every)
            if (checkpoint or evaluation or audio or step == total_steps or stopped) and not log.went_bad:
                log.step(step, running, total_steps)  # a checkpoint never knows more than the log
                running = None
            if log.went_bad:
                del state, batch  # room for the other one
                state = _rewind(checkpoints, abstract, log, data, run_dir, config.checkpoint_every)
                step, running, batch = int(state.step), None, data.next()
                saved, saved_at = step, time.monotonic()
                ledger.rewind(step)
                telemetry.rewind(step)
                continue
            measured = None
            if evaluation:
                measured = evaluated_now(step, state)
                evaluated = step
                watchdog.alive()
            if checkpoint and not log.bad_steps:  # those before the bad steps must not have to go for it
                with ledger.spending("checkpoint"):
                    checkpoints.save(step, to_parts(state), measured)
                ledger.save()
                saved, saved_at = step, time.monotonic()
            if audio:
                with ledger.spending("eval"):
                    log.audio(step, listen(state.eval_params, state.model_state))
                watchdog.alive()

        # ---- The end, or a stop from outside ---------------------------------------------------------------------
        measured = None
        if evaluate is not None and evaluated != step and not stopped:
            measured = evaluated_now(step, state)
        if saved != step:
            with ledger.spending("checkpoint"):
                checkpoints.save(step, to_parts(state), measured)
        with ledger.spending("checkpoint"):
            checkpoints.wait()
        if stopped:
            if primary:
                print(f"\nStopped after step {step}; the same command resumes {run_dir}.", file=sys.stderr)
            raise KeyboardInterrupt if stopped == signal.SIGINT else SystemExit(128 + stopped)
        telemetry.say(summary(ledger.seconds))
        return state


def _rewind(
    checkpoints: runs.TrainingCheckpoints,
    abstract: TrainState,
    log: Log,
    data: Feed,
    run_dir: Path,
    every: int,
) -> TrainState:
    """The state of the last checkpoint from before the bad steps; the data go on behind the bad batches.

    Raises:
      UserError: there is none, or the run has been there before.
    """
    bad = log.bad_steps
    checkpoints.wait()
    with hosts.together():
        to_step = plan_rewind(read_rewinds(run_dir), runs.steps(run_dir), every, bad[0], bad[-1])
        if to_step is None:
            raise UserError(
                f"Loss or gradients were not finite in steps {bad[0]} to {bad[-1]}, and there is no checkpoint from "
                "before them: lower train.optimizer.learning_rate or look for broken data."
            )
    checkpoints.forget_after(to_step)
    restored = from_parts(runs.restore(run_dir, to_step, to_parts(abstract)))
    behind = data.position_after(bad[-1])
    offset = behind - int(restored.examples_seen)
    if jax.process_index() == 0:
        note_rewind(run_dir, Rewind(to_step, bad[0], bad[-1], offset))
    log.rewound(to_step, int(restored.skipped_in_a_row))
    data.move(to_step, behind)
    return _with_counters(restored, data_offset=offset)


def _check_config(run_dir: Path, run_config: Mapping[str, Any]) -> list[str]:
    """Compares with the folder's config; returns the dotted keys that differ and may.

    Raises:
      UserError: the folder's checkpoints come from another config; names the keys.
    """
    has_checkpoints = bool(runs.steps(run_dir))
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


def _with_counters(state: TrainState, **values: int) -> TrainState:
    """The state with some of its counters set."""
    return state.replace(
        **{name: jax.device_put(np.int32(value), getattr(state, name).sharding) for name, value in values.items()}
    )
