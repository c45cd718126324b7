"""Where work is done: a function over many items, on this machine's cores or on an Apache Beam runner.

The function writes its results to files and is safe to repeat, so that a runner has nothing to bring back, a killed
run goes on, and every runner does the very same work.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from jukebox_jax.errors import UserError

T = TypeVar("T")

# What a worker may hold beyond the item in hand: enough to keep it busy.
_WAITING_PER_WORKER = 4


#: (work, items): does `work` for each item; yields the items as they are done, in any order.
Runner = Callable[[Callable[[Any], None], Sequence[Any]], Iterator[Any]]


def default_workers() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_runner(workers: int | None = None, crashed: Callable[[Any], None] | None = None) -> Runner:
    """Processes on this machine; one worker is this process itself.

    Args:
      workers: how many, by default one for each core.
      crashed: called with an item whose work took its process down twice (a decoder's crash, memory run out), which
        then counts as done; without it that is an error.
    """
    if workers is not None and workers < 1:
        raise UserError(f"{workers} workers can do nothing: choose 1 or more.")
    return partial(_run_locally, workers or default_workers(), crashed)


def _run_locally(
    workers: int, crashed: Callable[[Any], None] | None, work: Callable[[T], None], items: Sequence[T]
) -> Iterator[T]:
    workers = min(workers, len(items))
    if workers <= 1:
        for item in items:
            work(item)
            yield item
        return
    waiting, suspects = list(reversed(items)), []
    while waiting:
        running: dict[Future, T] = {}
        with _pool(workers) as pool:
            try:
                while waiting or running:
                    while waiting and len(running) < workers * _WAITING_PER_WORKER:
                        item = waiting.pop()
                        running[pool.submit(work, item)] = item
                    for done in wait(running, return_when=FIRST_COMPLETED).done:
                        done.result()
                        yield running.pop(done)
            except BrokenProcessPool:
                suspects = list(running.values())
        if suspects:
            _check_start()
        # One of these took its process down. Each gets a process of its own, to find out which.
        for item in suspects:
            with _pool(1) as pool:
                try:
                    pool.submit(work, item).result()
                except BrokenProcessPool:
                    if crashed is None:
                        raise UserError(f"Working on {item} takes the process down: leave it out.") from None
                    crashed(item)
            yield item
        suspects = []


def _check_start() -> None:
    """Raises a UserError if worker processes end before there is any work: no item is to blame for that."""
    try:
        with _pool(1) as pool:
            pool.submit(os.getpid).result()
    except BrokenProcessPool:
        raise UserError(
            "Worker processes cannot be started: a script that does this must do it below "
            '`if __name__ == "__main__":`, as they import it; or use one worker.'
        ) from None


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that end at once with this block, however it is left, and with this process, however it ends."""
    # Spawned, not forked: libraries with threads of their own do not survive a fork.
    context = multiprocessing.get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with, initargs=(theirs,))
    try:
        yield pool
    finally:
        ours.close()
        pool.shutdown(cancel_futures=True)
        theirs.close()


def _end_with(parent: Connection) -> None:
    """In a worker: ends it as soon as the other end of the connection is gone. What it works on is repeatable."""

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            parent.recv()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=watch, daemon=True).start()


def beam_runner(options: Sequence[str] = ()) -> Runner:
    """Apache Beam with its own flags, such as `--runner=DataflowRunner`; without any it runs on this machine.

    Raises:
      UserError: Beam is not installed, or does not take these options.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError("Apache Beam is not installed: pip install 'jukebox-jax[beam]'.") from None
    try:
        beam.Pipeline(options=PipelineOptions(list(options)))
    except (ValueError, ImportError, AttributeError, SystemExit) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"Apache Beam does not take {' '.join(options)} ({reason}): check its flags.") from None
    return partial(_run_on_beam, tuple(options))


def _run_on_beam(options: Sequence[str], work: Callable[[T], None], items: Sequence[T]) -> Iterator[T]:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        # Without the reshuffle a runner may fuse creation and work, and give everything to one worker. `Map` makes the
        # DoFn of the function.
        _ = pipeline | beam.Create(list(items)) | beam.Reshuffle() | beam.Map(work)
    yield from items
