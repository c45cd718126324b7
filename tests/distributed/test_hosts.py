"""One run on several hosts: real processes that meet, agree, save together, and go on in another number."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fake_devices import xla_flags

from jukebox_jax.checkpoint import runs
from jukebox_jax.errors import UserError
from jukebox_jax.parallel.hosts import HostSpec, parse_hosts
from jukebox_jax.training.telemetry import read_metrics

ROOT = Path(__file__).parents[2]
FSDP = {"strategy": "fsdp", "checkpoint_every": 4, "steps": 12}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(run_dir: Path, changes: dict, count: int, devices: int, slow_from: int = 10**6) -> list[subprocess.Popen]:
    """Starts the toy on `count` hosts with `devices` devices each."""
    address = f"127.0.0.1:{free_port()}"
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(devices),
    }
    specs = ["alone"] if count == 1 else [f"{address},{count},{index}" for index in range(count)]
    program = [sys.executable, str(Path(__file__).with_name("program.py"))]
    return [
        subprocess.Popen(
            [*program, spec, str(run_dir), json.dumps(changes), str(slow_from)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for spec in specs
    ]


def finish(processes: list[subprocess.Popen], timeout: float = 120) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of every host."""
    ends = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=timeout)
            ends.append((process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
    return ends


def losses(run_dir: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run_dir) if "loss" in row]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same run on one host with four devices."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    ((status, _, errors),) = finish(start(run_dir, FSDP, 1, 4))
    assert status == 0, errors
    return run_dir


def test_two_hosts_do_what_one_does_and_only_the_first_prints(alone, tmp_path):
    ends = finish(start(tmp_path / "run", FSDP, 2, 2))
    assert [status for status, _, _ in ends] == [0, 0], ends
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(alone), rtol=1e-5)
    assert [out.splitlines()[-1] for _, out, _ in ends] == ["end 12 of 2"] * 2
    assert "Waiting for 2 hosts" in ends[0][2]
    assert "2 hosts with 4 devices" in ends[0][2]
    # XLA may have its say, as E1124 12:00:00.0 …; we say nothing on the second host.
    assert [line for line in ends[1][2].splitlines() if not re.match(r"[IWE]\d{4} ", line)] == []


@pytest.mark.parametrize("signalled", [0, 1])
def test_sigterm_to_one_host_makes_all_save_the_same_step_and_another_number_goes_on(alone, tmp_path, signalled):
    run_dir = tmp_path / "run"
    processes = start(run_dir, FSDP, 2, 2, slow_from=5)
    while (line := processes[signalled].stdout.readline().strip()) != "batch 6":
        assert line, finish(processes)
    processes[signalled].send_signal(signal.SIGTERM)
    sent = time.monotonic()
    ends = finish(processes)
    assert time.monotonic() - sent < 30
    assert [status for status, _, _ in ends] == [128 + signal.SIGTERM] * 2, ends
    (stopped,) = [line for line in ends[0][2].splitlines() if "Stopped after step" in line]
    step = runs.steps(run_dir)[-1]
    assert f"step {step};" in stopped
    assert 5 < step < 12
    assert "Stopped" not in ends[1][2]
    # One host with other devices, and another strategy, goes on.
    ((status, _, errors),) = finish(start(run_dir, {**FSDP, "strategy": "dp"}, 1, 8))
    assert status == 0, errors
    np.testing.assert_allclose(losses(run_dir), losses(alone), rtol=1e-4)


def test_a_host_with_a_mistake_ends_all(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints" / "3").mkdir(parents=True)  # without config.json
    ends = finish(start(tmp_path / "run", FSDP, 2, 1))
    assert [status for status, _, _ in ends] == [2, 2], ends
    for _, _, errors in ends:
        assert "has checkpoints but no config.json" in errors.splitlines()[-1]
        assert "Traceback" not in errors


def test_hosts_that_do_not_come_are_waited_for_and_then_given_up(tmp_path):
    code = "from jukebox_jax.parallel import hosts\nwith hosts.join(hosts.parse_hosts(%r), 0.05): pass"
    spec = f"127.0.0.1:{free_port()},3,0"
    done = subprocess.run(
        [sys.executable, "-c", code % spec],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    waiting, error = [line for line in done.stderr.splitlines() if not re.match(r"[IWE]\d{4} ", line)]
    assert waiting == "Waiting for 3 hosts (at most 0.05 min)."
    assert error.startswith("jukebox-jax: error: 3 hosts did not all come within 0.05 min")


def test_hosts_are_given_as_text():
    assert parse_hosts("auto") == HostSpec()
    assert parse_hosts("10.0.0.1:1234,4,3") == HostSpec("10.0.0.1:1234", 4, 3)
    for text in ("all", "10.0.0.1,4,3", "10.0.0.1:1234,4,4", "10.0.0.1:1234,4", ":1234,4,0", "a:b,1,0"):
        with pytest.raises(UserError, match="cannot be read: give auto"):
            parse_hosts(text)
