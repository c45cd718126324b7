from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from buckets import FaultyFileSystem

from jukebox_jax import remote
from jukebox_jax.cli.main import main
from jukebox_jax.errors import UserError


class HttpError(Exception):
    """As gcsfs raises it: no OSError, with a status code."""

    def __init__(self, code):
        super().__init__(f"status {code}")
        self.code = code


@pytest.fixture
def bucket(monkeypatch):
    """An empty bucket, and pauses counted instead of waited for."""
    FaultyFileSystem.reset()
    pauses = []
    monkeypatch.setattr(remote.time, "sleep", pauses.append)
    yield pauses
    FaultyFileSystem.reset()


@pytest.fixture
def local(tmp_path):
    path = tmp_path / "shard"
    path.write_bytes(bytes(range(256)) * 40)
    return path


@pytest.mark.parametrize("url", ["faulty://bucket/music", "memory://bucket/music", "gs://bucket/music"])
def test_paths_of_any_scheme(url):
    path = remote.as_path(url)
    assert str(path) == os.fspath(path) == url
    assert str(path / "songs.json") == f"{url}/songs.json"
    assert (path / "songs.json").parent == path == remote.as_path(path)
    assert (path / "songs.json").name == "songs.json"
    assert remote.is_remote(path)
    assert not remote.is_remote("music/songs")


def test_the_methods_of_a_path(bucket):
    folder = remote.as_path("faulty://bucket/a")
    assert not folder.exists()
    folder.mkdir(parents=True)
    (folder / "é.txt").write_text("ü")
    assert (folder / "é.txt").read_text() == "ü"
    assert (folder / "é.txt").is_file()
    assert folder.is_dir()
    assert list(folder.iterdir()) == list(folder.glob("*.txt")) == [folder / "é.txt"]
    (folder / "é.txt").unlink()
    (folder / "é.txt").unlink(missing_ok=True)
    assert list(folder.iterdir()) == []
    folder.rmtree()
    assert not folder.exists()


def test_upload_list_and_read(bucket, local):
    for _ in range(2):  # safe to repeat
        remote.upload(local, "faulty://bucket/deep/down/shard")
    assert remote.file_sizes("faulty://bucket/deep/down") == {"shard": 10_240}
    assert remote.file_sizes("faulty://bucket/deep") == {}  # folders are not files
    assert remote.read_bytes("faulty://bucket/deep/down/shard", 250, 260) == local.read_bytes()[250:260]
    assert remote.read_bytes("faulty://bucket/deep/down/shard", 10_235, 10_250) == local.read_bytes()[10_235:]
    assert remote.read_bytes("faulty://bucket/deep/down/shard") == remote.read_bytes(local) == local.read_bytes()
    local.write_bytes(b"shorter")  # what is there is replaced
    remote.upload(local, "faulty://bucket/deep/down/shard")
    assert remote.read_bytes("faulty://bucket/deep/down/shard") == b"shorter"
    assert not bucket


@pytest.mark.parametrize("fault", [ConnectionResetError("reset"), TimeoutError(), HttpError(503), HttpError("429")])
def test_what_may_pass_is_tried_again(bucket, local, fault):
    remote.upload(local, "faulty://bucket/shard")
    FaultyFileSystem.calls.clear()
    FaultyFileSystem.faults |= {"put_file": [fault] * 2, "ls": [fault] * 3, "cat_file": [fault] * 5}
    remote.upload(local, "faulty://bucket/shard")
    assert bucket == [0.5, 1]
    assert remote.file_sizes("faulty://bucket") == {"shard": 10_240}
    assert remote.read_bytes("faulty://bucket/shard") == local.read_bytes()
    assert bucket[5:] == [0.5, 1, 2, 4, 8]
    assert FaultyFileSystem.calls["put_file"] == 3
    assert FaultyFileSystem.calls["cat_file"] == 6


