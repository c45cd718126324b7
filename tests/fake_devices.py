"""Several CPU devices in a process of their own: their number is fixed when jax is imported."""

from __future__ import annotations

import os


def xla_flags(devices: int) -> str:
    """XLA_FLAGS for a process with so many devices that compiles as this one does."""
    return f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}".strip()
