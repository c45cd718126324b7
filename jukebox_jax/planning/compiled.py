"""Training steps compiled for TPUs that are not there, each once: the answers are kept in a store."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from jukebox_jax.config import from_dict, to_dict
from jukebox_jax.planning.compile_step import RUNS, STORE_SECONDS, Compiled
from jukebox_jax.planning.store import open_store
from jukebox_jax.training.run import CodecRun, PriorRun

_PROCESS = ("-m", "jukebox_jax.planning.compile_step")
# No TPU is asked for, and none is looked for in the cloud's metadata; several compilers may run beside one another.
_ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
_LOOK_SECONDS = 0.2  # between two looks at the process


def compiled(
    run: CodecRun | PriorRun,
    topology: str,
    store: os.PathLike | str | None = None,
    seconds: float = 1800.0,
    memory_bytes: int | None = None,
) -> Compiled:
    """Compiles the training step of a run for a topology, in a process of its own.

    What the store has is not compiled again, and what the compiler said is added to it; also that a step does not fit.
    Several processes may use one store.

    Args:
      topology: as `v5e:4x4`, or `2xv5p:4x4x4` for two slices.
      store: a file of JSON lines.
      seconds: after which the process is ended.
      memory_bytes: of this machine, above which the process is ended; None: no limit. Kept on Linux only.

    Returns:
      The step, or with `reason` what came instead: the process failed or was ended, or what was asked for makes no
      sense. Nothing is raised for it, so that a table goes on.

    Raises:
      UserError: the store cannot be used.
    """
    kind = next(name for name, cls in RUNS.items() if isinstance(run, cls))
    path = None if store is None else os.fspath(Path(store).resolve())
    request = {"kind": kind, "run": to_dict(run), "topology": topology, "store": path, "parent": os.getpid()}
    answer = ask(_PROCESS, request, seconds, memory_bytes)
    if isinstance(answer, str):
        return Compiled("", reason=answer)
    found = from_dict(Compiled, answer["compiled"])
    if path is not None and not answer["known"] and found.fits is not None:
        with open_store(path, STORE_SECONDS) as opened:
            opened.add(to_dict(found))
    return found


def ask(
    arguments: Sequence[str], request: dict[str, Any], seconds: float, memory_bytes: int | None = None
) -> dict[str, Any] | str:
    """What a Python process answers on the last line of its output, as JSON, or why it does not, in a sentence.

    Args:
      arguments: of Python.
      request: which the process finds on standard input, as JSON.
      seconds, memory_bytes: see `compiled`.
    """
    # XLA's flags are those for this machine; the TPU compiler's own are LIBTPU_INIT_ARGS.
    variables = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | _ENVIRONMENT
    with contextlib.ExitStack() as files:
        question, said, log = (files.enter_context(tempfile.TemporaryFile("w+", errors="replace")) for _ in range(3))
        json.dump(request, question)
        question.seek(0)
        process = subprocess.Popen([sys.executable, *arguments], stdin=question, stdout=said, stderr=log, env=variables)
        try:
            ended = _watch(process, seconds, memory_bytes)
        finally:
            process.kill()
            process.wait()
        if ended is not None:
            return ended
        if process.returncode < 0:
            name = signal.Signals(-process.returncode).name
            return f"The compiler's process was ended by {name}, as systems do where memory runs out."
        said.seek(0)
        lines = said.read().splitlines()
        if process.returncode or not lines:
            return f"The compiler's process failed with status {process.returncode}: {_last_line(log)}."
        return json.loads(lines[-1])


def _watch(process: subprocess.Popen, seconds: float, memory_bytes: int | None) -> str | None:
    """Waits until the process ends; or returns why it must be ended."""
    until = time.monotonic() + seconds
    while process.poll() is None:
        if time.monotonic() >= until:
            return f"The compiler needed more than {seconds:.3g} s: give it more time, or a faster machine."
        if memory_bytes is not None and (held := _resident_bytes(process.pid)) > memory_bytes:
            return (
                f"The compiler held {held / 2**30:.3g} GiB of this machine's memory and may have "
                f"{memory_bytes / 2**30:.3g} GiB: give it more, or take a smaller model."
            )
        time.sleep(_LOOK_SECONDS)
    return None


def _resident_bytes(process: int) -> int:
    """Memory that a process holds; 0 where the system does not say."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):  # another system, or the process is gone
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _last_line(log: IO[str]) -> str:
    log.seek(0)
    lines = [line.strip() for line in log.read().splitlines()]
    return ([line for line in lines if line] or ["it said nothing"])[-1].rstrip(".")
