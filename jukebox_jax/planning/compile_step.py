"""The process that compiles one training step for TPUs that are not there: a request as JSON on standard input, the
answer on its output's last line.

A process of its own, because libtpu wants its environment before jax starts, and compilers end in ways that no
exception tells. `compiled.compiled` starts it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.experimental import topologies

from jukebox_jax.config import from_dict, to_dict
from jukebox_jax.errors import UserError
from jukebox_jax.parallel.collectives import Message, messages
from jukebox_jax.parallel.hbm import hbm_bytes
from jukebox_jax.parallel.mesh import make_mesh
from jukebox_jax.parallel.plan import bytes_per_device, memory_limit, out_of_memory_told
from jukebox_jax.parallel.strategies import batch_sharding, get_strategy
from jukebox_jax.planning.store import open_store
from jukebox_jax.planning.workload import task_of
from jukebox_jax.training.run import CodecRun, PriorRun
from jukebox_jax.training.state import abstract_state
from jukebox_jax.training.step import make_train_step

RUNS = {"codec": CodecRun, "prior": PriorRun}
#: How compiled programs are read: raise it when `messages` or `hbm_bytes` count otherwise.
COUNTED = 1
STORE_SECONDS = 60.0  # for which others may read from the store or add to it


@dataclass(frozen=True)
class Compiled:
    """A training step as the TPU compiler made it; bytes are those of one chip.

    Attributes:
      key: hash of the program before compilation, the topology and the compiler; "" if it did not come so far.
      fits: whether a chip's memory holds it; None if nobody knows.
      arguments: state and batch, as the chip lays them out.
      temporaries: activations, gradients, gathered parameters, at their peak.
      outputs: results that do not take the place of an argument.
      peak: the most that is in use at once, by the compiler's own account.
      host: kept in the host's memory for this chip.
      parts: of the arguments by name, without the padding of their layout.
      messages: what every chip sends in a step.
      hbm_bytes: read from and written to a chip's memory in a step.
      compile_seconds: of the compiler alone.
      reason: why there is no program, in a sentence; then the numbers are 0.
    """

    key: str
    fits: bool | None = None
    arguments: int = 0
    temporaries: int = 0
    outputs: int = 0
    peak: int = 0
    host: int = 0
    parts: dict[str, int] = field(default_factory=dict)
    messages: tuple[Message, ...] = ()
    hbm_bytes: float = 0.0
    compile_seconds: float = 0.0
    jax_version: str = ""
    libtpu_version: str = ""
    reason: str | None = None


@dataclass(frozen=True)
class Lowered:
    """A step before compilation.

    Attributes:
      parts: bytes of one chip by name.
    """

    step: jax.stages.Lowered
    mesh: jax.sharding.Mesh
    parts: dict[str, int]
    key: str


def lower_step(run: CodecRun | PriorRun, topology: str) -> Lowered:
    """Traces the training step of a run, laid over a topology as `v5e:4x4` or `2xv5p:4x4x4`.

    Raises:
      UserError: an unknown topology, libtpu is missing, or a strategy, mesh or batch that does not fit.
    """
    config, task = run.train, task_of(run)
    strategy = get_strategy(config.strategy)
    mesh = make_mesh(config.mesh or strategy.mesh_shape, _devices(topology))
    sharding = batch_sharding(mesh, strategy.rules, config.batch_size, config.accumulate)
    with jax.set_mesh(mesh):
        abstract = abstract_state(task, config, mesh, strategy.rules)
        batch = {
            name: jax.ShapeDtypeStruct((config.batch_size, *spec.shape), spec.dtype, sharding=sharding)
            for name, spec in task.batch_spec.items()
        }
        step = make_train_step(task, config, mesh, strategy.rules, abstract).lower(abstract, batch)
    trees = {"parameters": abstract.params, "optimizer": abstract.opt_state, "average": abstract.ema, "batch": batch}
    told = (COUNTED, topology, _libtpu_version(), os.environ.get("LIBTPU_INIT_ARGS", ""), step.as_text())
    key = hashlib.sha256("\n".join(map(str, told)).encode()).hexdigest()[:32]
    return Lowered(step, mesh, {name: bytes_per_device(tree) for name, tree in trees.items()}, key)


def compile_step(lowered: Lowered) -> Compiled:
    """Compiles a step, or says that it does not fit into a chip's memory."""
    versions = {"jax_version": jax.__version__, "libtpu_version": _libtpu_version()}
    started = time.monotonic()
    try:
        with jax.set_mesh(lowered.mesh), out_of_memory_told():
            program = lowered.step.compile()
    except UserError as error:
        return Compiled(lowered.key, False, parts=lowered.parts, reason=str(error), **versions)
    seconds = time.monotonic() - started
    analysis, hlo = program.memory_analysis(), program.as_text()
    outputs = max(0, analysis.output_size_in_bytes - analysis.alias_size_in_bytes)
    total = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + outputs
    limit = memory_limit(lowered.mesh.devices.flat[0])
    return Compiled(
        key=lowered.key,
        fits=limit is None or total <= limit,
        arguments=analysis.argument_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        outputs=outputs,
        peak=analysis.peak_memory_in_bytes,
        host=analysis.host_temp_size_in_bytes,
        parts=lowered.parts,
        messages=tuple(messages(hlo, lowered.mesh.axis_sizes)),
        hbm_bytes=hbm_bytes(hlo),
        compile_seconds=seconds,
        **versions,
    )


def _devices(topology: str) -> list[jax.Device]:
    slices, name = re.fullmatch(r"(?:(\d+)x)?([a-z].*)", topology).groups()
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, num_slices=int(slices or 1)).devices
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"No topology {topology}: {reason}. Install the extra [tpu], or name another.") from None


def _libtpu_version() -> str:
    return importlib.metadata.version("libtpu")


def _known(store: str | None, key: str) -> dict[str, Any] | None:
    """What a store has under a key."""
    if store is None:
        return None
    with open_store(store, STORE_SECONDS) as opened:
        return next((row for row in opened.rows if row.get("key") == key), None)


def _end_with(parent: int) -> None:
    """Ends this process soon after the one that started it, should that be killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    request: dict[str, Any] = json.load(sys.stdin)
    threading.Thread(target=_end_with, args=[request["parent"]], daemon=True).start()
    try:
        lowered = lower_step(from_dict(RUNS[request["kind"]], request["run"]), request["topology"])
        known = _known(request["store"], lowered.key)
        found = known or to_dict(compile_step(lowered))
    except UserError as error:
        known, found = None, to_dict(Compiled("", reason=str(error)))
    print(json.dumps({"compiled": found, "known": known is not None}), flush=True)


if __name__ == "__main__":
    main()
