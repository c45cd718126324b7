"""The codebook's learning rule against recorded numbers and its promises."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jukebox_jax.models.codebook import Codebook, RandomRows, draw_rows, nearest, quantise, quantise_and_learn


def recorded():
    """Section 5 of the recorded numbers: four codes, six latents, every code expected ten times."""
    codes = jnp.asarray([[0, 0], [1, 0], [0, 1], [5, 5]], jnp.float32)
    channels = [[0.1, 0.9, 0.2, -0.1, 1.2, 0.0], [0.0, 0.1, 0.8, 0.2, -0.1, 1.3]]
    return Codebook.restored(codes, 10.0), jnp.asarray(channels, jnp.float32).T[None]


def test_one_update_gives_the_recorded_numbers():
    codebook, latents = recorded()
    rows = RandomRows(jnp.full((4, 2), 9.0), jnp.full((4, 2), 9.0))
    quantised, learnt = quantise_and_learn(codebook, latents, rows, 0.99, 1.0)
    np.testing.assert_array_equal(quantised.codes, [[0, 1, 2, 0, 1, 2]])
    np.testing.assert_allclose(quantised.commit_loss, 0.025, rtol=1e-5)
    expected = {"fit": 0.05, "pn": 0.494694, "entropy": 1.098612, "used_curr": 3, "usage": 4, "dk": 0.000113}
    for name, value in expected.items():
        np.testing.assert_allclose(quantised.metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(learnt.counts, [9.92, 9.92, 9.92, 9.9], rtol=1e-6)
    np.testing.assert_allclose(learnt.sums, [[0, 0.002], [9.921, 0], [0.002, 9.921], [49.5, 49.5]], atol=1e-5)
    new = [[0, 0.00020161], [1.0001007, 0], [0.00020161, 1.0001007], [5, 5]]
    np.testing.assert_allclose(learnt.codes, new, atol=1e-6)


def test_a_dead_code_is_replaced_every_time_and_keeps_its_statistics():
    codebook, latents = recorded()
    codebook = codebook.replace(counts=codebook.counts.at[3].set(0.5))
    for value in (7.0, 8.0):
        rows = RandomRows(jnp.full((4, 2), value), jnp.zeros((4, 2)))
        _, learnt = quantise_and_learn(codebook, latents, rows, 0.99, 1.0)
        np.testing.assert_array_equal(learnt.codes[3], [value, value])
        np.testing.assert_allclose(learnt.counts[3], 0.495)
        np.testing.assert_allclose(learnt.sums[3], 0.99 * codebook.sums[3])


def test_the_first_batch_initialises_the_codebook():
    latents = jax.random.normal(jax.random.key(0), (2, 50, 3))
    rows = draw_rows(jax.random.key(1), latents, 16)
    flat = {tuple(row) for row in np.asarray(latents).reshape(-1, 3)}
    assert {tuple(row) for row in np.asarray(rows.init)} <= flat
    assert len({tuple(row) for row in np.asarray(rows.init)}) == 16
    quantised, learnt = quantise_and_learn(Codebook.empty(16, 3), latents, rows, 0.99, 0.0)
    np.testing.assert_array_equal(quantised.codes, nearest(latents, rows.init)[0])
    assert bool(learnt.initialised)
    # The next batch does not initialise it again.
    other = draw_rows(jax.random.key(2), latents, 16)
    again, _ = quantise_and_learn(learnt, latents, other, 0.99, 0.0)
    np.testing.assert_array_equal(again.codes, nearest(latents, learnt.codes)[0])


def test_fewer_latents_than_codes_are_tiled_with_noise():
    latents = jax.random.normal(jax.random.key(0), (1, 10, 4))
    rows = draw_rows(jax.random.key(1), latents, 64).restart
    distance = np.sqrt(np.asarray(nearest(rows[None], latents[0])[1]))
    assert rows.shape == (64, 4)
    assert 0 < distance.max() < 6 * 0.01
    assert 0.5 * 0.01 < np.sqrt(np.mean(distance**2)) < 1.5 * 0.01


def test_gradients_pass_straight_through_in_training_and_not_at_all_outside():
    codebook, latents = recorded()
    rows = RandomRows(jnp.zeros((4, 2)), jnp.zeros((4, 2)))
    weights = jnp.arange(12.0).reshape(latents.shape)
    train = jax.grad(lambda x: jnp.sum(quantise_and_learn(codebook, x, rows, 0.99, 1.0)[0].vectors * weights))
    np.testing.assert_allclose(train(latents), weights, atol=1e-6)
    outside = jax.grad(lambda x: jnp.sum(quantise(codebook.codes, x).vectors * weights))(latents)
    np.testing.assert_array_equal(outside, jnp.zeros_like(latents))


def test_exact_ties_take_the_first_code():
    codes = jnp.asarray([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert int(nearest(jnp.asarray([[[1.0, 0.0]]]), codes)[0][0, 0]) == 0


def test_given_choices_replace_the_nearest_code():
    """Between copies rounding decides, so that recorded choices have to be repeatable."""
    codes = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    latents = jnp.array([[[1.0, 0.1], [1.0, -0.1], [0.0, 1.0]]])
    codebook, rows = Codebook.restored(codes, 1.0), RandomRows(codes, codes, jnp.array([[1, 0, 2]]))
    quantised, learnt = quantise_and_learn(codebook, latents, rows, 0.5, 0.0)
    np.testing.assert_array_equal(quantised.codes, rows.index)
    np.testing.assert_allclose(learnt.sums, [[1.0, -0.05], [1.0, 0.05], [0.0, 1.0]], atol=1e-6)
    _, learnt = quantise_and_learn(codebook, latents, rows.replace(index=None), 0.5, 0.0)
    np.testing.assert_allclose(learnt.counts, [1.5, 0.5, 1.0])
