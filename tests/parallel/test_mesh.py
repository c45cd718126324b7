"""Meshes: shapes asked for, shapes refused."""

from __future__ import annotations

import jax
import pytest
from jax.sharding import AxisType

from jukebox_jax.errors import UserError
from jukebox_jax.parallel.mesh import AXES, make_mesh


@pytest.mark.parametrize("shape", [(), (1, 1, 1, 1), (-1, 1, 1, 1), {"fsdp": -1}, {}, (1,)])
def test_one_device_is_a_mesh_of_ones_with_automatic_axes(shape):
    mesh = make_mesh(shape, jax.devices()[:1])
    assert mesh.axis_names == AXES
    assert mesh.devices.shape == (1, 1, 1, 1)
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2, 1, 1, 1), "needs 2 devices and there are 1"),
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
