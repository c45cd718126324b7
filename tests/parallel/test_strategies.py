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


@pytest.mark.parametrize(
    ("strategy", "sizes", "parts", "advice"),
    [
        ("fsdp", (1, 512, 1, 1), "fsdp of size 512", "mesh=(8, 64, 1, 1)"),
        ("hsdp", (2, 256, 1, 1), "fsdp of size 256", "mesh=(8, 64, 1, 1)"),
        ("fsdp_sp", (1, 128, 4, 1), "fsdp×sequence of size 512", "mesh=(8, 16, 4, 1)"),
    ],
)
def test_a_width_that_so_many_devices_do_not_divide_is_given_smaller_groups(strategy, sizes, parts, advice):
    tree = {"scale": boxed((4800,), ("width",))}
    with pytest.raises(UserError) as raised:
        resolve(tree, mesh(*sizes), get_strategy(strategy).rules)
    for word in ("scale: dimension 0 (width) of size 4800", "of size 512", "as hsdp has", advice):
        assert word in str(raised.value) or (word == "of size 512" and "of size 256" in str(raised.value))


def test_small_convolutions_and_odd_vocabularies_stay_whole_where_the_mesh_does_not_divide_them():
    tree = {
        "kernel": boxed((3, 32, 32), (None, None, "channels")),
        "tokens": boxed((2127, 2048), ("vocab", "width")),
        "qkv": boxed((6, 2048, 3, 2, 256), ("layers", "width", None, "heads", None)),
    }
    few = resolve(tree, mesh(1, 8, 1, 2), get_strategy("fsdp_tp").rules)
    assert few["kernel"].spec == P(None, None, "fsdp")
    many = resolve(tree, mesh(1, 64, 1, 2), get_strategy("fsdp_tp").rules)
    assert many["kernel"].spec == P(None, None, None)
    assert many["tokens"].spec == P(None, "fsdp")
    assert many["qkv"].spec == P(None, "fsdp", None, "tensor", None)
    with pytest.raises(UserError, match=r"qkv: dimension 3 \(heads\) of size 2 .* mesh axis tensor of size 4"):
        resolve(tree, mesh(1, 64, 1, 4), get_strategy("fsdp_tp").rules)


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
    with pytest.raises(UserError, match=r"batch_size=12 is not a multiple of 8, .*replica×fsdp.*train\.batch_size"):
        batch_sharding(mesh(2, 4, 1, 1), rules, 12)
    with pytest.raises(UserError, match=r"batch_size=16 in accumulate=4 microbatches is not a multiple of 8"):
        batch_sharding(mesh(2, 4, 1, 1), rules, 16, accumulate=4)


def test_every_strategy_has_a_rule_for_every_word_and_no_axis_twice():
    words = {word for word, _ in STRATEGIES["single"].rules}
    assert {"batch", "time", "rows", "columns", "width", "channels"} < words
    for strategy in STRATEGIES.values():
        assert {word for word, _ in strategy.rules} == words
        assert len(strategy.rules) == len(words)


def test_an_unknown_strategy_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'single'"):
        get_strategy("singel")
