"""The same training on one device and on eight."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.training.on_eight import on_eight_devices


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    run = on_eight_devices("eight_devices.py", tmp_path_factory.mktemp("eight"))
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
