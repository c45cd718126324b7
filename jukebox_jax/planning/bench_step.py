"""The process that measures one combination: a request as JSON on standard input, the answer on its output's last line.

    python -m jukebox_jax.planning.bench_step < request.json

With `"parent": PID` in the request the process ends soon after that one, should it be killed.

A process of its own, because the number of devices is fixed when jax starts, what one combination leaves in a device's
memory must not take room from the next, and some end in a way that no exception tells.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jukebox_jax.config import from_dict, to_dict
from jukebox_jax.errors import UserError
from jukebox_jax.parallel.measured import Rates, measure_rates
from jukebox_jax.parallel.peaks import peak
from jukebox_jax.parallel.plan import out_of_memory_told, plan
from jukebox_jax.planning.layouts import Run
from jukebox_jax.planning.workload import task_of, with_labels
from jukebox_jax.training.devices import devices_of
from jukebox_jax.training.host_memory import keep_freed_memory
from jukebox_jax.training.run import CodecRun, PriorRun
from jukebox_jax.training.state import abstract_state, create_state
from jukebox_jax.training.step import make_train_step

WARM_UP_STEPS = 2

RUNS = {"codec": CodecRun, "prior": PriorRun}


@dataclass(frozen=True)
class Here:
    """The devices of this process."""

    device_kind: str
    devices: int
    slices: int = 1


@dataclass(frozen=True)
class Measured:
    """Training steps of one combination.

    Attributes:
      device_kind, devices: those that the mesh has.
      steps: how many were timed, after `WARM_UP_STEPS` others.
      step_seconds: lower quartile, median and upper quartile.
      compile_seconds: tracing, lowering and compiling; little where a compilation cache had it.
      memory_parts: bytes of each device by name: what the state's shardings say, and, by the compiler, "temporaries"
        (at their peak) and "other".
      memory_bytes: all of a device at the step's peak, by the compiler.
      held_bytes: the most that a device says it held; None if it says nothing, as a CPU.
      model_flops: of a step, over all devices, without what is computed twice.
      unit, units_per_second: what is learned from ("tokens", "audio_seconds"), of each device.
      mfu: model FLOPs as a part of the published bfloat16 peak; None if that is not known.
      rates: what the mesh's devices did at best, just after the steps and in the model's dtype.
      load_average: of the host over the last minute, before anything ran; None where the system has none.
    """

    device_kind: str
    devices: int
    steps: int
    step_seconds: tuple[float, float, float]
    compile_seconds: float
    memory_parts: dict[str, int]
    memory_bytes: int
    held_bytes: int | None
    model_flops: float
    unit: str
    units_per_second: float
    mfu: float | None
    rates: Rates
    load_average: float | None


def measure(run: Run, steps: int) -> Measured:
    """Times the training steps of a run on random data, one after another, each until its end.

    Raises:
      UserError: the run's strategy or mesh does not fit its model, its batch or the devices, or memory runs out.
    """
    load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    config, task = run.train, task_of(run)
    mesh, rules, sharding = devices_of(config)
    devices = list(mesh.devices.flat)
    with jax.set_mesh(mesh), out_of_memory_told():
        abstract = abstract_state(task, config, mesh, rules)
        batch = jax.device_put(random_batch(run), sharding)
        started = time.perf_counter()
        step = make_train_step(task, config, mesh, rules, abstract).lower(abstract, batch).compile()
        compile_seconds = time.perf_counter() - started
        parts = {"parameters": abstract.params, "optimizer": abstract.opt_state, "average": abstract.ema}
        memory = plan(step, parts, mesh)
        state = create_state(task, config, abstract)
        seconds = []
        for _ in range(WARM_UP_STEPS + steps):
            before = time.perf_counter()
            state, _ = jax.block_until_ready(step(state, batch))
            seconds.append(time.perf_counter() - before)
        held = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in devices]
        del state, step, batch  # room for what follows
    rates = measure_rates(devices, run.model.dtype if isinstance(run, PriorRun) else "float32")
    quartiles = _quartiles(seconds[WARM_UP_STEPS:])
    examples_per_second = config.batch_size / quartiles[1] / mesh.size
    known = peak(devices[0].device_kind)
    other = memory.arguments + memory.outputs - sum(memory.parts.values())
    return Measured(
        device_kind=devices[0].device_kind,
        devices=mesh.size,
        steps=steps,
        step_seconds=quartiles,
        compile_seconds=compile_seconds,
        memory_parts={**memory.parts, "temporaries": memory.temporaries, "other": other},
        memory_bytes=memory.total,
        held_bytes=max((size for size in held if size is not None), default=None),
        model_flops=task.flops_per_example * config.batch_size,
        unit=task.unit or "examples",
        units_per_second=examples_per_second * task.units_per_example,
        mfu=None if known is None else task.flops_per_example * examples_per_second / known.flops_per_second,
        rates=rates,
        load_average=load_average,
    )


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def random_batch(run: Run) -> dict[str, np.ndarray]:
    """Noise as loud as music, or whole numbers that every table of the model has; the same for every combination."""
    rng, most = np.random.default_rng(0), {}
    if isinstance(run, PriorRun):
        model = with_labels(run).model
        most = {"tokens": model.codes, "upper": model.codes}
        if model.labels is not None:
            bins = dict.fromkeys(("total_bins", "absolute_bins", "relative_bins"), model.labels.time_bins)
            most |= {"artist": model.labels.artists, "genres": model.labels.genres, **bins}
        if model.lyrics is not None:
            most["lyrics"] = model.lyrics.vocabulary
    made = {}
    for name, spec in task_of(run).batch_spec.items():
        shape = (run.train.batch_size, *spec.shape)
        if jnp.issubdtype(spec.dtype, jnp.floating):
            made[name] = (0.1 * rng.standard_normal(shape)).astype(spec.dtype)
        else:
            made[name] = rng.integers(0, most[name], shape).astype(spec.dtype)
    return made


# ---- The process ------------------------------------------------------------------------------------------------


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What the process answers: `{"here": …}`, `{"measured": …}`, or `{"reason": …}` where nothing can be measured.

    Args:
      request: `{"kind": "codec" or "prior", "run": …, "steps": …}`, or `{}` to be told of the devices alone.
    """
    if not request:
        slices = {getattr(device, "slice_index", 0) for device in jax.devices()}
        return {"here": to_dict(Here(jax.devices()[0].device_kind, jax.device_count(), len(slices)))}
    keep_freed_memory()
    try:
        run = from_dict(RUNS[request["kind"]], request["run"])
        return {"measured": to_dict(measure(run, request["steps"]))}
    except UserError as error:
        return {"reason": str(error)}


def _end_with(parent: int) -> None:
    """Ends this process soon after the one that asked for it is gone, so that the next finds the devices free."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> None:
    request = json.load(sys.stdin)
    if parent := request.pop("parent", None):
        threading.Thread(target=_end_with, args=[parent], daemon=True).start()
    print(json.dumps(answer(request)))


if __name__ == "__main__":
    main()
