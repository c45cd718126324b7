"""The fault drill: that it can fail, for every reason it may have to; and a short one of a real training run."""

from __future__ import annotations

import json
import os
import random
import re

import numpy as np
import pytest

from experiments.fault_drill import __main__ as fault_drill
from experiments.fault_drill import drills, engine, report, training
from experiments.fault_drill.engine import INT, KILL, TERM, WRITE, Comparison, Drill, Result, run_drill
from experiments.fault_drill.hosts import Program
from experiments.fault_drill.verbs import compare_bytes
from jukebox_jax.checkpoint import runs

UNITS = 20
# A program that counts to UNITS in a file, and goes on with it; the second argument says what is wrong with it.
COUNTER = f"""
import pathlib, signal, sys, time
folder, fault = pathlib.Path(sys.argv[1]), sys.argv[2]
units = folder / "units"
units.touch()
done = units.read_text().split()
if fault == "waits for host 0":
    while len(units.read_text().split()) < {UNITS}:
        time.sleep(0.01)
    sys.exit()
if fault == "counts its starts":
    with open(folder / "starts", "a") as starts:
        starts.write("x")
if fault == "forgets":
    done = []
    units.write_text("")
if fault == "breaks" and done:
    sys.exit("there is something already")
if fault == "is deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if fault == "stops short":
    sys.exit()
for unit in range(len(done), {UNITS}):
    with open(units, "a") as file:
        file.write(f"{{unit}}\\n")
    time.sleep(0.02)
"""


def counter(*faults: str) -> Drill:
    """The drill of the counter, with a host for every fault."""

    def start(folder):
        return [Program(("-c", COUNTER, str(folder), fault)) for fault in faults or ("none",)]

    def seen(folder):
        units = folder / "units"
        return units.read_text().count("\n") if units.exists() else 0

    return Drill(" ".join(faults) or "counter", "units", (start,), UNITS, seen, compare_bytes)


def test_what_goes_on_where_it_was_passes(tmp_path):
    told = []
    result = run_drill(counter(), tmp_path, 6, 0, told.append)
    assert result.passed, result.problems
    assert result.comparison == Comparison(0, "files")
    assert {KILL, TERM, INT} == {kind for kind, times in result.kills.items() if times}
    assert 4 <= result.met <= 6
    assert result.resumes > 2
    assert result.again == 0
    assert (told[0], told[-1]) == ("undisturbed", "to the end")


def test_several_hosts_die_together(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "GRACE_SECONDS", 0.5)  # the others do not notice that one host stops
    result = run_drill(counter("none", "waits for host 0", "waits for host 0"), tmp_path, 2, 0)
    assert result.passed or {problem.split(" at ")[0] for problem in result.problems} == {TERM}, result.problems
    assert result.kills[KILL] == 1


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("counts its starts", "starts differs"),
        ("forgets", r"start \d began at \d although \d+ were kept"),
        ("breaks", r"a start failed with \[1\]: there is something already"),
        ("stops short", "it ended at 0 of 20"),
    ],
)
def test_what_does_not_go_on_fails(tmp_path, fault, problem):
    result = run_drill(counter(fault), tmp_path, 4, 1)
    assert not result.passed
    assert any(re.search(problem, told) for told in result.problems), result.problems


def test_what_does_not_listen_to_sigterm_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "GRACE_SECONDS", 0.1)
    result = run_drill(counter("is deaf"), tmp_path, 1, 0)  # without checkpoints the first kill is a SIGTERM
    assert any(re.search("SIGTERM at .* did not end it", told) for told in result.problems), result.problems


def test_a_plan_has_every_kind_and_ascends():
    drill = training.training_drill("prior", "prior", "data", 200, "cache")
    kills = engine.plan(drill, 20, 60.0, random.Random(0))
    assert {kind: sum(kill.kind == kind for kill in kills) for kind in engine.KINDS} == dict.fromkeys(engine.KINDS, 4)
    units = [kill.at_unit for kill in kills]
    assert units == sorted(units)
    assert 0 <= units[0] < 50
    assert 150 < units[-1] < 200
    by_clock = [kill for kill in kills if kill.after_seconds < 60]
    assert 3 <= len(by_clock) <= 9
    assert {kill.kind for kill in by_clock} <= {KILL, TERM, INT}


