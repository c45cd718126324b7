"""Real steps over a grid: what is measured, what says why it is not, and what a killed bench leaves."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from jukebox_jax.cli.flags import load_config
from jukebox_jax.cli.main import main
from jukebox_jax.config import from_dict
from jukebox_jax.errors import UserError
from jukebox_jax.files import locked_file
from jukebox_jax.models.prior import flops_per_window
from jukebox_jax.planning.bench import Bench, Row, devices_here, environment, measure_all
from jukebox_jax.planning.bench_report import Prediction, as_csv, as_json, as_markdown, error_of, with_predictions
from jukebox_jax.planning.bench_step import Here, random_batch
from jukebox_jax.planning.grid import combinations, parse_grid
from jukebox_jax.planning.layouts import Combination
from jukebox_jax.planning.predict import predict
from jukebox_jax.planning.store import open_store
from jukebox_jax.training.run import CodecRun, PriorRun

ROOT = Path(__file__).parents[2]
CONFIG = """
from jukebox_jax.models.conditioning import LabelConfig
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.training.config import TrainConfig
from jukebox_jax.training.run import PriorRun

def get_config():
    labels = LabelConfig(0, 0, time_bins=8)
    model = PriorConfig(level=2, codes=16, n_ctx=64, width=16, depth=3, heads=1, blocks=8, labels=labels)
    return PriorRun(model, TrainConfig(batch_size=8))
"""
GRID = ["strategy=dp,fsdp_sp", "batch=8,12"]  # 12 examples do not divide over eight devices
EIGHT = Here("cpu", 8)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    (folder / "tiny.py").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def run(place) -> PriorRun:
    return load_config(f"{place / 'tiny.py'}")


def command(place: Path, *more: str) -> list[str]:
    fixed = ["--config", f"{place / 'tiny.py'}", "--devices", "8", "--steps", "3", "--store", f"{place / 'rows.jsonl'}"]
    return ["bench", "sharding", *fixed, "--grid", *GRID, *more]


@pytest.fixture(scope="module")
def killed(place) -> dict:
    """What a bench left that was killed after its second row; the process of the third then ends by itself."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("looks at processes through /proc")
    program = [sys.executable, "-m", "jukebox_jax", *command(place)]
    # It must leave devices alone, which belong to whom looks at them first: here it would fail.
    parent = subprocess.Popen(program, env={**os.environ, "JAX_PLATFORMS": "nonsense"}, cwd=ROOT)
    store, children = place / "rows.jsonl", Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    until(lambda: parent.poll() is not None or (store.exists() and store.read_bytes().count(b"\n") >= 2))
    assert parent.poll() is None  # the second row is of 12 examples, and there are two more
    until(lambda: children.read_text().strip())
    child = int(children.read_text().split()[0])
    parent.kill()
    parent.wait()
    until(lambda: not alive(child))
    rows = store.read_bytes()
    store.write_bytes(rows + rows[:40])  # as if it had been killed while it wrote
    return {"rows": rows.decode().splitlines()}


@pytest.fixture(scope="module")
def finished(place, killed) -> dict:
    """The same command, to its end."""
    files = {name: place / f"out.{name}" for name in ("json", "csv", "report")}
    assert main(command(place, *(word for name, path in files.items() for word in (f"--{name}", str(path))))) == 0
    lines = (place / "rows.jsonl").read_text().splitlines()
    return {"lines": lines, **{name: path.read_text() for name, path in files.items()}}


@pytest.fixture(scope="module")
def rows(finished) -> list[Row]:
    return [from_dict(Row, json.loads(line)["row"]) for line in finished["lines"]]


