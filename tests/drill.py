"""The kill drill: a command is killed at random moments, again and again, and must still end as if nothing had been."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def run_verb(*arguments: object, check: bool = True, **options) -> subprocess.CompletedProcess:
    """`jukebox-jax ARGUMENTS` in a process of its own."""
    command = [sys.executable, "-m", "jukebox_jax", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert not check or done.returncode == 0, done.stderr
    return done


def run_through_kills(arguments: Sequence[object], kills: int, seed: int, within_seconds: float) -> int:
    """Starts the verb and kills it (SIGKILL, with whatever it is doing) `kills` times, then lets it finish.

    Returns:
      how many of the kills met it still running; the moments are uniform in `within_seconds`, which should be about
      what an undisturbed run takes.
    """
    rng, met = random.Random(seed), 0
    command = [sys.executable, "-m", "jukebox_jax", *map(str, arguments)]
    for _ in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0, within_seconds))
        process.send_signal(signal.SIGKILL)
        met += process.wait() == -signal.SIGKILL
    # It may have finished before a kill; then the same command refuses to write over what is there, and says so.
    last = run_verb(*arguments, check=False)
    assert last.returncode == 0 or "already exists" in last.stderr, last.stderr
    return met


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
