"""What the loop does with a step's metrics: rows, the progress line, alarms."""

from __future__ import annotations

import time
from collections.abc import Mapping

import jax

from jukebox_jax.training.config import TrainConfig
from jukebox_jax.training.task import Task
from jukebox_jax.training.telemetry import Telemetry


class Log:
    """Turns a step's metrics into a row and a moved progress line, and sees when a run goes bad.

    Args:
      step: finished steps.
      skipped: how many of the last ones were skipped.
    """

    def __init__(self, task: Task, config: TrainConfig, telemetry: Telemetry, step: int, skipped: int = 0) -> None:
        self._task, self._config, self._telemetry = task, config, telemetry
        self._step, self._skipped = step, skipped
        self._alarmed = False
        self._started = time.monotonic()
        self._last_row = (step, self._started)

    def step(self, step: int, metrics: Mapping[str, jax.Array], total_steps: int) -> None:
        """Waits for the step's metrics and handles them."""
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        self._telemetry.advance(values["loss"], total_steps)
        self._warn_of(step, values["loss"])
        if step == 1 or step >= total_steps or due(step, self._config.log_every):
            now = time.monotonic()
            rate = (step - self._last_row[0]) / max(now - self._last_row[1], 1e-9)
            self._last_row = (step, now)
            examples = rate * self._config.batch_size
            values |= {
                "seconds": now - self._started,
                "steps_per_second": rate,
                "examples_per_second": examples,
                "flops_per_second": examples * self._task.flops_per_example,
            }
            self._telemetry.write(step, values)
        self._step = step
        self._skipped = self._skipped + 1 if values["skipped"] else 0

    @property
    def bad_steps(self) -> range:
        """The last steps, as far as they were skipped."""
        return range(self._step - self._skipped + 1, self._step + 1)

    @property
    def went_bad(self) -> bool:
        """Whether `max_skipped` steps in a row were skipped."""
        return self._skipped >= self._config.max_skipped

    def rewound(self, step: int, skipped: int) -> None:
        """The run goes on from an earlier step."""
        self._telemetry.warn(
            f"Loss or gradients were not finite in steps {self.bad_steps[0]} to {self.bad_steps[-1]}: going on from "
            f"step {step} with the data behind them."
        )
        self._step, self._skipped, self._last_row = step, skipped, (step, time.monotonic())

    def _warn_of(self, step: int, loss: float) -> None:
        """Says that the loss is alarming when it becomes so, and again only after it was not."""
        limit = self._task.alarming_loss
        alarming = limit is not None and loss > limit
        if alarming and not self._alarmed:
            self._telemetry.warn(f"The loss is {loss:.4g} at step {step}, above {limit:g}: training may be diverging.")
        self._alarmed = alarming

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a row of evaluation metrics; its duration does not count as training."""
        self._telemetry.write(step, {f"eval_{name}": float(value) for name, value in values.items()})
        self._last_row = (step, time.monotonic())


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps happens after this one; 0 is never."""
    return every > 0 and step % every == 0
