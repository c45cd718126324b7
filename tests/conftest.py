"""Test settings that must stand before jax is imported, and run-time checks of every annotated array shape."""

import gc
import os
from pathlib import Path

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Test processes share what they compile, and a second run compiles nothing anew. Tests that time compilation switch
# it off: jax.config.update("jax_enable_compilation_cache", False).
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

from jaxtyping import install_import_hook

install_import_hook("jukebox_jax", "typecheck.check")


@pytest.fixture(autouse=True, scope="module")
def _bounded_memory():
    """What one file of tests compiled is of no use to the next, and adds up to gigabytes."""
    import jax

    yield
    statm = Path("/proc/self/statm")
    if statm.exists() and int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > 2**31:
        jax.clear_caches()
        gc.collect()