def until(holds, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


# ---- What is measured -------------------------------------------------------------------------------------------


def test_a_killed_bench_goes_on_where_it_was(killed, finished):
    assert finished["lines"][: len(killed["rows"])] == killed["rows"]
    asked = [json.loads(line)["row"]["combination"] for line in finished["lines"]]
    assert [(one["strategy"], one["batch_size"]) for one in asked] == [
        ("dp", 8),
        ("dp", 12),
        ("fsdp_sp", 8),
        ("fsdp_sp", 12),
    ]


def test_what_is_in_the_store_is_not_measured_again(place, finished, capsys):
    assert main(command(place)) == 0
    out, err = capsys.readouterr()
    assert err == "4 of 4 rows are known.\n"
    assert out == finished["report"]
    assert (place / "rows.jsonl").read_text().splitlines() == finished["lines"]


def test_rows_hold_what_was_measured(rows, run):
    dp, _, sequence, larger = rows
    assert sequence.combination == Combination("fsdp_sp", (1, 4, 2, 1), 8, 1, "block")
    for row, examples in ((dp, 8), (sequence, 8), (larger, 12)):
        found = row.measured
        low, middle, high = found.step_seconds
        assert 0 < low <= middle <= high < 10
        assert (found.device_kind, found.devices, found.steps, found.unit) == ("cpu", 8, 3, "tokens")
        assert found.units_per_second == pytest.approx(examples * 64 / middle / 8)
        labelled = replace(run.model, labels=replace(run.model.labels, artists=4111, genres=120))
        assert found.model_flops == examples * 3 * flops_per_window(labelled)
        assert found.mfu is None  # nobody publishes the peak of a CPU
        assert found.rates.matmul_flops_per_second > 1e8
        assert found.rates.sent_bytes_per_second > 1e5
        assert found.memory_bytes == sum(found.memory_parts.values())
    # Eight devices hold an eighth each of what one of dp holds, but for what is not divided.
    assert dp.measured.memory_parts["optimizer"] > 6 * sequence.measured.memory_parts["optimizer"]


def test_a_combination_that_cannot_be_divided_says_so(rows, finished):
    reason = rows[1].reason
    assert rows[1].measured is None
    assert "batch_size=12 is not a multiple of 8" in reason
    assert f"- dp, 8×1×1×1, batch 12, remat block: {reason}" in finished["report"]


def test_a_row_that_takes_too_long_says_so_and_is_tried_again_with_more_time(run, tmp_path):
    short, one = Bench(run, steps=1, minutes=0.01, cpu_devices=8), [Combination("dp", (8, 1, 1, 1), 8, 1, "block")]
    with open_store(tmp_path / "rows.jsonl") as store:
        (row,) = measure_all(short, EIGHT, one, store, progress=False)
        assert (row.measured, row.reason, row.timed_out) == (None, "It was ended after 0.01 min.", True)
        assert measure_all(short, EIGHT, one, store, progress=False) == [row]
        assert len(store.rows) == 1
        (row,) = measure_all(replace(short, minutes=0.011), EIGHT, one, store, progress=False)
        assert row.reason == "It was ended after 0.011 min."
        measure_all(short, EIGHT, one, store, again=True, progress=False)
        assert len(store.rows) == 3


def test_a_process_that_is_killed_is_a_row(run, tmp_path):
    def kill_child():
        until(lambda: children())
        os.kill(children()[0], signal.SIGKILL)

    def children() -> list[int]:
        found = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
        return [int(pid) for pids in found for pid in pids if "bench_step" in command(pid)]

    def command(pid: str) -> str:
        try:
            return Path(f"/proc/{pid}/cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):  # git, which says what code this is, has come and gone
            return ""

    bench = Bench(run, steps=1, cpu_devices=8)
    with open_store(tmp_path / "rows.jsonl") as store:
        thread = threading.Thread(target=kill_child)
        thread.start()
        rows = measure_all(bench, EIGHT, [Combination("dp", (8, 1, 1, 1), 8, 1, "block")], store, progress=False)
        thread.join()
    assert rows[0].reason == "Its process was ended by SIGKILL, as systems do where memory runs out."


def test_what_a_config_refuses_needs_no_process(run, tmp_path):
    with open_store(tmp_path / "rows.jsonl") as store:
        one = [Combination("dp", (8, 1, 1, 1), 8, 3, "block")]
        (row,) = measure_all(Bench(run, cpu_devices=8), EIGHT, one, store, progress=False)
    assert "divisor of batch_size (8)" in row.reason


def test_devices_that_cannot_be_had_are_a_sentence(monkeypatch):
    assert devices_here(4) == Here("cpu", 4)
    monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
    with pytest.raises(UserError, match=r"status 1: .*nonsense.*several hosts"):
        devices_here()


def test_another_config_or_machine_is_another_row(run):
    key = environment(run, EIGHT)
    assert key == environment(run, EIGHT)
    assert key["libraries"]["jax"]
    for other in (environment(run, Here("cpu", 4)), environment(replace(run, train=replace(run.train, seed=1)), EIGHT)):
        assert other != key


def test_random_batches_have_numbers_that_the_tables_have(run):
    batch = random_batch(run)
    assert {name: values.shape for name, values in batch.items()} == {
        "tokens": (8, 64),
        "artist": (8,),
        "genres": (8, 1),
        "total_bins": (8,),
        "absolute_bins": (8, 64),
        "relative_bins": (8, 64),
    }
    assert batch["tokens"].max() == 15
    assert batch["absolute_bins"].max() == 7
    codec = random_batch(CodecRun(train=replace(run.train, batch_size=2)))
    assert codec["audio"].shape == (2, 393_216, 1)
    assert 0.05 < codec["audio"].std() < 0.2


# ---- Grids ------------------------------------------------------------------------------------------------------


def test_a_grid_is_every_combination(run):
    grid = parse_grid(["strategy=hsdp,single", "remat=none,block", "accumulate=1,2"], run)
    found = combinations(run, grid, EIGHT)
    assert len(found) == 8
    assert found[0] == Combination("hsdp", (2, 4, 1, 1), 8, 1, "none")
    assert found[-1] == Combination("single", (1, 1, 1, 1), 8, 2, "block")
    # A mesh that is the strategy's own is one row; one that is for no eight devices stays as it was asked for.
    meshes = combinations(run, parse_grid(["strategy=fsdp_sp", "mesh=own,1x4x2x1,1x-1x2x1,1x3x1x1"], run), EIGHT)
    assert [one.mesh for one in meshes] == [(1, 4, 2, 1), (1, 3, 1, 1)]


def test_what_a_grid_leaves_out_is_as_in_the_config(run):
    assert combinations(run, {}, EIGHT) == [Combination("single", (1, 1, 1, 1), 8, 1, "block")]
    wide = replace(run, train=replace(run.train, strategy="fsdp", mesh=(-1, 4)))
    assert combinations(wide, {}, EIGHT) == [Combination("fsdp", (2, 4, 1, 1), 8, 1, "block")]
    assert combinations(wide, {"strategy": ["fsdp"]}, EIGHT) == [Combination("fsdp", (1, 8, 1, 1), 8, 1, "block")]
    assert combinations(CodecRun(), {}, EIGHT)[0].remat is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["strategie=dp"], "no 'strategie' in a grid: did you mean 'strategy'"),
        (["strategy=fsdp_s"], "did you mean 'fsdp_sp'"),
        (["remat=bloc"], "did you mean 'block'"),
        (["batch=eight"], "'eight' is no number"),
        (["batch=0"], "'0' is no number"),
        (["batch="], "at least one value, as in batch=8,16"),
        (["batch"], "at least one value"),
        (["batch=8", "batch=16"], "given twice"),
        (["mesh=2x4"], "'2x4' is no mesh: give own, or sizes of replica, fsdp, sequence, tensor"),
    ],
)
def test_a_mistake_in_a_grid_is_one_line(words, message, place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "sharding", "--config", f"{place / 'tiny.py'}", "--devices", "8", "--grid", *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_codec_has_no_remat():
    with pytest.raises(UserError, match="recomputes nothing"):
        parse_grid(["remat=none"], CodecRun())


# ---- Stores -----------------------------------------------------------------------------------------------------


def test_a_store_forgets_the_row_that_was_not_finished(tmp_path):
    path = tmp_path / "rows.jsonl"
    with open_store(path) as store:
        store.add({"a": 1})
    path.write_bytes(path.read_bytes() + b'{"a": 2, "b')
    with open_store(path) as store:
        assert store.rows == [{"a": 1}]
        store.add({"a": 3})
        store.add({"a": 4})
    assert path.read_text() == '{"a": 1}\n{"a": 3}\n{"a": 4}\n'


@pytest.mark.parametrize("text", ["mine", "mine\n", '{"a": 1}\n[2]\n', '{"a": \n'])
def test_what_is_no_store_is_refused_and_left_alone(tmp_path, text):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match="is no row of a store"), open_store(path):
        pass
    assert path.read_text() == text


