"""Exit statuses and messages of the command line."""

from __future__ import annotations

import errno
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cascade import random_model

from jukebox_jax import __version__, api
from jukebox_jax import demo as demo_module
from jukebox_jax.audio.files import write_audio
from jukebox_jax.cli.main import VERBS, describe, main, verb_name
from jukebox_jax.pipeline.dataset import open_dataset
from jukebox_jax.recipe import Effort

NAMES = [verb_name(verb) for verb in VERBS]


@pytest.mark.parametrize("name", NAMES)
def test_help_of_every_verb_shows_an_example(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    assert f"example:\n  jukebox-jax {name} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "VERB"),
        (["sing"], "sing"),
        (["demo", "--loud"], "--loud"),
        (["prepare"], "SOURCE, --out"),
        (["prepare", "music"], "--out"),
        (["encode", "data", "--out", "x"], "--checkpoint"),
        (["train", "--data", "x", "--out", "y"], "--config"),
        (["train", "--conf", "x.py", "--data", "x", "--out", "y"], "--config"),
        (["bench"], "BENCH"),
        (["bench", "sharding"], "--config"),
        (["bench", "sharding", "--config", "absent.py"], "there is no file absent.py"),
        (["bench", "sharding", "--config", "c.py", "--steps", "0"], "at least 1"),
        (["bench", "sharding", "--config", "c.py", "--store", "gs://bucket/x"], "not on this machine"),
        (["sample"], "--demo"),
        (["embed", "music", "--out", "x"], "--demo"),
        (["embed", "music", "--demo"], "--out"),
        (["embed", "absent-folder", "--demo", "--out", "x"], "absent-folder does not exist"),
        (["embed", "tfds:x", "--demo", "--out", "x"], "has no files to embed"),
        (["sample", "--demo", "--model", "x"], "not allowed with"),
        (["sample", "--demo", "--seed", "lucky"], "lucky"),
        (["sample", "--demo", "--n-samples", "0"], "at least 1"),
        (["sample", "--demo", "--batch-size", "0"], "at least 1"),
        (["sample", "--demo", "--seed", "-1"], "from 0 to 4294967295"),
        (["demo", "--seed", "-1"], "from 0 to 4294967295"),
        (["demo", "--seed", "4294967296"], "from 0 to 4294967295"),
        (["demo", "--codec-steps", "0"], "at least 1"),
        (["sample", "--demo", "--seconds", "nan"], "finite"),
        (["sample", "--demo", "--total-seconds", "inf"], "finite"),
        (["sample", "--demo", "--temperature", "inf"], "finite"),
        (["prepare", "music", "--out", "x", "--channels", "3"], "choose from 1, 2"),
        (["prepare", "music", "--out", "x", "--sample-rate", "0"], "at least 1"),
        (["sample", "--demo", "--seconds", "3", "--sample-length", "4096"], "not allowed with"),
        (["sample", "--demo", "--config.seed=1"], "only train, plan and bench take a config"),
        (["prepare", "absent-folder", "--out", "x"], "absent-folder"),
        (["encode", "absent-data", "--checkpoint", "absent-codec", "--out", "x"], "absent-"),
        (["sample", "--model", "absent-model"], "absent-model"),
        (["encode", "absent-data", "--checkpoint", "gs://bucket/codec", "--out", "t"], "not on this machine"),
        (["train", "--config", "c.py", "--data", "d", "--out", "gs://bucket/run"], "not on this machine"),
        (["prepare", ".", "--out", "data"], "lies in the source"),
        (["prepare", "absent-folder", "--out", "nosuchscheme://bucket/x"], "cannot be reached"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(argv, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("jukebox-jax: error: ")
    assert err.count("\n") == 1
    assert words in err
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_folder_of_songs_is_refused(tmp_path, capsys):
    path = tmp_path / "songs"
    path.write_text("mine")
    assert main(["sample", "--demo", "--out", str(path)]) == 2
    assert "is a file" in capsys.readouterr().err
    assert path.read_text() == "mine"


@pytest.fixture
def music(tmp_path) -> Path:
    """Two short files, one mono and one stereo, at 8 kHz."""
    for index in (1, 2):
        noise = np.random.default_rng(index).uniform(-0.5, 0.5, (12_000, index)).astype(np.float32)
        write_audio(tmp_path / "music" / f"{index}.wav", noise, 8000)
    return tmp_path / "music"


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["demo", "--out", "{file}"], "File exists"),
        (["demo", "--out", "{file}/x"], "Not a directory"),
        (["prepare", "{music}", "--out", "{file}/x"], "Not a directory"),
        (["sample", "--demo", "--out", "{file}/x"], "Not a directory"),
    ],
)
def test_what_the_system_refuses_is_one_line(argv, reason, music, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("mine")
    assert main([word.format(file=file, music=music) for word in argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"jukebox-jax: error: {file}")
    assert err.endswith(f": {reason}: choose another folder or free space.\n")
    assert file.read_text() == "mine"


def test_errors_of_the_system_in_words():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert describe(full) == "No space left on device: choose another folder or free space."
    full.filename = "songs/a.wav"
    assert describe(full).startswith("songs/a.wav: No space left")
    assert describe(OSError("sndfile library not found")) == "OSError: sndfile library not found"


def test_songs_are_not_sampled_before_their_folder_can_be_written(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    # Were the model looked for first, its absence would be the error.
    assert main(["sample", "--model", "absent-model", "--out", "file/songs"]) == 2
    assert "Not a directory" in capsys.readouterr().err
    (tmp_path / "kept").mkdir()
    for out in ("new/deep", "kept", "kept/new"):
        assert main(["sample", "--model", "absent-model", "--out", out]) == 2
        assert "absent-model" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "kept"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
def test_output_that_cannot_be_written_is_one_line(music, tmp_path):
    command = [sys.executable, "-m", "jukebox_jax", "prepare", str(music), "--out", str(tmp_path / "data")]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[-1] == "jukebox-jax: error: No space left on device: choose another folder or free space."
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_a_reader_that_went_away_ends_the_command_quietly(music, tmp_path):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "jukebox_jax", "prepare", str(music), "--out", str(tmp_path / "data")]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.returncode == 141
    assert "rror" not in done.stderr


def test_prepare_takes_rate_and_channels(music, tmp_path, capsys):
    assert main(["prepare", str(music), "--out", str(tmp_path / "plain")]) == 0
    plain = open_dataset(tmp_path / "plain")
    assert (plain.sample_rate, plain.channels) == (44_100, 2)
    options = ["--sample-rate", "16000", "--channels", "1"]
    assert main(["prepare", str(music), "--out", str(tmp_path / "small"), *options]) == 0
    small = open_dataset(tmp_path / "small")
    assert (small.sample_rate, small.channels) == (16_000, 1)
    assert [song.samples for song in small.splits["train"]] == [24_000]
    assert f"dataset: {tmp_path / 'small'}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "effort"),
    [
        ([], Effort()),
        (["--codec-steps", "7"], Effort(None, (1, 7))),
        (["--codec-steps", "7", "--prior-steps", "5"], Effort(None, (1, 7), None, (1, 5))),
    ],
)
def test_the_demo_trains_by_the_clock_or_for_exact_steps(options, effort, tmp_path, monkeypatch):
    told = {}
    monkeypatch.setattr(demo_module, "run_demo", lambda out, **settings: told.update(settings))
    assert main(["demo", "--out", str(tmp_path), "--seed", "3", *options]) == 0
    assert told == {"seed": 3, "effort": effort}
    assert demo_module.codec_run(3, effort).train.steps == effort.codec_steps[1]


def test_an_unknown_name_is_one_line_for_each(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(api, "load", lambda folder: random_model())
    argv = ["sample", "--demo", "--artist", "Bahc", "--artist", "Bahc", "--genre", "Zydeco"]
    assert main([*argv, "--n-samples", "2", "--seconds", "0.6", "--out", str(tmp_path / "songs")]) == 0
    assert len(list((tmp_path / "songs").glob("*.wav"))) == 2
    err = capsys.readouterr().err
    warned = [line for line in err.splitlines() if "does not know" in line]
    assert len(warned) == 2
    assert warned[0].startswith('jukebox-jax: warning: The model does not know the artist "Bahc" and')
    assert "bach" in warned[0]
    assert warned[1].startswith('jukebox-jax: warning: The model does not know the genre "Zydeco"')
    assert "UserWarning" not in err
    assert ".py" not in err


def test_module_and_version():
    done = subprocess.run(
        [sys.executable, "-m", "jukebox_jax", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"jukebox-jax {__version__}\n"


def test_a_mistake_in_a_real_process_leaves_no_traceback():
    done = subprocess.run([sys.executable, "-m", "jukebox_jax", "sing"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_interruption_says_how_to_go_on(tmp_path):
    ready = tmp_path / "ready"
    config = tmp_path / "slow.py"
    config.write_text(
        f"import pathlib, time\ndef get_config():\n    pathlib.Path({str(ready)!r}).touch()\n    time.sleep(60)\n"
    )
    run = tmp_path / "run"
    command = [sys.executable, "-m", "jukebox_jax", "train", "--config", str(config), "--data", "d", "--out", str(run)]
    # Whoever runs the tests may ignore SIGINT (as shells do for background jobs), and children inherit that.
    listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listen) as process:
        while not ready.exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.strip() == "jukebox-jax: interrupted. The same command goes on from the last checkpoint."


def test_help_is_quick_because_verbs_import_late():
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        subprocess.run([sys.executable, "-m", "jukebox_jax", "--help"], capture_output=True, check=True)
        seconds.append(time.monotonic() - start)
    assert min(seconds) < 1, seconds
    code = "import sys, jukebox_jax.cli.main; print([m for m in ('jax', 'numpy', 'absl') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
