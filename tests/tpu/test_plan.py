"""`jukebox-jax plan` with the real TPU compiler; in processes of their own, as it would run."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path

import pytest

from tests.tpu.test_compile import python

LIBTPU = importlib.util.find_spec("libtpu") is not None
CONFIG = ("--config", "configs/prior.py:demo_top", "--topology", "v5e:2x2", "--batch", "8")


def plan(folder: Path, *arguments: str) -> list[dict]:
    files = ("--store", str(folder / "compiled.jsonl"), "--json", str(folder / "rows.json"), "--quiet")
    done = python("-m", "jukebox_jax", "plan", *CONFIG, *arguments, *files, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "rows.json").read_text())


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason="needs libtpu: the extra [tpu]")
def test_rows_are_compiled_once(tmp_path):
    arguments = ("--strategy", "fsdp,fsdp_sp", "--mesh", "own", "--compile", "all")
    found = plan(tmp_path, *arguments)
    assert [row["compiled"] for row in found] == [True, True]
    for row in found:
        assert row["fits"]
        assert row["compile_seconds"] > 0
        assert row["collective_bytes"]
        modelled = sum(row["modelled_memory"].values())
        assert 0.3 * row["peak_bytes"] < modelled < 3 * row["peak_bytes"]  # so small a model is mostly padding
    assert "sequence" in json.dumps(found[1]["collective_bytes"])
    started = time.monotonic()
    again = plan(tmp_path, *arguments)
    assert [row["compile_seconds"] for row in again] == [row["compile_seconds"] for row in found]
    assert time.monotonic() - started < 60


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason="needs libtpu: the extra [tpu]")
def test_a_row_that_the_compiler_gives_up_says_so_and_the_table_goes_on(tmp_path):
    limits = ("--strategy", "fsdp", "--mesh", "own", "--compile", "all", "--minutes", "0.01")
    (row,) = plan(tmp_path, *limits)
    assert not row["compiled"]
    assert row["modelled_memory"]
    assert "needed more than 0.6 s" in row["reason"]


@pytest.mark.skipif(LIBTPU, reason="libtpu is there")
def test_without_the_compiler_a_sentence_says_what_to_install(tmp_path):
    done = python("-m", "jukebox_jax", "plan", *CONFIG, "--compile", "all", "--quiet", timeout=300)
    assert done.returncode == 2
    assert 'pip install "jukebox-jax[tpu]"' in done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = python("-m", "jukebox_jax", "plan", *CONFIG, "--quiet", timeout=300)
    assert done.returncode == 0
    assert "nothing is compiled: The TPU compiler is missing" in done.stderr
