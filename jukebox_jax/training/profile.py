"""A profile of some steps, for TensorBoard's profile plugin, Perfetto or xprof."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import jax

PROFILE_FOLDER = "profile"


class Profiler:
    """Profiles a window of steps into `run_dir/profile`; a context manager, since the run may end inside the window.

    Args:
      window: (first step, number of steps), or empty for none.
      enabled: False on all hosts but the first.
    """

    def __init__(self, run_dir: os.PathLike | str, window: tuple[int, ...], enabled: bool) -> None:
        self._folder = Path(run_dir) / PROFILE_FOLDER
        first, count = window or (0, 0)
        self._steps = range(first, first + count) if enabled else range(0)
        self._active = False

    def before(self, step: int, running: Mapping[str, jax.Array] | None) -> None:
        """Call it before each step with the step's number, from 1, and metrics of what the devices are still at."""
        if self._active == (step in self._steps):
            return
        jax.block_until_ready(running)  # only whole steps belong into the window
        if self._active:
            self._stop()
        else:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # the loop's Python would bury the device's work
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._active = True

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._active = False

    def __enter__(self) -> Profiler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._active:
            self._stop()
