"""What sharding asks to be sent, on eight devices: what is recorded of the train step, and how devices are numbered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECORDED = Path(__file__).with_name("collectives.json")

Counts = dict[str, dict[str, dict[str, float]]]

# The devices of the mesh lie in an order of their own: what counts is their place in the mesh.
NUMBERING = """
import json, sys
import tests.parallel.record_collectives
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jukebox_jax.parallel.collectives import messages
from jukebox_jax.parallel.hlo import partitioned
from jukebox_jax.parallel.mesh import AXES
devices = np.array(jax.devices())[[3, 6, 0, 5, 7, 1, 4, 2]].reshape(2, 2, 2, 1)
mesh = Mesh(devices, AXES)
found = {}
for axis in AXES[:3]:
    x = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=NamedSharding(mesh, P(axis)))
    lowered = jax.jit(lambda x: x.sum(0)).lower(x)
    for stage, hlo in (("partitioned", partitioned(lowered)), ("compiled", lowered.compile().as_text())):
        found[f"{axis} {stage}"] = [[m.kind, m.axes, m.bytes_sent] for m in messages(hlo, (2, 2, 2, 1))]
print(json.dumps(found))
"""


def python(*arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_train_step_sends_what_is_recorded():
    now = json.loads(python("-m", "tests.parallel.record_collectives", "--print"))
    told = differences(json.loads(RECORDED.read_text(encoding="utf-8")), now)
    assert not told, (
        "\n".join(["", *told])
        + "\nIf that is meant: python -m tests.parallel.record_collectives, and commit the difference."
    )


def test_partitions_are_numbered_as_the_mesh_orders_its_devices():
    found = json.loads(python("-c", NUMBERING))
    assert len(found) == 6
    for name, sent in found.items():
        assert sent == [["all-reduce", [name.split()[0]], 2 / 2 * 8 * 4]], name


def differences(recorded: Counts, now: Counts) -> list[str]:
    """In words, what is sent in another amount than recorded."""
    told = []
    for model in recorded.keys() | now.keys():
        for strategy in recorded.get(model, {}).keys() | now.get(model, {}).keys():
            before, after = recorded.get(model, {}).get(strategy, {}), now.get(model, {}).get(strategy, {})
            for what in before.keys() | after.keys():
                old, new = before.get(what, 0.0), after.get(what, 0.0)
                if new != old:
                    more = "more" if new > old else "less"
                    told.append(
                        f"{strategy} of {model}: {what} sends {abs(new - old):,.0f} bytes {more}: {new:,.0f} instead "
                        f"of {old:,.0f}"
                    )
    return sorted(told)


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ({"all-gather over sequence": 28672.0}, []),
        (
            {"all-gather over sequence": 40960.0},
            ["fsdp_sp of upsampler: all-gather over sequence sends 12,288 bytes more: 40,960 instead of 28,672"],
        ),
        (
            {"all-reduce over sequence": 28672.0},
            [
                "fsdp_sp of upsampler: all-gather over sequence sends 28,672 bytes less: 0 instead of 28,672",
                "fsdp_sp of upsampler: all-reduce over sequence sends 28,672 bytes more: 28,672 instead of 0",
            ],
        ),
    ],
)
def test_differences_are_told_in_words(now, told):
    assert (
        differences({"upsampler": {"fsdp_sp": {"all-gather over sequence": 28672.0}}}, {"upsampler": {"fsdp_sp": now}})
        == told
    )
