"""Imported models in the other verbs: what is imported encodes, is trained further, and sings."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from interop import recipe, synthetic

from jukebox_jax.audio.files import write_audio
from jukebox_jax.checkpoint import store
from jukebox_jax.checkpoint.models import load_codec, load_prior
from jukebox_jax.cli.main import main
from jukebox_jax.pipeline.dataset import open_dataset
from jukebox_jax.training.telemetry import read_metrics


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with imported models, music as audio and as the imported codec's tokens."""
    folder = tmp_path_factory.mktemp("fine")
    synthetic.write_codec(folder / "vqvae.pth.tar", recipe.CODEC, seed=1)
    synthetic.write_prior(folder / "prior_level_0.pth.tar", recipe.UPSAMPLER, seed=2, normalisation="v2")
    synthetic.write_prior(folder / "prior_level_1.pth.tar", recipe.TOP, seed=3, normalisation="v2")
    (folder / "artists.txt").write_text("unknown;0\n;0\nella_fitzgerald;1\nmuse;2\n")
    (folder / "genres.txt").write_text("unknown;0\njazz;1\nsoul;2\n")
    music = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 16_000, 1)).astype(np.float32)
    lines = []
    for split, song in zip(("train", "validation"), music, strict=True):
        write_audio(folder / f"music/{split}.wav", song, 8000)
        lines.append({"file_name": f"{split}.wav", "artist": "Muse", "genre": "Soul", "split": split})
    (folder / "music/metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    files = [str(path) for path in sorted(folder.glob("*.pth.tar"))]
    tables = ["--artists", str(folder / "artists.txt"), "--genres", str(folder / "genres.txt")]
    assert main(["import-openai", *files, "--out", str(folder / "models"), *tables]) == 0
    rate = ["--sample-rate", "8000", "--channels", "1"]
    assert main(["prepare", str(folder / "music"), "--out", str(folder / "audio"), *rate]) == 0
    codec = str(folder / "models/vqvae")
    assert main(["encode", str(folder / "audio"), "--checkpoint", codec, "--out", str(folder / "tokens")]) == 0
    return folder


def fine_tune(place: Path, variant: str, init: str, out: Path, *more: str) -> int:
    data = place / ("audio" if variant == "codec" else "tokens")
    paths = ["--data", str(data), "--init-from", str(place / init), "--out", str(out)]
    return main(["train", "--config", f"{recipe.__file__}:{variant}", *paths, "--quiet", *more])


def largest_change(before, after) -> float:
    changes = jax.tree.map(
        lambda a, b: np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).max(), before, after
    )
    return max(jax.tree.leaves(changes))


def test_an_imported_codec_encodes(place):
    tokens = open_dataset(place / "tokens")
    assert tokens.codec["hash"] == load_codec(place / "models/vqvae").hash
    assert tokens.codec["hash"] == load_prior(place / "models/level_1").codec_hash
    assert tokens.fields == dict(zip(("level_0", "level_1"), recipe.CODEC.hops, strict=True))


def check_run(place: Path, folder: str, run: Path) -> None:
    """The run started from the imported weights, and they moved."""
    rows = read_metrics(run)
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]
    before, after = (store.load_model(model)["params"] for model in (place / "models" / folder, run))
    assert 0 < largest_change(before, after) < 1e-4
    assert "noncommercial" in store.load_config(run)["licence"]


def test_imported_priors_are_trained_further_and_sing(place, tmp_path):
    shutil.copytree(place / "models/vqvae", tmp_path / "models/vqvae")
    codec = ["--codec", str(place / "models/vqvae")]
    for variant, folder in (("upsampler", "level_0"), ("top", "level_1")):
        run = tmp_path / "models" / folder
        assert fine_tune(place, variant, f"models/{folder}", run, *codec) == 0
        check_run(place, folder, run)
        tuned, imported = load_prior(run), load_prior(place / "models" / folder)
        assert dataclasses.replace(tuned.config, remat="block") == imported.config
        assert tuned.labels == imported.labels
    song = ["--seconds", "0.1", "--artist", "Muse", "--genre", "Jazz Soul", "--strict-labels"]
    # Of parts that nobody measured, and of those that are weights alone, the best one is the latest.
    model = f"{tmp_path / 'models'}@best"
    assert main(["sample", "--model", model, "--out", str(tmp_path / "songs"), *song]) == 0
    assert len(list((tmp_path / "songs").glob("*.wav"))) == 1


@pytest.fixture(scope="module")
def newcomers(place, tmp_path_factory) -> Path:
    """The same music by an artist, and in a genre, that the imported models do not know; as the codec's tokens."""
    folder = tmp_path_factory.mktemp("newcomers")
    shutil.copytree(place / "music", folder / "music")
    table = folder / "music/metadata.jsonl"
    table.write_text(table.read_text().replace("Muse", "Björk", 1).replace("Soul", "Hip Soul"))
    rate = ["--sample-rate", "8000", "--channels", "1"]
    assert main(["prepare", str(folder / "music"), "--out", str(folder / "audio"), *rate]) == 0
    codec = str(place / "models/vqvae")
    assert main(["encode", str(folder / "audio"), "--checkpoint", codec, "--out", str(folder / "tokens")]) == 0
    return folder


def tune_on(data: Path, place: Path, out: Path, *more: str) -> int:
    paths = ["--data", str(data), "--init-from", str(place / "models/level_1"), "--out", str(out)]
    return main(["train", "--config", f"{recipe.__file__}:top", *paths, "--quiet", *more])


