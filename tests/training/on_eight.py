"""Programs that need eight devices, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from fake_devices import xla_flags

ROOT = Path(__file__).parents[2]


def on_eight_devices(program: str, *arguments: object, timeout: float = 300) -> subprocess.CompletedProcess:
    """Runs a program of this folder with eight CPU devices; it must end well."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/training" / program), *map(str, arguments)],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": xla_flags(8),
        },
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done
