"""The same work by processes of this machine and by Beam; workers that die, and parents that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from jukebox_jax.corpus.runners import beam_runner, local_runner
from jukebox_jax.errors import UserError


def touch(folder: str, item: int) -> None:
    if item == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    (Path(folder) / str(item)).touch()


def refuse(folder: str, item: int) -> None:
    raise OSError(28, "No space left on device")


def names(folder):
    return sorted(int(path.name) for path in folder.iterdir())


@pytest.mark.parametrize("workers", [1, 3])
def test_every_item_is_done_once(tmp_path, workers):
    done = list(local_runner(workers)(partial(touch, str(tmp_path)), range(10)))
    assert sorted(done) == names(tmp_path) == list(range(10))
    assert list(local_runner(workers)(partial(touch, str(tmp_path)), [])) == []


def test_an_item_that_takes_its_process_down_is_found(tmp_path):
    crashed = []
    done = list(local_runner(2, crashed.append)(partial(touch, str(tmp_path)), range(20)))
    assert sorted(done) == list(range(20))
    assert crashed == [13]
    assert names(tmp_path) == [item for item in range(20) if item != 13]
    with pytest.raises(UserError, match="13 takes the process down"):
        list(local_runner(2)(partial(touch, str(tmp_path)), range(12, 16)))


def test_errors_of_the_work_come_through(tmp_path):
    for runner in (local_runner(1), local_runner(2)):
        with pytest.raises(OSError, match="No space left"):
            list(runner(partial(refuse, str(tmp_path)), range(4)))
    with pytest.raises(UserError, match="0 workers"):
        local_runner(0)


def test_beam_does_the_same(tmp_path):
    pytest.importorskip("apache_beam")
    assert sorted(beam_runner()(partial(touch, str(tmp_path)), range(10))) == list(range(10))
    assert names(tmp_path) == list(range(10))


def test_flags_that_beam_does_not_take_are_refused_before_the_work():
    pytest.importorskip("apache_beam")
    with pytest.raises(UserError, match="does not take --runner=Nope"):
        beam_runner(["--runner=Nope"])


def test_a_script_that_its_own_workers_cannot_import_blames_no_item(tmp_path):
    # Each worker imports the script, and so would start workers of its own.
    script = tmp_path / "script.py"
    script.write_text(
        "from jukebox_jax.corpus.runners import local_runner\n"
        "for item in local_runner(2, crashed=print)(abs, range(4)):\n"
        "    print(item)\n"
    )
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    # Python's resource tracker may have a last word after ours, on what the workers that could not start left behind.
    assert any(
        line.startswith("jukebox_jax.errors.UserError") and '`if __name__ == "__main__":`' in line
        for line in result.stderr.splitlines()
    )
    assert result.stdout == ""


WORKING = """
import signal, sys
from functools import partial
from jukebox_jax.corpus.runners import local_runner
sys.path.insert(0, sys.argv[2])
from test_runners import sleep
signal.signal(signal.SIGINT, signal.default_int_handler)
for _ in local_runner(2)(partial(sleep, sys.argv[1]), range(4)):
    pass
"""


def sleep(folder: str, item: int) -> None:
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(120)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(tmp_path, sent):
    command = [sys.executable, "-c", WORKING, str(tmp_path), str(Path(__file__).parent)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(names(tmp_path)) == 2)
    process.send_signal(sent)
    assert process.wait(20) != 0
    wait_for(lambda: not any(alive(pid) for pid in names(tmp_path)))


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except FileNotFoundError:
        return False
