"""Real training steps, timed over a grid of layouts on the devices at hand, each in a process of its own."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jukebox_jax import __version__
from jukebox_jax.config import from_dict, to_dict
from jukebox_jax.errors import UserError
from jukebox_jax.planning.bench_step import RUNS, Here, Measured
from jukebox_jax.planning.layouts import Combination, Run
from jukebox_jax.planning.store import Store

_PROCESS = "jukebox_jax.planning.bench_step"
_ASKING_SECONDS = 300.0  # in which a machine says what devices it has
#: What decides how fast compiled programs are, beside the code: those of them that are installed.
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")


@dataclass(frozen=True)
class Row:
    """A combination, and what came of it.

    Attributes:
      measured: None where nothing could be measured; then `reason` says why, in a sentence.
      minutes: what the process was given.
      timed_out: whether it needed more.
    """

    combination: Combination
    minutes: float
    measured: Measured | None = None
    reason: str | None = None
    timed_out: bool = False


@dataclass(frozen=True)
class Bench:
    """What every row of a table has in common.

    Attributes:
      run: what is trained; a combination changes its layout.
      steps: that are timed.
      minutes: after which a combination is given up.
      cpu_devices: how many CPU devices are made of this machine; None: the accelerators that it has.
    """

    run: Run
    steps: int = 10
    minutes: float = 10.0
    cpu_devices: int | None = None


def devices_here(cpu_devices: int | None = None) -> Here:
    """What a process for a combination would find. This process does not look: a TPU belongs to the first that does.

    Raises:
      UserError: the devices cannot be used, or do not answer.
    """
    if cpu_devices is not None:
        return Here("cpu", cpu_devices)
    answer = _ask({}, None, _ASKING_SECONDS)
    if "here" not in answer:
        raise UserError(
            f"The devices cannot be asked: {answer['reason']} A part of a machine of several hosts cannot be measured: "
            "take one host, or fake CPU devices with --devices 8."
        )
    return from_dict(Here, answer["here"])


def measure_all(
    bench: Bench,
    here: Here,
    combinations: Sequence[Combination],
    store: Store,
    again: bool = False,
    progress: bool = True,
) -> list[Row]:
    """The rows of all combinations: those in the store, and those that are missing there, measured now and added.

    A row of the store is missing, too, if it was given up earlier than it would be now, or holds fewer steps.

    Args:
      again: measure what the store has once more.
    """
    from tqdm import tqdm

    key = environment(bench.run, here)
    rows = {} if again else _found(store, key, bench)
    missing = [combination for combination in combinations if combination not in rows]
    if len(missing) < len(combinations):
        print(f"{len(combinations) - len(missing)} of {len(combinations)} rows are known.", file=sys.stderr)
    # Delayed, so that a refusal stays one line.
    with tqdm(desc="bench", unit="row", total=len(missing), file=sys.stderr, disable=not progress, delay=0.5) as bar:
        for combination in missing:
            bar.set_postfix_str(f"{combination}")
            row = _measure(bench, combination)
            store.add({"key": key, "row": to_dict(row)})
            rows[combination] = row
            if progress:
                with bar.external_write_mode(file=sys.stderr):
                    print(f"{combination}: {_outcome(row)}", file=sys.stderr, flush=True)
            bar.update()
    return [rows[combination] for combination in combinations]


def environment(run: Run, here: Here) -> dict[str, Any]:
    """All that decides about a row beside its combination, as JSON."""
    config = json.dumps(to_dict(run), sort_keys=True)
    return {
        "code": _code(),
        "device_kind": here.device_kind,
        "devices": here.devices,
        "cores": os.cpu_count(),
        "libraries": dict(_versions()),
        "flags": {name: os.environ[name] for name in _FLAGS if name in os.environ},
        "config": hashlib.sha256(config.encode()).hexdigest()[:16],
    }


def _found(store: Store, key: dict[str, Any], bench: Bench) -> dict[Combination, Row]:
    rows = {}
    for line in store.rows:
        if line.get("key") != key:
            continue  # another version may write other rows
        row = from_dict(Row, line["row"])
        enough = row.measured is not None and row.measured.steps >= bench.steps
        final = row.measured is None and not (row.timed_out and row.minutes < bench.minutes)
        if enough or final:
            rows[row.combination] = row
    return rows


def _measure(bench: Bench, combination: Combination) -> Row:
    try:
        run = combination.of(bench.run)
    except UserError as error:
        return Row(combination, bench.minutes, reason=str(error))
    kind = next(name for name, cls in RUNS.items() if isinstance(run, cls))
    request = {"kind": kind, "run": to_dict(run), "steps": bench.steps, "parent": os.getpid()}
    answer = _ask(request, bench.cpu_devices, 60 * bench.minutes)
    if "measured" in answer:
        return Row(combination, bench.minutes, from_dict(Measured, answer["measured"]))
    return Row(combination, bench.minutes, reason=answer["reason"], timed_out=answer.get("timed_out", False))


def _ask(request: dict[str, Any], cpu_devices: int | None, seconds: float) -> dict[str, Any]:
    """What the process of a combination answers, or the reason why it does not."""
    variables = dict(os.environ)
    if cpu_devices is not None:
        flags = f"{variables.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={cpu_devices}"
        variables |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}
    try:
        done = subprocess.run(
            [sys.executable, "-m", _PROCESS],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            env=variables,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"reason": f"It was ended after {seconds / 60:g} min.", "timed_out": True}
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return {"reason": f"Its process was ended by {name}, as systems do where memory runs out."}
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        last = ([line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"])[-1]
        return {"reason": f"Its process failed with status {done.returncode}: {last.strip().rstrip('.')}."}
    return json.loads(lines[-1])


def _outcome(row: Row) -> str:
    return f"{row.reason}" if row.measured is None else f"{row.measured.step_seconds[1]:.3g} s a step"


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", ".".join(map(str, sys.version_info[:3]))
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield name, importlib.metadata.version(name)


def _code() -> str:
    """The commit of the package, with a hash of what was changed since, or its version where it is in no repository."""
    folder = Path(__file__).parents[1]

    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # a repository around an installed package is not its own
        commit, changes = git("rev-parse", "HEAD").decode().strip(), git("diff", "HEAD", "--", ".")
    except (OSError, subprocess.CalledProcessError):
        return __version__
    return commit + (f"+{hashlib.sha256(changes).hexdigest()[:8]}" if changes else "")
