"""Exit statuses and messages of the command line."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from jukebox_jax import __version__
from jukebox_jax.cli.main import VERBS, main

NAMES = [verb.__name__.rpartition(".")[2] for verb in VERBS]


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
        (["sample"], "--demo"),
        (["sample", "--demo", "--model", "x"], "not allowed with"),
        (["sample", "--demo", "--seed", "lucky"], "lucky"),
        (["sample", "--demo", "--n-samples", "0"], "at least 1"),
        (["sample", "--demo", "--seconds", "3", "--sample-length", "4096"], "not allowed with"),
        (["sample", "--demo", "--config.seed=1"], "only train takes a config"),
        (["prepare", "absent-folder", "--out", "x"], "absent-folder"),
        (["encode", "absent-data", "--checkpoint", "absent-codec", "--out", "x"], "absent-"),
        (["sample", "--model", "absent-model"], "absent-model"),
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
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not ready.exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.strip() == "jukebox-jax: interrupted. The same command goes on from the last checkpoint."


def test_help_is_quick_because_verbs_import_late():
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "jukebox_jax", "--help"], capture_output=True, check=True)
    print(f"jukebox-jax --help: {time.monotonic() - start:.2f} s")
    code = "import sys, jukebox_jax.cli.main; print([m for m in ('jax', 'numpy', 'absl') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
