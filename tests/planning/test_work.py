"""What is counted in a traced program, against counts by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jukebox_jax.planning.work import work

X, W = jnp.ones((16, 32)), jnp.ones((32, 8))


def test_a_product_reads_its_factors_and_writes_its_result():
    found = work(jnp.matmul, X, W)
    assert found.flops == found.tiled_flops == 2 * 16 * 32 * 8
    assert found.traffic_bytes == 4 * (16 * 32 + 32 * 8 + 16 * 8)
    assert found.peak_bytes == 4 * 16 * 8


def test_a_matrix_unit_fills_up_what_is_contracted_and_put_out():
    assert work(jnp.matmul, X, W, tile=128).tiled_flops == 2 * 128 * min(16 * 128, 128 * 8)


def test_elementwise_operations_are_part_of_the_kernels_around_them():
    def layer(x, w):
        return jnp.tanh(2 * x + 1) @ w

    assert work(layer, X, W) == work(jnp.matmul, X, W)


def test_a_value_made_from_many_is_written_once():
    def two_readers(a, b, c, w):
        h = a + b + c
        return h @ w, h @ w

    size, result = 4 * 16 * 32, 4 * 16 * 8
    # a, b, c read and h written; then twice h, w and a result. The compiler may do both products at once, or not.
    assert work(two_readers, X, X, X, W).traffic_bytes == 4 * size + 2 * (size + 4 * 32 * 8 + result)


def test_narrower_values_are_read_as_such():
    found = work(lambda x, w: x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16), X, W)
    assert found.traffic_bytes == 2 * (16 * 32 + 32 * 8 + 16 * 8)


def test_loops_count_as_often_as_they_run_and_hold_what_they_stack():
    square = jnp.ones((5, 32, 32))

    def loop(x, ws):
        return jax.lax.scan(lambda h, w: (h @ w, h), x, ws)

    found = work(loop, X, square)
    assert found.flops == 5 * 2 * 16 * 32 * 32
    h = 4 * 16 * 32
    assert (
        found.traffic_bytes == 5 * (h + 4 * 32 * 32 + h) + 5 * (h + h) - 6 * h + 6 * h
    )  # products, and h into the stack
    assert found.peak_bytes >= 6 * h


def test_what_is_computed_again_counts_twice_and_is_not_held():
    ws = jnp.ones((6, 32, 32))

    def loss(ws, remat):
        def layer(h, w):
            return jnp.tanh(jnp.tanh(h @ w) @ w)

        step = jax.checkpoint(layer) if remat else layer
        return jnp.sum(jax.lax.scan(lambda h, w: (step(h, w), None), jnp.ones((512, 32)), ws)[0])

    kept, again = (work(jax.grad(lambda ws, remat=remat: loss(ws, remat)), ws) for remat in (False, True))
    product = 2 * 512 * 32 * 32
    assert kept.flops == pytest.approx(6 * product * (2 + 4), rel=0.2)
    assert again.flops - kept.flops == pytest.approx(6 * product * 2, rel=0.5)
    assert again.peak_bytes < kept.peak_bytes


def test_the_compiler_counts_the_same_flops_where_there_is_no_loop():
    def loss(x, w):
        return jnp.sum(jnp.tanh(x @ w) @ w.T)

    compiled = jax.jit(jax.grad(loss, argnums=1)).lower(jnp.ones((256, 128)), jnp.ones((128, 64))).compile()
    ours = work(jax.grad(loss, argnums=1), jnp.ones((256, 128)), jnp.ones((128, 64)))
    assert ours.flops == pytest.approx(compiled.cost_analysis()["flops"], rel=0.05)