def test_what_keeps_failing_is_told_once(bucket, local):
    FaultyFileSystem.faults["put_file"] = [ConnectionResetError(f"reset\n{i}") for i in range(9)]
    with pytest.raises(
        UserError, match=r"Uploading faulty://bucket/shard failed 6 times, .* ConnectionResetError: reset 5: check the"
    ) as told:
        remote.upload(local, "faulty://bucket/shard")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "fault", [PermissionError("no"), OSError("Forbidden: o\nno"), HttpError(401), HttpError("403"), ValueError("Bad")]
)
def test_what_is_refused_is_told_at_once(bucket, local, fault):
    for operation, call in {
        "put_file": lambda: remote.upload(local, "faulty://bucket/shard"),
        "ls": lambda: remote.file_sizes("faulty://bucket"),
        "cat_file": lambda: remote.read_bytes("faulty://bucket/shard"),
    }.items():
        FaultyFileSystem.faults[operation] = [fault]
        with pytest.raises(UserError, match=r"faulty://bucket\S* was refused \(.*check the path, and that your cred"):
            call()
        assert FaultyFileSystem.calls[operation] == 1
    assert not bucket


def test_a_mistake_of_the_program_is_neither(bucket):
    with pytest.raises(TypeError):
        remote.retry(lambda: len(3), "Counting")
    assert not bucket


def test_what_is_not_there(bucket, local):
    with pytest.raises(FileNotFoundError):
        remote.read_bytes("faulty://bucket/none")
    with pytest.raises(FileNotFoundError):
        remote.file_sizes("faulty://bucket/none")
    with pytest.raises(FileNotFoundError):
        remote.upload(local.with_name("none"), "faulty://bucket/none")
    FaultyFileSystem.faults["put_file"] = [FileNotFoundError("bucket")]
    with pytest.raises(UserError, match=r"was refused .*check that the bucket exists"):
        remote.upload(local, "faulty://bucket/shard")
    assert not bucket


def test_what_arrives_short_is_sent_again(bucket, local):
    FaultyFileSystem.faults["short"] = [True] * 2
    remote.upload(local, "faulty://bucket/shard")
    assert remote.read_bytes("faulty://bucket/shard") == local.read_bytes()
    assert len(bucket) == 2
    FaultyFileSystem.faults["short"] = [True] * 9
    with pytest.raises(UserError, match="10239 of 10240 bytes arrived"):
        remote.upload(local, "faulty://bucket/shard")


def test_a_call_that_hangs_is_given_up(monkeypatch, local):
    FaultyFileSystem.reset()
    remote.upload(local, "faulty://bucket/shard")
    monkeypatch.setattr(remote, "TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(remote, "FIRST_DELAY_SECONDS", 0.0)
    FaultyFileSystem.faults["cat_file"] = [30.0, 30.0]
    started = time.monotonic()
    assert remote.read_bytes("faulty://bucket/shard", 0, 2) == b"\0\1"
    FaultyFileSystem.faults["cat_file"] = [30.0] * 6
    with pytest.raises(UserError, match=r"failed 6 times, .*no answer within 0\.1"):
        remote.read_bytes("faulty://bucket/shard", 0, 2)
    assert 0.8 < time.monotonic() - started < 10


def test_after_a_time_it_is_enough(bucket, monkeypatch):
    monkeypatch.setattr(remote, "GIVE_UP_SECONDS", -1.0)
    FaultyFileSystem.faults["cat_file"] = [ConnectionResetError("reset")]
    with pytest.raises(UserError, match="failed 1 times"):
        remote.read_bytes("faulty://bucket/shard")


def test_a_hanging_call_does_not_keep_the_program_from_ending():
    code = (
        "import threading\nfrom jukebox_jax import remote\nremote.TIMEOUT_SECONDS, remote.ATTEMPTS = 0.05, 1\n"
        "try:\n    remote.retry(threading.Event().wait, 'Waiting')\n"
        "except Exception as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("Waiting failed 1 times")


def test_schemes_that_nobody_knows(local):
    with pytest.raises(UserError, match="nope://x cannot be reached"):
        remote.read_bytes("nope://x")
    with pytest.raises(UserError, match="nope://x/y cannot be reached"):
        remote.upload(local, "nope://x/y")


@pytest.mark.parametrize(
    "command",
    [
        "train --config configs/vqvae.py --data faulty://bucket/a --out {}",
        "encode faulty://bucket/a --checkpoint codec --out {}",
    ],
)
def test_the_command_line_takes_urls(bucket, tmp_path, capsys, command):
    assert main(command.format(tmp_path / "out").split()) == 2
    assert "faulty://bucket/a is not a prepared dataset" in capsys.readouterr().err
