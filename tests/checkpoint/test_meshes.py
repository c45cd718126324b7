"""Checkpoints move between meshes, strategies and numbers of processes, and all processes agree on what is damaged."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fake_devices import xla_flags

ROOT = Path(__file__).parents[2]
DEVICES = 8


def run(folder: Path, strategy: str, *verbs: str, mesh=(), processes: int = 1) -> list[tuple[list, str]]:
    """Runs the verbs in so many processes that share eight devices; of each its rows and what it told."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(DEVICES // processes),
    }
    program = [sys.executable, str(ROOT / "tests/checkpoint/processes.py"), str(folder), strategy, json.dumps(mesh)]
    started = [
        subprocess.Popen(
            [*program, str(processes), str(index), str(port), *verbs],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(processes)
    ]
    results = []
    try:
        for process in started:
            _, told = process.communicate(timeout=120)
            assert process.returncode == 0, told
            rows = folder.with_name(f"{folder.name}.{len(results)}.jsonl")
            lines = rows.read_text().splitlines() if rows.exists() else []
            results.append(([json.loads(line) for line in lines], told))
            rows.unlink(missing_ok=True)
    finally:
        for process in started:
            process.kill()
    return results


@pytest.fixture(scope="module")
def written_by_two(tmp_path_factory):
    """Four checkpoints of two processes under fsdp, the last one damaged where only the second process looks."""
    folder = tmp_path_factory.mktemp("two") / "run"
    saves = ["save:1:3", "save:2:1", "save:3:2", "save:4:5"]
    return folder, run(folder, "fsdp", *saves, "restore", "flip:4:1", "restore", processes=2)


def test_two_processes_write_one_checkpoint_and_agree_on_what_is_damaged(written_by_two):
    folder, results = written_by_two
    shapes = [[5], [64 // DEVICES, 24], [24, 64 // DEVICES]]
    for rows, _ in results:
        # The latest two, and the one whose metric was smallest.
        assert rows == [[4, True, [2, 3, 4], shapes], [3, True, [2, 3], shapes]]
    lines = results[0][1].splitlines()
    assert len(lines) == 1
    assert "Checkpoint 4" in lines[0]
    assert "has changed since it was written" in lines[0]
    assert "Checkpoint" not in results[1][1]  # process 0 alone speaks
    assert (folder / "unreadable_checkpoint_4").is_dir()


def test_one_process_restores_what_two_wrote_under_other_strategies(written_by_two):
    verbs = ["restore:single:[]", "restore:dp:[]", "restore:fsdp:[2,4]"]
    ((rows, told),) = run(written_by_two[0], "single", *verbs)
    whole, part = [[5], [64, 24], [24, 64]], [[5], [16, 24], [24, 16]]
    assert rows == [[3, True, [2, 3], shapes] for shapes in (whole, whole, part)]
    assert told == ""


def test_two_processes_restore_what_one_wrote_and_go_back_together(tmp_path):
    run(tmp_path / "run", "fsdp", "save:1:1", "save:2:2", "save:3:3", mesh=(2, 4))
    verbs = ["restore", "forget:1", "save:2:2", "restore"]
    for rows, told in run(tmp_path / "run", "dp", *verbs, processes=2):
        assert [row[:3] for row in rows] == [[3, True, [1, 2, 3]], [2, True, [1, 2]]]
        assert "Checkpoint" not in told
