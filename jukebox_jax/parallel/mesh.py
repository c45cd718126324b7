"""The one place that builds a device mesh."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from jukebox_jax.config import nearest
from jukebox_jax.errors import UserError

AXES = ("replica", "fsdp", "sequence", "tensor")
#: A size, -1 for all remaining devices, or "slices" for one part per slice.
Size = int | Literal["slices"]


def make_mesh(shape: Mapping[str, Size] | Sequence[Size] = (), devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds a mesh with the axes `replica, fsdp, sequence, tensor`; one device is a 1×1×1×1 mesh.

    Args:
      shape: see `mesh_sizes`.
      devices: default `jax.devices()`; a mesh of size 1 uses the first one.

    Raises:
      UserError: a shape that is not that of the devices (see `mesh_sizes`), or cannot be laid over their slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = mesh_sizes(shape, len(devices), _slice_count(devices))
    # Auto: Linen's logical constraints fail on Explicit axes.
    return Mesh(device_grid(sizes, devices[: math.prod(sizes)]), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def device_grid(sizes: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """Lays all devices out in the shape of a mesh: neighbours on the last axes, which talk most, on the fastest links.

    Where devices lie in several slices (TPU pods, or GPU machines, joined by a data-centre network), these are blocks
    along `replica`, or along `fsdp` if `replica` is no multiple of their number: `sequence` and `tensor` never leave a
    slice.

    Raises:
      UserError: neither axis is a multiple of the number of slices.
    """
    slices = _slice_count(devices)
    if slices == 1:
        # Physical axes may be split: a v5p slice of 4×4×4 has no physical axis for a `sequence` of 2.
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    outer = _slices_by_axis(sizes, slices)
    inner = [size // parts for size, parts in zip(sizes, outer, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)


def _slice_count(devices: Sequence[Any]) -> int:
    return len({getattr(device, "slice_index", 0) for device in devices})


def mesh_sizes(shape: Mapping[str, Size] | Sequence[Size], devices: int, slices: int = 1) -> tuple[int, ...]:
    """Sizes of `AXES` for so many devices.

    Args:
      shape: sizes by axis name, or in the order of `AXES`; what is absent is 1; one size may be -1, which takes all
        remaining devices. "slices" stands for `slices` or, where there is only one, for 2 (on one device 1).

    Raises:
      UserError: an unknown axis, a size below 1, two sizes of -1, or a product that is neither `devices` nor 1.
    """
    groups = slices if slices > 1 else min(2, devices)
    sizes = [groups if size == "slices" else size for size in _sizes(shape)]
    text = "×".join(map(str, sizes))
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise UserError(f"Mesh {text} is no shape: sizes are at least 1, and one of them may be -1 (the rest).")
    if -1 in sizes:
        fixed = math.prod(size for size in sizes if size != -1)
        if devices % fixed:
            raise UserError(f"Mesh {text} does not divide {devices} devices: choose sizes whose product does.")
        sizes[sizes.index(-1)] = devices // fixed
    needed = math.prod(sizes)
    if needed not in (1, devices):
        raise UserError(
            f"Mesh {text} is for {needed} devices and there are {devices}: choose sizes whose product is {devices}, "
            "or -1 for one of them."
        )
    return tuple(sizes)


def _sizes(shape: Mapping[str, Size] | Sequence[Size]) -> list[Size]:
    if isinstance(shape, Mapping):
        for axis in shape:
            if axis not in AXES:
                raise UserError(f"Unknown mesh axis {axis!r}: {nearest(axis, AXES)}")
        return [shape.get(axis, 1) for axis in AXES]
    if len(shape) > len(AXES):
        raise UserError(f"A mesh has {len(AXES)} axes ({', '.join(AXES)}), not {len(shape)}.")
    return list(shape) + [1] * (len(AXES) - len(shape))


def _slices_by_axis(sizes: Sequence[int], slices: int) -> tuple[int, int, int, int]:
    """How many parts of each axis lie in different slices."""
    replica, fsdp, *_ = sizes
    if replica % slices == 0:
        return (slices, 1, 1, 1)
    if fsdp % slices == 0:
        return (1, slices, 1, 1)
    raise UserError(
        f"Mesh {'×'.join(map(str, sizes))} cannot be laid over {slices} slices: make replica (as strategy hsdp does) "
        f"or fsdp a multiple of {slices}."
    )
