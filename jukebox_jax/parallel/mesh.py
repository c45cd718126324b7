"""The one place that builds a device mesh."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AxisType, Mesh

from jukebox_jax.config import nearest
from jukebox_jax.errors import UserError

AXES = ("replica", "fsdp", "sequence", "tensor")


def make_mesh(shape: Mapping[str, int] | Sequence[int] = (), devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds a mesh with the axes `replica, fsdp, sequence, tensor`; one device is a 1×1×1×1 mesh.

    Args:
      shape: sizes by axis name, or in the order of `AXES`; what is absent is 1; one size may be -1, which takes all
        remaining devices. A smaller product than the number of devices uses the first devices.
      devices: default `jax.devices()`.

    Raises:
      UserError: an unknown axis, a size below 1, two sizes of -1, or a shape that the devices cannot fill.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = _sizes(shape)
    text = "×".join(map(str, sizes))
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise UserError(f"Mesh {text} is no shape: sizes are at least 1, and one of them may be -1 (the rest).")
    if -1 in sizes:
        fixed = math.prod(size for size in sizes if size != -1)
        if len(devices) % fixed:
            raise UserError(f"Mesh {text} does not divide {len(devices)} devices: choose sizes whose product does.")
        sizes[sizes.index(-1)] = len(devices) // fixed
    needed = math.prod(sizes)
    if needed > len(devices):
        raise UserError(f"Mesh {text} needs {needed} devices and there are {len(devices)}: choose a smaller mesh.")
    # Auto: Linen's logical constraints fail on Explicit axes, which jax.make_mesh would choose by default.
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:needed])


def _sizes(shape: Mapping[str, int] | Sequence[int]) -> list[int]:
    if isinstance(shape, Mapping):
        for axis in shape:
            if axis not in AXES:
                raise UserError(f"Unknown mesh axis {axis!r}: {nearest(axis, AXES)}")
        return [shape.get(axis, 1) for axis in AXES]
    if len(shape) > len(AXES):
        raise UserError(f"A mesh has {len(AXES)} axes ({', '.join(AXES)}), not {len(shape)}.")
    return list(shape) + [1] * (len(AXES) - len(shape))
