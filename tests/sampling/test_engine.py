"""The engine: slots that do not see each other, whatever the precision, and what reading fewer bits costs."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cascade import equal, lyric_prior, random_prior

from jukebox_jax import api
from jukebox_jax.checkpoint.models import TrainedPrior
from jukebox_jax.models.layers import Packed, product
from jukebox_jax.models.prior import Prior, bits_per_item
from jukebox_jax.sampling import engine as engine_module
from jukebox_jax.sampling.cascade import entry_of, level_engine, make_parts, sample_parts
from jukebox_jax.sampling.drawing import SamplingConfig, song_keys
from jukebox_jax.sampling.engine import Engine, Entry, make_engine
from jukebox_jax.sampling.requests import Level, Request
from jukebox_jax.sampling.weights import decoding_config, pack
from jukebox_jax.sampling.windows import Window

PRECISIONS = ("float32", "bfloat16", "int8")


def prior_of(kind: int | str) -> TrainedPrior:
    return random_prior(kind) if isinstance(kind, int) else lyric_prior(kind)


@functools.cache
def engine_of(kind: int | str, precision: str, batch_size: int) -> Engine:
    prior = prior_of(kind)
    weights = pack(prior.open_params(), prior.config, precision, batch_size)
    return make_engine(decoding_config(prior.config, precision), weights, batch_size)


def entry_for(prior: TrainedPrior, song: int, tokens=None, given=0, sampling=None) -> Entry:
    """A window of a song with inputs of its own, from token 64 of the level on."""
    config, rng = prior.config, np.random.default_rng(song)
    batch = {"artist": song % 4, "genres": np.ones(config.labels.max_genres, np.int32)}
    batch["tokens"] = np.zeros(config.n_ctx, np.int32) if tokens is None else tokens
    if config.conditioner is not None:
        batch["upper"] = rng.integers(0, config.codes, config.n_ctx // config.conditioner.ratio)
    else:
        batch |= {"total_bins": 3, **{f"{n}_bins": rng.integers(0, 8, config.n_ctx) for n in ("absolute", "relative")}}
    if config.lyrics is not None:
        batch["lyrics"] = rng.integers(0, 79, config.lyrics.tokens)
    (key,) = song_keys(7, jnp.asarray([song]), config.level)
    return Entry(batch, given, config.n_ctx, 64, key, SamplingConfig() if sampling is None else sampling)


def run(engine: Engine, entries: dict[int, Entry], turns: int = 1000) -> np.ndarray:
    """The codes of all slots once every entry is done."""
    slots = engine.admit(engine.empty(), entries)
    while np.any(np.asarray(slots.position) < np.asarray(slots.target)):
        slots = engine.advance(slots, turns)
    return engine.codes(slots)


@pytest.mark.parametrize(
    ("kind", "precision"),
    [(0, "float32"), (2, "bfloat16"), (2, "int8"), ("single", "float32"), ("separate", "int8")],
)
def test_a_song_does_not_see_its_neighbours_its_slot_or_when_it_came(kind, precision):
    prior, engine = prior_of(kind), engine_of(kind, precision, 3)
    alone = run(engine, {1: entry_for(prior, 5)})[1]
    assert len(np.unique(alone)) > 3
    for slot in range(3):
        # Neighbours draw otherwise, and one of them is already half done.
        others = {other: entry_for(prior, other, sampling=SamplingConfig(0.7, top_k=3)) for other in range(3)}
        others[(slot + 1) % 3] = entry_for(prior, 9, alone, given=15, sampling=SamplingConfig(1.2, top_p=0.8))
        assert equal(run(engine, others | {slot: entry_for(prior, 5)})[slot], alone)
    # Primed with its own beginning, in slots that others have used, with few turns at a time.
    slots = engine.advance(engine.admit(engine.empty(), {i: entry_for(prior, i) for i in range(3)}), 9)
    given = 8 if kind == "single" else 13  # a window's own lyric symbols are code 0 in what follows it
    known = np.where(np.arange(32) < given, alone, 3)
    if kind != "single" or 0 not in alone[:given]:
        slots = engine.admit(slots, {2: entry_for(prior, 5, known, given)})
        while np.any(np.asarray(slots.position) < np.asarray(slots.target)):
            slots = engine.advance(slots, 5)
        assert equal(engine.codes(slots)[2], alone)


@pytest.mark.parametrize("kind", [1, "single", "separate"])
def test_greedy_tokens_are_the_likeliest_of_the_full_forward(kind):
    prior, engine = prior_of(kind), engine_of(kind, "float32", 1)
    entry = entry_for(prior, 2, sampling=SamplingConfig(top_k=1))
    codes = run(engine, {0: entry})[0]
    config = prior.config
    batch = {name: jnp.asarray(value)[None] for name, value in entry.batch.items()} | {"tokens": codes[None]}
    logits = jax.jit(Prior(config).apply)({"params": prior.params}, batch)[0, config.prefix :]
    likeliest = np.maximum(np.argmax(logits, axis=-1) - config.shift, 0)
    # In one sequence, a lyric symbol among the music is code 0 in the result and itself for what follows.
    firm = np.cumprod(np.concatenate([[1], codes[:-1] != 0])).astype(bool) if kind == "single" else slice(None)
    np.testing.assert_array_equal(likeliest[firm], codes[firm])


def test_nothing_is_compiled_twice():
    prior, engine = prior_of(0), engine_of(0, "float32", 3)
    run(engine, {0: entry_for(prior, 0)})
    compiled = [f._cache_size() for f in (engine_module._admit, engine_module._advance)]
    parts = make_parts(
        Level(prior, 8, 4, 8000),
        [Request(i, 8000, artist={"Bach": 1, "Corelli": i}) for i in range(4)],
        [100, 60, 40, 36],
        seeds=[1, 2, 3, 4],
        sampling=[SamplingConfig(), SamplingConfig(top_k=2), SamplingConfig(0.5), SamplingConfig(top_p=0.5)],
        hop_fraction=0.5,
        given=[np.zeros(n, np.int32) for n in (0, 7, 12, 0)],
        upper=[np.zeros(25, np.int32)] * 4,
        n_segments=2,
    )
    for _ in sample_parts(engine, Level(prior, 8, 4, 8000), parts):
        pass
    assert not any(part.windows for part in parts)
    assert [f._cache_size() for f in (engine_module._admit, engine_module._advance)] == compiled


def test_batch_sizes_agree_wherever_the_choice_is_not_close():
    """Greedy tokens at 1, 2, 3 and 5 at once; where they part, the two likeliest must have been within 1e-4."""
    prior = prior_of(2)
    reference = run(engine_of(2, "float32", 1), {0: entry_for(prior, 3, sampling=SamplingConfig(top_k=1))})[0]
    for size in (2, 3, 5):
        codes = run(
            engine_of(2, "float32", size),
            {size - 1: entry_for(prior, 3, sampling=SamplingConfig(top_k=1))},
        )[size - 1]
        different = np.flatnonzero(codes != reference)
        if len(different):
            first = different[0]
            entry = entry_for(prior, 3)
            batch = {k: jnp.asarray(v)[None] for k, v in entry.batch.items()} | {"tokens": reference[None]}
            best = np.sort(Prior(prior.config).apply({"params": prior.params}, batch)[0, first])[-2:]
            assert best[1] - best[0] < 1e-4, f"first divergence of batch size {size} at token {first}"


# ---- Weights of fewer bits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3, 16, 100])
def test_products_of_int8_weights(rows):
    rng = np.random.default_rng(rows)
    x, kernel = rng.normal(size=(rows, 48)).astype(np.float32), rng.normal(size=(48, 2, 20)).astype(np.float32)
    scale = np.abs(kernel).max(axis=0) / 127
    values = np.round(kernel / scale).astype(np.int8)
    exact = np.einsum("bd,dpf->bpf", x.astype(np.float64), values * scale.astype(np.float64))
    packed = Packed(jnp.asarray(np.moveaxis(values, 0, -1)), jnp.asarray(scale))
    found = jax.jit(product)(jnp.asarray(x), packed)
    assert found.shape == (rows, 2, 20)
    np.testing.assert_allclose(found, exact, atol=3e-3)  # 15 bits of the largest factor, over 48 of them
    np.testing.assert_allclose(found, np.einsum("bd,dpf->bpf", x, kernel), atol=0.25)
    zero = jax.jit(product)(jnp.zeros((2, 48)), packed)
    np.testing.assert_array_equal(zero, 0)


def test_what_precision_costs_on_the_shipped_model(capsys):
    """Bits per token of the shipped priors on the music of a song of theirs, in every precision."""
    model = api.load()
    song = model.sample(artist=model.artists[1], seconds=6.0, seed=1, progress=False)
    costs = {}
    for precision in PRECISIONS:
        bits = []
        for index, level in enumerate(model.levels):
            engine, n_ctx = level_engine(level, 1, precision), level.prior.config.n_ctx
            (part,) = make_parts(
                level,
                [Request(0, int(24 * level.sample_rate), artist=model.artists[1])],
                [len(song.tokens[index])],
                seeds=[0],
                sampling=[SamplingConfig()],
                hop_fraction=0.5,
                given=[np.zeros(0, np.int32)],
                upper=None if index == 2 else [song.tokens[index + 1]],
            )
            length = min(n_ctx, len(song.tokens[index]))
            entry = entry_of(level, part, Window(0, length, n_ctx), song.tokens[index])
            bits.append(float(np.mean(engine.bits(entry)[:length])))
        costs[precision] = bits
    with capsys.disabled():
        for precision, bits in costs.items():
            print(
                f"\n{precision}: {', '.join(f'level {i} {b:.4f}' for i, b in enumerate(bits))} bits per token", end=""
            )
    for precision, limit in (("bfloat16", 0.02), ("int8", 0.05)):
        for exact, found in zip(costs["float32"], costs[precision], strict=True):
            assert math.isfinite(found)
            assert found - exact < limit


def test_bits_are_those_of_the_full_forward():
    prior = prior_of("separate")
    entry = entry_for(prior, 4, np.arange(32, dtype=np.int32) % 24, given=32)
    batch = {name: jnp.asarray(value)[None] for name, value in entry.batch.items()}
    logits = Prior(prior.config).apply({"params": prior.params}, batch)
    bits = engine_of("separate", "float32", 1).bits(entry)
    np.testing.assert_allclose(np.mean(bits), bits_per_item(logits, batch["tokens"])[0], rtol=1e-5)
