"""How a run ends from outside: a signal asks it to stop, or a watchdog ends it where nothing moves any more."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

#: Exit status of a run that the watchdog ended: "temporary failure" in sysexits.h. The same command goes on.
STUCK_STATUS = 75


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Yields a list to which the first SIGINT or SIGTERM is added; a second one acts as if we were not here."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only there can handlers be set
        yield received
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)
        restore()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    for number in previous:
        signal.signal(number, note)
    try:
        yield received
    finally:
        restore()


class Watchdog:
    """Ends the process with the stacks of all threads if `alive` was not called for so many minutes.

    A host that waits for another one which is gone, or a deadlock, would otherwise cost a night on a whole pod.
    """

    def __init__(self, minutes: float) -> None:
        self._seconds = 60 * minutes
        self._alive = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True) if minutes else None

    def alive(self) -> None:
        """Says that something has been finished."""
        self._alive = time.monotonic()

    def _watch(self) -> None:
        while not self._done.wait(min(self._seconds / 4, 5.0)):
            if time.monotonic() - self._alive > self._seconds:
                print(
                    f"\njukebox-jax: error: no step was finished in {self._seconds / 60:g} min "
                    "(train.watchdog_minutes); what every thread was doing follows, and the same command goes on from "
                    "the last checkpoint.",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(all_threads=True)
                os._exit(STUCK_STATUS)

    def __enter__(self) -> Watchdog:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
