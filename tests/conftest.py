"""Test settings that must stand before jax is imported, and run-time checks of every annotated array shape."""

import gc
import os
from pathlib import Path

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Nearly everything here is compiled to be run once or twice: XLA need not polish it. What the polished programs do can
# be tested by `XLA_FLAGS= make test`, and is shown by `make demo` and the experiments.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
# Test processes share what they compile, and a second run compiles nothing anew. Tests that time compilation switch
# it off: jax.config.update("jax_enable_compilation_cache", False).
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

from jaxtyping import install_import_hook

install_import_hook("jukebox_jax", "typecheck.check")


# Files that take a minute or more. They begin first: one that began last would keep one worker busy and the other idle.
LONG = (
    *("training/test_models_sharding.py", "experiments/test_fault_drill.py", "test_chain.py", "training/test_loop.py"),
    *("distributed/test_hosts.py", "corpus/test_prepare.py", "interop/test_fine_tuning.py", "models/test_losses.py"),
    *("experiments/test_parity.py", "pipeline/test_train_run.py", "interop/test_import.py", "models/test_vqvae.py"),
    *("sampling/test_session.py", "sampling/test_engine.py", "sampling/test_order.py", "sampling/test_devices.py"),
    *("parallel/test_partitioned.py", "notebooks/test_notebooks.py", "docs/test_docs.py", "planning/test_bench.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files of `LONG` in front, for `--dist loadscope --no-loadscope-reorder`."""
    ranks = {name: rank for rank, name in enumerate(LONG)}
    folder = Path(__file__).parent
    items.sort(key=lambda item: ranks.get(item.path.relative_to(folder).as_posix(), len(LONG)))


@pytest.fixture(autouse=True, scope="module")
def _bounded_memory():
    """What one file of tests compiled is of no use to the next, and adds up to gigabytes."""
    import jax

    yield
    statm = Path("/proc/self/statm")
    if statm.exists() and int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > 2**31:
        jax.clear_caches()
        gc.collect()