def test_names_that_are_new_get_rows_behind_the_old_ones(place, newcomers, tmp_path, capsys):
    assert tune_on(newcomers / "tokens", place, tmp_path / "run") == 0
    assert "does not know 1 artists and 1 genres" in capsys.readouterr().err
    tuned, imported = load_prior(tmp_path / "run"), load_prior(place / "models/level_1")
    old, new = imported.params["labels"], tuned.params["labels"]
    assert (imported.config.labels.artists, imported.config.labels.genres) == (6, 5)
    assert (tuned.config.labels.artists, tuned.config.labels.genres) == (7, 6)
    assert tuned.labels.artists.by_id[:3] == imported.labels.artists.by_id
    # Rows without a name, which the checkpoint has, keep having none.
    assert (tuned.labels.artist_id("Björk"), tuned.labels.artists.by_id[3:6]) == (6, ((), (), ()))
    assert tuned.labels.genre_ids("Hip Soul", 2) == [5, 2]
    for name, rows in (("artist", 6), ("genre", 5)):
        assert new[name].shape == (rows + 1, 16)
        assert 0 <= np.abs(np.asarray(new[name][:rows] - old[name])).max() < 1e-4
        # It starts as a copy of the row of "unknown" and is trained: that of "unknown" itself stays.
        assert 0 < np.abs(np.asarray(new[name][rows] - old[name][0])).max() < 1e-4


def test_labels_stay_as_they_are_on_request(place, newcomers, tmp_path, capsys):
    assert tune_on(newcomers / "tokens", place, tmp_path / "run", "--config.extend_labels=false") == 0
    assert "does not know" not in capsys.readouterr().err
    tuned, imported = load_prior(tmp_path / "run"), load_prior(place / "models/level_1")
    assert (tuned.labels, tuned.config.labels) == (imported.labels, imported.config.labels)


def test_only_the_labels_are_tuned_where_the_decoder_is_frozen(place, newcomers, tmp_path):
    frozen = "--config.train.frozen=('decoder', 'labels/*_position', 'labels/total_length')"
    assert tune_on(newcomers / "tokens", place, tmp_path / "run", frozen) == 0
    tuned, imported = load_prior(tmp_path / "run").params, load_prior(place / "models/level_1").params
    assert largest_change(tuned["decoder"], imported["decoder"]) == 0
    assert largest_change(tuned["labels"]["artist"][:6], imported["labels"]["artist"]) < 1e-4
    assert not np.array_equal(tuned["labels"]["artist"][6], imported["labels"]["artist"][0])
    assert tune_on(newcomers / "tokens", place, tmp_path / "other", "--config.train.frozen=('decode',)") == 2


def test_tokens_of_another_codec_are_refused(place, tmp_path, capsys):
    shutil.copytree(place / "tokens", tmp_path / "tokens")
    theirs = load_codec(place / "models/vqvae").hash
    for path in (tmp_path / "tokens").rglob("*.json"):
        path.write_text(path.read_text().replace(theirs, theirs[::-1]))
    assert open_dataset(tmp_path / "tokens").codec["hash"] == theirs[::-1]
    assert tune_on(tmp_path / "tokens", place, tmp_path / "run") == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert "was trained on the tokens of another codec" in told
    assert not (tmp_path / "run").exists()


def test_a_run_starts_from_a_chosen_checkpoint_of_another(place, tmp_path, capsys):
    every = ["--config.train.checkpoint_every=1", "--config.train.optimizer.learning_rate=0.01"]
    assert fine_tune(place, "top", "models/level_1", tmp_path / "first", *every) == 0
    init = ["--data", str(place / "tokens"), "--init", f"{tmp_path / 'first'}@2", "--out", str(tmp_path / "second")]
    still = ["--config.train.optimizer.learning_rate=0.0", "--config.train.steps=1", "--quiet"]
    assert main(["train", "--config", f"{recipe.__file__}:top", *init, *still]) == 0
    second = load_prior(tmp_path / "second").params
    assert largest_change(second, load_prior(f"{tmp_path / 'first'}@2").params) == 0
    assert largest_change(second, load_prior(tmp_path / "first").params) > 0
    init[3] = f"{tmp_path / 'first'}@7"
    assert main(["train", "--config", f"{recipe.__file__}:top", *init, *still]) == 2
    assert "has no checkpoint of step 7: it has 2, 3" in capsys.readouterr().err


def test_an_imported_codec_is_trained_further_and_encodes(place, tmp_path):
    assert fine_tune(place, "codec", "models/vqvae", tmp_path / "run") == 0
    check_run(place, "vqvae", tmp_path / "run")
    again = ["--checkpoint", str(tmp_path / "run"), "--out", str(tmp_path / "tokens")]
    assert main(["encode", str(place / "audio"), *again]) == 0


@pytest.mark.parametrize(
    ("variant", "init", "more", "words"),
    [
        ("top", "absent", [], "no checkpoint folder"),
        ("codec", "absent", [], "no checkpoint folder"),
        ("top", "music", [], "is no checkpoint"),
        ("top", "models", [], "is no checkpoint"),
        ("top", "models/vqvae", [], "is the checkpoint of a codec, not of a prior"),
        ("codec", "models/level_1", [], "is the checkpoint of a prior, not of a codec"),
        ("top", "models/level_0", [], "differs in model.conditioner"),
        ("top", "models/level_1", ["--config.model.width=32"], "differs in model.width: use its values"),
        ("top", "models/level_1", ["--config.model.heads=4"], "differs in model.heads"),  # of the same shapes
        ("top", "models/level_1", ["--config.model.attention_order=0"], "differs in model.attention_order"),
        ("top", "models/level_1", ["--config.model.labels.artists=9"], "differs in model.labels.artists"),
        ("codec", "models/vqvae", ["--config.model.emb_width=8"], "differs in model.emb_width"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(place, variant, init, more, words, tmp_path, capsys):
    assert fine_tune(place, variant, init, tmp_path / "run", *more) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert words in told
    assert not (tmp_path / "run").exists()
