"""Compiled programs are kept on disk, so that a run that starts again begins to train at once."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path


def keep_compiled(folder: str | None) -> None:
    """Switches JAX's persistent compilation cache on; an environment that says where it is keeps the say.

    Several hosts that compute on CPUs have none: every host's program has a key of its own there and only host 0
    writes, so it alone would find its program, and give up waiting for the others in the first collective operation.

    Args:
      folder: a path or URL, "none" for no cache, None for `$XDG_CACHE_HOME/jukebox_jax`.
    """
    import jax

    if folder == "none" or (jax.process_count() > 1 and jax.default_backend() == "cpu"):
        jax.config.update("jax_enable_compilation_cache", False)
    elif folder is not None or "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", folder or str(default_folder()))


def default_folder() -> Path:
    """A folder of this kind of machine: home folders are shared by machines that cannot run each other's programs."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    features = platform.machine()
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        features += next((line for line in cpu.read_text().splitlines() if line.startswith(("flags", "Features"))), "")
    return cache / "jukebox_jax" / hashlib.sha256(features.encode()).hexdigest()[:12]
