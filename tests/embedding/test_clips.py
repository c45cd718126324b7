"""Activations as features: which layer, which tokens, what the prior is told, and what is refused."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cascade import CODEC, equal, lyric_config, lyric_prior, prior_config, random_model, random_prior
from flax.core import meta

from jukebox_jax.api import Model
from jukebox_jax.checkpoint.models import TrainedPrior
from jukebox_jax.embedding.clips import embedding_settings
from jukebox_jax.errors import UserError
from jukebox_jax.labels.timing import timing_bins
from jukebox_jax.models.prior import Prior, batch_spec, init_params, sequence
from jukebox_jax.models.transformer import Block
from jukebox_jax.models.vqvae import encode

WINDOW = 32 * 128  # samples of the top prior's window, about half a second


def deep_prior() -> TrainedPrior:
    """A top prior of so many layers that they are scanned, whether all or all but the last."""
    config = dataclasses.replace(prior_config(2), depth=7)
    params = meta.unbox(jax.jit(init_params, static_argnums=0)(config, jax.random.key(7)))
    return TrainedPrior(config, params, random_prior(2).labels, "tiny")


PRIORS = {
    "top": deep_prior,
    "upsampler": lambda: random_prior(1),
    "lyric encoder": lambda: lyric_prior("separate"),
    "lyrics in front": lambda: lyric_prior("single"),
}


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.2 * np.random.default_rng(seed).normal(size=samples)).astype(np.float32)


def make_batch(prior: TrainedPrior, rows: int = 2, seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    tops = {"tokens": 24, "upper": 24, "artist": 4, "genres": 3, "lyrics": 79}
    spec = batch_spec(prior.config)
    drawn = {name: rng.integers(0, tops.get(name, 8), (rows, *shape.shape)) for name, shape in spec.items()}
    return {name: jnp.asarray(values, jnp.int32) for name, values in drawn.items()}


@partial(jax.jit, static_argnums=(0, 3))
def hidden(config, params, batch, layer):
    return Prior(config).apply({"params": params}, batch, layer, method="hidden")


@partial(jax.jit, static_argnums=0)
def by_hand(config, params, batch):
    """The states after each layer, one layer after the other, and the logits."""
    model, variables = Prior(config), {"params": params}
    conditioning = model.apply(variables, batch, method="condition")
    decoder, tokens = params["decoder"], sequence(config, batch)
    before = jnp.concatenate([conditioning.start[:, None], decoder["tokens"][tokens[:, :-1]]], axis=1)
    states = [before + decoder["positions"] + (0 if conditioning.inputs is None else conditioning.inputs)]
    for layer, pattern in enumerate(config.transformer.patterns):
        ours = {"params": jax.tree.map(lambda x, layer=layer: x[layer], decoder["transformer"]["layers"])}
        states.append(Block(config.transformer, parent=None).apply(ours, states[-1], pattern, conditioning.encoded))
    if conditioning.inputs is not None and not config.merged_decoder:
        states[-1] += conditioning.inputs
    return [state[:, config.prefix :] for state in states], model.apply(variables, batch)[:, config.prefix :]


@pytest.mark.parametrize("kind", PRIORS)
def test_hidden_states_are_those_of_the_layers_one_by_one(kind):
    prior = PRIORS[kind]()
    config, batch = prior.config, make_batch(prior)
    expected, logits = by_hand(config, prior.params, batch)
    assert len(expected) == config.depth + 1
    for layer in {0, 1, config.depth - 1, config.depth}:
        states = hidden(config, prior.params, batch, layer)
        assert states.dtype == jnp.float32
        np.testing.assert_allclose(states, expected[layer], rtol=2e-5, atol=2e-5 * np.abs(expected[layer]).max())
    output = prior.params["decoder"]["output" if config.merged_decoder else "tokens"]
    last = hidden(config, prior.params, batch, config.depth)
    np.testing.assert_allclose(last @ output.T, logits, rtol=1e-4, atol=1e-4 * np.abs(logits).max())
    # Layers do something, or all of this would say little.
    assert np.abs(expected[1] - expected[0]).max() > 1e-3


@pytest.mark.parametrize("kind", ["top", "lyrics in front"])
def test_states_have_seen_only_the_tokens_before_them(kind):
    prior = PRIORS[kind]()
    batch, other = make_batch(prior), make_batch(prior, seed=1)
    changed = batch | {"tokens": jnp.concatenate([batch["tokens"][:, :10], other["tokens"][:, 10:]], axis=1)}
    a, b = (np.asarray(hidden(prior.config, prior.params, x, prior.config.depth)) for x in (batch, changed))
    assert equal(a[:, :11], b[:, :11])
    assert not np.isclose(a[:, 11:], b[:, 11:]).all()


@pytest.mark.parametrize("lyrics", [None, "separate", "single"])
def test_an_embedding_is_the_states_of_the_encoded_clip(lyrics):
    model, clip = random_model(lyrics), noise(2100)
    tokens = -(-2100 // 128)
    padded = np.pad(clip, (0, WINDOW - 2100))
    (codes,) = jax.jit(lambda audio: encode(CODEC, model.codec.codec, audio, (2,)))(padded[None, :, None])
    bins = timing_bins(2100, 0, WINDOW, 32, 8, 0.0, 20.0, 8000)
    batch = {
        "tokens": codes,
        "artist": jnp.zeros(1, jnp.int32),
        "genres": jnp.asarray([[0] if lyrics is None else [0, -1]], jnp.int32),
        **{f"{name}_bins": jnp.asarray(getattr(bins, name))[None] for name in ("total", "absolute", "relative")},
    }
    if lyrics is not None:
        batch["lyrics"] = jnp.zeros((1, 8), jnp.int32)
    prior = model.priors[2]
    middle = prior.config.depth // 2
    expected = np.asarray(hidden(prior.config, prior.params, batch, middle))[0, :tokens]
    every = model.embed(clip, pooling="none")
    np.testing.assert_allclose(every.values, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(every.times_seconds, np.arange(tokens) * 128 / 8000)
    assert every.provenance["layer"] == middle

    mean = model.embed(clip)
    assert mean.values.dtype == np.float32
    assert mean.values.shape == (16,)
    np.testing.assert_allclose(mean.values, expected.mean(axis=0), rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    told = model.embed(clip, artist="Bach", genre="Song", lyrics="la la" if lyrics else "")
    assert not np.allclose(told.values, mean.values)


def unconditional(model: Model) -> Model:
    """The model with a top prior that is told nothing."""
    config = dataclasses.replace(prior_config(2), labels=None)
    params = {"decoder": model.priors[2].params["decoder"] | {"start": jnp.ones((1, 16))}}
    return dataclasses.replace(model, priors=(*model.priors[:2], TrainedPrior(config, params, None, "tiny")))


def test_the_silence_behind_a_short_clip_changes_nothing_and_is_in_no_average():
    model, clip = unconditional(random_model()), noise(2048)
    with_silence = np.pad(clip, (0, WINDOW - 2048))
    short, whole = (model.embed(audio, pooling="none") for audio in (clip, with_silence))
    assert (short.values.shape, whole.values.shape) == ((16, 16), (32, 16))
    assert equal(short.values, whole.values[:16])
    np.testing.assert_allclose(model.embed(clip).values, short.values.mean(axis=0), atol=1e-5)
    assert not np.allclose(model.embed(with_silence).values, short.values.mean(axis=0), atol=1e-3)


def test_a_clip_has_the_same_bits_whatever_its_neighbours():
    model = random_model()
    clips = [noise(length, seed) for seed, length in enumerate((9000, 500, 4096))]
    settings = {"windows": "all", "pooling": 0.1, "batch_size": 3}
    together = model.embed(clips, **settings)
    assert [len(each.values) for each in together] == [12, 1, 5]
    for clip, embedding in zip(clips, together, strict=True):
        assert equal(model.embed(clip, **settings).values, embedding.values)
    for embedding, again in zip(together[::-1], model.embed(clips[::-1], **settings), strict=True):
        assert equal(embedding.values, again.values)


def test_pooling_over_all_windows():
    model, clip = unconditional(random_model()), noise(2 * WINDOW + 1000)
    every = model.embed(clip, windows="all", pooling="none")
    assert every.values.shape == (72, 16)
    # Each window is a clip of its own.
    second = model.embed(clip[WINDOW : 2 * WINDOW], pooling="none")
    assert equal(every.values[32:64], second.values)
    assert equal(model.embed(clip, pooling="none").values, every.values[:32])

    expected = {
        "mean": every.values.mean(axis=0),
        "window": np.stack([every.values[i : i + 32].mean(axis=0) for i in (0, 32, 64)]),
        # 0.1 s are 6.25 tokens: frames begin at tokens 0, 7, 13, 19, 25, …
        0.1: np.stack([every.values[np.arange(72) * 16 // 100 == frame].mean(axis=0) for frame in range(12)]),
    }
    for pooling, values in expected.items():
        pooled = model.embed(clip, windows="all", pooling=pooling)
        np.testing.assert_allclose(pooled.values, values, atol=1e-5)
    np.testing.assert_allclose(pooled.times_seconds, np.arange(12) * 0.1)
    assert equal(model.embed(clip, windows="all", pooling="window").times_seconds, np.arange(3) * WINDOW / 8000)


def test_an_upsampler_listens_too():
    level, model, clip = 1, random_model(), noise(1000)
    hop = CODEC.hops[level]
    every = model.embed(clip, level=level, layer=3, pooling="none")
    assert every.values.shape == (min(32, -(-1000 // hop)), 16)
    padded = jnp.asarray(np.pad(clip, (0, 4096))[None, : 32 * hop, None])
    own, upper = encode(CODEC, model.codec.codec, padded, (level, level + 1))
    prior = model.priors[level]
    zero = jnp.zeros(1, jnp.int32)
    batch = {"tokens": own, "upper": upper, "artist": zero, "genres": zero[None]}
    expected = np.asarray(hidden(prior.config, prior.params, batch, 3))[0, : len(every.values)]
    np.testing.assert_allclose(every.values, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_clips_of_any_length_and_rate():
    model = random_model()
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(32_000) / 16_000).astype(np.float32)
    here, there = model.embed(tone[::2]), model.embed(tone, sample_rate=16_000)
    assert np.abs(here.values - there.values).max() < 0.5 * np.abs(here.values).max()
    assert model.embed(noise(1), pooling="none").values.shape == (1, 16)
    # 25 s are more than the 20 s that the prior knows, which holds for its labels only.
    assert model.embed(noise(200_000), windows="all", pooling="none").values.shape == (1563, 16)
    rows = model.embed(np.stack([noise(3000, 1), noise(3000, 2)]), artist=["Bach", "Corelli"])
    assert equal(rows[1].values, model.embed(noise(3000, 2), artist="Corelli").values)
    with pytest.warns(UserWarning, match='does not know the artist "Bahc"'):
        model.embed(noise(3000), artist="Bahc")
    with pytest.warns(UserWarning, match="takes no lyrics"):
        model.embed(noise(3000), lyrics="la")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio": np.zeros((0,), np.float32)}, "Clip 0 holds no samples"),
        ({"audio": [np.zeros(8, np.float32), np.zeros(8, np.int16)]}, "Clip 1 is not mono audio"),
        ({"audio": np.zeros((1, 8, 2), np.float32)}, "Clip 0 is not mono audio"),
        ({"audio": np.full(8, np.nan, np.float32)}, "Clip 0 holds samples that are not finite"),
        ({"layer": 4}, "layer=4 is none of the prior of level 2: give one from 0 to 3"),
        ({"layer": -1}, "from 0 to 3"),
        ({"level": 3}, "level=3 is none of the model: give one from 0 to 2"),
        ({"pooling": "max"}, "pooling='max' is unknown: choose one of mean, window, none, or a number of seconds"),
        ({"pooling": 0.01}, r"less than a token of level 2 or not finite: give at least 0.016"),
        ({"pooling": float("nan")}, "not finite"),
        ({"windows": "last"}, "windows='last' is unknown: choose one of first, all"),
        ({"batch_size": 0}, "at least 1 window"),
        ({"sample_rate": 44}, "sample_rate=44 is no rate of audio"),
        ({"artist": ["Bach", "Bach"]}, "artist is 2 texts for 1 clips"),
    ],
)
def test_what_cannot_be_embedded_is_refused_at_once(changes, message):
    settings = {"audio": noise(1000)} | changes
    with pytest.raises(UserError, match=message):
        random_model().embed(**settings)


def test_the_published_layer_is_the_default():
    """Layer 36 of 72 of the 5B model, over one window of 8192 tokens."""
    config = dataclasses.replace(lyric_config("separate"), depth=72, attention_order=2, lyrics=None)
    settings = embedding_settings(CODEC, config)
    assert (settings.layer, settings.pooling, settings.windows) == (36, "mean", "first")
