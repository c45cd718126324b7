"""The resolver of logical axes, on meshes of devices that need not exist."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from jukebox_jax.errors import UserError
from jukebox_jax.parallel.mesh import AXES
from jukebox_jax.parallel.strategies import STRATEGIES, batch_sharding, get_strategy, resolve


def mesh(*sizes: int) -> AbstractMesh:
    return AbstractMesh(sizes, AXES)


def boxed(shape, names):
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names=names)


def test_parameters_follow_their_words_and_unnamed_ones_are_replicated():
    tree = {
        "kernel": boxed((3, 16, 24), (None, "width", "hidden")),
        "stacked": boxed((6, 24, 16), ("layers", "hidden", "width")),
        "bias": jax.ShapeDtypeStruct((24,), jnp.float32),
    }
    shardings = resolve(tree, mesh(1, 8, 1, 1), get_strategy("fsdp").rules)
    assert shardings["kernel"].spec == P(None, "fsdp", None)
    assert shardings["stacked"].spec == P(None, None, "fsdp")
    assert shardings["bias"].spec == P()
    replicated = resolve(tree, mesh(8, 1, 1, 1), get_strategy("dp").rules)
    assert all(sharding.is_fully_replicated for sharding in jax.tree.leaves(replicated))


def test_a_size_that_the_mesh_does_not_divide_names_parameter_dimension_and_axis():
    tree = {"block": {"kernel": boxed((24, 20), ("hidden", "width"))}}
    with pytest.raises(UserError) as raised:
        resolve(tree, mesh(1, 8, 1, 1), get_strategy("fsdp").rules)
    for word in ("block/kernel", "dimension 1 (width)", "20", "fsdp of size 8"):
        assert word in str(raised.value)


def test_two_dimensions_on_one_mesh_axis_name_parameter_dimensions_and_axis():
    tree = {"kernel": boxed((16, 16), ("width", "heads"))}
    rules = (*((word, axes) for word, axes in get_strategy("fsdp").rules if word != "heads"), ("heads", "fsdp"))
    with pytest.raises(UserError) as raised:
        resolve(tree, mesh(1, 8, 1, 1), rules)
    for word in ("kernel", "dimensions 0 (width) and 1 (heads)", "'fsdp'"):
        assert word in str(raised.value)


def test_a_word_without_a_rule_is_a_mistake_in_the_model():
    with pytest.raises(ValueError, match="'widht' has no rule"):
        resolve({"w": boxed((4,), ("widht",))}, mesh(1, 1, 1, 1), get_strategy("dp").rules)


def test_batches_are_cut_over_replica_and_fsdp():
    rules = get_strategy("fsdp").rules
    assert batch_sharding(mesh(2, 4, 1, 1), rules, 16).spec == P(("replica", "fsdp"))
    with pytest.raises(UserError, match=r"batch_size.*size 12.*replica×fsdp of size 8"):
        batch_sharding(mesh(2, 4, 1, 1), rules, 12)


def test_every_strategy_has_a_rule_for_every_word_and_no_axis_twice():
    words = {word for word, _ in STRATEGIES["single"].rules}
    assert {"batch", "time", "rows", "width", "heads", "hidden", "vocab", "layers", "codes"} == words
    for strategy in STRATEGIES.values():
        assert {word for word, _ in strategy.rules} == words
        assert len(strategy.rules) == len(words)


def test_an_unknown_strategy_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'single'"):
        get_strategy("singel")
