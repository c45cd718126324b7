"""One training step, compiled ahead of time for a TPU topology, and its row of the table."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import jax
from jax.experimental import topologies

from jukebox_jax.errors import UserError
from jukebox_jax.models.losses import Bandwidth
from jukebox_jax.parallel.collectives import messages
from jukebox_jax.parallel.mesh import make_mesh
from jukebox_jax.parallel.plan import GIB, Plan, out_of_memory_told, plan
from jukebox_jax.parallel.strategies import batch_sharding, get_strategy
from jukebox_jax.training.codec_task import codec_task
from jukebox_jax.training.prior_task import prior_task
from jukebox_jax.training.run import CodecRun, PriorRun
from jukebox_jax.training.state import abstract_state
from jukebox_jax.training.step import make_train_step
from jukebox_jax.training.task import Task

# Where a config leaves the sizes of the label tables to the dataset: those of the released models.
ARTISTS, GENRES = 4111, 120


@dataclasses.dataclass(frozen=True)
class Row:
    """A compiled step.

    Attributes:
      mesh: chips along (replica, fsdp, sequence, tensor).
      memory: of one chip.
      sent: bytes that each chip sends in a step, by kind of collective and the mesh axes over which it sends.
    """

    config: str
    topology: str
    slices: int
    mesh: tuple[int, ...]
    batch: int
    memory: Plan
    compile_seconds: float
    sent: dict[str, float]


def compile_step(
    run: CodecRun | PriorRun, name: str, topology: str, slices: int = 1, batch: int | None = None
) -> tuple[Row, str]:
    """Compiles the training step of a run; returns its row and the optimised HLO.

    Args:
      batch: examples over all chips, in place of the config's.

    Raises:
      UserError: an unknown topology, libtpu is missing, a strategy that does not fit, or a step that does not.
    """
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology, num_slices=slices).devices
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"No topology {topology}: {reason}. Install the extra [tpu], or name another.") from None
    config = run.train if batch is None else dataclasses.replace(run.train, batch_size=batch)
    task, strategy = task_of(run), get_strategy(config.strategy)
    mesh = make_mesh(config.mesh or strategy.mesh_shape, devices)
    sharding = batch_sharding(mesh, strategy.rules, config.batch_size, config.accumulate)
    with jax.set_mesh(mesh):
        abstract = abstract_state(task, config, mesh, strategy.rules)
        examples = {
            key: jax.ShapeDtypeStruct((config.batch_size, *spec.shape), spec.dtype, sharding=sharding)
            for key, spec in task.batch_spec.items()
        }
        started = time.monotonic()
        lowered = make_train_step(task, config, mesh, strategy.rules, abstract).lower(abstract, examples)
        with out_of_memory_told():
            compiled = lowered.compile()
        seconds = time.monotonic() - started
    parts = {"parameters": abstract.params, "optimizer": abstract.opt_state, "average": abstract.ema}
    memory = plan(compiled, {**parts, "batch": examples}, mesh)
    hlo = compiled.as_text()
    sent = {f"{m.kind}/{'+'.join(m.axes)}": m.bytes_sent for m in messages(hlo, mesh.axis_sizes)}
    return Row(name, topology, slices, mesh.axis_sizes, config.batch_size, memory, seconds, sent), hlo


def task_of(run: CodecRun | PriorRun) -> Task:
    """The task of a run, without a dataset: label tables as large as the released ones, loudness constants of 1."""
    if isinstance(run, CodecRun):
        return codec_task(run.model, run.loss, Bandwidth(), run.data.window_samples)
    model = run.model
    if model.labels is not None:
        sizes = {"artists": model.labels.artists or ARTISTS, "genres": model.labels.genres or GENRES}
        model = dataclasses.replace(model, labels=dataclasses.replace(model.labels, **sizes))
    return prior_task(model)


def table(rows: list[Row]) -> str:
    """Markdown; memory in GiB and traffic in GB, of one chip."""
    head = "| config | topology | mesh | batch | parameters | optimizer | average | activations | total of | "
    lines = [head + "compiled in | sent per step |", "|---" * 11 + "|"]
    for row in rows:
        gib = [f"{row.memory.parts[part] / GIB:.2f}" for part in ("parameters", "optimizer", "average")]
        total = f"{row.memory.total / GIB:.2f} of {row.memory.limit / GIB:.2f}"
        sent = ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in row.sent.items() if size >= 5e6)
        topology = row.topology if row.slices == 1 else f"{row.slices} × {row.topology}"
        name = Path(row.config).name.replace(".py", "")
        mesh = "×".join(map(str, row.mesh))
        cells = [name, topology, mesh, str(row.batch), *gib, f"{row.memory.temporaries / GIB:.2f}", total]
        lines.append("| " + " | ".join([*cells, f"{row.compile_seconds:.0f} s", sent]) + " |")
    return "\n".join(lines)
