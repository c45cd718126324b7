"""Seconds of messages, against counts of links by hand. A link of v5p carries 90 GB/s each way, one of v5e 45."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jukebox_jax.errors import UserError
from jukebox_jax.parallel.collectives import Message
from jukebox_jax.parallel.mesh import device_grid
from jukebox_jax.parallel.network import Network
from jukebox_jax.parallel.topology import described_devices, load_assumptions, parse_topology

ROOT = Path(__file__).parents[2]
GB = 1e9
V5P = parse_topology("v5p:4x4x4")


def seconds(topology: str, mesh: tuple[int, ...], kind: str, axes: tuple[str, ...], sent: float = GB) -> float:
    ici, dcn = Network(parse_topology(topology), mesh).seconds(Message(kind, axes, sent))
    assert dcn == 0
    return ici


def test_all_chips_of_a_torus_of_rings_send_in_six_directions():
    assert seconds("v5p:4x4x4", (1, 64, 1, 1), "all-gather", ("fsdp",)) == pytest.approx(GB / (6 * 90 * GB))


def test_a_plane_of_a_torus_sends_in_four_directions():
    found = seconds("v5p:4x4x4", (4, 16, 1, 1), "reduce-scatter", ("fsdp",))
    assert found == pytest.approx(GB / (4 * 90 * GB))


def test_a_ring_of_four_sends_in_two_directions():
    assert seconds("v5p:4x4x4", (4, 16, 1, 1), "all-reduce", ("replica",)) == pytest.approx(GB / (2 * 90 * GB))


def test_axes_of_eight_do_not_close_on_v5e_and_axes_of_sixteen_do():
    assert seconds("v5e:8x8", (8, 8, 1, 1), "all-gather", ("fsdp",)) == pytest.approx(GB / (45 * GB))
    assert seconds("v5e:16x16", (16, 16, 1, 1), "all-gather", ("fsdp",)) == pytest.approx(GB / (2 * 45 * GB))
    assert seconds("v5e:8x8", (1, 64, 1, 1), "all-gather", ("fsdp",)) == pytest.approx(GB / (2 * 45 * GB))


def test_slices_smaller_than_a_cube_have_no_rings():
    assert parse_topology("v5p:2x2x4").wraps == (False, False, False)
    assert V5P.wraps == (True, True, True)


def test_half_an_axis_is_a_line():
    # Pairs of neighbours: one link, one direction.
    assert seconds("v5p:4x4x4", (1, 32, 1, 2), "all-reduce", ("tensor",)) == pytest.approx(GB / (90 * GB))


def test_an_exchange_is_bound_by_the_middle():
    # A ring of four, of which each chip sends 3/4 of its B: 4 B / 4 cross the middle one way, over two links.
    whole = GB * 4 / 3
    found = seconds("v5p:4x4x4", (1, 16, 4, 1), "all-to-all", ("sequence",))
    assert found == pytest.approx(whole * 4 / (8 * 90 * GB))


def test_a_neighbour_is_one_link_away():
    found = seconds("v5p:4x4x4", (1, 16, 4, 1), "collective-permute", ("sequence",))
    assert found == pytest.approx(GB / (90 * GB))


def test_between_slices_only_what_is_left_is_sent():
    network = Network(parse_topology("2xv5p:4x4x4"), (8, 16, 1, 1))
    ici, dcn = network.seconds(Message("all-reduce", ("replica",), GB))
    whole = GB * 8 / 7  # twice the array: what goes round a ring of any size is a part of it
    assert ici == pytest.approx(whole * 3 / 4 / (2 * 90 * GB))
    assert dcn == pytest.approx(whole / 2 / 4 / (6.25 * GB))
    assert network.seconds(Message("all-gather", ("fsdp",), GB))[1] == 0


def test_gpus_share_a_switch_and_cables_beyond_it():
    assert seconds("gpu:8xh100", (1, 8, 1, 1), "all-gather", ("fsdp",)) == pytest.approx(GB / (450 * GB))
    ici, dcn = Network(parse_topology("gpu:16xh200"), (2, 8, 1, 1)).seconds(Message("all-reduce", ("replica",), GB))
    assert (ici, dcn) == pytest.approx((0, 2 * GB / 2 / (50 * GB)))


KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@given(
    st.sampled_from(KINDS),
    st.sampled_from([("fsdp",), ("replica",), ("replica", "fsdp"), ("sequence",), ("fsdp", "sequence")]),
    st.floats(0, 1e12),
    st.floats(0, 1e12),
)
def test_two_messages_take_as_long_as_one_of_their_size(kind, axes, one, other):
    network = Network(V5P, (4, 4, 4, 1))
    parts = [network.seconds(Message(kind, axes, size)) for size in (one, other, one + other)]
    assert sum(part[0] for part in parts[:2]) == pytest.approx(parts[2][0])
    assert network.seconds(Message(kind, axes, 0.0)) == (0.0, 0.0)


@pytest.mark.parametrize(
    "text", ["v5p:5x5x5", "v9:4x4", "gpu:12xh100", "gpu:8xa1", "v5e:4x4x4", "0xv5e:4x4", "v5e", ""]
)
def test_unknown_topologies_are_answered_with_the_known_ones(text):
    with pytest.raises(UserError, match=r"There is no topology .* choose v5e:2x2, .*v5p:.*v6e:.*h100, h200"):
        parse_topology(text)


def test_prices_may_be_ones_own(tmp_path):
    own = tmp_path / "own.toml"
    own.write_text("matmul_efficiency = 0.5\n[v5e]\ndollars_per_hour = 0.1\n[h100]\ndollars_per_hour = 2\n")
    assumptions = load_assumptions(own)
    chip = parse_topology("v5e:4x4", assumptions).chip
    assert (chip.dollars_per_hour, chip.matmul_efficiency) == (0.1, 0.5)
    assert chip.link_bytes_per_second == V5P.chip.link_bytes_per_second / 2
    assert parse_topology("gpu:8xh100", assumptions).chip.dollars_per_hour == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[v5x]\n", "there is no 'v5x'"),
        ("[v5e]\ndollar_per_hour = 1", "dollars_per_hour"),
        ("[v5e]\ndollars_per_hour = -1", "give a number, 0 or more"),
        ("matmul_efficiency = 1.5", "at most 1"),
        ("matmul_efficiency = 0", "above 0"),
        ("[v5e]\nmatrix_unit = 128.5", "whole number"),
        ("v5e = 3", "v5e is a table"),
        ("= 3", "is no TOML"),
    ],
)
def test_mistakes_in_ones_own_figures_are_told(tmp_path, text, words):
    own = tmp_path / "own.toml"
    own.write_text(text)
    with pytest.raises(UserError, match=words):
        load_assumptions(own)


REAL = """
import os, sys, json
os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
from jax.experimental import topologies
from jukebox_jax.parallel.mesh import device_grid
found = {}
for name, slices, sizes in json.loads(sys.argv[1]):
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name, num_slices=slices).devices
    grid = device_grid(tuple(sizes), list(devices))
    found[f"{name} {slices} {sizes}"] = [[*device.coords, getattr(device, "slice_index", 0)] for device in grid.flat]
    found[f"{name} kind"] = devices[0].device_kind
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: the extra [tpu]")
def test_described_devices_lie_as_those_of_the_compiler():
    cases = [
        ("v5p:4x4x4", 1, (4, 16, 1, 1)),
        ("v5p:4x4x4", 1, (4, 4, 4, 1)),
        ("v5e:8x8", 1, (1, 16, 2, 2)),
        ("v6e:8x8", 1, (8, 8, 1, 1)),
        ("v5p:2x2x4", 2, (2, 16, 1, 1)),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", REAL, json.dumps(cases)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for name, slices, sizes in cases:
        topology = parse_topology(name if slices == 1 else f"{slices}x{name}")
        grid = device_grid(sizes, described_devices(topology))
        ours = [[*device.coords, device.slice_index] for device in grid.flat]
        assert np.array_equal(ours, found[f"{name} {slices} {list(sizes)}"]), name
        assert topology.chip.device_kind == found[f"{name} kind"]
