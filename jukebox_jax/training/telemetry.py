"""What a run says about itself: JSON lines, TensorBoard events, and one line of progress."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from jukebox_jax.files import atomic_file

METRICS_FILE = "metrics.jsonl"


class Telemetry:
    """Writes rows of metrics to `run_dir/metrics.jsonl` and TensorBoard events beside it.

    A resumed run continues both files: what was logged after the restored step is dropped, since it comes again.

    Args:
      step: finished steps at the start.
      enabled: False on all hosts but the first, which alone writes.
      progress: whether to draw the progress line on stderr.
    """

    def __init__(self, run_dir: os.PathLike | str, step: int, total_steps: int, enabled: bool, progress: bool) -> None:
        self._file = self._events = None
        if enabled:
            from tensorboardX import SummaryWriter  # slow to import, and needed nowhere else

            self._run_dir, self._writer = Path(run_dir), SummaryWriter
            self._open(step)
        self._bar = tqdm(
            initial=step,
            total=total_steps,
            disable=not (enabled and progress),
            unit="step",
            dynamic_ncols=True,
            # A log file gets a line now and then, a terminal a living one.
            mininterval=0.2 if sys.stderr.isatty() else 10.0,
            file=sys.stderr,
        )

    def _open(self, step: int) -> None:
        path = self._run_dir / METRICS_FILE
        drop_rows_after(path, step)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed in __exit__)
        self._events = self._writer(str(self._run_dir), purge_step=step + 1)

    def rewind(self, step: int) -> None:
        """The run goes on from an earlier step: what was logged after it is dropped."""
        if self._file is not None and self._events is not None:
            self._file.close()
            self._events.close()
            self._open(step)
        self._bar.n = step
        self._bar.refresh()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a row. A value that is not finite becomes null: NaN is not JSON."""
        if self._file is None or self._events is None:
            return
        row = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def advance(self, loss: float, total_steps: int) -> None:
        """Moves the progress line by one step."""
        self._bar.total = total_steps
        self._bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
        self._bar.update()

    def say(self, text: str) -> None:
        """Prints a line above the progress line."""
        if not self._bar.disable:
            self._bar.write(text, file=sys.stderr)

    def warn(self, text: str) -> None:
        """Prints a line above the progress line, and also where there is none."""
        if self._file is not None:
            self._bar.write(text, file=sys.stderr)

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._file is not None and self._events is not None:
            self._file.close()
            self._events.close()


def read_metrics(run_dir: os.PathLike | str) -> list[dict[str, float | int | None]]:
    """The rows of a run's `metrics.jsonl`, in order; a last line cut off by a kill is left out."""
    path = Path(run_dir) / METRICS_FILE
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def drop_rows_after(path: Path, step: int) -> None:
    """Rewrites a metrics file without the rows of later steps."""
    if not path.exists():
        return
    kept = [row for row in read_metrics(path.parent) if row["step"] <= step]
    with atomic_file(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
