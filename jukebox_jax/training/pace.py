"""From a budget of seconds to a number of steps."""

from __future__ import annotations

import time

from jukebox_jax.training.config import TrainConfig


class Pace:
    """Measures the first steps and says, once, how many steps fit into the time budget."""

    warm_up_steps = 2  # the first runs of a compiled step are slower
    measured_steps = 10
    measured_fraction = 0.05  # of the budget, so that a short hiccup does not decide

    def __init__(self, config: TrainConfig, step: int, started: float) -> None:
        self._config, self._first, self._started = config, step, started
        self._mark: tuple[int, float] | None = None

    def steps_within_budget(self, step: int) -> int | None:
        """The run's number of steps, or None while the measurement goes on; call after every step."""
        now, budget = time.monotonic(), self._config.seconds
        assert budget is not None
        if self._mark is None:
            if step > self._first + self.warm_up_steps:
                self._mark = (step, now)
            return None
        steps, seconds = step - self._mark[0], now - self._mark[1]
        if steps < self.measured_steps or seconds < self.measured_fraction * budget:
            return None
        fitting = step + (budget - (now - self._started)) * steps / seconds
        return int(min(max(fitting, self._config.min_steps, step), self._config.last_step))
