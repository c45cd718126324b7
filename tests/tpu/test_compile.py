"""Steps compiled by the real TPU compiler, for chips that are not there. In processes of their own: libtpu wants its
environment before jax is imported."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: the extra [tpu]"),
]

LIMITS = """
import json, os, re, sys
os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
import jax
from jax.experimental import topologies
found = {}
for name in sys.argv[1:]:
    device = topologies.get_topology_desc(platform="tpu", topology_name=name).devices[0]
    whole = jax.sharding.SingleDeviceSharding(device)
    matrix = jax.ShapeDtypeStruct((2**18, 2**18), "float32", sharding=whole)
    try:
        jax.jit(lambda x: x @ x).lower(matrix).compile()
    except jax.errors.JaxRuntimeError as error:
        found[device.device_kind] = float(re.search(r"available HBM \\(([\\d.]+)G\\)", str(error))[1])
print(json.dumps(found))
"""


def python(*arguments: str, timeout: float) -> subprocess.CompletedProcess:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}  # as it would run
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=timeout, check=False
    )


def compiled_row(folder: Path, *arguments: str) -> dict:
    """The one row of a plan whose every row is compiled."""
    files = ("--store", str(folder / "compiled.jsonl"), "--json", str(folder / "rows.json"), "--quiet")
    done = python("-m", "jukebox_jax", "plan", *arguments, "--compile", "all", *files, timeout=3000)
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = json.loads((folder / "rows.json").read_text())
    return row


def test_the_compiler_has_as_much_memory_as_the_plans_think():
    from jukebox_jax.parallel.plan import HBM_LIMITS

    done = python("-c", LIMITS, "v4:4x4x4", "v5e:8x8", "v5p:4x4x4", "v6e:8x8", "tpu7x:4x4x4", timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == {kind: round(size / 2**30, 2) for kind, size in HBM_LIMITS.items()}


@pytest.mark.parametrize(
    ("topology", "strategy", "mesh"),
    [("v5e:8x8", "fsdp", "1x64x1x1"), ("v5p:4x4x4", "hsdp", "4x16x1x1"), ("v6e:8x8", "hsdp", "4x16x1x1")],
)
def test_the_5b_step_fits_as_modelled(tmp_path, topology, strategy, mesh):
    arguments = ("--config", "configs/prior.py:5b", "--topology", topology, "--batch", "64")
    row = compiled_row(tmp_path, *arguments, "--strategy", strategy, "--mesh", mesh)
    assert row["compiled"]
    assert row["fits"]
    memory = row["modelled_memory"]
    assert memory["parameters"] == pytest.approx(4 * 5_060_452_800 / row["mesh"][1], rel=0.01)  # in groups
    assert memory["optimizer"] == pytest.approx(2 * memory["parameters"], rel=0.01)
    assert sum(memory.values()) == pytest.approx(row["peak_bytes"], rel=0.1)
    assert row["hbm_bytes_per_chip"] < row["hbm_limit"]
    # In groups of 16 weights are gathered.
    assert ("all-gather" in row["collective_bytes"]) == (mesh != "1x64x1x1" or topology != "v5p:4x4x4")


def test_a_step_between_slices_keeps_the_weights_inside_them(tmp_path):
    arguments = ("--config", "configs/prior.py:demo_top", "--topology", "2xv5e:2x2", "--batch", "8")
    row = compiled_row(tmp_path, *arguments, "--strategy", "hsdp", "--mesh", "2x4x1x1")
    assert row["chips"] == 8
    gathered = row["collective_bytes"].get("all-gather", {})
    assert set(gathered) <= {"fsdp"}
    sent = {axes: size for kind in row["collective_bytes"].values() for axes, size in kind.items()}
    assert sent["fsdp"] > 0


def test_a_step_that_does_not_fit_is_one_sentence(tmp_path):
    arguments = ("--config", "configs/prior.py:demo_top", "--topology", "v5e:2x2", "--batch", "400000")
    row = compiled_row(tmp_path, *arguments, "--strategy", "dp", "--accumulate", "1")
    assert row["compiled"]
    assert not row["fits"]
    assert "does not fit into a device's memory" in row["reason"]
