"""The checkpoints of a run, `RUN/checkpoints/STEP/{params,ema,model_state,trainer}`: written while it trains, read when
it goes on. Nothing here knows a model: trees come in and go out.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from jukebox_jax import __version__
from jukebox_jax.checkpoint.checksums import find_damage, write_sums
from jukebox_jax.checkpoint.reading import UnreadableError, check_same, load_parts, stored_about, stored_parts
from jukebox_jax.errors import UserError
from jukebox_jax.parallel.hosts import first_message

PyTree = Any

CHECKPOINTS = "checkpoints"
#: In place of a step: the checkpoint whose metric was smallest, or the latest if none was measured.
BEST = "best"
_UNFINISHED = "*.orbax-checkpoint-tmp"


class TrainingCheckpoints:
    """Writes a run's checkpoints, at most one at a time, in the background; keeps the latest ones and the best ones.

    A checkpoint appears under its step's name only when it is complete; the checksums of its files follow. With it
    are stored the version of this package and of jax, and the run's config (`describe`). With several processes all
    of them make the same calls.

    Args:
      keep: how many of the latest checkpoints stay.
      every: the latest one of a multiple of this stays as well, so that a rewind (`training.rewind`) goes to the same
        place however often a run was interrupted since; 0: none.
      keep_best: how many stay beside these because their `metric` was smallest.
      metric: which of the metrics given to `save`.
      config: JSON-able, of the run.
    """

    def __init__(
        self,
        run_dir: os.PathLike | str,
        keep: int,
        *,
        every: int = 0,
        keep_best: int = 0,
        metric: str = "eval_loss",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self._run_dir = Path(run_dir).absolute()
        self._metric = metric
        self._about = {"jukebox_jax": __version__, "jax": jax.__version__, "config": dict(config or {})}
        self._summing: threading.Thread | None = None
        self._log = logging.getLogger("absl")
        self._log.addFilter(_not_orbax)
        self._measured = {step: _measured(self._run_dir, step) for step in steps(run_dir)}
        with self._storage_errors("be listed"):
            self._checkpointer = ocp.training.Checkpointer(
                self._run_dir / CHECKPOINTS,
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=_LatestAndBest(keep, every, keep_best, self._measured),
                cleanup_tmp_directories=True,
            )

    def save(self, step: int, parts: Mapping[str, PyTree], metrics: Mapping[str, float] | None = None) -> None:
        """Copies `parts` to the host and starts writing them; the arrays may be donated as soon as this returns.

        Args:
          metrics: of an evaluation of just this step; what `keep_best` goes by.

        Raises:
          UserError: this or the previous checkpoint could not be written, for want of space or otherwise.
        """
        self._finish_sums()
        # Orbax refuses parts without leaves; restoring puts them back from the abstract state.
        filled = {name: part for name, part in parts.items() if jax.tree.leaves(part)}
        value = float((metrics or {}).get(self._metric, math.nan))
        self._measured[step] = value if math.isfinite(value) else math.inf
        measured = {self._metric: value} if math.isfinite(value) else {}  # NaN is not JSON
        with self._storage_errors():
            saving = self._checkpointer.save_checkpointables_async(
                step,
                filled,
                force=True,
                custom_metadata=self._about | {"metrics": measured},
            )
        assert saving is not None  # it is forced
        self._summing = threading.Thread(target=self._sum_when_complete, args=(step, saving), daemon=True)
        self._summing.start()

    def wait(self) -> None:
        """Returns when all that was saved is on disk.

        Raises:
          UserError: it could not be written.
        """
        with self._storage_errors():
            self._checkpointer.wait()
        self._finish_sums()

    def forget_after(self, step: int) -> None:
        """Deletes the checkpoints later than a step, which a run that goes back to that step will write again."""
        self.wait()
        if jax.process_count() > 1:  # nobody deletes what another still sums
            multihost_utils.sync_global_devices("forget_after")
        self._checkpointer.reload()  # a damaged one may have been set aside
        for later in [saved.step for saved in self._checkpointer.checkpoints if saved.step > step]:
            self._checkpointer.delete(later)

    def __enter__(self) -> TrainingCheckpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._storage_errors():
                self._checkpointer.close()
            self._finish_sums()
        except UserError:
            if kind is None:  # what ended the run says more than what follows from it
                raise
        finally:
            self._log.removeFilter(_not_orbax)

    def _sum_when_complete(self, step: int, saving: Any) -> None:
        # Whoever waits for the checkpoint learns why it failed; without sums it is read unchecked.
        with contextlib.suppress(Exception):
            saving.result()
            write_sums(self._run_dir / CHECKPOINTS / str(step), jax.process_index(), jax.process_count())

    def _finish_sums(self) -> None:
        if self._summing is not None:
            self._summing.join()
            self._summing = None

    @contextlib.contextmanager
    def _storage_errors(self, what: str = "be written") -> Iterator[None]:
        """Turns what the file system refused into a UserError, and frees the space of what was half written."""
        try:
            yield
        except Exception as error:
            cause = _storage_failure(error)
            if cause is None:
                raise
            if jax.process_index() == 0:
                _remove_unfinished(self._run_dir / CHECKPOINTS)
            found = steps(self._run_dir)
            last = f"from step {found[-1]}" if found else "from the start"
            raise UserError(
                f"A checkpoint of {self._run_dir} could not {what} ({cause}): make room or mend the disk; the same "
                f"command then goes on {last}."
            ) from None


class _LatestAndBest:
    """Orbax's preservation policy: the latest checkpoints, the latest that was due, those whose metric was smallest.

    Orbax's own BestN reads the metrics of all checkpoints when a run starts, and ends it if one of them is garbled.
    """

    def __init__(self, latest: int, every: int, best: int, measured: Mapping[int, float]) -> None:
        self._latest, self._every, self._best, self._measured = latest, every, best, measured

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        found = [checkpoint.step for checkpoint in checkpoints]
        ranked = sorted((self._measured.get(step, math.inf), -step) for step in found)  # of equals the later one
        best = [-negative for value, negative in ranked[: self._best] if value < math.inf]
        due = [step for step in found if self._every and step % self._every == 0]
        kept = {*found[-self._latest :], *due[-1:], *best}
        return [step in kept for step in found]


def _remove_unfinished(checkpoints: Path) -> None:
    """Removes what was half written, as far as it goes: writes still under way may add to it; the next start sweeps."""
    for _ in range(10):
        for unfinished in checkpoints.glob(_UNFINISHED):
            shutil.rmtree(unfinished, ignore_errors=True)
        time.sleep(0.1)
        if not any(checkpoints.glob(_UNFINISHED)):
            return


def _not_orbax(record: logging.LogRecord) -> bool:
    """Orbax logs a traceback for every failure, before it raises it."""
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def _storage_failure(error: BaseException) -> str | None:
    """What the file system said, if it is the cause: TensorStore's errors are ValueErrors with its words in them."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            return os.strerror(seen.errno)
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES):
            if os.strerror(number) in str(seen):
                return os.strerror(number)
        seen = seen.__cause__ or seen.__context__
    return None


