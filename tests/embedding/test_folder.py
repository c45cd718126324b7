"""`jukebox-jax embed`: folders of music, in real processes that are killed, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cascade import equal, random_model, write_model

from experiments.fault_drill.engine import run_drill
from experiments.fault_drill.verbs import embed_drill, files_in, tree
from jukebox_jax.audio.files import read_audio, write_audio
from jukebox_jax.checkpoint import compact
from jukebox_jax.checkpoint.models import load_codec, load_prior
from jukebox_jax.cli.main import main
from jukebox_jax.embedding.folder import embed_folder, read_embedding
from jukebox_jax.errors import UserError

FILES = 60


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a model, a folder of music with a file that is none, and the embeddings of both."""
    root = tmp_path_factory.mktemp("embed")
    write_model(root / "model", [2])
    rng = np.random.default_rng(0)
    for index in range(FILES):
        name = f"{'ab'[index % 2]}/{index}.{'wav' if index % 3 else 'flac'}"
        write_audio(root / "music" / name, rng.uniform(-0.5, 0.5, (3000 + 100 * index, 1 + index % 2)), 8000)
    (root / "music" / "a" / "broken.mp3").write_text("not music")
    embed_folder([root / "music"], root / "model", root / "out", progress=False)
    return root


def command(world: Path, out: Path, *more: object) -> list[str]:
    return [str(word) for word in ("embed", world / "music", "--model", world / "model", "--out", out, *more)]


