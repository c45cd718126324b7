"""The table of what accelerators can do at best."""

from __future__ import annotations

import pytest

from jukebox_jax.parallel.peaks import PEAKS, peak


def test_a_device_is_looked_up_by_its_whole_name():
    assert peak("NVIDIA H100 80GB HBM3").flops_per_second == 989.5e12
    assert peak("TPU v5 lite") == peak("TPU v5e") != peak("TPU v5")
    assert peak("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None
    assert peak("cpu") is None


@pytest.mark.parametrize("kind", PEAKS)
def test_figures_are_in_their_units(kind):
    found = PEAKS[kind]
    assert 50e12 < found.flops_per_second < 5e15
    assert 400e9 < found.memory_bytes_per_second < 10e12
    assert 10e9 < found.memory_bytes < 300e9
