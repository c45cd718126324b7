"""The same training on one device and on eight."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    run = subprocess.run(
        [sys.executable, str(ROOT / "tests/training/eight_devices.py"), str(tmp_path_factory.mktemp("eight"))],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["dp", "fsdp", "replicated_fsdp"])
def test_losses_gradients_and_weights_equal_those_of_one_device(report, name):
    np.testing.assert_allclose(report[name]["losses"], report["single"]["losses"], rtol=1e-5)
    np.testing.assert_allclose(report[name]["grad_norms"], report["single"]["grad_norms"], rtol=1e-5)
    assert report[name]["difference"] < 1e-5
    assert report[name]["devices"] == 8
    assert report["single"]["devices"] == 1


@pytest.mark.parametrize(("name", "parts"), [("single", 1), ("dp", 1), ("fsdp", 8), ("replicated_fsdp", 4)])
def test_every_device_holds_its_part_of_parameters_moments_and_average(report, name, parts):
    shards = report[name]["shards"]
    for group in ("params", "ema", "moment"):
        assert shards[f"{group}/Dense_0/kernel"] == [16 // parts, 24]
        assert shards[f"{group}/Dense_1/kernel"] == [24, 16 // parts]
        assert shards[f"{group}/Dense_1/bias"] == [16]  # it names no axes
    assert shards["model_state/mean"] == [16 // parts]


def test_a_run_moves_between_meshes(report):
    assert report["moved"]["difference"] < 1e-5
    assert report["moved"]["shards"]["params/Dense_0/kernel"] == [16, 24]
