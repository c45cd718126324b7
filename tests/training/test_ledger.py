"""The ledger of a run's time: with a clock of our own, and of runs that were really killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jukebox_jax.training.ledger import LEDGER_FILE, SPENT, Ledger, read_ledger, summary
from tests.training import toy

ROOT = Path(__file__).parents[2]


class Clock:
    """Goes on when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


def spent(ledger: Ledger) -> dict[str, float]:
    return {kind: seconds for kind, seconds in ledger.seconds.items() if seconds}


def fail_after(clock: Clock, seconds: float) -> None:
    clock.spend(seconds)
    raise RuntimeError("out of luck")


def test_every_second_is_of_one_kind(tmp_path):
    clock = Clock()
    ledger = Ledger(tmp_path, clock=clock)
    clock.spend(1)
    ledger.turn_to("compile")
    clock.spend(2)
    ledger.turn_to("other")
    clock.spend(0.5)
    with ledger.spending("eval"):
        clock.spend(3)
        with ledger.spending("checkpoint"):
            clock.spend(5)
        clock.spend(0.25)
    with pytest.raises(RuntimeError, match="out of luck"), ledger.spending("step"):
        fail_after(clock, 8.25)
    assert spent(ledger) == {"init": 1, "compile": 2, "other": 0.5, "eval": 3.25, "checkpoint": 5, "step": 8.25}
    assert sum(ledger.seconds.values()) == clock.now - 100
    assert ledger.goodput == 8.25 / 20
    assert not list(tmp_path.iterdir())
    assert summary(ledger.seconds) == (
        "Goodput 41 %: step 8.2 s, checkpoint 5 s, eval 3.2 s, compile 2 s, init 1 s, other 0.5 s."
    )


def steps(ledger: Ledger, clock: Clock, first: int, last: int, checkpoints=()) -> None:
    """Ten seconds a step, a row after each."""
    for step in range(first, last + 1):
        with ledger.spending("step"):
            clock.spend(10)
        ledger.finished(step)
        ledger.save()
        if step in checkpoints:
            with ledger.spending("checkpoint"):
                clock.spend(1)
            ledger.save()


def test_what_is_done_again_was_lost(tmp_path):
    clock = Clock()
    first = Ledger(tmp_path, clock=clock)
    first.rewind(0)
    steps(first, clock, 1, 7, checkpoints=(3, 6))
    clock.spend(4)  # killed: no row tells of this

    second = Ledger(tmp_path, clock=clock)
    clock.spend(2)
    second.rewind(3)  # checkpoint 6 was damaged
    assert spent(second) == {"init": 2, "step": 30, "checkpoint": 2, "lost": 40}
    assert [row["step"] for row in read_ledger(tmp_path)] == [0, 1, 2, 3, 3, 3]
    steps(second, clock, 4, 5)
    with open(tmp_path / LEDGER_FILE, "a") as file:
        file.write('{"step": 6, "proc')  # killed while it wrote

    third = Ledger(tmp_path, clock=clock)
    third.rewind(3)
    assert spent(third) == {"init": 2, "step": 30, "checkpoint": 2, "lost": 60}
    third.turn_to("other")
    steps(third, clock, 4, 9, checkpoints=(6,))
    third.rewind(6)  # bad numbers
    assert spent(third) == {"init": 2, "step": 60, "checkpoint": 3, "lost": 90}
    with third:
        clock.spend(0.5)
    rows = read_ledger(tmp_path)
    assert rows[-1]["processes"] == 3
    assert rows[-1]["step"] == 6
    assert rows[-1]["seconds"] == {**dict.fromkeys(SPENT, 0.0), **spent(third)}

    # A run that went to its end and is asked for again has lost nothing.
    again = Ledger(tmp_path, clock=clock)
    again.rewind(6)
    assert spent(again) == spent(third)


def test_other_hosts_keep_no_file(tmp_path):
    clock = Clock()
    with Ledger(tmp_path, enabled=False, clock=clock) as ledger:
        ledger.rewind(0)
        steps(ledger, clock, 1, 2)
    assert ledger.seconds["step"] == 20
    assert not list(tmp_path.iterdir())


def test_waiting_for_data_begins_when_the_devices_are_idle(tmp_path):
    @jax.jit
    def work(x):
        return jax.lax.fori_loop(0, 400, lambda _, y: jnp.tanh(y @ y), x).sum()

    x = jnp.full((300, 300), 0.01)
    jax.block_until_ready(work(x))
    began = time.monotonic()
    jax.block_until_ready(work(x))
    seconds = time.monotonic() - began

    with Ledger(tmp_path) as ledger:
        ledger.turn_to("other")
        with ledger.waiting_for_data(work(x)):  # the batch comes while they compute
            time.sleep(0.2 * seconds)
        assert ledger.seconds["data"] == 0
        assert ledger.seconds["step"] >= 0.2 * seconds
        began = time.monotonic()
        running = work(x)
        with ledger.waiting_for_data(running):  # long after they have finished
            jax.block_until_ready(running)
            finished = time.monotonic()
            time.sleep(1.0)
            ended = time.monotonic()
        assert ledger.seconds["data"] == pytest.approx(ended - finished, abs=0.25)
        assert ledger.seconds["step"] >= 0.2 * seconds


def test_a_killed_and_resumed_run_says_what_was_lost(tmp_path):
    command = [sys.executable, str(ROOT / "tests/training/toy.py"), str(tmp_path / "run"), "10", "kill", "9", "60"]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, check=False)
    first = time.monotonic() - began
    assert done.returncode == -signal.SIGKILL
    rows = read_ledger(tmp_path / "run")
    assert rows[-1]["step"] == 7  # the metrics of step 8 were to be read when the tenth batch had come
    assert rows[-1]["processes"] == 1
    assert rows[-1]["seconds"]["lost"] == 0
    assert 0 < sum(rows[-1]["seconds"].values()) < first
    for kind in ("init", "compile", "step", "checkpoint"):
        assert rows[-1]["seconds"][kind] > 0

    began = time.monotonic()
    toy.run(tmp_path / "run", toy.make_config(checkpoint_every=3))
    second = time.monotonic() - began
    after = read_ledger(tmp_path / "run")
    last = after[-1]["seconds"]
    assert after[-1]["step"] == 10
    assert after[-1]["processes"] == 2
    restored = next(row["step"] for row in after if row["processes"] == 2)
    kept = [row for row in rows if row["step"] <= restored][-1]["seconds"]["step"]
    assert restored in (3, 6)
    assert last["lost"] == pytest.approx(rows[-1]["seconds"]["step"] - kept, abs=1e-5)
    assert last["lost"] > 0
    assert sum(last.values()) == pytest.approx(sum(rows[-1]["seconds"].values()) + second, abs=0.2)
    assert [row["step"] for row in after] == sorted(row["step"] for row in after)


def test_a_refused_run_leaves_no_ledger(tmp_path):
    toy.run(tmp_path / "run", toy.make_config(steps=1))
    before = (tmp_path / "run" / LEDGER_FILE).read_text()
    with pytest.raises(Exception, match="another config"):
        toy.run(tmp_path / "run", toy.make_config(steps=1), run_config={"model": {"hidden": 32}})
    assert (tmp_path / "run" / LEDGER_FILE).read_text() == before
    assert json.loads(before.splitlines()[-1])["seconds"]["lost"] == 0
