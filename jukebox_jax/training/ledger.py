"""Where the time of a run went: a ledger in seconds that goes on across restarts."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TextIO, get_args

import jax

from jukebox_jax.files import atomic_file

LEDGER_FILE = "ledger.jsonl"

Spent = Literal["init", "compile", "data", "step", "eval", "checkpoint", "lost", "other"]
SPENT: tuple[Spent, ...] = get_args(Spent)

#: Waiting for data is measured to about so many seconds.
_WATCH_SECONDS = 0.005


class Ledger:
    """Divides the time of a process into kinds that add up to it, on top of those of earlier processes of the run.

    - `init`: reading the folder, building the mesh, creating or restoring the state;
    - `compile`: of the train step;
    - `data`: the devices had finished their step and waited for the next batch;
    - `step`: steps that are part of the run as it stands; their part of the whole is the goodput;
    - `eval`, `checkpoint`: as far as the loop waited for them;
    - `lost`: steps that were finished, but after the checkpoint from which the run then went on;
    - `other`: the rest.

    `ledger.jsonl` in the run folder gets a row for every logged step, checkpoint and end of a process:
    `{"step": finished steps, "processes": so far, "seconds": {kind: since the run began, …}}`. What a killed process
    did after its last row is in no row, nor is the time until the next process: nobody was there to measure it.

    Args:
      enabled: False on all hosts but the first, which alone keeps the file.
      clock: in seconds; never goes back.
    """

    def __init__(
        self, run_dir: os.PathLike | str, enabled: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock, self._since = clock, clock()
        self._doing: Spent = "init"
        self._run_dir, self._enabled = Path(run_dir), enabled
        rows = read_ledger(run_dir) if enabled else []
        last = rows[-1] if rows else {"step": 0, "processes": 0, "seconds": {}}
        self._seconds = {kind: last["seconds"].get(kind, 0.0) for kind in SPENT}
        self._processes = last["processes"] + 1
        self._step = last["step"]
        self._file: TextIO | None = None
        self._watch = _Watch(clock)

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds of each kind until now, of all processes of the run."""
        self._charge()
        return dict(self._seconds)

    @property
    def goodput(self) -> float:
        """The part of the run's time, from 0 to 1, in which its steps were computed."""
        seconds = self.seconds
        return seconds["step"] / max(sum(seconds.values()), 1e-9)

    def turn_to(self, kind: Spent) -> None:
        """From now on time is of this kind, except inside a `spending`; at first it is `init`."""
        self._charge()
        self._doing = kind

    @contextlib.contextmanager
    def spending(self, kind: Spent) -> Iterator[None]:
        """The time inside is of this kind, except inside another `spending`."""
        self._charge()
        outer, self._doing = self._doing, kind
        try:
            yield
        finally:
            self._charge()
            self._doing = outer

    @contextlib.contextmanager
    def waiting_for_data(self, running: jax.Array) -> Iterator[None]:
        """The time inside is `step` until the devices have computed `running`, and `data` from then on."""
        finished, began = self._watch.finish_of(running), self._clock()
        with self.spending("step"):
            yield
        if finished:
            idle = max(0.0, self._since - max(began, finished[0]))
            self._seconds["step"] -= idle
            self._seconds["data"] += idle

    def finished(self, step: int) -> None:
        """Notes how many steps are finished."""
        self._step = step

    def rewind(self, step: int) -> None:
        """The run goes on from `step`: what the ledger knows of later steps was in vain. Call it at the start, too."""
        self._charge()
        if self._enabled:
            self._close()
            rows = [row for row in read_ledger(self._run_dir) if row["step"] <= step]
            lost = self._seconds["step"] - (rows[-1]["seconds"]["step"] if rows else 0.0)
            self._seconds["step"] -= lost
            self._seconds["lost"] += lost
            with atomic_file(self._run_dir / LEDGER_FILE) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        self._step = step
        self.save()

    def save(self) -> None:
        """Writes a row."""
        if not self._enabled:
            return
        if self._file is None:
            self._file = open(self._run_dir / LEDGER_FILE, "a", encoding="utf-8")  # noqa: SIM115 (closed in _close)
        seconds = {kind: round(value, 6) for kind, value in self.seconds.items()}
        self._file.write(json.dumps({"step": self._step, "processes": self._processes, "seconds": seconds}) + "\n")
        self._file.flush()

    def _charge(self) -> None:
        now = self._clock()
        self._seconds[self._doing] += now - self._since
        self._since = now

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:  # a run that was refused leaves no trace
            self.save()
        self._close()
        self._watch.close()


def read_ledger(run_dir: os.PathLike | str) -> list[dict[str, Any]]:
    """The rows of a run's `ledger.jsonl`, in order; a last line cut off by a kill is left out."""
    path = Path(run_dir) / LEDGER_FILE
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def summary(seconds: Mapping[str, float]) -> str:
    """One line, the largest part first: `Goodput 93 %: step 412 s, compile 12 s, data 3.1 s, …`."""
    total = max(sum(seconds.values()), 1e-9)
    parts = sorted(seconds.items(), key=lambda part: -part[1])
    told = ", ".join(f"{kind} {_text(value)} s" for kind, value in parts if value >= 0.005 * total)
    return f"Goodput {100 * seconds['step'] / total:.0f} %: {told}."


def _text(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.2g}"


class _Watch:
    """Notes when the devices finish something, on a thread of its own, so that the loop need not wait to know.

    The thread looks now and then: to be woken for every step would cost a small model a good part of it.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._watched: tuple[jax.Array, list[float]] | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def finish_of(self, array: jax.Array) -> list[float]:
        """A list that gets the time at which the array was there, or a little later; it is watched until the next."""
        noted: list[float] = []
        self._watched = (array, noted)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
            self._thread.start()
        return noted

    def _run(self) -> None:
        while not self._stop.wait(_WATCH_SECONDS):
            watched = self._watched
            if watched is not None and not watched[1] and watched[0].is_ready():
                watched[1].append(self._clock())

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
