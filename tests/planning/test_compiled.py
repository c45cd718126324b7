"""Steps compiled in a process of their own: what comes of it, what is kept, and how processes end."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys

import pytest

from jukebox_jax.config import to_dict
from jukebox_jax.errors import UserError
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.planning.compiled import ask, compiled
from jukebox_jax.planning.store import open_store
from jukebox_jax.training.config import TrainConfig
from jukebox_jax.training.run import PriorRun

MODEL = PriorConfig(level=2, codes=48, n_ctx=128, width=16, depth=3, heads=2, blocks=8, dtype="bfloat16")
RUN = PriorRun(MODEL, TrainConfig(batch_size=4, strategy="fsdp"))
LIBTPU = importlib.util.find_spec("libtpu") is not None
needs_libtpu = pytest.mark.skipif(not LIBTPU, reason="needs libtpu: the extra [tpu]")

HOLDS = """
import time
held = bytearray(400 * 2**20)
time.sleep(60)
"""


def test_a_process_that_takes_too_long_is_ended():
    reason = ask(["-c", "import time; time.sleep(60)"], {}, 0.5)
    assert reason == "The compiler needed more than 0.5 s: give it more time, or a faster machine."


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system does not say what a process holds")
def test_a_process_that_holds_too_much_is_ended():
    reason = ask(["-c", HOLDS], {}, 30.0, 200 * 2**20)
    assert "of this machine's memory and may have 0.195 GiB: give it more" in reason


def test_a_process_that_is_killed_says_by_what():
    reason = ask(["-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"], {}, 30.0)
    assert reason == "The compiler's process was ended by SIGKILL, as systems do where memory runs out."


def test_a_process_that_fails_says_its_last_line():
    reason = ask(["-c", "raise RuntimeError('the compiler met an internal error.')"], {}, 30.0)
    assert reason == "The compiler's process failed with status 1: RuntimeError: the compiler met an internal error."


def test_a_process_is_asked_and_answers_on_its_last_line():
    program = "import json, sys; print('chatter'); print(json.dumps({'twice': 2 * json.load(sys.stdin)['number']}))"
    assert ask(["-c", program], {"number": 21}, 30.0) == {"twice": 42}


def test_a_compiler_ends_with_who_asked():
    request = {"kind": "prior", "run": to_dict(RUN), "topology": "v5e:2x2", "store": None}
    reason = ask(["-m", "jukebox_jax.planning.compile_step"], {**request, "parent": 1}, 60.0)  # who asked is gone
    assert reason.startswith("The compiler's process failed with status 1")


def test_what_cannot_be_compiled_is_a_reason_and_not_kept(tmp_path):
    found = compiled(RUN, "v9z:2x2", tmp_path / "store.jsonl")
    assert found.reason.startswith("No topology v9z:2x2: ")
    assert found.fits is None
    assert not (tmp_path / "store.jsonl").exists()


def test_a_store_waits_for_others_only_so_long(tmp_path):
    path = tmp_path / "store.jsonl"
    with open_store(path), pytest.raises(UserError, match="in use by another process"), open_store(path, 0.3):
        pass


@needs_libtpu
@pytest.mark.slow
def test_a_step_is_compiled_once(tmp_path):
    path = tmp_path / "store.jsonl"
    first = compiled(RUN, "v5e:2x2", path)
    assert first.reason is None
    assert first.fits
    assert first.arguments >= sum(first.parts.values()) > 0
    assert first.parts["optimizer"] == pytest.approx(2 * first.parts["parameters"], rel=0.01)
    assert first.hbm_bytes > 2 * (first.parts["parameters"] + first.parts["optimizer"])  # read and written
    assert {message.axes for message in first.messages} == {("fsdp",)}
    assert compiled(RUN, "v5e:2x2", path) == first  # its seconds of compiling, too
    other = compiled(dataclasses.replace(RUN, train=TrainConfig(batch_size=8, strategy="fsdp")), "v5e:2x2", path)
    assert other.key != first.key
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == [first.key, other.key]


@needs_libtpu
@pytest.mark.slow
def test_a_compiler_that_is_ended_leaves_nothing_in_the_store(tmp_path):
    path = tmp_path / "store.jsonl"
    for limits in ({"seconds": 1.0}, {"memory_bytes": 200 * 2**20}):
        found = compiled(RUN, "v5e:2x2", path, **limits)
        assert found.reason.startswith("The compiler ")
        assert found.fits is None
    assert not path.exists() or path.read_text() == ""


@needs_libtpu
@pytest.mark.slow
def test_between_slices_only_the_replicas_speak(tmp_path):
    run = dataclasses.replace(RUN, train=TrainConfig(batch_size=8, strategy="hsdp"))
    found = compiled(run, "2xv5e:2x2")
    assert found.reason is None
    assert ("fsdp",) in {message.axes for message in found.messages if message.kind == "all-gather"}
    assert not {("replica",), ("replica", "fsdp")} & {m.axes for m in found.messages if m.kind == "all-gather"}


@needs_libtpu
@pytest.mark.slow
def test_a_step_that_does_not_fit_is_kept_as_such(tmp_path):
    path = tmp_path / "store.jsonl"
    run = dataclasses.replace(RUN, train=TrainConfig(batch_size=4_000_000, strategy="dp"))
    first = compiled(run, "v5e:2x2", path)
    assert first.fits is False
    assert "does not fit into a device's memory" in first.reason
    assert compiled(run, "v5e:2x2", path) == first