def test_a_store_is_for_one_process(tmp_path):
    path = tmp_path / "rows.jsonl"
    with locked_file(path), pytest.raises(UserError, match="in use by another process"), open_store(path):
        pass


# ---- Predicted against measured ---------------------------------------------------------------------------------


def with_seconds(row: Row, *quartiles: float) -> Row:
    return replace(row, measured=replace(row.measured, step_seconds=quartiles, memory_bytes=1000))


def test_the_error_of_a_model_is_counted_in_pairs(rows):
    made = [
        with_seconds(rows[0], *quartiles) for quartiles in ((0.9, 1.0, 1.1), (1.05, 1.2, 1.3), (2, 2.0, 2), (3, 3.0, 3))
    ]
    seconds = [1.0, 1.2, 4.0, 3.0]  # the last two the wrong way round
    predictions = iter([Prediction(0.5 * x, 1.5 * x, 500) for x in seconds])
    lines = [*with_predictions(made, lambda row: next(predictions)), (rows[1], None)]
    error = error_of(lines)
    assert (error.rows, error.pairs, error.right, error.close) == (4, 5, 4, 1)
    assert error.seconds_ratio == pytest.approx(1.0)  # of 1, 1, 1/2, 1
    assert error.memory_ratio == 2
    assert error.between == 4
    assert "the order of 4 of 5 pairs of rows (80%) is right (1 closer pairs" in str(error)
    table = as_markdown(lines)
    assert "| 0.5–1.5 | 1.00 |" in table
    assert f"{error}" in table
    assert error_of([(row, None) for row in made]) is None
    same = with_predictions(made[:2], lambda row: Prediction(1.0, 1.0, 1000))
    assert "no pair of rows differs" in f"{error_of(same)}"


