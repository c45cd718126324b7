"""What the loop does with a step's metrics: rows, the progress line, alarms."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Mapping, Sequence

import jax

from jukebox_jax.audio.files import Clips
from jukebox_jax.parallel.peaks import peak
from jukebox_jax.training.config import TrainConfig
from jukebox_jax.training.ledger import Ledger
from jukebox_jax.training.task import Task
from jukebox_jax.training.telemetry import Telemetry


class Log:
    """Turns a step's metrics into a row and a moved progress line, and sees when a run goes bad.

    A row holds the step's metrics and, over the steps since the last row, `step_seconds` (median), `steps_per_second`
    and `examples_per_second` (mean), tokens or seconds of audio per second and device, `flops_per_second` of the model
    and, where the peak of the devices is known, `mfu`, the part of it that these are; `device_memory_peak_bytes`, the
    largest on this host so far, where the devices tell; and `goodput` (see `Ledger`).

    Args:
      step: finished steps at the start.
      skipped: how many of the last ones were skipped.
      devices: those that compute a step together.
    """

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        telemetry: Telemetry,
        ledger: Ledger,
        step: int,
        skipped: int,
        devices: Sequence[jax.Device],
    ) -> None:
        self._task, self._config, self._telemetry, self._ledger = task, config, telemetry, ledger
        self._devices = len(devices)
        self._here = [device for device in devices if device.process_index == jax.process_index()]
        known = peak(devices[0].device_kind)
        self._peak_flops = config.peak_flops or (None if known is None else known.flops_per_second)
        self._step, self._skipped = step, skipped
        self._outside = dict.fromkeys(task.alarms, 0)
        self._started = self._last = time.monotonic()
        self._durations: list[float] = []  # of the steps since the last row

    def step(self, step: int, metrics: Mapping[str, jax.Array], total_steps: int) -> None:
        """Waits for the step's metrics and handles them."""
        with self._ledger.spending("step"):
            values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        now = time.monotonic()
        self._durations.append(now - self._last)
        self._last = now
        self._ledger.finished(step)
        self._telemetry.advance(values["loss"], total_steps)
        self._warn_of(step, values)
        if step == 1 or step >= total_steps or due(step, self._config.log_every):
            self._telemetry.write(step, values | self._speed() | {"goodput": self._ledger.goodput})
            self._ledger.save()
            self._durations.clear()
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
        self._step, self._skipped = step, skipped
        self._durations.clear()
        self.pause_over()

    def _speed(self) -> dict[str, float]:
        task, rate = self._task, len(self._durations) / max(sum(self._durations), 1e-9)
        examples = rate * self._config.batch_size
        speed = {
            "seconds": self._last - self._started,
            "step_seconds": statistics.median(self._durations),
            "steps_per_second": rate,
            "examples_per_second": examples,
            "flops_per_second": examples * task.flops_per_example,
        }
        if task.unit is not None:
            speed[f"{task.unit}_per_second_per_device"] = examples * task.units_per_example / self._devices
        if self._peak_flops is not None:
            speed["mfu"] = speed["flops_per_second"] / (self._devices * self._peak_flops)
        told = [device.memory_stats() or {} for device in self._here]
        peaks = [stats["peak_bytes_in_use"] for stats in told if "peak_bytes_in_use" in stats]
        return speed | ({"device_memory_peak_bytes": float(max(peaks))} if peaks else {})

    def _warn_of(self, step: int, values: Mapping[str, float]) -> None:
        """Says once that a metric is out of bounds, and again only after it was not."""
        for alarm in self._task.alarms:
            value = values[alarm.metric]
            outside = step > alarm.after and alarm.outside(value)
            self._outside[alarm] = self._outside[alarm] + 1 if outside else 0
            if self._outside[alarm] == alarm.patience:
                self._telemetry.warn(alarm.text.format(value=value, step=step))

    def evaluation(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Writes a row of evaluation metrics and returns it."""
        row = {f"eval_{name}": float(value) for name, value in values.items()}
        self._telemetry.write(step, row)
        self.pause_over()
        return row

    def audio(self, step: int, clips: Clips) -> None:
        """Writes what can be heard of the step."""
        self._telemetry.audio(step, clips)
        self.pause_over()

    def pause_over(self) -> None:
        """The time since the last step was not spent on the next one."""
        self._last = time.monotonic()


def is_measured(name: str) -> bool:
    """Whether a metric tells of the machine, and so differs between two runs of one config."""
    return re.search(r"second|mfu|goodput|device_memory", name) is not None


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps happens after this one; 0 is never."""
    return every > 0 and step % every == 0