def write_run(folder, step, weights, losses, seconds=1.0):
    """A run folder as a drill looks at it."""
    with runs.TrainingCheckpoints(folder / "run", 2) as checkpoints:
        parts = {"params": {"w": np.asarray(weights, np.float32)}, "trainer": {"step": np.asarray(step)}}
        checkpoints.save(step, parts)
        checkpoints.wait()
    rows = [{"step": number, "loss": loss, "seconds": seconds} for number, loss in enumerate(losses, start=1)]
    (folder / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_runs_are_compared_to_the_bit_and_by_their_losses(tmp_path):
    runs = {
        "whole": ([0.5, -0.0], (2.0, 1.0), 1.0),
        "later": ([0.5, -0.0], (2.0, 1.0), 9.0),
        "zero": ([0.5, 0.0], (2.0, 1.0), 1.0),
        "other": ([0.75, -0.0], (2.0, 1.01), 1.0),
        "log": ([0.5, -0.0], (2.0, 1.01), 1.0),
        "short": ([0.5, -0.0], (2.0,), 1.0),
    }
    for name, (weights, losses, seconds) in runs.items():
        write_run(tmp_path / name, 2, weights, losses, seconds)

    def bits(name):
        return training.compare_bits(tmp_path / "whole", tmp_path / name)

    def loss(name, limit):
        return training.compare_losses(tmp_path / "whole", tmp_path / name, limit)

    assert bits("later") == Comparison(0, "bits")
    assert bits("zero") == Comparison(0, "bits", "params/w differs")
    assert bits("other") == Comparison(0.25, "bits", "params/w differs")
    assert bits("log").problem == "the logs differ"
    assert loss("zero", 1e-4) == Comparison(0, "loss, relative")
    assert loss("other", 1e-4).problem == "the losses differ by 1.0e-02, more than 0.0001"
    assert loss("other", 2e-2).problem is None
    assert loss("short", 1.0).problem == "the logs have other steps"


def test_a_run_is_seen_from_outside(tmp_path):
    assert (training.logged_steps(tmp_path), training.kept_steps(tmp_path), training.is_writing(tmp_path)) == (0, 0, 0)
    assert training.damage_latest(tmp_path, random.Random(0)) is None
    write_run(tmp_path, 3, [1.0], [1.0, 1.0])
    with open(tmp_path / "run" / "metrics.jsonl", "a") as log:
        log.write('{"step": 3')
    assert (training.logged_steps(tmp_path), training.kept_steps(tmp_path)) == (2, 3)
    (tmp_path / "run" / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir()
    assert training.is_writing(tmp_path)
    assert training.kept_steps(tmp_path) == 3
    assert training.damage_latest(tmp_path, random.Random(0)) is None  # a start could not go on with any


def test_a_random_file_of_the_latest_checkpoint_is_cut(tmp_path):
    for step in (3, 5):
        (tmp_path / "run" / "checkpoints" / f"{step}" / "params").mkdir(parents=True)
        for name in ("a", "params/b"):
            (tmp_path / "run" / "checkpoints" / f"{step}" / name).write_bytes(bytes(100))
    assert training.damage_latest(tmp_path, random.Random(0)) == 3
    sizes = {
        step: [os.path.getsize(tmp_path / f"run/checkpoints/{step}/{name}") for name in ("a", "params/b")]
        for step in (3, 5)
    }
    assert sizes[3] == [100, 100]
    assert sorted(sizes[5]) == [50, 100]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return drills.write_data(tmp_path_factory.mktemp("drill"))


def test_a_prior_is_killed_and_ends_with_the_same_bits(data, tmp_path):
    drill = training.training_drill("prior", "prior", data.tokens, 40, tmp_path / "compiled")
    result = run_drill(drill, tmp_path, 3, 1)
    assert result.passed, result.problems
    assert result.comparison == Comparison(0, "bits")
    assert result.met == 3
    assert result.kills[WRITE] + result.kills[KILL] == 2  # a write that is complete by then counts as a plain kill
    assert result.kills[TERM] == 1
    assert result.resumes > 0


def test_the_table_says_what_was_done(tmp_path):
    good = Result(
        "prior",
        "prior, single",
        3,
        dict.fromkeys(engine.KINDS, 0) | {KILL: 2, WRITE: 1},
        2,
        9,
        31.4,
        Comparison(0, "bits"),
    )
    bad = Result("codec", "codec, single", 3, problems=["params/w differs"], comparison=Comparison(0.25, "bits"))
    lines = report.table([good, bad]).splitlines()
    assert lines[2] == "| prior | prior, single | 3 of 3 | 2 | 1 |  |  |  | 2 | 9 | 0 (bits) | 31 | passed |"
    assert lines[3] == "| codec | codec, single | 0 of 3 |  |  |  |  |  | 0 | 0 | 0.25 (bits) | 0 | **failed** |"
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- table -->\nold\n<!-- end of table -->\nafter\n")
    report.write_readme([good], readme)
    assert readme.read_text().splitlines()[0] == "before"
    assert readme.read_text().splitlines()[-1] == "after"
    assert lines[2] in readme.read_text()
    assert "old" not in readme.read_text()


def test_the_command_counts_what_failed(tmp_path, capsys, monkeypatch):
    # As it runs, but with drills that take a second.
    monkeypatch.setattr(drills, "write_data", lambda folder: None)
    monkeypatch.setattr(drills, "make_drills", lambda *_: [counter("none"), counter("counts its starts")])
    assert fault_drill.main(["--kills", "3", "--json", str(tmp_path / "results.json")]) == 1
    *_, problem, last = capsys.readouterr().out.splitlines()
    assert problem == "counts its starts: starts differs"
    assert last == "1 passed, 1 failed"
    assert [row["passed"] for row in json.loads((tmp_path / "results.json").read_text())] == [True, False]
    monkeypatch.setattr(drills, "make_drills", lambda *_: [counter("none")])
    assert fault_drill.main(["--kills", "1"]) == 0


@pytest.mark.parametrize("arguments", [["--kills", "0"], ["--steps", "1"], ["--only", "nothing"]])
def test_what_cannot_be_drilled_is_refused(arguments):
    with pytest.raises(SystemExit):
        fault_drill.main(arguments)


def test_every_drill_can_be_chosen(data, tmp_path):
    for name in drills.NAMES:
        (drill,) = drills.make_drills(data, tmp_path, 40, [name])
        assert drill.name == name
        assert drill.seen(tmp_path) == drill.kept_units(tmp_path) == 0
        assert drill.total >= 18
