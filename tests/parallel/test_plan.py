"""The plan of memory against sums done by hand, and what is said where it does not fit."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from jukebox_jax.errors import UserError
from jukebox_jax.parallel import plan as plan_lib
from jukebox_jax.parallel.mesh import AXES, make_mesh
from jukebox_jax.parallel.plan import bytes_per_device, out_of_memory_told, plan, size_text

N = 256


@pytest.fixture(scope="module")
def step():
    """A step with a weight and a moment that it donates, and an input that it does not."""
    mesh = make_mesh((1, 1, 1, 1))
    sharding = NamedSharding(mesh, PartitionSpec())
    matrix = jax.ShapeDtypeStruct((N, N), jnp.float32, sharding=sharding)

    def run(state, x):
        hidden = jnp.sin(x @ state["weight"])
        gradient = (x.T @ jnp.cos(hidden)) / N
        return {"weight": state["weight"] - gradient, "moment": state["moment"] + gradient**2}, hidden

    compiled = jax.jit(run, donate_argnums=0).lower({"weight": matrix, "moment": matrix}, matrix).compile()
    return compiled, {"parameters": matrix, "optimizer": {"mu": matrix, "none": None}}, mesh


def test_a_plan_adds_up(step):
    found = plan(*step)
    size = N * N * 4
    assert found.parts == {"parameters": size, "optimizer": size}
    assert found.arguments == 3 * size
    assert found.outputs == pytest.approx(size, abs=1024)  # the hidden matrix; the state goes where it came from
    assert found.temporaries >= size
    assert found.total == found.arguments + found.temporaries + found.outputs
    assert (found.devices, found.limit) == (1, None)
    assert str(found).startswith("Memory per device (1 × cpu): parameters 0.25 MiB, optimizer 0.25 MiB, activations ")
    assert str(found).endswith(f": {size_text(found.total)}.")


def test_a_step_that_does_not_fit_is_refused_with_its_sizes(step, monkeypatch):
    monkeypatch.setitem(plan_lib.HBM_LIMITS, "cpu", 3 * N * N * 4)
    with pytest.raises(UserError, match=r"does not fit.*parameters 0.25 MiB.* of 0.75 MiB.*train\.batch_size"):
        plan(*step)
    monkeypatch.setitem(plan_lib.HBM_LIMITS, "cpu", 2**30)
    assert str(plan(*step)).endswith(" MiB of 1 GiB.")


def test_shards_are_counted_and_not_the_whole():
    mesh = AbstractMesh((2, 4, 1, 1), AXES)
    leaf = jax.ShapeDtypeStruct((8, 6), jnp.bfloat16)

    def sharded(*axes):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    assert bytes_per_device({"a": sharded(("replica", "fsdp")), "b": sharded("fsdp"), "c": [sharded(), leaf]}) == (
        6 * 2 + 2 * 6 * 2 + 2 * 8 * 6 * 2
    )


def test_host_memory_and_what_is_in_no_part_are_named(step):
    found = dataclasses.replace(plan(*step), arguments=2**30, host=3 * 2**30)
    assert "other 1 GiB" in str(found)
    assert str(found).endswith(", and 3 GiB of its host's memory.")


def test_memory_that_runs_out_is_a_user_error():
    sharding = NamedSharding(make_mesh((1, 1, 1, 1)), PartitionSpec())
    fill = jax.jit(lambda x: jnp.full((2**23, 2**23), x), out_shardings=sharding)  # 256 TiB
    with pytest.raises(UserError, match=r"does not fit.*train\.batch_size"), out_of_memory_told():
        jax.block_until_ready(fill(1.0))


def test_other_errors_of_the_runtime_stay_what_they_are():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), out_of_memory_told():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


@pytest.mark.parametrize(("size", "text"), [(900, "0.879 KiB"), (3 * 2**20, "3 MiB"), (11 * 2**30 // 10, "1.1 GiB")])
def test_sizes_are_told_in_a_fitting_unit(size, text):
    assert size_text(size) == text
