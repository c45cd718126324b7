"""The kill drill: work is killed at random moments, again and again, and must still end as if nothing had been.

Nothing here knows what the work is: a `Drill` says how to start it, how far it is and how to compare two results.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.fault_drill.hosts import Hosts, Program

#: How a run meets its end. A damaged checkpoint is the latest one, after a kill.
KILL, WRITE, DAMAGE, TERM, INT = "kill −9", "kill −9 in a write", "kill −9, damage", "SIGTERM", "SIGINT"
KINDS = (KILL, WRITE, DAMAGE, TERM, INT)

#: After SIGTERM all hosts are gone within this.
GRACE_SECONDS = 30.0
#: A checkpoint of these small runs is written in about as much; the kill comes at any moment of it.
WRITE_SECONDS = 0.2
_POLL_SECONDS = 0.002
_TOGETHER_SECONDS = 0.5  # hosts of one slice die one soon after the other

Start = Callable[[Path], Sequence[Program]]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two results beside one another: by how much they differ, in what measure, and what is wrong if it is."""

    difference: float
    measure: str
    problem: str | None = None


@dataclasses.dataclass(frozen=True)
class Drill:
    """Work that can be killed.

    Attributes:
      name, what: for the table.
      starts: each gives the programs, one for each host, that begin the work in a folder or go on with it. The first
        does the undisturbed work; the restarts of the disturbed one take them in turn.
      total: how many units the work has (steps, songs).
      seen: how many of them are done, as far as can be seen from outside.
      compare: the folders of the undisturbed and the disturbed work.
      kept: how many units a restart need not do again; None: all that are seen.
      writing: whether a checkpoint is being written at this moment; None: there is no telling.
      damage: spoils the latest of several checkpoints and returns what a restart then still need not do; None where
        there is but one. None for the whole: there is nothing to spoil.
      goes_back: whether the work may undo some of what it kept, on its own account.
      finished: what a program says that is started again after the end and refuses.
      most_kills: how many kills make sense.
    """

    name: str
    what: str
    starts: tuple[Start, ...]
    total: int
    seen: Callable[[Path], int]
    compare: Callable[[Path, Path], Comparison]
    kept: Callable[[Path], int] | None = None
    writing: Callable[[Path], bool] | None = None
    damage: Callable[[Path, random.Random], int | None] | None = None
    goes_back: bool = False
    finished: str | None = None
    most_kills: int = 1000

    def kept_units(self, folder: Path) -> int:
        return (self.kept or self.seen)(folder)


@dataclasses.dataclass(frozen=True)
class Kill:
    """The next end: of a kind, so many seconds after the start or at so many units, whichever comes first."""

    kind: str
    after_seconds: float
    at_unit: int


@dataclasses.dataclass
class Result:
    """How a drill went.

    Attributes:
      kills: those that met the work alive, by kind.
      planned: how many were to come.
      resumes: restarts that found something to go on with.
      again: units done more than once.
      seconds: of the clock, undisturbed and disturbed.
      problems: why it failed.
    """

    name: str
    what: str
    planned: int
    kills: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    resumes: int = 0
    again: int = 0
    seconds: float = 0.0
    comparison: Comparison | None = None
    problems: list[str] = dataclasses.field(default_factory=list)

    @property
    def met(self) -> int:
        """How many kills met the work alive."""
        return sum(self.kills.values())

    @property
    def passed(self) -> bool:
        return not self.problems and self.comparison is not None


