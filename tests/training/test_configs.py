"""The shipped configs on the hardware that their docstrings name: what can be known without compiling."""

from __future__ import annotations

import math
import runpy
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh

from jukebox_jax.parallel.mesh import AXES
from jukebox_jax.parallel.plan import HBM_LIMITS, bytes_per_device
from jukebox_jax.parallel.strategies import batch_sharding, get_strategy
from jukebox_jax.planning.workload import task_of
from jukebox_jax.training.state import abstract_state

CONFIGS = Path(__file__).parents[2] / "configs"

CHIP = HBM_LIMITS["TPU v5 lite"]  # the smallest of those that they are made for

#: Variant, chips, parameters with the original's labels (spec: priors, section 10).
PODS = [
    ("prior.py", "5b", 64, 5_060_452_800),
    ("prior.py", "5b_lyrics", 64, 5_640_506_800),
    ("prior.py", "1b_lyrics", 64, None),
    ("prior.py", "upsampler_1", 64, 981_298_176),
    ("prior.py", "upsampler_0", 64, 981_298_176),
    ("prior.py", "long", 64, None),
    ("prior.py", "demo_long", 8, None),
]
OTHERS = [
    ("prior.py", "small", 1, 160_814_080),
    ("prior.py", "small_labelled", 1, None),
    ("prior.py", "small_lyrics", 1, None),
    ("prior.py", "small_lyrics_encoder", 1, None),
    ("prior.py", "small_upsampler", 1, 218_015_232),
    ("vqvae.py", "small", 1, None),
    ("vqvae.py", "released", 64, None),
]


@pytest.mark.parametrize(
    ("file", "variant", "chips", "parameters"), [*PODS, *(pytest.param(*row, marks=pytest.mark.slow) for row in OTHERS)]
)
def test_a_config_divides_over_the_chips_that_it_is_made_for(file, variant, chips, parameters):
    run = runpy.run_path(str(CONFIGS / file))["get_config"](variant)
    strategy = get_strategy(run.train.strategy)
    shape = run.train.mesh or strategy.mesh_shape
    rest = chips // math.prod(size for size in shape if size != -1)
    mesh = AbstractMesh(tuple(rest if size == -1 else size for size in shape), AXES)
    assert mesh.size == chips
    batch_sharding(mesh, strategy.rules, run.train.batch_size, run.train.accumulate)
    state = abstract_state(task_of(run), run.train, mesh, strategy.rules)
    if parameters is not None:
        assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == parameters
    whole, held = bytes_of(state), bytes_per_device(state)
    if run.train.strategy == "fsdp":
        assert held == pytest.approx(
            whole / mesh.shape["fsdp"], rel=0.05
        )  # biases of heads and hidden features stay whole
    if mesh.shape["sequence"] > 1:  # else rows or columns are padded
        layout = run.model.transformer.layout
        assert layout.blocks % mesh.shape["sequence"] == layout.block_ctx % mesh.shape["sequence"] == 0
    # Gradients come on top of the state; what is left is for activations.
    assert held + bytes_per_device(state.params) < CHIP / 2


def bytes_of(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_every_variant_has_its_hardware_named():
    named = {(file, variant) for file, variant, *_ in PODS + OTHERS}
    for file in ("prior.py", "vqvae.py"):
        module = runpy.run_path(str(CONFIGS / file))
        with pytest.raises(Exception, match="has no variant") as error:
            module["get_config"]("nonsense")
        variants = str(error.value).rpartition("choose one of ")[2].rstrip(".").split(", ")
        assert {(file, variant) for variant in variants if not variant.startswith("demo")} <= named
        for variant in variants:
            assert variant in module["__doc__"]