def test_a_prediction_without_an_order_is_not_right(rows):
    made = [with_seconds(rows[0], 1.0, 1.0, 1.0), with_seconds(rows[0], 2.0, 2.0, 2.0)]
    error = error_of(with_predictions(made, lambda row: Prediction(1.0, 1.0, 1)))
    assert (error.pairs, error.right) == (1, 0)


def test_tables_and_files_say_the_same(run, rows, finished):
    lines = with_predictions(rows, lambda row: predict(run, row))
    assert [predicted is not None for _, predicted in lines] == [row.measured is not None for row in rows]
    assert json.loads(finished["json"]) == json.loads(json.dumps(as_json(lines)))
    assert finished["csv"] == as_csv(lines)
    assert finished["report"] == as_markdown(lines) + "\n"
    flat = list(csv.DictReader(io.StringIO(finished["csv"])))
    assert len(flat) == 4
    assert (flat[2]["strategy"], flat[2]["sequence"], flat[2]["batch_size"]) == ("fsdp_sp", "2", "8")
    assert float(flat[2]["step_seconds"]) == rows[2].measured.step_seconds[1]
    assert flat[1]["step_seconds"] == ""
    titles = finished["report"].splitlines()[0]
    assert "step, s (quartiles)" in titles
    assert "MFU" not in titles  # nothing to say
    assert "predicted, s" in titles
