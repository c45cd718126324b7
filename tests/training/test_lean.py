"""The optimizer that needs little memory, and the first moment in bfloat16."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jukebox_jax.config import from_dict
from jukebox_jax.errors import UserError
from jukebox_jax.parallel.mesh import make_mesh
from jukebox_jax.parallel.strategies import get_strategy
from jukebox_jax.training.config import OptimizerConfig, TrainConfig
from jukebox_jax.training.optimizer import make_optimizer
from jukebox_jax.training.state import abstract_state
from jukebox_jax.training.telemetry import read_metrics
from tests.training import wide
from tests.training.on_eight import on_eight_devices


def abstract(optimizer: OptimizerConfig):
    config = TrainConfig(optimizer=optimizer)
    return abstract_state(wide.make_task(), config, make_mesh((1, 1, 1, 1)), get_strategy("fsdp").rules)


def size(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_bytes_of_state_per_parameter():
    parameters = size(abstract(OptimizerConfig()).params) // 4
    adam = size(abstract(OptimizerConfig()).opt_state)
    assert adam == pytest.approx(8 * parameters, abs=8)
    assert size(abstract(OptimizerConfig(moment_dtype="bfloat16")).opt_state) == pytest.approx(6 * parameters, abs=8)
    assert size(abstract(wide.LEAN).opt_state) < 0.02 * adam
    with_moment = size(abstract(OptimizerConfig(rule="adafactor", moment_dtype="bfloat16")).opt_state)
    assert with_moment == pytest.approx(2 * parameters, rel=0.05)


def test_factored_moments_have_the_axes_that_are_left():
    state = abstract(wide.LEAN).opt_state[0]
    # Of a (256, 128) and a (128, 256) matrix, "width" is the longer axis, which the row moment is the mean over.
    shardings = {
        name: jax.tree.map(lambda leaf: (leaf.shape, leaf.sharding.spec), getattr(state, name))
        for name in ("v_row", "v_col", "v")
    }
    width, none, nothing = PartitionSpec("fsdp"), PartitionSpec(None), ((1,), PartitionSpec(None))
    assert shardings["v_row"] == {"up": ((128,), none), "down": ((128,), none), "bias": nothing}
    assert shardings["v_col"] == {"up": ((256,), width), "down": ((256,), width), "bias": nothing}
    assert shardings["v"] == {"up": nothing, "down": nothing, "bias": ((256,), width)}


def test_updates_are_those_of_optax():
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.standard_normal((130, 140)), jnp.float32), "b": jnp.ones(3)}
    ours = make_optimizer(OptimizerConfig(rule="adafactor", b1=0.9, weight_decay=0.1))
    theirs = optax.adafactor(
        None, multiply_by_parameter_scale=False, clipping_threshold=1.0, momentum=None, weight_decay_rate=None
    )
    state, reference, mean = ours.init(params), theirs.init(params), jax.tree.map(jnp.zeros_like, params)
    for step in range(1, 4):
        gradients = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), jnp.float32), params)
        direction, state = ours.update(gradients, state, params)
        scaled, reference = theirs.update(gradients, reference, params)
        mean = jax.tree.map(lambda m, s: 0.9 * m - 0.1 * s, mean, scaled)  # optax's updates point downhill
        want = jax.tree.map(lambda m, p, step=step: m / (1 - 0.9**step) + 0.1 * p, mean, params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), direction, want)


@pytest.mark.parametrize(
    "optimizer",
    [
        wide.LEAN,
        OptimizerConfig(rule="adafactor", learning_rate=3e-3, warmup_steps=1, moment_dtype="bfloat16"),
        OptimizerConfig(learning_rate=3e-3, warmup_steps=1, moment_dtype="bfloat16"),
    ],
)
def test_it_learns_and_resumes_to_the_bit(optimizer, tmp_path):
    whole = wide.run(tmp_path / "whole", 30, optimizer=optimizer)
    rows = read_metrics(tmp_path / "whole")
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    wide.run(tmp_path / "parts", 9, optimizer=optimizer)
    parts = wide.run(tmp_path / "parts", 30, optimizer=optimizer)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_eight_devices_share_the_moments_and_end_where_one_does(tmp_path):
    done = on_eight_devices("wide.py", tmp_path)
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["sharded"] < 1e-5
    assert report["moved"] < 1e-5
    assert report["restored"] == 0
    assert report["codebook"] < 1e-5  # its sums run over the batch of all devices
    assert report["shards"] == {  # of a matrix the row and column means, of a vector the whole
        "row/up": [128],
        "row/down": [128],
        "row/bias": [1],
        "col/up": [256 // 8],
        "col/down": [256 // 8],
        "col/bias": [1],
        "whole/up": [1],
        "whole/down": [1],
        "whole/bias": [256 // 8],
    }


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rule": "adafacto"}, "'rule' cannot be 'adafacto': did you mean 'adafactor'"),
        ({"moment_dtype": "float16"}, "'moment_dtype' cannot be 'float16': did you mean"),
        ({"rule": "original", "moment_dtype": "bfloat16"}, "must be float32 with rule=original"),
    ],
)
def test_what_does_not_exist_is_refused(values, words):
    with pytest.raises(UserError, match=words):
        from_dict(OptimizerConfig, values)