def test_the_embeddings_of_a_folder_mirror_it(world, capsys):
    assert len(list((world / "out").rglob("*.npz"))) == FILES
    codec, prior = load_codec(world / "model" / "vqvae"), load_prior(world / "model" / "level_2")
    model = random_model().__class__(codec, (prior,) * 3)
    for name in ("a/0.flac", "b/59.wav"):
        embedding = read_embedding(world / "out" / f"{name}.npz")
        audio = read_audio(world / "music" / name, 8000).mean(axis=1)
        assert equal(embedding.values, model.embed(audio).values)
        assert embedding.times_seconds == 0
    manifest = json.loads((world / "out" / "manifest.json").read_text())
    assert manifest["settings"] == {"level": 2, "layer": 1, "pooling": "mean", "windows": "first", "batch_size": 1}
    assert manifest["codec"]["hash"] == codec.hash
    assert len(manifest["prior"]["hash"]) == 64
    assert list(manifest["unreadable"]) == ["a/broken.mp3"]

    # Once more: nothing is left to do but to say again what cannot be read.
    before = tree(world / "out")
    assert main(command(world, world / "out")) == 0
    out, err = capsys.readouterr()
    assert out == f"{FILES} embeddings, 0 of them new; 1 could not be read: {world / 'out'}\n"
    assert "jukebox-jax: a/broken.mp3 cannot be read as audio" in err
    assert tree(world / "out") == before


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--layer", "2"], "holds embeddings with layer=1 (now 2)"),
        (["--pooling", "none"], "with pooling=mean (now none)"),
        (["--pooling", "0.5", "--windows", "all"], "pooling=mean (now 0.5), windows=first (now all)"),
        (["--batch-size", "4"], "batch_size=1 (now 4)"),
        (["--layer", "4"], "layer=4 is none of the prior of level 2: give one from 0 to 3"),
        (["--level", "3"], "level=3 is none of the model"),
        (["--level", "0"], "level_0"),
        (["--pooling", "max"], "--pooling"),
        (["--pooling", "-1"], "finite number above 0"),
        (["--batch-size", "0"], "at least 1"),
    ],
)
def test_other_settings_are_refused(world, more, words, capsys):
    before = tree(world / "out")
    assert main(command(world, world / "out", *more)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert words in err
    assert tree(world / "out") == before


def test_other_sources_models_and_folders_are_refused(world, tmp_path):
    with pytest.raises(UserError, match="of other sources"):
        embed_folder([world / "music" / "a"], world / "model", world / "out", progress=False)
    write_model(tmp_path / "model", [2])
    other = load_prior(tmp_path / "model" / "level_2")
    config = json.loads((tmp_path / "model" / "level_2" / "config.json").read_text())
    (tmp_path / "model" / "level_2").rename(tmp_path / "old")
    params = other.params | {"labels": {name: 2 * table for name, table in other.params["labels"].items()}}
    compact.save(tmp_path / "model" / "level_2", {"params": params}, config)
    with pytest.raises(UserError, match="embeddings of another prior"):
        embed_folder([world / "music"], tmp_path / "model", world / "out", progress=False)
    with pytest.raises(UserError, match="holds something else"):
        embed_folder([world / "music"], world / "model", tmp_path, progress=False)
    with pytest.raises(UserError, match="is a file"):
        embed_folder([world / "music"], world / "model", world / "music" / "b" / "59.wav", progress=False)
    with pytest.raises(UserError, match=r"no model folder .*absent"):
        embed_folder([world / "music"], tmp_path / "absent", tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"None of 1 files could be read .*broken.mp3 cannot be read as audio"):
        embed_folder([world / "music" / "a" / "broken.mp3"], world / "model", tmp_path / "out", progress=False)


def test_what_is_changed_or_damaged_is_embedded_again(world, tmp_path):
    (tmp_path / "music").mkdir()
    noise = np.random.default_rng(3).uniform(-0.5, 0.5, 4000).astype(np.float32)
    for name in ("one.wav", "two.wav", "three.wav"):
        write_audio(tmp_path / "music" / name, noise, 8000)
    run = [[tmp_path / "music"], world / "model", tmp_path / "out"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".manifest.a1b2c3d4.json").write_text("")  # of a run that was killed as it began
    assert embed_folder(*run, progress=False).new == 3
    before = read_embedding(tmp_path / "out" / "one.wav.npz")
    write_audio(tmp_path / "music" / "one.wav", noise[:2000], 8000)
    (tmp_path / "out" / "two.wav.npz").write_bytes(b"PK")
    (tmp_path / "out" / ".three.wav.a1b2c3d4.npz").write_bytes(b"half")  # of one that was killed later
    report = embed_folder(*run, progress=False)
    assert (report.embedded, report.new) == (3, 2)
    assert not equal(read_embedding(tmp_path / "out" / "one.wav.npz").values, before.values)
    assert equal(read_embedding(tmp_path / "out" / "two.wav.npz").values, before.values)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {".lock", "manifest.json", "one.wav.npz", "two.wav.npz", "three.wav.npz"}
    (tmp_path / "out" / "two.wav.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match="holds no embedding"):
        read_embedding(tmp_path / "out" / "two.wav.npz")


def test_killed_it_goes_on_and_ends_with_the_same_bytes(world, tmp_path):
    out = tmp_path / "out"
    start = [sys.executable, "-m", "jukebox_jax", *command(world, out)]
    options = {"cwd": Path(__file__).parents[2], "env": os.environ | {"JAX_PLATFORMS": "cpu"}, "text": True}
    with subprocess.Popen(start, stderr=subprocess.PIPE, **options) as process:
        while process.poll() is None and len(files_in(out / "b")) < 5:
            time.sleep(0.001)
        process.send_signal(signal.SIGSTOP)  # at work, as long as we like
        with pytest.raises(UserError, match="in use by another process"):
            embed_folder([world / "music"], world / "model", out, progress=False)
        process.kill()
    done = len(list(out.rglob("*.npz")))
    assert 5 <= done < FILES
    report = embed_folder([world / "music"], world / "model", out, progress=False)
    assert report.embedded == FILES
    assert 0 < report.new <= FILES - 5
    assert tree(out) == tree(world / "out")


@pytest.mark.slow
def test_drilled_it_ends_with_the_same_bytes(world, tmp_path):
    result = run_drill(embed_drill(world / "music" / "b", world / "model"), tmp_path, kills=10, seed=0)
    assert result.passed, result.problems
    assert result.met > 0
