"""Priors: segments, conditioning, token-by-token decoding."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from hypothesis import given
from hypothesis import strategies as st

from jukebox_jax.models.conditioning import ConditionerConfig, LabelConfig
from jukebox_jax.models.lyrics import LyricConfig, LyricEncoderConfig
from jukebox_jax.models.prior import Prior, PriorConfig, flops_per_window, init_params, prior_loss, sequence
from jukebox_jax.models.transformer import segments

TOP = PriorConfig(
    level=2,
    codes=50,
    n_ctx=32,
    width=16,
    depth=4,
    heads=2,
    blocks=4,
    init_scale=5.0,
    labels=LabelConfig(5, 4, max_genres=2, time_bins=8),
)
UPSAMPLER = dataclasses.replace(TOP, level=1, conditioner=ConditionerConfig(width=8, depth=3, dilation_cycle=2))
PLAIN = dataclasses.replace(TOP, labels=None)
ENCODER = LyricEncoderConfig(width=12, depth=4, heads=3, blocks=3, attention_multiplier=0.5, init_scale=5.0)
SEPARATE = dataclasses.replace(TOP, attention_order=6, lyrics=LyricConfig(9, 11, encoder=ENCODER))
SINGLE = dataclasses.replace(TOP, attention_order=12, depth=17, lyrics=LyricConfig(8, 11), init_scale=2.0)


def make_batch(config: PriorConfig, seed: int = 0, size: int = 3) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    batch = {"tokens": rng.integers(0, config.codes, (size, config.n_ctx))}
    if config.labels:
        batch |= {"artist": rng.integers(0, 5, size), "genres": rng.integers(-1, 4, (size, 2))}
    if config.conditioner:
        batch["upper"] = rng.integers(0, config.codes, (size, config.n_ctx // config.conditioner.ratio))
    elif config.labels:
        batch["total_bins"] = rng.integers(0, 8, size)
        batch |= {f"{name}_bins": rng.integers(0, 8, (size, config.n_ctx)) for name in ("absolute", "relative")}
    if config.lyrics:
        batch["lyrics"] = rng.integers(0, config.lyrics.vocabulary, (size, config.lyrics.tokens))
    return {name: jnp.asarray(value, jnp.int32) for name, value in batch.items()}


def make_params(config: PriorConfig):
    """Fresh parameters, with everything that starts at zero made to matter."""
    params = meta.unbox(jax.jit(init_params, static_argnums=0)(config, jax.random.key(0)))
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    noise = [jnp.asarray(rng.normal(size=leaf.shape) * 0.02 * config.init_scale, jnp.float32) for leaf in leaves]
    return {"params": jax.tree.unflatten(tree, [a + b for a, b in zip(leaves, noise, strict=True)])}


@pytest.mark.parametrize(
    ("config", "order"),
    [
        (TOP, 0),
        (TOP, 1),
        (UPSAMPLER, 2),
        (PLAIN, 9),
        (dataclasses.replace(TOP, merged_decoder=True), 2),
        (dataclasses.replace(TOP, residual_scale=True), 2),
        (PLAIN, 3),
        (dataclasses.replace(TOP, spread=3), 4),
        (TOP, 5),
        (SEPARATE, 6),
        (dataclasses.replace(SEPARATE, merged_decoder=True, depth=10), 8),
        (SINGLE, 12),
        (dataclasses.replace(SINGLE, merged_decoder=True), 12),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
def test_decoding_with_caches_equals_the_full_forward(config, order):
    config = dataclasses.replace(config, attention_order=order)
    model, params, batch = Prior(config), make_params(config), make_batch(config, 1)
    full = jax.jit(model.apply)(params, batch)
    assert float(jnp.std(full)) > 0.05  # logits that say something
    conditioning = model.apply(params, batch, method="condition")
    tokens = sequence(config, batch)
    previous, width = jnp.pad(tokens, ((0, 0), (1, 0))), config.transformer.block_ctx
    step = jax.jit(lambda *args: model.apply(params, *args, method="step"))
    rows = jax.jit(lambda *args: model.apply(params, *args, method="rows"))
    for known in (0, 13):
        caches = model.apply(params, 3, conditioning, method="empty_caches")
        for position in range(0, known, width):
            count, here = min(width, known - position), previous[:, position : position + width]
            arguments = (here, jnp.asarray(position // width), jnp.asarray(count), conditioning)
            logits, caches = rows(caches, *arguments)
            np.testing.assert_allclose(logits[:, :count], full[:, position : position + count], atol=2e-5)
        for i in range(known, tokens.shape[1]):
            logits, caches = step(caches, previous[:, i], jnp.full(3, i), conditioning)
            np.testing.assert_allclose(logits, full[:, i], atol=2e-5)


@pytest.mark.parametrize("config", [TOP, UPSAMPLER, PLAIN, SEPARATE, SINGLE], ids=str)
def test_a_token_changes_nothing_before_it(config):
    params, batch = make_params(config), make_batch(config)
    changed = batch | {"tokens": batch["tokens"].at[:, 17].add(1) % config.codes}
    before, after = (Prior(config).apply(params, b) for b in (batch, changed))
    same = config.prefix + 18
    np.testing.assert_array_equal(before[:, :same], after[:, :same])
    assert float(jnp.max(jnp.abs(before[:, same:] - after[:, same:]))) > 1e-3


def test_conditioning_reaches_the_logits():
    for config, names in (
        (TOP, ("artist", "genres", "total_bins", "absolute_bins", "relative_bins")),
        (UPSAMPLER, ("artist", "upper")),
        (SEPARATE, ("lyrics",)),
        (SINGLE, ("lyrics",)),
    ):
        params, batch = make_params(config), make_batch(config)
        logits = Prior(config).apply(params, batch)
        for name in names:
            other = batch | {name: (batch[name] + 1) % 4}
            assert float(jnp.max(jnp.abs(Prior(config).apply(params, other) - logits))) > 1e-4, name


def test_empty_genre_slots_count_nothing():
    params, batch = make_params(TOP), make_batch(TOP)
    one = batch | {"genres": jnp.asarray([[2, -1]] * 3, jnp.int32)}
    other_order = batch | {"genres": jnp.asarray([[-1, 2]] * 3, jnp.int32)}
    logits = Prior(TOP).apply(params, one)
    np.testing.assert_allclose(logits, Prior(TOP).apply(params, other_order), atol=1e-6)


def test_remat_and_scan_do_not_change_gradients():
    batch = make_batch(TOP)
    params = make_params(TOP)

    def gradients(config):
        loss = lambda p: prior_loss(config, Prior(config).apply(p, batch, method="bits"))  # noqa: E731
        return jax.jit(jax.grad(loss))(params)

    deep = dataclasses.replace(TOP, remat="none")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradients(TOP), gradients(deep))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=24).map(tuple))
def test_segments_spell_the_layers_out_again(patterns):
    spelled = [pattern for segment in segments(patterns) for pattern in segment.patterns * segment.repeats]
    assert tuple(spelled) == patterns


def test_segments_of_the_released_orders():
    layers = lambda patterns: [(len(s.patterns), s.repeats) for s in segments(patterns)]  # noqa: E731
    assert layers((1, 2, 3) * 24) == [(3, 24)]
    # The order of the 5B model with lyrics: as few as 13 layers have to be compiled instead of 79.
    lyrics = (1, 2, 3) * 6 + (6,) + ((1, 2, 3) * 3 + (6,)) * 6
    assert sum(period for period, _ in layers(lyrics)) <= 14


def test_model_size_and_operations():
    """Parameter count of a recipe in the specification, and operations against XLA's own count."""
    small = PriorConfig(level=1, codes=1024)
    shapes = jax.eval_shape(lambda: meta.unbox(init_params(small, jax.random.key(0))))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 160_814_080

    sizes = {"width": 64, "codes": 256, "n_ctx": 256, "blocks": 16, "remat": "none"}
    encoder = dataclasses.replace(ENCODER, width=32, blocks=8, heads=2)
    for config in (
        dataclasses.replace(PLAIN, depth=3, **sizes),
        dataclasses.replace(SEPARATE, depth=4, lyrics=LyricConfig(64, 80, encoder=encoder), **sizes),
    ):
        batch = make_batch(config, size=1)
        forward = jax.jit(partial(Prior(config).apply, method="bits"))
        counted = forward.lower(make_params(config), batch).compile().cost_analysis()["flops"]
        assert flops_per_window(config) == pytest.approx(counted, rel=0.2)
