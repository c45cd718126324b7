"""The model that ships: small, complete, and as good as the README says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jukebox_jax import api, demo, recipe
from jukebox_jax.cli.main import main
from jukebox_jax.corpus.demo_corpus import demo_folder
from jukebox_jax.corpus.encode import encode_song
from jukebox_jax.corpus.prepare import prepare
from jukebox_jax.corpus.tokens import write_token_dataset
from jukebox_jax.evaluation.codec import decibel
from jukebox_jax.export.tags import read_provenance
from jukebox_jax.pipeline.dataset import open_dataset

TOY = Path(api.__file__).parent / "toy"


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    return prepare(demo_folder(), tmp_path_factory.mktemp("toy") / "audio")


def test_it_is_small():
    files = [path for path in TOY.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 1_500_000
    for part in ("vqvae", "level_0", "level_1", "level_2"):
        config = json.loads((TOY / part / "config.json").read_text())
        assert config["kind"] == ("codec" if part == "vqvae" else "prior")


def test_it_samples_a_song_that_is_not_silence_and_can_be_sampled_again(tmp_path):
    argv = ["sample", "--demo", "--artist", "Clara Schumann", "--genre", "Piano", "--seconds", "1.5", "--seed", "1"]
    assert main([*argv, "--out", str(tmp_path)]) == 0
    audio, rate = soundfile.read(tmp_path / "seed_1_song_0.wav")
    assert rate == 44_100
    assert len(audio) == int(1.5 * 44_100) // 128 * 128
    assert 0.01 < np.sqrt(np.mean(audio**2)) < 0.5
    sent = tmp_path / "seed_1_song_0.mp3"
    assert main(["export", str(tmp_path / "seed_1_song_0.wav"), "--format", "mp3", "--loudness=-20"]) == 0
    assert read_provenance(sent)["licence_of_weights"].startswith("Apache-2.0")
    assert main(["reproduce", str(sent), "--demo"]) == 0


def test_its_codec_reconstructs_held_out_music(audio):
    model = api.load()
    pieces = demo.reconstruct_held_out(model, audio)
    for level, most in enumerate((-26, -13, -7)):
        assert decibel(float(np.mean([piece.convergence[level] for piece in pieces]))) <= most


@pytest.mark.slow
def test_its_priors_beat_counting_pairs_and_listen_to_the_composer(audio, tmp_path):
    model = api.load()
    config, codec = model.codec.config, model.codec.codec

    def encode_one(split, song, samples):
        codes = encode_song(config, codec, samples.mean(axis=1).astype(np.float32) / 2**15)
        return {f"level_{level}": tokens.astype(np.uint16) for level, tokens in enumerate(codes)}

    hops = {f"level_{level}": hop for level, hop in enumerate(config.hops)}
    write_token_dataset(audio, tmp_path / "tokens", hops, encode_one, model.codec.hash)
    tokens = open_dataset(tmp_path / "tokens")
    figures = demo.prior_figures(model, tokens)
    for level in recipe.LEVELS:
        name = f"prior.level_{level}"
        assert figures[f"{name}.bits_per_token"] < figures[f"{name}.bigram_bits"]
        assert figures[f"{name}.bits_per_token"] < figures[f"{name}.unigram_bits"]
        assert np.count_nonzero(demo.code_counts(tokens, level, config.codes)) >= 0.9 * config.codes
    assert figures["prior.level_2.bits_per_token"] < figures["prior.level_2.bits_wrong_composer"]
