"""The train step of every released prior, at its full size, compiles within a minute."""

from __future__ import annotations

import subprocess
import sys

import pytest

from jukebox_jax.interop.released import RELEASES
from jukebox_jax.models.prior import PriorConfig

# The two upsamplers differ in a scale only.
PRIORS = [
    name for name, release in RELEASES.items() if isinstance(release.config, PriorConfig) and release.config.level
]

COMPILE = """
import sys, time
import jax
from jukebox_jax.interop.released import RELEASES
from jukebox_jax.parallel.mesh import make_mesh
from jukebox_jax.parallel.strategies import get_strategy
from jukebox_jax.training.config import TrainConfig
from jukebox_jax.training.prior_task import prior_task
from jukebox_jax.training.state import abstract_state
from jukebox_jax.training.step import make_train_step

task = prior_task(RELEASES[sys.argv[1]].config)
config, mesh, rules = TrainConfig(batch_size=1), make_mesh(), get_strategy("single").rules
with jax.set_mesh(mesh):
    state = abstract_state(task, config, mesh, rules)
    batch = {name: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype) for name, leaf in task.batch_spec.items()}
    started = time.process_time()
    make_train_step(task, config, mesh, rules, state).lower(state, batch).compile()
    print(time.process_time() - started)
"""


@pytest.mark.parametrize("name", PRIORS)
def test_a_released_train_step_compiles_within_a_minute(name):
    """In processor seconds of a process of its own, so that neither a cache nor a neighbour decides."""
    environment = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false", "PATH": ""}
    command = [sys.executable, "-c", COMPILE, name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 60
