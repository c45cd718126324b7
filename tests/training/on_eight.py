"""Programs that need eight devices, in processes of their own: the number of devices is fixed when jax is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def on_eight_devices(
    program: str, *arguments: object, flags: str = "", timeout: float = 300
) -> subprocess.CompletedProcess:
    """Runs a program of this folder with eight CPU devices, and further flags for XLA; it must end well."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/training" / program), *map(str, arguments)],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count=8 {flags}".strip(),
        },
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done