def run_drill(
    drill: Drill,
    work: Path,
    kills: int,
    seed: int,
    tell: Callable[[str], None] = lambda text: None,
) -> Result:
    """Does the work undisturbed and disturbed, each in a folder below `work`, and compares.

    Args:
      kills: how many; what comes when follows from `seed`, the drill's name and how long the undisturbed work took.
      tell: is told every step of the drill in a few words.
    """
    rng = random.Random(f"{seed} {drill.name}")
    kills = min(kills, drill.most_kills)
    result = Result(drill.name, drill.what, kills)
    started = time.monotonic()
    whole, disturbed = work / drill.name / "whole", work / drill.name / "killed"
    for folder in (whole, disturbed):
        folder.mkdir(parents=True)
    try:
        tell("undisturbed")
        seconds = finish(drill, drill.starts[0], whole)
        run_through_kills(drill, disturbed, plan(drill, kills, seconds, rng), seconds, rng, result, tell)
        result.comparison = drill.compare(whole, disturbed)
        if result.comparison.problem is not None:
            result.problems.append(result.comparison.problem)
    except DrillError as error:
        result.problems.append(str(error))
    if kills and not result.met:
        result.problems.append("no kill met it alive")
    result.seconds = time.monotonic() - started
    return result


class DrillError(Exception):
    """The work cannot be brought to its end."""


def plan(drill: Drill, kills: int, seconds: float, rng: random.Random) -> list[Kill]:
    """What comes when: half of what can come at any time follows the clock, everything else the work.

    The places in the work ascend, so that it goes on between the kills, and the clock leaves no phase of a start out.
    """
    possible = [WRITE] * (drill.writing is not None) + [TERM, KILL] + [DAMAGE] * (drill.damage is not None) + [INT]
    kinds = list(itertools.islice(itertools.cycle(possible), kills))
    rng.shuffle(kinds)
    planned = []
    for kind, unit in zip(kinds, sorted(rng.randrange(drill.total) for _ in range(kills)), strict=True):
        by_clock = kind in (KILL, TERM, INT) and rng.random() < 0.5
        planned.append(Kill(kind, rng.uniform(0, seconds) if by_clock else math.inf, unit))
    return planned


def finish(drill: Drill, start: Start, folder: Path, limit_seconds: float | None = None) -> float:
    """Starts the work and lets it come to its end; returns the seconds that it took.

    Raises:
      DrillError: it failed, or did not end within `limit_seconds`.
    """
    started = time.monotonic()
    with Hosts(start(folder), folder.with_suffix(".log")) as hosts:
        statuses = hosts.wait(math.inf if limit_seconds is None else limit_seconds)
        if statuses is None:
            raise DrillError(f"it did not end within {limit_seconds:.0f} s")
        _check_ended(drill, hosts, statuses)
    return time.monotonic() - started


def run_through_kills(
    drill: Drill,
    folder: Path,
    kills: Sequence[Kill],
    seconds: float,
    rng: random.Random,
    result: Result,
    tell: Callable[[str], None] = lambda text: None,
) -> None:
    """Starts the work and kills it, again and again, and then lets it come to its end; notes in `result` how it went.

    Args:
      seconds: about what the undisturbed work takes.

    Raises:
      DrillError: a start failed, or the work did not end.
    """
    limit = 120 + 10 * seconds
    kept, before = 0, None
    starts = itertools.cycle(drill.starts)
    with contextlib.ExitStack() as stack:
        for number, kill in enumerate(kills, start=1):
            tell(f"{number} of {len(kills)}: {kill.kind}, {drill.seen(folder)} of {drill.total} done")
            hosts = stack.enter_context(Hosts(next(starts)(folder), folder.with_suffix(".log")))
            least, moved, came = _await_moment(drill, hosts, folder, kill, seconds, limit, rng)
            if least < kept and not drill.goes_back:
                result.problems.append(f"start {number} began at {least} although {kept} were kept")
            if not came:  # it was done before
                _check_ended(drill, hosts, hosts.wait(GRACE_SECONDS))
                break
            seen = drill.seen(folder)
            _deliver(kill.kind, hosts, rng)
            statuses = hosts.wait(GRACE_SECONDS)
            kept = drill.kept_units(folder)
            if statuses is None:
                hosts.kill_all()
            if kill.kind in (TERM, INT):
                moved = moved and not drill.goes_back
                result.problems += _problems_of_stop(kill.kind, hosts, statuses, seen, kept, moved)
            elif -signal.SIGKILL not in (statuses or []):
                continue  # it ended at that very moment
            kind = kill.kind
            if kind == WRITE and not drill.writing(folder):
                kind = KILL  # the checkpoint was just complete
            if kind == DAMAGE:
                intact = drill.damage(folder, rng)
                kind, kept = (KILL, kept) if intact is None else (DAMAGE, intact)
            result.kills[kind] += 1
            result.resumes += kept > 0
            result.again += max(0, drill.seen(folder) - kept)
            if before is not None:
                before.kill_all()
            before = hosts
    tell("to the end")
    finish(drill, next(starts), folder, limit)
    if drill.seen(folder) != drill.total:
        raise DrillError(f"it ended at {drill.seen(folder)} of {drill.total}")


