"""Sampling on several devices: the same songs on any number of them, weights and slots in parts, nothing else moves."""

from __future__ import annotations

import json
import re

import pytest

from jukebox_jax.cli.main import main
from jukebox_jax.errors import UserError
from jukebox_jax.sampling.devices import sampling_mesh
from tests.training.on_eight import on_eight_devices


@pytest.fixture(scope="module")
def report() -> dict:
    """What the program prints."""
    run = on_eight_devices("../sampling/layouts_on_eight_devices.py")
    assert "full rematerialization" not in run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_songs_are_the_same_on_any_number_of_replicas(report):
    assert report["lengths"] == [40, 60, 33, 40, 60, 33, 40, 60]
    assert report["different"] == 8
    assert report["drawn"] == [True] * 4  # on 1, 2, 4 and 8 devices


def test_divided_weights_change_logits_by_rounding_only(report):
    """Two devices by heads, four by width, and two replicas of both."""
    assert report["greedy"] == [True] * 3
    for name, errors in report["bits"].items():
        assert max(errors) < 1e-4, name


def test_a_device_holds_its_part_and_what_was_planned(report):
    one, divided, small = (report["memory"][name] for name in ("one", "float32", "int8"))
    assert one["planned"] == one["held"]
    assert divided["planned"] == divided["held"]
    assert 0.25 < divided["held"][0] / one["held"][0] < 0.4  # tables are whole along `tensor`
    assert divided["held"][1] < 0.6 * one["held"][1]
    assert divided["planned"][0] > small["planned"][0]
    assert small["held"][0] < 1.1 * small["planned"][0]
    assert (one["devices"], divided["devices"], small["devices"]) == ([1], [8], [8])


def test_only_activations_of_a_token_move(report):
    assert report["memory"]["one"]["moved"] == []
    # In int8, CPUs gather kernels whose heads are divided, to multiply them as matrices (see `layers.product`).
    moved = report["memory"]["float32"]["moved"]
    assert moved
    assert all(re.fullmatch(r"all-reduce \w+\[(2|2,8|2,24|2,3,1,2)\]\S*", line) for line in moved), moved


def test_by_default_devices_are_replicas_as_long_as_there_are_songs(report):
    assert report["defaults"] == [1, 3, 8]
    assert report["batch_sizes"] == [1, 1, 4]


def test_a_session_knows_how_weights_are_divided_and_not_how_often(report):
    assert len(set(report["sessions"][:4])) == 1
    assert len(set(report["sessions"])) == 3


def test_meshes_that_cannot_be_are_refused(report):
    count, sequence, heads, width, name = report["refused"]
    assert "is for 16 devices and there are 8" in count
    assert "divides no sequence" in sequence
    assert re.search(r"level_0/decoder/transformer/layers/qkv/.*\(heads\) of size 2 is not divisible.*tensor", heads)
    assert "(width) of size 16 is not divisible by mesh axis fsdp" in width
    assert "Unknown mesh axis 'replicas'" in name
    with pytest.raises(UserError, match="is no shape"):
        sampling_mesh({"replica": 0}, 1)


@pytest.mark.parametrize("mesh", ["replica", "replica=two", "2"])
def test_a_mesh_that_cannot_be_read_is_refused(mesh, capsys):
    assert main(["sample", "--demo", "--mesh", mesh]) == 2
    assert f"{mesh} is no mesh: give sizes such as replica=4,fsdp=2" in capsys.readouterr().err