def steps(run_dir: os.PathLike | str) -> list[int]:
    """The steps of the complete checkpoints of a run folder, ascending."""
    folder = Path(run_dir) / CHECKPOINTS
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal() and entry.is_dir())


def best_step(run_dir: os.PathLike | str) -> int:
    """The step of the checkpoint whose metric was smallest; of the latest one if none was measured.

    Raises:
      UserError: there is no complete checkpoint.
    """
    best, smallest = _latest(Path(run_dir)), math.inf
    for step in steps(run_dir):
        value = _measured(Path(run_dir), step)
        if value <= smallest and value < math.inf:
            best, smallest = step, value
    return best


def describe(run_dir: os.PathLike | str, step: int) -> dict[str, Any]:
    """What is stored with a checkpoint: `jukebox_jax` and `jax` (versions), `config`, `metrics`; `{}` of older ones.

    Raises:
      UserError: the checkpoint cannot be read.
    """
    folder = Path(run_dir) / CHECKPOINTS / str(step)
    try:
        return stored_about(folder)
    except UnreadableError as error:
        raise UserError(f"Checkpoint {step} of {run_dir} cannot be read ({error}): use another one.") from None


def restore_latest(run_dir: os.PathLike | str, abstract: Mapping[str, PyTree]) -> tuple[int, dict[str, PyTree]] | None:
    """Restores the latest checkpoint that can be read, directly into its shardings: of any mesh and number of hosts.

    A checkpoint that any process finds damaged is set aside in `run_dir` by all, with a line on stderr, and the one
    before it is used. With several processes all of them call this.

    Args:
      abstract: the parts as trees of ShapeDtypeStructs with shardings.

    Returns:
      (step, parts), or None if there is no checkpoint.

    Raises:
      UserError: a checkpoint of another model, or none that can be read.
    """
    run_dir = Path(run_dir)
    step = _newest(run_dir)
    if step is None:
        return None
    while step is not None:
        try:
            return step, _restore_parts(run_dir / CHECKPOINTS / str(step), abstract)
        except UnreadableError as error:
            if jax.process_index() == 0:
                aside = _set_aside(run_dir, step)
                print(f"Checkpoint {step} of {run_dir} cannot be read ({error}); moved to {aside}.", file=sys.stderr)
        step = _newest(run_dir)
    raise UserError(f"No checkpoint of {run_dir} can be read: remove the folder to start again from nothing.")


