"""What a compiled step needs of a device's memory, known before it runs."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from jukebox_jax.errors import UserError

GIB = 2**30

# What the TPU compiler (libtpu 0.0.42) lets a program use, by the name that a device calls its kind. Less than what is
# sold with the chip: the runtime keeps some. A v4 chip is two devices here, as is a TPU7x chip.
HBM_LIMITS = {
    "TPU v4": int(15.25 * GIB),
    "TPU v5 lite": int(15.75 * GIB),  # v5e
    "TPU v5": int(95.74 * GIB),  # v5p
    "TPU v6 lite": int(31.25 * GIB),  # v6e
    "TPU7x": int(94.75 * GIB),
}

_REMEDY = (
    "shard the state further (train.strategy, train.mesh), recompute more (model.remat), accumulate gradients "
    "(train.accumulate), lower train.batch_size, or take more devices."
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Memory of one device during a step, in bytes.

    Attributes:
      device_kind, devices: what the step is compiled for.
      parts: the named parts of the arguments, as their shardings divide them.
      arguments: all arguments as the device lays them out: `parts`, what is in none of them, and padding.
      temporaries: activations, gradients, gathered parameters: what lives only during the step, at its peak.
      outputs: results that do not take the place of an argument.
      host: what the step keeps in the host's memory for this device (offloaded activations).
      limit: what a program may use of the device, None if nobody says.
    """

    device_kind: str
    devices: int
    parts: Mapping[str, int]
    arguments: int
    temporaries: int
    outputs: int
    host: int
    limit: int | None

    @property
    def total(self) -> int:
        """Device memory at the step's peak."""
        return self.arguments + self.temporaries + self.outputs

    def __str__(self) -> str:
        """One line for people."""
        rest = self.arguments + self.outputs - sum(self.parts.values())
        sizes = {**self.parts, "activations": self.temporaries, "other": rest if rest >= 2**20 else 0}
        text = ", ".join(f"{name} {size_text(size)}" for name, size in sizes.items() if size)
        limit = "" if self.limit is None else f" of {size_text(self.limit)}"
        host = f", and {size_text(self.host)} of its host's memory" if self.host else ""
        return f"Memory per device ({self.devices} × {self.device_kind}): {text}: {size_text(self.total)}{limit}{host}."


def plan(compiled: jax.stages.Compiled, parts: Mapping[str, Any], mesh: Mesh) -> Plan:
    """Reads from the compiler, and from the arguments' shardings, what a compiled step needs of each device.

    Other programs of the run (evaluation, a codec that encodes on the fly) are not in it.

    Args:
      parts: trees of ShapeDtypeStructs or arrays with shardings, by the names that people call them.
      mesh: what the step is compiled for.

    Raises:
      UserError: the step needs more than a device has.
    """
    analysis = compiled.memory_analysis()
    device = next(iter(mesh.local_devices), mesh.devices.flat[0])  # only a local one knows its memory
    result = Plan(
        device_kind=device.device_kind,
        devices=mesh.size,
        parts={name: bytes_per_device(tree) for name, tree in parts.items()},
        arguments=analysis.argument_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        outputs=max(0, analysis.output_size_in_bytes - analysis.alias_size_in_bytes),
        host=analysis.host_temp_size_in_bytes,
        limit=memory_limit(device),
    )
    if result.limit is not None and result.total > result.limit:
        raise UserError(f"The step does not fit into a device's memory. {result} To make it fit, {_REMEDY}")
    return result


def bytes_per_device(tree: Any) -> int:
    """Bytes of a tree's shards on one device, without the padding of the device's layout.

    Args:
      tree: ShapeDtypeStructs or arrays with shardings; a leaf without one counts whole.
    """

    def one(leaf: Any) -> int:
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(one(leaf) for leaf in jax.tree.leaves(tree))


def memory_limit(device: jax.Device) -> int | None:
    """What programs may use of a device's memory, in bytes: as it says itself, else by its kind; None on a CPU."""
    try:
        statistics = device.memory_stats()
    except jax.errors.JaxRuntimeError:  # a device of another host, or one only described, to compile for
        statistics = None
    return (statistics or {}).get("bytes_limit") or HBM_LIMITS.get(device.device_kind)


@contextlib.contextmanager
def out_of_memory_told() -> Iterator[None]:
    """Around a compilation or a first step: where memory runs out there, a UserError says what to do."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        _, found, reason = str(error).partition("RESOURCE_EXHAUSTED:")
        if not found:
            raise
        reason = reason.strip().partition("\n")[0].rstrip(".")
        raise UserError(f"The step does not fit into a device's memory ({reason}). To make it fit, {_REMEDY}") from None


def size_text(size: int) -> str:
    """Bytes for people."""
    for unit, name in ((GIB, "GiB"), (2**20, "MiB")):
        if size >= unit / 10:
            return f"{size / unit:.3g} {name}"
    return f"{size / 2**10:.3g} KiB"
