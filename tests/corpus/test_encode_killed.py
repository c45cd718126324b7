"""The real command, in real processes: killed at any moment, shared, and started twice."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.fault_drill.engine import run_drill
from experiments.fault_drill.verbs import encode_drill
from jukebox_jax.corpus.encode import encode_dataset
from jukebox_jax.pipeline.dataset import open_dataset

from .tiny_songs import CODECS, content, write_codec, write_songs

SONGS = 120


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a dataset of many short songs, a codec, and the dataset's tokens in one go."""
    root = tmp_path_factory.mktemp("killed")
    write_songs(root / "audio", tuple(range(10_000, 10_000 + SONGS)))
    write_codec(root / "codec", CODECS["cycle"])
    encode_dataset(root / "audio", root / "codec", root / "tokens", progress=False)
    return root


@contextlib.contextmanager
def running(world: Path, out: Path, *more: str) -> Iterator[subprocess.Popen]:
    argv = ["encode", world / "audio", "--checkpoint", world / "codec", "--out", out, *more]
    process = subprocess.Popen(
        [sys.executable, "-m", "jukebox_jax", *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_songs(process: subprocess.Popen, out: Path, songs: int) -> None:
    """Returns when so many songs are done, or the process is."""
    folder = out.with_name(f".{out.name}.encoding") / "songs"
    while process.poll() is None and not (folder.is_dir() and len(list(folder.iterdir())) >= songs):
        time.sleep(0.001)


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_with_the_same_bytes(world, tmp_path, kills):
    result = run_drill(encode_drill(world / "audio", world / "codec"), tmp_path, kills, seed=0)
    assert result.passed, result.problems
    assert result.met > 0
    assert content(tmp_path / "encode/killed/out") == content(world / "tokens")


def test_a_second_process_on_one_output_is_refused(world, tmp_path):
    with running(world, tmp_path / "t") as first:
        wait_for_songs(first, tmp_path / "t", 1)
        first.send_signal(signal.SIGSTOP)  # at work, as long as we like
        with running(world, tmp_path / "t") as second:
            assert second.wait() == 2
            (line,) = second.stderr.read().strip().splitlines()
            assert "in use by another process" in line
        first.send_signal(signal.SIGCONT)
        assert first.wait() == 0
    assert content(tmp_path / "t") == content(world / "tokens")


def test_processes_at_the_same_time_share_the_songs(world, tmp_path):
    share = [("--process-index", str(index), "--process-count", "2") for index in (0, 1)]
    with running(world, tmp_path / "t", *share[0]) as first, running(world, tmp_path / "t", *share[1]) as second:
        assert first.wait() == 0, first.stderr.read()
        assert second.wait() == 0, second.stderr.read()
        assert "token dataset" in first.stdout.read()
        assert "process 1 is done; process 0 writes" in second.stdout.read()
    assert content(tmp_path / "t") == content(world / "tokens")
    assert open_dataset(tmp_path / "t").codec["codes"] == 32
