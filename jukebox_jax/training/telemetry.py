"""What a run says about itself: JSON lines, TensorBoard events, Weights & Biases, audio, and one line of progress."""

from __future__ import annotations

import json
import math
import os
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from tqdm import tqdm

from jukebox_jax.audio.files import Clips, write_audio
from jukebox_jax.errors import UserError
from jukebox_jax.files import atomic_file

METRICS_FILE = "metrics.jsonl"
AUDIO_FOLDER = "audio"


class Telemetry:
    """Writes rows of metrics to `run_dir/metrics.jsonl` and TensorBoard events beside it, and clips to `run_dir/audio`.

    A resumed run continues both files: what was logged after the restored step is dropped, since it comes again.

    Args:
      step: finished steps at the start.
      enabled: False on all hosts but the first, which alone writes.
      progress: whether to draw the progress line on stderr.
      wandb_project: where Weights & Biases gets the rows, too, with `run_config`. What it was told cannot be dropped:
        its curves, over "step", show repeated steps twice.

    Raises:
      UserError: Weights & Biases is not there, or not ready.
    """

    def __init__(
        self,
        run_dir: os.PathLike | str,
        step: int,
        total_steps: int,
        enabled: bool,
        progress: bool,
        wandb_project: str | None = None,
        run_config: Mapping[str, Any] | None = None,
    ) -> None:
        self._run_dir = Path(run_dir)
        self._file = self._events = self._wandb = None
        if enabled:
            if wandb_project is not None:
                self._wandb = _start_wandb(self._run_dir, wandb_project, run_config)
            self._open(step)
        self._started = False
        self._bar = tqdm(
            desc="compiling",
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
        from tensorboardX import SummaryWriter  # slow to import, and needed nowhere else

        path = self._run_dir / METRICS_FILE
        drop_rows_after(path, step)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed in __exit__)
        self._events = SummaryWriter(str(self._run_dir), purge_step=step + 1)

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
        if self._wandb is not None:
            self._wandb.log({"step": step, **values})

    def audio(self, step: int, clips: Clips) -> None:
        """Writes `audio/STEP/NAME.wav` for every clip, in place of what a first pass over the step may have left."""
        if self._events is None:
            return
        for name, (samples, sample_rate) in clips.items():
            write_audio(self._run_dir / AUDIO_FOLDER / f"{step:08d}" / f"{name}.wav", samples, sample_rate)
            self._events.add_audio(name, np.clip(samples, -1, 1), step, sample_rate)

    def advance(self, loss: float, total_steps: int) -> None:
        """Moves the progress line by one step."""
        if not self._started:  # the first step was compiled first, which says nothing of the others
            self._started = True
            self._bar.unpause()
            self._bar.set_description_str("", refresh=False)
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
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if error is None else 1)


def require_wandb() -> Any:
    """The module of Weights & Biases.

    Raises:
      UserError: it is not installed.
    """
    try:
        import wandb  # slow to import, and needed by few
    except ImportError:
        raise UserError(
            'train.wandb_project needs the extra [wandb]: pip install "jukebox-jax[wandb]", or leave it out.'
        ) from None
    return wandb


def _start_wandb(run_dir: Path, project: str, run_config: Mapping[str, Any] | None) -> Any:
    """The run of this folder there: a resumed one goes on."""
    wandb = require_wandb()
    stored = run_dir / "wandb_id"
    if not stored.exists():
        with atomic_file(stored) as temporary:
            temporary.write_text(uuid.uuid4().hex, encoding="utf-8")
    try:
        run = wandb.init(
            project=project,
            id=stored.read_text(encoding="utf-8"),
            resume="allow",
            name=run_dir.name,
            dir=run_dir,
            config=dict(run_config or {}),
            settings=wandb.Settings(console="off"),
        )
    except wandb.errors.Error as error:
        raise UserError(
            f"train.wandb_project: {error}. Log in (`wandb login`), set WANDB_MODE=offline, or leave it out."
        ) from None
    # It refuses to go back to an earlier step of its own; this one may.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


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
