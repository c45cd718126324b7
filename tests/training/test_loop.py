"""The loop on a real small task: resume to the bit, signals, bad numbers, budgets, and refusals."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jukebox_jax.checkpoint import runs, store
from jukebox_jax.errors import UserError
from jukebox_jax.parallel.mesh import make_mesh
from jukebox_jax.parallel.strategies import get_strategy
from jukebox_jax.training.log import is_measured
from jukebox_jax.training.rewind import read_rewinds
from jukebox_jax.training.state import abstract_state, to_parts
from jukebox_jax.training.stopping import STUCK_STATUS
from jukebox_jax.training.task import Alarm
from jukebox_jax.training.telemetry import read_metrics
from tests.training import toy

ROOT = Path(__file__).parents[2]
TIMING = {"seconds", "step_seconds", "steps_per_second", "examples_per_second", "flops_per_second", "goodput"}


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def untimed(run_dir):
    return [{k: v for k, v in row.items() if not is_measured(k)} for row in read_metrics(run_dir)]


@pytest.fixture(scope="module")
def ten_steps(tmp_path_factory):
    """A run of ten steps that nothing interrupted."""
    run_dir = tmp_path_factory.mktemp("ten") / "run"
    return run_dir, toy.run(run_dir, toy.make_config())


def at_step(step: int, action):
    return lambda position: action() if position == 8 * step else None


def start_program(run_dir, event, step, steps=10, watchdog_minutes=60):
    return subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "tests/training/toy.py"),
            *map(str, (run_dir, steps, event, step, watchdog_minutes)),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_training_learns_and_counts(ten_steps, tmp_path):
    run_dir, state = ten_steps
    rows = read_metrics(run_dir)
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert int(state.step) == int(state.total_steps) == 10
    assert int(state.examples_seen) == 80
    assert int(state.skipped_steps) == 0
    assert {"loss", "grad_norm", "learning_rate", "x_mean", "skipped"} | TIMING <= rows[0].keys()
    assert not np.array_equal(state.params["Dense_0"]["kernel"], state.ema["Dense_0"]["kernel"])
    longer = toy.run(tmp_path / "run", toy.make_config(steps=200, log_every=50))
    rows = read_metrics(tmp_path / "run")
    assert rows[-1]["loss"] < 0.3 * rows[0]["loss"]
    assert int(longer.step) == 200


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(ten_steps, tmp_path, capsys, stop):
    run_dir, want = ten_steps
    ended = KeyboardInterrupt if stop == signal.SIGINT else SystemExit
    handler = signal.getsignal(stop)
    with pytest.raises(ended) as raised:
        toy.run(tmp_path / "run", toy.make_config(), at_step(4, lambda: os.kill(os.getpid(), stop)))
    assert stop == signal.SIGINT or raised.value.code == 143
    assert runs.steps(tmp_path / "run") == [4]  # the fifth batch was being fetched while the fourth step ran
    assert "the same command resumes" in capsys.readouterr().err
    assert signal.getsignal(stop) == handler
    assert_same_bits(toy.run(tmp_path / "run", toy.make_config()), want)
    assert untimed(tmp_path / "run") == untimed(run_dir)


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(ten_steps, tmp_path):
    run_dir, want = ten_steps
    process = start_program(tmp_path / "run", "kill", 8)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    # Step 6 was being written in the background when the process died at step 8, or was complete by then.
    assert runs.steps(tmp_path / "run")[-1] in (3, 6)
    resumed = toy.run(tmp_path / "run", toy.make_config(checkpoint_every=3))
    assert_same_bits(resumed, want)
    assert untimed(tmp_path / "run") == untimed(run_dir)


def test_a_run_that_is_stuck_says_where_and_ends(ten_steps, tmp_path):
    process = start_program(tmp_path / "run", "stuck", 5, watchdog_minutes=0.25)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == STUCK_STATUS
    assert "no step was finished in 0.25 min (train.watchdog_minutes)" in errors
    assert "in on_batch" in errors  # the stack of the thread that waits
    assert_same_bits(toy.run(tmp_path / "run", toy.make_config(checkpoint_every=3)), ten_steps[1])


def test_checkpoints_by_the_clock(tmp_path):
    config = toy.make_config(checkpoint_minutes=1e-9, keep_checkpoints=20)
    toy.run(tmp_path / "run", config)
    assert runs.steps(tmp_path / "run") == list(range(1, 11))


def test_a_second_process_is_refused_while_the_first_one_trains(tmp_path):
    first = start_program(tmp_path / "run", "wait", 2)
    try:
        assert first.stdout.readline().strip() == "waiting"
        with pytest.raises(UserError, match="in use by another process"):
            toy.run(tmp_path / "run", toy.make_config())
        assert runs.steps(tmp_path / "run") == []
    finally:
        _, errors = first.communicate("\n", timeout=120)
    assert first.returncode == 0, errors
    assert runs.steps(tmp_path / "run")[-1] == 10


def test_a_damaged_checkpoint_is_passed_over(ten_steps, tmp_path, capsys):
    config = toy.make_config(checkpoint_every=4)
    toy.run(tmp_path / "run", config)
    for path in (tmp_path / "run" / "checkpoints" / "10").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            os.truncate(path, path.stat().st_size // 2)
    assert_same_bits(toy.run(tmp_path / "run", config), ten_steps[1])
    assert "Checkpoint 10" in capsys.readouterr().err
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == list(range(1, 11))


def test_a_finished_run_is_not_trained_again(ten_steps):
    run_dir, want = ten_steps
    assert_same_bits(toy.run(run_dir, toy.make_config(), at_step(10, lambda: pytest.fail("asked for data"))), want)


def test_a_longer_run_and_another_batch_size_continue_at_the_next_example(tmp_path):
    config = toy.make_config(steps=4)
    toy.run(tmp_path / "run", config)
    positions = []
    state = toy.run(tmp_path / "run", toy.make_config(steps=6, batch_size=4), positions.append)
    assert positions == [32, 36]
    assert int(state.examples_seen) == 40
    assert store.load_config(tmp_path / "run")["train"]["batch_size"] == 4


def test_a_run_folder_of_another_config_is_refused_and_stays_as_it_was(tmp_path):
    config = toy.make_config(steps=2)
    toy.run(tmp_path / "run", config)
    before = store.load_config(tmp_path / "run")
    other = {"model": {"hidden": 32}, "train": {**before["train"], "seed": 5, "steps": 4}}
    with pytest.raises(UserError, match=r"differs in model\.hidden, train\.seed:"):
        toy.run(tmp_path / "run", toy.make_config(steps=4, seed=5), run_config=other)
    assert store.load_config(tmp_path / "run") == before


def with_bad_batches(bad_steps):
    """Batches of which some hold NaN."""

    def batches(position):
        for batch in toy.make_batches(8)(position):
            if position // 8 in bad_steps:
                batch["x"][0, 0] = np.nan
            yield batch
            position += 8

    return batches


def test_a_step_without_finite_loss_changes_nothing_but_is_counted(tmp_path):
    run = {"progress": False, "run_config": {"train": {}}}
    config = toy.make_config(steps=2)
    two = toy.train(toy.make_task(), config, with_bad_batches({}), tmp_path / "two", **run)
    config = toy.make_config(steps=4)
    # The cosine schedule depends on the run's length; in these first steps only the warm-up acts.
    four = toy.train(toy.make_task(), config, with_bad_batches({2, 3}), tmp_path / "four", **run)
    for name in ("params", "opt_state", "ema", "model_state"):
        assert_same_bits(getattr(two, name), getattr(four, name))
    assert int(four.step) == 4
    assert int(four.skipped_steps) == 2
    rows = read_metrics(tmp_path / "four")
    assert [row["skipped"] for row in rows] == [0, 0, 1, 1]
    assert [row["loss"] is None for row in rows] == [False, False, True, True]


def test_an_alarm_is_told_once_until_it_is_over(tmp_path, capsys):
    def batches(position):
        for batch in toy.make_batches(8)(position):
            if position // 8 in (2, 3, 4, 7):
                batch["y"] *= 100
            yield batch
            position += 8

    text = "The loss is {value:.4g} at step {step}, above 12."
    once, twice = (Alarm("loss", text, above=12.0, patience=patience) for patience in (1, 2))
    late = Alarm("loss", text, above=12.0, after=7)
    low = Alarm("loss", "low", below=1e-9)
    for number, (alarms, told_at) in enumerate([((), []), ((once, low), [3, 8]), ((twice,), [4]), ((late,), [8])]):
        task = dataclasses.replace(toy.make_task(), alarms=alarms)
        run = {"progress": False, "run_config": {"train": {}}}
        toy.train(task, toy.make_config(), batches, tmp_path / f"{number}", **run)
        told = capsys.readouterr().err.splitlines()
        assert [line.partition(" at ")[2] for line in told] == [f"step {step}, above 12." for step in told_at]
    losses = [row["loss"] > 12 for row in read_metrics(tmp_path / "0")]
    assert losses == [step in (3, 4, 5, 8) for step in range(1, 11)]


def test_bad_numbers_in_a_row_end_a_run_without_checkpoints(tmp_path):
    config = toy.make_config(steps=20, max_skipped=3)
    batches = with_bad_batches({1, 2, 5, 6, 7})
    with pytest.raises(UserError, match="in steps 6 to 8, and there is no checkpoint from before them"):
        toy.train(toy.make_task(), config, batches, tmp_path / "run", progress=False, run_config={"train": {}})


REWINDING = {"max_skipped": 2, "checkpoint_every": 3}


def rewinding_run(run_dir, bad_batches, on_batch=None, **changes):
    """Batches 4 and 5 (and others) are bad: after step 6 the run returns to step 3 and reads on from batch 6."""
    given = []

    def batches(position):
        for batch in with_bad_batches(bad_batches)(position):
            given.append(position // 8)
            if on_batch is not None:
                on_batch(len(given))
            yield batch
            position += 8

    config = toy.make_config(**REWINDING, **changes)
    run = {"progress": False, "run_config": {"train": {"max_skipped": 2}}}
    return toy.train(toy.make_task(), config, batches, run_dir, **run), given


def test_bad_numbers_in_a_row_return_the_run_to_before_them_and_behind_their_data(tmp_path, capsys):
    state, given = rewinding_run(tmp_path / "run", {4, 5})
    # Batch 6 was on its way when the metrics of step 6 were read; afterwards no bad batch is met again.
    assert given == [0, 1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 11, 12]
    assert (int(state.step), int(state.examples_seen), int(state.data_offset)) == (10, 80, 24)
    assert int(state.skipped_steps) == 0
    told = "in steps 5 to 6: going on from step 3 with the data behind them"
    assert told in capsys.readouterr().err
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert not any(row["skipped"] for row in rows)


@pytest.mark.parametrize("stop_at", [5, 6, 7, 8, 9, 10])
def test_a_rewind_comes_to_the_same_end_wherever_the_run_is_interrupted(tmp_path, stop_at):
    want, _ = rewinding_run(tmp_path / "whole", {4, 5})

    def interrupt(count):
        if count == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        rewinding_run(tmp_path / "run", {4, 5}, interrupt)
    state, _ = rewinding_run(tmp_path / "run", {4, 5})
    assert_same_bits(state, want)
    assert untimed(tmp_path / "run") == untimed(tmp_path / "whole")


def test_a_second_rewind_to_the_same_place_ends_the_run_and_lists_the_steps(tmp_path):
    words = r"in steps 5 to 6 and, after a rewind to step 3 and other data, in steps 4 to 5"
    with pytest.raises(UserError, match=words):
        rewinding_run(tmp_path / "run", {4, 5, 6, 7})
    with pytest.raises(UserError, match=words):  # and so does the same command
        rewinding_run(tmp_path / "run", {4, 5, 6, 7})


def test_another_place_may_be_rewound_too(tmp_path):
    state, given = rewinding_run(tmp_path / "run", {4, 5, 11, 12})
    assert int(state.data_offset) == (3 + 4) * 8
    assert given[-1] == 9 + 7
    assert [row.to_step for row in read_rewinds(tmp_path / "run")] == [3, 6]


def test_a_time_budget_chooses_the_steps_once_and_a_resume_keeps_them(tmp_path):
    config = toy.make_config(steps=1_000_000, seconds=3.0, min_steps=60, log_every=10_000)

    def slow(position):
        time.sleep(0.02)
        if position == 8 * 40:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        toy.run(tmp_path / "run", config, slow)
    abstract = abstract_state(toy.make_task(), config, make_mesh((1,)), get_strategy("single").rules)
    step, parts = runs.restore_latest(tmp_path / "run", to_parts(abstract))
    chosen = int(parts["trainer"]["total_steps"])
    assert step == 40
    assert 60 <= chosen <= 3.0 / 0.02
    state = toy.run(tmp_path / "run", config)
    assert int(state.step) == int(state.total_steps) == chosen
    # The learning rate went down to the end of the chosen number of steps.
    assert read_metrics(tmp_path / "run")[-1]["learning_rate"] < 1e-4


def test_a_time_budget_respects_the_smallest_and_largest_number_of_steps(tmp_path):
    low = toy.make_config(steps=5000, seconds=0.01, min_steps=60, log_every=60)
    assert int(toy.run(tmp_path / "low", low).step) == 60
    high = toy.make_config(steps=60, seconds=3600.0)
    assert int(toy.run(tmp_path / "high", high).step) == 60


def test_evaluation_sees_the_average_at_its_steps_and_at_the_end(tmp_path):
    seen = []

    def evaluate(params, model_state):
        seen.append((np.asarray(params["Dense_0"]["kernel"]), np.asarray(model_state["mean"])))
        return {"loss": 0.5}

    state = toy.run(tmp_path / "run", toy.make_config(eval_every=4), evaluate=evaluate)
    rows = [row for row in read_metrics(tmp_path / "run") if "eval_loss" in row]
    assert [row["step"] for row in rows] == [4, 8, 10]
    np.testing.assert_array_equal(seen[-1][0], state.ema["Dense_0"]["kernel"])
    np.testing.assert_array_equal(seen[-1][1], state.model_state["mean"])


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        (lambda _: iter([]), "The data ended after step 0"),
        (lambda _: iter([{"x": np.zeros((8, toy.WIDTH), np.float32)}]), "no 'y'"),
        (lambda _: iter([{"x": np.zeros((8, 3), np.float32)}]), r"'x' is float32\[8, 3\]"),
        (lambda _: iter([{"x": np.zeros((8, toy.WIDTH), np.int32)}]), "'x' is int32"),
    ],
)
def test_data_that_do_not_fit_are_told_in_a_sentence(tmp_path, batches, words):
    with pytest.raises(UserError, match=words):
        toy.train(toy.make_task(), toy.make_config(), batches, tmp_path / "r", progress=False, run_config={"train": {}})


def test_a_misspelt_strategy_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="did you mean 'fsdp'"):
        toy.run(tmp_path / "run", toy.make_config(strategy="fspd"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_tensorboard_events_hold_the_metrics(ten_steps):
    events = list(ten_steps[0].glob("events.out.tfevents.*"))
    assert events
    assert any(b"grad_norm" in path.read_bytes() for path in events)


def test_the_progress_line_has_rate_loss_and_remaining_time(tmp_path, capfd):
    toy.run(tmp_path / "run", toy.make_config(steps=30), progress=True)
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert "30/30" in line
    assert "step/s" in line
    assert "loss" in line