def restore(run_dir: os.PathLike | str, step: int, abstract: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Restores the checkpoint of a step; see `restore_latest`.

    Raises:
      UserError: there is none of that step, it is damaged, or it is one of another model.
    """
    folder = Path(run_dir) / CHECKPOINTS / str(step)
    if not folder.is_dir():
        raise UserError(f"{run_dir} has no checkpoint of step {step}: it has {_list(run_dir)}.")
    try:
        return _restore_parts(folder, abstract)
    except UnreadableError as error:
        raise UserError(f"Checkpoint {step} of {run_dir} cannot be read ({error}): use another one.") from None


def _restore_parts(folder: Path, abstract: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Raises an UnreadableError in all processes if one of them finds damage; none then waits for the others."""
    filled = {name: part for name, part in abstract.items() if jax.tree.leaves(part)}
    failure, stored = find_damage(folder, part=jax.process_index(), parts=jax.process_count()), {}
    try:
        stored = stored_parts(folder)
    except UnreadableError as error:
        failure = failure or str(error)
    failure = first_message(failure or "")
    if failure:
        raise UnreadableError(failure)
    # Empty parts are not stored, so that a part which only one side has is a difference, too.
    check_same(stored, filled, folder, _writer(folder))
    try:
        return {**abstract, **load_parts(folder, filled)}
    except UnreadableError as error:
        if jax.process_count() == 1:
            raise
        # Only without checksums, of a run that was killed while it computed them: the others are reading already.
        raise UserError(
            f"Process {jax.process_index()} cannot read {folder} ({error}): remove this checkpoint."
        ) from None


def _writer(folder: Path) -> str:
    """Which version wrote a checkpoint, if it was another one; for errors."""
    with contextlib.suppress(UnreadableError):
        version = stored_about(folder).get("jukebox_jax", __version__)
        if version != __version__:
            return f" (written by version {version}; this is {__version__})"
    return ""


def _newest(run_dir: Path) -> int | None:
    """The latest step, as process 0 sees it."""
    step = max(steps(run_dir), default=-1)
    if jax.process_count() > 1:
        step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
    return None if step < 0 else step


def _set_aside(run_dir: Path, step: int) -> Path:
    """Moves a broken checkpoint away: left in place it would count as the latest one, and good ones would go."""
    target = run_dir / f"unreadable_checkpoint_{step}"
    number = 1
    while target.exists():
        number += 1
        target = run_dir / f"unreadable_checkpoint_{step}_{number}"
    os.replace(run_dir / CHECKPOINTS / str(step), target)
    return target


def _measured(run_dir: Path, step: int) -> float:
    """The metric that is kept with a checkpoint; infinite if it has none, or cannot be read."""
    with contextlib.suppress(UserError):
        return min((float(value) for value in describe(run_dir, step).get("metrics", {}).values()), default=math.inf)
    return math.inf


def _list(run_dir: os.PathLike | str) -> str:
    return ", ".join(map(str, steps(run_dir))) or "none"


def chosen_step(run_dir: Path, step: str | None) -> int:
    """The step that RUN, RUN@STEP or RUN@best mean (see `store.split_step`).

    Raises:
      UserError: there is no such checkpoint.
    """
    if step is None:
        return _latest(run_dir)
    if step == BEST:
        return best_step(run_dir)
    if int(step) not in steps(run_dir):
        raise UserError(f"{run_dir} has no checkpoint of step {step}: it has {_list(run_dir)}.")
    return int(step)


def _latest(run_dir: Path) -> int:
    found = steps(run_dir)
    if not found:
        raise UserError(f"{run_dir} holds no complete checkpoint: train longer, or give another folder.")
    return found[-1]