def _problems_of_stop(
    kind: str, hosts: Hosts, statuses: list[int] | None, seen: int, kept: int, moved: bool
) -> list[str]:
    """What is wrong with how work took a request to stop; before it moves it may end as it likes."""
    if not moved:
        return []
    if statuses is None:
        return [f"{kind} at {seen} did not end it within {GRACE_SECONDS:.0f} s"]
    problems = []
    if kept < seen:
        problems.append(f"{kind} at {seen} kept only {kept}")
    if not set(statuses) <= {0, 130, 143, -signal.SIGINT, -signal.SIGTERM}:
        problems.append(f"{kind} at {seen} ended it with {statuses}: {hosts.last_words()}")
    return problems


def _await_moment(
    drill: Drill, hosts: Hosts, folder: Path, kill: Kill, seconds: float, limit: float, rng: random.Random
) -> tuple[int, bool, bool]:
    """Waits for the kill's moment or the end of the work.

    Returns:
      the least number of units that was seen; whether the work has moved since its start; whether the moment came.
    """
    started, first = time.monotonic(), drill.seen(folder)
    after, at_unit, least = kill.after_seconds, kill.at_unit, first
    if at_unit <= first:  # further than planned: at the next unit, or on the way to it
        at_unit = first + 1
        after = min(after, rng.uniform(0, seconds)) if kill.kind in (KILL, TERM, INT) else after
    while hosts.running():
        elapsed, seen = time.monotonic() - started, drill.seen(folder)
        least = min(least, seen)
        if elapsed > limit:
            raise DrillError(f"it did not come from {first} to {at_unit} of {drill.total} within {limit:.0f} s")
        if elapsed >= after:
            return least, seen > first, True
        if seen >= at_unit:
            if kill.kind != WRITE:
                return least, True, True
            if drill.writing(folder):
                time.sleep(rng.uniform(0, WRITE_SECONDS))
                if drill.writing(folder) and hosts.running():
                    return least, True, True
        time.sleep(_POLL_SECONDS)
    return least, True, False


def _deliver(kind: str, hosts: Hosts, rng: random.Random) -> None:
    """Ends the work. Of several hosts a random one is met first."""
    host = rng.randrange(len(hosts))
    if kind == TERM:
        hosts.send(signal.SIGTERM, host, group=False)  # as a scheduler does
    elif kind == INT:
        for each in range(len(hosts)):
            hosts.send(signal.SIGINT, each, group=True)  # as a terminal does
    else:
        # With its process group as when a machine goes, or alone as when memory runs out.
        hosts.send(signal.SIGKILL, host, group=rng.random() < 0.5)
        if len(hosts) > 1:
            time.sleep(rng.uniform(0, _TOGETHER_SECONDS))
            hosts.kill_all()


def _check_ended(drill: Drill, hosts: Hosts, statuses: list[int] | None) -> None:
    refused = drill.finished is not None and drill.finished in hosts.last_words()
    if statuses is None or (any(statuses) and not refused):
        raise DrillError(f"a start failed with {statuses}: {hosts.last_words()}")
