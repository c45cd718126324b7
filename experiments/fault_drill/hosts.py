"""The processes that do a piece of work together, as a cluster would start and end them."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
ON_CPU = {"JAX_PLATFORMS": "cpu"}


@dataclasses.dataclass(frozen=True)
class Program:
    """What one host runs: this interpreter with `arguments`, and with `env` on top of the environment."""

    arguments: tuple[str, ...]
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)


def verb(*arguments: object, env: Mapping[str, str] | None = None) -> Program:
    """`jukebox-jax ARGUMENTS`, on the CPU."""
    words = ("-m", "jukebox_jax", *map(str, arguments))
    return Program(words, ON_CPU | dict(env or {}))


class Hosts:
    """One start of the work: a process for every program, each the head of a process group of its own.

    What they say goes to the file `log`. Leaving the context kills whatever is left. Where a head alone was killed, its
    workers may live on until then, as they would beside a restart.
    """

    def __init__(self, programs: Sequence[Program], log: Path) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            # So a shell starts what runs in the background, and so the processes would be deaf to SIGINT.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._log, self._over = log, False
        self._processes: list[subprocess.Popen] = []
        with open(log, "wb") as said:
            for program in programs:
                process = subprocess.Popen(
                    [sys.executable, *program.arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    cwd=ROOT,
                    env=os.environ | program.env,
                    start_new_session=True,
                )
                self._processes.append(process)

    def __enter__(self) -> Hosts:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_all()

    def __len__(self) -> int:
        return len(self._processes)

    def running(self) -> bool:
        """Whether all of them are."""
        return all(process.poll() is None for process in self._processes)

    def send(self, number: int, host: int, group: bool) -> None:
        """Signals one host's process, or its whole group; nothing if it has ended."""
        process = self._processes[host]
        if process.poll() is None:
            (os.killpg if group else os.kill)(process.pid, number)

    def kill_all(self) -> None:
        """SIGKILL to every group, also to what the heads may have left behind; once, since numbers are given anew."""
        if self._over:
            return
        self._over = True
        for process in self._processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:  # the group is empty
                continue
        for process in self._processes:
            process.wait()

    def wait(self, seconds: float) -> list[int] | None:
        """The exit statuses once all have ended; None if they do not in time."""
        end = time.monotonic() + seconds
        try:
            return [process.wait(max(0.0, end - time.monotonic())) for process in self._processes]
        except subprocess.TimeoutExpired:
            return None

    def last_words(self) -> str:
        """The last line that tells of an error, or else the last line."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").strip().splitlines()
        errors = [line for line in lines if re.match(r"(jukebox-jax: error|[\w.]*Error): ", line)]
        return (errors or lines or ["it said nothing"])[-1].strip()
