"""Going back to before the numbers went bad, and past the data that they went bad on.

A step without finite loss and gradients changes nothing. After `max_skipped` of them in a row the run takes its last
checkpoint from before them, and from there on reads data that begin after the bad batches. What was done is noted in
`RUN/rewinds.json`, so that a run that is killed right afterwards does the same when it is started again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jukebox_jax import config as config_lib
from jukebox_jax.errors import UserError
from jukebox_jax.files import atomic_file
from jukebox_jax.training.log import due

REWINDS_FILE = "rewinds.json"


@dataclass(frozen=True)
class Rewind:
    """One return to a checkpoint.

    Attributes:
      to_step: the checkpoint's.
      first_bad_step, last_bad_step: the steps that led to it.
      data_offset: from then on added to the position in the data, in examples.
    """

    to_step: int
    first_bad_step: int
    last_bad_step: int
    data_offset: int


def read_rewinds(run_dir: Path) -> list[Rewind]:
    """All rewinds of a run so far, in order."""
    path = run_dir / REWINDS_FILE
    if not path.exists():
        return []
    return [config_lib.from_dict(Rewind, row) for row in config_lib.load_json(path)["rewinds"]]


def note_rewind(run_dir: Path, rewind: Rewind) -> None:
    """Adds a rewind."""
    rows = [asdict(row) for row in [*read_rewinds(run_dir), rewind]]
    with atomic_file(run_dir / REWINDS_FILE) as temporary:
        temporary.write_text(json.dumps({"rewinds": rows}, indent=2) + "\n", encoding="utf-8")


def offset_after(rewinds: Sequence[Rewind], step: int, data_offset: int) -> int:
    """The data offset of a run restored at `step` whose checkpoint has `data_offset`."""
    return max([data_offset, *(rewind.data_offset for rewind in rewinds if rewind.to_step == step)])


def plan_rewind(
    rewinds: Sequence[Rewind], checkpoints: Sequence[int], every: int, first_bad_step: int, last_bad_step: int
) -> int | None:
    """The checkpoint to return to, or None if there is none from before the first bad step.

    One that was due (at a multiple of `every`) goes before one that owes itself to an interruption, so that a run that
    was interrupted comes to the same end as one that was not.

    Raises:
      UserError: the run has been there before, and it did not help; lists the bad steps.
    """
    good = [step for step in checkpoints if step < first_bad_step]
    if not good:
        return None
    target = max([step for step in good if due(step, every)] or good)
    before = [rewind for rewind in rewinds if rewind.to_step == target]
    if before:
        spans = [f"{row.first_bad_step} to {row.last_bad_step}" for row in before]
        raise UserError(
            f"Loss or gradients were not finite in steps {', '.join(spans)} and, after a rewind to step {target} "
            f"and other data, in steps {first_bad_step} to {last_bad_step}: lower train.optimizer.learning_rate or "
            "look for broken data."
        )
    return target
