"""Evaluation and audio on two hosts with a part of the weights each equal those on one device."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fake_devices import xla_flags

from tests.pipeline.conftest import write_audio_dataset

ROOT = Path(__file__).parents[2]


def start(index: int, count: int, port: int, folder: Path, devices: int) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "tests/evaluation/two_hosts.py"), *map(str, (index, count, port, folder))]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": xla_flags(devices),
    }
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome(process: subprocess.Popen) -> dict[str, float]:
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return json.loads(out.splitlines()[-1])


@pytest.mark.slow
def test_two_hosts_measure_and_hear_what_one_device_does(tmp_path):
    folder = tmp_path / "audio"
    write_audio_dataset(folder, train=(50_000,), validation=(20_000, 9_000), channels=1)
    alone = outcome(start(0, 1, 0, folder, devices=1))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hosts = [start(index, 2, port, folder, devices=2) for index in range(2)]
    for together in map(outcome, hosts):
        assert (alone.pop("parts", 1), together.pop("parts")) == (1, 4)
        assert together == pytest.approx(alone, rel=1e-5)
    assert {"loss", "bits_per_token", "item_0_level_2", "prior_item_2_sample"} <= alone.keys()
