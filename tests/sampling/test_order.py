"""Songs that share nothing but a batch, blends, segments, and what is heard while they are sampled."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from cascade import CODEC, equal, random_model
from hypothesis import given
from hypothesis import strategies as st

from jukebox_jax.errors import UserError
from jukebox_jax.sampling.blends import parse_blend
from jukebox_jax.sampling.memory import choose_batch_size, free_memory, plan_level
from jukebox_jax.sampling.requests import Request, song_labels, window_conditioning
from jukebox_jax.sampling.stream import decode_level, decode_piece, reach


def sample(**changes):
    settings = {"artist": "Bach", "genre": "Song", "seconds": 0.4, "batch_size": 2, "progress": False, "n_samples": 1}
    return random_model().sample(**settings | changes)


def same(a, b) -> bool:
    return all(equal(x, y) for x, y in zip(a.tokens, b.tokens, strict=True))


def test_every_song_of_a_batch_is_its_own():
    """Three songs that differ in everything, and each alone among copies of itself."""
    rng = np.random.default_rng(0)
    each = {
        "artist": ["Bach", {"Corelli": 1, "Bach": 1}, {0: "Monteverdi", 0.3: "Bach"}],
        "genre": ["Song", "Dance", "Song"],
        "seconds": [0.4, 0.25, 0.5],
        "total_seconds": [1.0, 2.0, 3.0],
        "offset_seconds": [0.0, 0.5, 1.0],
        "seed": [1, 2, 3],
        "temperature": [0.9, {0: 1.0, 1: 0.9, 2: 0.8}, 1.1],
        "top_k": [0, 5, 0],
        "top_p": [0.0, 0.0, 0.9],
        "prompt": [rng.uniform(-0.2, 0.2, size).astype(np.float32) for size in (500, 1000, 1500)],
    }
    songs = sample(**each, n_samples=3)
    assert [len(song.tokens[2]) for song in songs] == [25, 15, 31]
    for index in range(3):
        alone = sample(**{name: [values[index]] for name, values in each.items()}, n_samples=index + 1)[index]
        assert same(alone, songs[index])


def test_settings_of_each_level():
    plain, hot = sample(), sample(temperature={2: 0.99, 1: 0.99, 0: 2.0})
    assert equal(plain[0].tokens[2], hot[0].tokens[2])
    assert equal(plain[0].tokens[1], hot[0].tokens[1])
    assert not equal(plain[0].tokens[0], hot[0].tokens[0])


# ---- Blends -----------------------------------------------------------------------------------------------------


def test_a_blend_of_one_is_that_one_and_others_lie_between():
    bach, corelli = sample(), sample(artist="Corelli")
    assert same(sample(artist={"Bach": 3})[0], bach[0])
    assert same(sample(artist={"Corelli": 1, "Bach": 0})[0], corelli[0])
    mixed = sample(artist={"Bach": 1, "Corelli": 1})[0]
    assert not same(mixed, bach[0])
    assert not same(mixed, corelli[0])
    assert mixed.provenance["request"]["artist"] == {"Bach": 1, "Corelli": 1}
    late = sample(artist={0: "Bach", 100: "Bach"})[0]
    assert same(late, bach[0])


def test_blends_reach_the_model_as_weights_over_time():
    level = random_model().levels[2]
    request = Request(0, 80_000, artist={0: "Bach", 2: {"Corelli": 3, "Bach": 1}}, genre={"Song": 1, "Dance": 1})
    labels = song_labels(level.prior, request)
    for seconds, bach in ((0, 1.0), (1, 0.625), (2, 0.25), (9, 0.25)):
        start = int(seconds * 8000 / 128)
        told = window_conditioning(level, [labels], start)
        at = start * 128 / 8000
        bach = 1 - 0.75 * min(at, 2) / 2
        weights = {
            (int(a), int(g)): float(w)
            for a, (g,), w in zip(told["artist"][0], told["genres"][0], told["weights"][0], strict=True)
            if w > 0
        }
        expected = {(1, 1): bach / 2, (1, 2): bach / 2}
        if at > 0:
            expected |= {(2, 1): (1 - bach) / 2, (2, 2): (1 - bach) / 2}
        assert weights == pytest.approx(expected)


@given(st.dictionaries(st.text(min_size=1), st.floats(0.01, 100), min_size=1, max_size=5), st.floats(0, 99))
def test_weights_add_up_to_one(mix, seconds):
    assert sum(weight for _, weight in parse_blend("artist", mix).at(seconds)) == pytest.approx(1)
    (name, *_) = mix
    moving = parse_blend("artist", {"3": name, "7": mix})
    assert sum(weight for _, weight in moving.at(seconds)) == pytest.approx(1)
    assert moving.at(0.0) == ((name, 1.0),)


@pytest.mark.parametrize(
    ("blend", "message"),
    [
        ({}, "no blend"),
        ({"Bach": -1.0}, "as weights"),
        ({"Bach": 0}, "weight to nothing"),
        ({"Bach": "x"}, "where a moment in seconds should stand"),
        ({-1: "Bach"}, "finite moments"),
        ({0: "Bach", "0": "Bach"}, "twice"),
        ({0: {}}, "as weights"),
        ({f"name {i}": 1 for i in range(17)}, "17 pairs to blend, more than 16"),
    ],
)
def test_blends_that_cannot_be(blend, message):
    with pytest.raises(UserError, match=message):
        sample(artist=blend)


# ---- Segments ---------------------------------------------------------------------------------------------------


def test_segments_are_sampled_side_by_side_and_say_so():
    strict = sample(seconds=0.8, batch_size=None)[0]
    song = sample(seconds=0.8, parallel=[4, 2, 9], batch_size=None)[0]
    assert strict.provenance["approximate"] is False
    assert song.provenance["approximate"] is True
    assert song.provenance["n_segments"] == [4, 2, 1]
    assert song.provenance["batch_sizes"] == [4, 2, 1]
    assert equal(song.tokens[2], strict.tokens[2])
    assert [len(tokens) for tokens in song.tokens] == [len(tokens) for tokens in strict.tokens]
    # The first segment is as it would be, up to where the second takes over.
    seams = {measured["level"]: measured for measured in song.provenance["seams"]}
    assert {level: len(measured["seconds"]) for level, measured in seams.items()} == {0: 3, 1: 1}
    first = round(seams[1]["seconds"][0] * 8000 / 32)
    assert equal(song.tokens[1][:first], strict.tokens[1][:first])
    for measured in seams.values():
        assert measured["bits_behind_seams"] > 0
        assert measured["bits_elsewhere"] > 0
        assert measured["flux_at_seams"] >= 0


# ---- What is heard meanwhile ------------------------------------------------------------------------------------


def test_a_stream_is_the_song_top_level_first():
    settings = {"artist": "Bach", "genre": "Song", "seconds": 0.6, "n_samples": 2, "batch_size": 2}
    songs = random_model().sample(**settings, progress=False)
    chunks = list(random_model().stream(**settings))
    assert [chunk.level for chunk in chunks] == sorted((chunk.level for chunk in chunks), reverse=True)
    assert len(chunks) > 3 * 2
    for index, song in enumerate(songs):
        for level in range(3):
            ours = [chunk for chunk in chunks if (chunk.song, chunk.level) == (index, level)]
            starts = np.cumsum([0, *(len(chunk.audio) for chunk in ours)])[:-1] / 8000
            np.testing.assert_allclose([chunk.start_seconds for chunk in ours], starts)
            heard = np.concatenate([chunk.audio for chunk in ours])
            np.testing.assert_allclose(heard, song.levels[level], atol=1e-5)
            assert [chunk.last for chunk in ours] == [False] * (len(ours) - 1) + [True]


@pytest.mark.parametrize("level", [0, 1, 2])
def test_what_is_heard_early_is_not_changed_by_what_follows(level):
    model, rng = random_model(), np.random.default_rng(level)
    tokens = rng.integers(0, CODEC.codes, 80).astype(np.int32)
    other, margin = tokens.copy(), reach(CODEC, level)
    other[50:] = rng.integers(0, CODEC.codes, 30)
    hop = CODEC.hops[level]
    early, whole = (decode_level(model.codec, level, codes) for codes in (other, tokens))
    np.testing.assert_allclose(early[: (50 - margin) * hop], whole[: (50 - margin) * hop], atol=1e-6)
    assert np.max(np.abs(early - whole)[(50 - margin) * hop : 50 * hop]) > 0  # the margin is not idle
    np.testing.assert_allclose(decode_piece(model.codec, level, tokens, 20, 30), whole[20 * hop : 30 * hop], atol=1e-6)


# ---- Memory -----------------------------------------------------------------------------------------------------


def test_the_batch_is_what_is_wanted_as_far_as_memory_goes():
    config = random_model().priors[0].config
    one = plan_level(config, "float32", 1)
    assert one.total == one.weights + one.slots + one.work
    assert plan_level(config, "int8", 1).weights < one.weights
    assert choose_batch_size(config, "float32", 5, None).batch_size == 8
    four = plan_level(config, "float32", 4)
    assert choose_batch_size(config, "float32", 64, int(four.total / 0.9) + 1).batch_size == 4
    with pytest.raises(UserError, match=r"do not fit into the .* that are free: try precision"):
        choose_batch_size(config, "float32", 64, int(plan_level(config, "int8", 1).total / 0.9) + 1)
    with pytest.raises(UserError, match="use a larger device"):
        choose_batch_size(config, "float32", 64, 1000)
    assert free_memory(jax.devices()[0]) is None or free_memory(jax.devices()[0]) > 2**20


def test_what_does_not_fit_is_refused_before_it_is_loaded(monkeypatch):
    monkeypatch.setattr("jukebox_jax.sampling.order.free_memory", lambda device: 100_000)
    monkeypatch.setattr("jukebox_jax.sampling.order.level_engine", None)
    with pytest.raises(UserError, match="do not fit into the"):
        sample(batch_size=64)
    monkeypatch.setattr("jukebox_jax.sampling.order.free_memory", lambda device: 1000)
    with pytest.raises(UserError, match="do not fit into the"):
        sample(batch_size=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "int4"}, "precision 'int4' is unknown"),
        ({"parallel": 0}, "1 segment is the least"),
        ({"parallel": [1, 2]}, "parallel are 2 numbers: give one, or 3"),
        ({"temperature": {0: 1.0}}, "must name each of the levels 0 to 2"),
        ({"seconds": 240_000.0}, "seconds are not samples"),
        ({"seconds": [0.4, 0.05], "n_samples": 2}, "less than a window of level 1"),
        ({"seed": [1, -1], "n_samples": 2}, "seed is -1"),
    ],
)
def test_orders_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        sample(**changes)


def test_lyrics_of_another_script_are_refused():
    model = random_model("separate")
    with pytest.raises(UserError, match="hold no character that the model can spell"):
        model.sample(artist="Bach", genre="Song", lyrics="\u266b\u266b", seconds=0.4, progress=False)
