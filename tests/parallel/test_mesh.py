"""Meshes: shapes asked for, shapes refused."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from jukebox_jax.errors import UserError
from jukebox_jax.parallel.mesh import AXES, device_grid, make_mesh, mesh_sizes
from jukebox_jax.parallel.strategies import STRATEGIES


@pytest.mark.parametrize("shape", [(), (1, 1, 1, 1), (-1, 1, 1, 1), {"fsdp": -1}, {}, (1,)])
def test_one_device_is_a_mesh_of_ones_with_automatic_axes(shape):
    mesh = make_mesh(shape, jax.devices()[:1])
    assert mesh.axis_names == AXES
    assert mesh.devices.shape == (1, 1, 1, 1)
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2, 1, 1, 1), "is for 2 devices and there are 1: choose sizes whose product is 1"),
        ({"fdsp": 1}, "did you mean 'fsdp'"),
        ((0, 1, 1, 1), "sizes are at least 1"),
        ((-1, -1, 1, 1), "one of them may be -1"),
        ((-1, 2, 1, 1), "does not divide 1 devices"),
        ((1, 1, 1, 1, 1), "4 axes"),
    ],
)
def test_impossible_meshes_are_refused(shape, words):
    with pytest.raises(UserError, match=words):
        make_mesh(shape, jax.devices()[:1])


@pytest.mark.parametrize(
    ("strategy", "devices", "slices", "sizes"),
    [
        ("single", 8, 1, (1, 1, 1, 1)),
        ("dp", 8, 1, (8, 1, 1, 1)),
        ("fsdp", 8, 1, (1, 8, 1, 1)),
        ("hsdp", 8, 1, (2, 4, 1, 1)),  # without slices two groups
        ("hsdp", 2, 1, (2, 1, 1, 1)),
        ("hsdp", 1, 1, (1, 1, 1, 1)),
        ("hsdp", 512, 4, (4, 128, 1, 1)),
        ("fsdp_tp", 8, 1, (1, 4, 1, 2)),
        ("fsdp_sp", 8, 1, (1, 4, 2, 1)),
    ],
)
def test_every_strategy_has_a_mesh_of_its_own(strategy, devices, slices, sizes):
    assert mesh_sizes(STRATEGIES[strategy].mesh_shape, devices, slices) == sizes


@pytest.mark.parametrize("shape", [(2, 2, 1, 1), (16, 1, 1, 1), {"fsdp": 4}])
def test_a_mesh_uses_all_devices(shape):
    with pytest.raises(UserError, match=r"is for (4|16) devices and there are 8: choose sizes whose product is 8"):
        mesh_sizes(shape, 8)


@dataclasses.dataclass(frozen=True)
class Device:
    """What the layout of a mesh looks at; devices in several slices there are none of here."""

    id: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"
    process_index: int = 0


def slices_of(sizes, devices) -> np.ndarray:
    return np.vectorize(lambda device: device.slice_index)(device_grid(sizes, devices))


def test_replicas_lie_in_slices_of_their_own():
    devices = [Device(i, i % 2) for i in range(16)]
    (one, two) = slices_of(mesh_sizes(STRATEGIES["hsdp"].mesh_shape, 16, 2), devices)
    assert (one == 0).all()
    assert (two == 1).all()
    four = slices_of((4, 2, 2, 1), devices)
    assert (four[:2] == 0).all()
    assert (four[2:] == 1).all()


def test_sequence_and_tensor_never_leave_a_slice():
    devices = [Device(i, i // 8) for i in range(16)]
    laid = slices_of((1, 4, 2, 2), devices)
    assert (laid == np.repeat([0, 1], 2).reshape(1, 4, 1, 1)).all()
    with pytest.raises(UserError, match=r"Mesh 1×1×8×2 cannot be laid over 2 slices: make replica"):
        device_grid((1, 1, 8, 2), devices)
