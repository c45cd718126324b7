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


def compile_rows(tmp_path: Path, *arguments: str) -> list[dict]:
    done = python("-m", "experiments.tpu_plans", *arguments, "--json", str(tmp_path / "rows.json"), timeout=3000)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((tmp_path / "rows.json").read_text())


def test_the_compiler_has_as_much_memory_as_the_plans_think():
    from jukebox_jax.parallel.plan import HBM_LIMITS

    done = python("-c", LIMITS, "v4:4x4x4", "v5e:8x8", "v5p:4x4x4", "v6e:8x8", "tpu7x:4x4x4", timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == {kind: round(size / 2**30, 2) for kind, size in HBM_LIMITS.items()}


@pytest.mark.parametrize(
    ("topology", "most_gib", "values"),
    [
        ("v5e:8x8", 15.75, ("--config.train.mesh=(1,64,1,1)",)),
        ("v5p:4x4x4", 95.74, ()),
        ("v6e:8x8", 31.25, ()),
    ],
)
def test_the_5b_step_fits(tmp_path, topology, most_gib, values):
    (row,) = compile_rows(tmp_path, "--topology", topology, "--config", "configs/prior.py:5b", *values)
    memory = row["memory"]
    total = memory["arguments"] + memory["temporaries"] + memory["outputs"]
    assert row["batch"] >= 64
    assert memory["devices"] == 64
    assert memory["parts"]["parameters"] == pytest.approx(4 * 5_060_452_800 / row["mesh"][1], rel=0.01)  # in groups
    assert memory["parts"]["optimizer"] == pytest.approx(2 * memory["parts"]["parameters"], rel=0.01)
    assert total < most_gib * 2**30


def test_a_step_between_slices_keeps_the_weights_inside_them(tmp_path):
    arguments = ("--topology", "v5e:2x2", "--slices", "2", "--config", "configs/prior.py:demo_top", "--batch", "8")
    mesh = ("--config.train.strategy=fsdp", "--config.train.mesh=(2,4,1,1)")
    (row,) = compile_rows(tmp_path, *arguments, *mesh)
    assert row["memory"]["devices"] == 8
    assert "fsdp" in {kind.rpartition("/")[2] for kind in row["sent"]}  # gathers inside a slice


def test_a_step_that_does_not_fit_is_one_line(tmp_path):
    arguments = ("--topology", "v5e:2x2", "--config", "configs/prior.py:demo_top", "--batch", "400000")
    done = python("-m", "experiments.tpu_plans", *arguments, "--config.train.strategy=dp", timeout=1200)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "does not fit into a device's memory" in done.stderr


def test_an_unknown_topology_is_one_line():
    done = python(
        "-m", "experiments.tpu_plans", "--topology", "v5e:9x9", "--config", "configs/prior.py:demo_top", timeout=300
    )
    assert done.returncode == 2
    assert "No topology v5e:9x9" in done.stderr
    assert "Traceback" not in done.stderr
