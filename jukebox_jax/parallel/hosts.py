"""Several hosts as one run: how they meet, which rows of a batch are whose, and how they agree.

A run on n hosts is n processes of the same program. What may differ between them (a signal that one of them got, a
clock, a file that only one of them could read) is agreed upon before anybody acts on it: otherwise one host would enter
a collective operation that the others never join, and all would wait for ever.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Int

from jukebox_jax.errors import UserError

_LEAVING_SECONDS = 20  # a host that ends waits so long for the others to end, too
_LONGEST_MESSAGE = 2000  # bytes


@dataclass(frozen=True)
class HostSpec:
    """How to find the other hosts: the address of host 0, the number of hosts and which one this is; `None` where the
    cluster says it (Cloud TPU, GKE, Slurm, Open MPI)."""

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None


def parse_hosts(text: str) -> HostSpec:
    """Reads `auto` or `ADDRESS:PORT,COUNT,INDEX`.

    Raises:
      UserError: it is neither.
    """
    if text == "auto":
        return HostSpec()
    address, *numbers = text.split(",")
    host, colon, port = address.rpartition(":")
    if host and colon and port.isdecimal() and len(numbers) == 2 and all(number.isdecimal() for number in numbers):
        count, index = map(int, numbers)
        if index < count:
            return HostSpec(address, count, index)
    raise UserError(f"Hosts {text!r} cannot be read: give auto, or ADDRESS:PORT,COUNT,INDEX with INDEX from 0.")


@contextlib.contextmanager
def join(spec: HostSpec, wait_minutes: float) -> Iterator[None]:
    """Meets the other hosts, and in the end leaves together with them. Call it before anything touches a device.

    If they have not all come in time, one line says so and the process ends with status 2: what waits for them cannot
    be interrupted in another way.

    Raises:
      UserError: the cluster does not say what `spec` leaves open.
    """
    # Signals are ours (see training.stopping); JAX's own service would swallow SIGTERM from here on.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    others = "the other hosts" if spec.count is None else f"{spec.count} hosts"
    if spec.index in (0, None):
        print(f"Waiting for {others} (at most {wait_minutes:g} min).", file=sys.stderr, flush=True)
    too_late = threading.Timer(60 * wait_minutes, _give_up, [others, wait_minutes])
    too_late.daemon = True
    too_late.start()
    try:
        jax.distributed.initialize(
            spec.coordinator,
            spec.count,
            spec.index,
            initialization_timeout=int(60 * wait_minutes) + 60,  # its own end is an abort with a page of stack
            shutdown_timeout_seconds=_LEAVING_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"The other hosts cannot be found ({reason}): give --hosts ADDRESS:PORT,COUNT,INDEX on every host."
        ) from None
    finally:
        too_late.cancel()
    if jax.process_index() == 0:
        print(f"{jax.process_count()} hosts with {jax.device_count()} devices.", file=sys.stderr, flush=True)
    yield
    jax.distributed.shutdown()


def _give_up(others: str, minutes: float) -> NoReturn:
    print(
        f"jukebox-jax: error: {others} did not all come within {minutes:g} min: see whether each of them was started "
        "with the same address and count.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


# ---- Whose rows -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Part `index` of `count` equal parts of a batch, in the order of its rows."""

    index: int
    count: int


def part_here(sharding: Sharding, batch_size: int) -> Part:
    """The rows of a batch that this host's devices hold, which another host's devices may hold too. All hosts call it.

    Args:
      sharding: of arrays whose first axis is the batch.

    Raises:
      UserError: they are not one of several equal parts of the batch.
    """
    with together():
        indices = sharding.addressable_devices_indices_map((batch_size,)).values()
        slices = {index[0].indices(batch_size)[:2] for index in indices}
        if not slices:
            raise UserError("The mesh has no device of this host: choose a strategy, or mesh sizes, for all devices.")
        start, stop = min(s for s, _ in slices), max(s for _, s in slices)
        rows = stop - start
        whole = sum(b - a for a, b in slices) == rows  # no gaps, no overlaps
        if not whole or batch_size % rows or start % rows:
            raise UserError(
                "The devices of this host hold scattered rows of the batch: choose mesh sizes such that each host has "
                "whole groups of the replica and fsdp axes."
            )
    return Part(start // rows, batch_size // rows)


# ---- Agreement --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A `UserError` that any host meets in the block is raised on all of them, in its words."""
    if jax.process_count() == 1:
        yield
        return
    message = ""
    try:
        yield
    except UserError as error:
        message = str(error)
    message = first_message(message)
    if message:
        raise UserError(message)


def first_message(message: str) -> str:
    """The message of the first host that has one, on every host; "" if none has. All hosts call it."""
    if jax.process_count() == 1:
        return message
    buffer = np.frombuffer(message.encode()[:_LONGEST_MESSAGE].ljust(_LONGEST_MESSAGE, b"\0"), np.uint8)
    told = [row for row in np.asarray(multihost_utils.process_allgather(buffer)) if row.any()]
    return told[0].tobytes().rstrip(b"\0").decode(errors="ignore") if told else ""


class Ballot:
    """What any host wants becomes what all hosts do after the same step.

    Hosts cast integers; the largest one of each counts. The counting runs on the devices behind the step that was
    dispatched before, so it costs no wait: with several hosts, `vote` returns what was cast one call ago.
    """

    def __init__(self, questions: int) -> None:
        self._counted: Array | list[int] = [0] * questions
        if jax.process_count() > 1:
            one_each = {device.process_index: device for device in reversed(jax.devices())}
            self._mesh = Mesh(np.asarray([one_each[index] for index in sorted(one_each)]), ("host",))
            self._votes = NamedSharding(self._mesh, PartitionSpec("host"))
            self._count = jax.jit(partial(jnp.max, axis=0), out_shardings=NamedSharding(self._mesh, PartitionSpec()))

    def vote(self, wishes: Sequence[int]) -> list[int]:
        """Casts this host's wishes (>= 0); every host has to call it equally often."""
        if jax.process_count() == 1:
            return list(wishes)
        before = self._counted
        cast = np.asarray(wishes, np.int32)[None]
        votes: Int[Array, "hosts questions"] = jax.make_array_from_process_local_data(self._votes, cast)
        with jax.set_mesh(self._mesh):
            self._counted = self._count(votes)
        return [int(value) for value in (before if isinstance(before, list) else _local(before))]


def _local(replicated: Array) -> np.ndarray:
    """The value of an array of which every device of every host holds the whole."""
    return np.asarray(replicated.addressable_data(0))
