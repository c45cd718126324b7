"""Songs sampled again from their provenance: the same ones, with the same models and beginnings only."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil

import numpy as np
import pytest
from cascade import equal, random_model, write_model

from jukebox_jax import api
from jukebox_jax.checkpoint.models import prior_fingerprint
from jukebox_jax.errors import UserError
from jukebox_jax.sampling.provenance import (
    UNKNOWN_LICENCE,
    other_environment,
    recorded_hop_fraction,
    token_differences,
    tokens_hash,
)

SETTINGS = {"artist": ["Bach", {"0": "Corelli", "0.2": {"Bach": 1}}], "genre": "Song", "sample_length": 3072}
SETTINGS |= {"seed": [1, 2], "n_samples": 2, "hop_fractions": (0.5, 0.5, 0.5), "batch_size": 2, "progress": False}
PROMPT = 0.2 * np.random.default_rng(0).normal(size=1300).astype(np.float32)  # ten whole top tokens and a rest


@pytest.fixture(scope="module")
def songs():
    return random_model().sample(**SETTINGS)


@pytest.fixture
def provenance(songs):
    """Of the second song, as a file would have it."""
    return json.loads(json.dumps(songs[1].provenance))


def again(provenance, **start):
    return random_model().reproduce(provenance, **start, progress=False)


def test_a_song_of_several_comes_out_the_same_alone(songs, provenance):
    found = again(provenance)
    assert (found.differences, found.environment) == ((), ())
    assert all(equal(a, b) for a, b in zip(found.song.tokens, songs[1].tokens, strict=True))
    assert equal(found.song.audio, songs[1].audio)
    assert json.loads(json.dumps(found.song.provenance)) == provenance


def test_what_was_changed_is_another_song(songs, provenance):
    provenance["seed"] = 1
    found = again(provenance)
    assert found.differences == tuple(f"The tokens of level {level} differ." for level in (2, 1, 0))
    assert token_differences(songs[0].provenance, songs[0].tokens) == []
    changed = [songs[0].tokens[0], songs[0].tokens[1] + 1, songs[0].tokens[2]]
    assert token_differences(songs[0].provenance, changed) == ["The tokens of level 1 differ."]


def test_prompts_and_tokens_are_given_again_and_known_by_their_hash(songs):
    one = {**SETTINGS, "artist": "Bach", "seed": 3}
    primed = random_model().sample(**one, prompt=PROMPT)[0]
    for start in ({"prompt": np.append(PROMPT, PROMPT)}, {"tokens": primed.tokens}):
        found = again(primed.provenance, **start)
        assert found.differences == ()
        assert found.song.provenance == primed.provenance
    with pytest.raises(UserError, match=r"started from audio \(SHA-256 of the tokens: .*give them again"):
        again(primed.provenance)
    for start in ({"prompt": PROMPT[::-1].copy()}, {"tokens": songs[0].tokens}):
        with pytest.raises(UserError, match="This is not what the song started from"):
            again(primed.provenance, **start)
    with pytest.raises(UserError, match="shorter than a token"):
        again(primed.provenance, prompt=PROMPT[:100])
    with pytest.raises(UserError, match="The song started from nothing"):
        again(songs[0].provenance, prompt=PROMPT)

    upsampled = random_model().sample(**{**one, "sample_length": None}, upsample=songs[0].tokens[-1])[0]
    assert again(upsampled.provenance, tokens=songs[0].tokens).differences == ()
    begun = [codes[: 12 * 4 ** (2 - level)] for level, codes in enumerate(songs[0].tokens)]
    continued = random_model().sample(**one, continue_from=begun)[0]
    assert again(continued.provenance, tokens=songs[0].tokens).differences == ()


def test_segments_are_repeated():
    song = random_model().sample(**SETTINGS | {"n_samples": 2, "parallel": [4, 2, 1]})[1]
    assert song.provenance["approximate"] is True
    found = again(song.provenance)
    assert found.differences == ()
    assert found.song.provenance == song.provenance


def test_another_model_is_refused(provenance):
    model = random_model()
    for name, other in (
        ("codec", dataclasses.replace(model, codec=dataclasses.replace(model.codec, hash="other"))),
        ("prior of level 1", dataclasses.replace(model, priors=(model.priors[0], model.priors[2], model.priors[2]))),
    ):
        with pytest.raises(UserError, match=f"sampled with another {name}"):
            other.reproduce(provenance)


def test_hashes_and_licences_go_with_the_weights(tmp_path):
    def hashes(folder):
        return [prior_fingerprint(prior) for prior in api.load(folder).priors]

    folder, copied = write_model(tmp_path / "a"), tmp_path / "b"
    shutil.copytree(folder, copied)
    config_file = copied / "level_1" / "config.json"
    config = json.loads(config_file.read_text())
    config_file.write_text(json.dumps(config | {"licence": "CC0"}))
    assert [prior.licence for prior in api.load(copied).priors] == ["", "CC0", ""]
    assert hashes(copied) == hashes(folder)
    config["labels"]["artists"][1:3] = config["labels"]["artists"][2:0:-1]
    config_file.write_text(json.dumps(config))
    assert [a == b for a, b in zip(hashes(folder), hashes(copied), strict=True)] == [True, False, True]
    assert all(part.licence.startswith("Apache-2.0") for part in (api.load().codec, *api.load().priors))


def test_the_environment_is_compared():
    there = {"generator": "jukebox_jax 0.0.1", "environment": {"jax": "0.1", "platform": "cpu", "device": "cpu"}}
    differing = other_environment(there)
    assert [text.split()[0] for text in differing] == ["jax", "code"]
    assert differing[0].startswith("jax 0.1 there, 0.")
    assert len(other_environment({"environment": "garbage"})) == 4


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("sample_length",), 10**15),
        (("sample_length",), -128),
        (("sample_length",), 3071),
        (("sample_length",), "3072"),
        (("request",), None),
        (("request", "total_samples"), 10**15),
        (("request", "index"), -1),
        (("request", "artist"), ["Bach"]),
        (("request", "artist"), {"Bach": "loud"}),
        (("request", "offset_samples"), -(10**12)),
        (("seed",), 2**32),
        (("seed",), True),
        (("sampling",), []),
        (("sampling", 0, "temperature"), 0),
        (("sampling", 1, "top_k"), 1.5),
        (("mode",), "stolen"),
        (("mode",), "primed"),
        (("hop_fractions",), [0.5, 0.5]),
        (("hop_fractions", 0), 1e-9),
        (("n_segments", 0), 0),
        (("precision",), "float8"),
        (("batch_sizes",), []),
        (("batch_sizes",), [2, 2]),
        (("batch_sizes", 0), 0),
        (("mesh", "fsdp"), 64),
        (("mesh", "tensor"), 0),
        (("tokens",), [{"count": 1}]),
        (("tokens", 0, "sha256"), 5),
        (("priors",), []),
        (("codec",), {"path": "/etc/passwd"}),
        (("original_overrun",), "yes"),
    ],
)
def test_provenance_that_anybody_could_have_written_is_checked(provenance, place, value, monkeypatch):
    monkeypatch.setattr(api, "sample_order", None)
    changed = copy.deepcopy(provenance)
    at = changed
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    with pytest.raises(UserError):
        again(changed)


@pytest.mark.parametrize(
    "key", ["codec", "priors", "request", "seed", "sampling", "mode", "batch_sizes", "mesh", "tokens"]
)
def test_provenance_that_lacks_something_is_refused(provenance, key):
    del provenance[key]
    with pytest.raises(UserError, match=f"incomplete or was changed .*'{key}'.*give the file as it was exported"):
        again(provenance)


def test_a_song_says_all_that_it_must(songs):
    said = songs[0].provenance
    assert said["ai_generated"] is True
    assert said["licence_of_weights"] == UNKNOWN_LICENCE
    assert (said["approximate"], said["precision"], said["batch_sizes"]) == (False, "float32", [2, 2, 2])
    assert len(said["priors"]) == len(set(said["priors"])) == 3
    assert said["config"]["codec"]["sample_rate"] == 8000
    assert [config["level"] for config in said["config"]["priors"]] == [0, 1, 2]
    assert said["tokens"][2] == {"count": 24, "sha256": tokens_hash(songs[0].tokens[2])}


@pytest.mark.parametrize("fractions", [[], [2.0], [0.0], "x", None])
def test_hop_fractions_that_were_changed_are_refused(fractions):
    with pytest.raises(UserError, match="incomplete or was changed"):
        recorded_hop_fraction({"hop_fractions": fractions}, -1, 0.5)
    assert recorded_hop_fraction({}, -1, 0.5) == 0.5
    assert recorded_hop_fraction({"hop_fractions": [0.5, 0.125]}, -1, 0.5) == 0.125
