"""How long messages take on a topology: a model of links, by formula. Latencies count nothing.

The chips of a group, found by laying the mesh over the topology as `parallel.mesh` does, extend over some axes of the
torus. Along an axis of which a group has every s-th chip, s groups share the links. An axis that a group spans whole
and that wraps round is a ring: a chip sends in two directions at once; else it is a line, whose ends have one
neighbour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jukebox_jax.parallel.collectives import Message
from jukebox_jax.parallel.mesh import AXES, device_grid
from jukebox_jax.parallel.topology import Topology, described_devices


@dataclass(frozen=True)
class _Extent:
    """Of a group of chips along one axis of a slice's torus.

    Attributes:
      length: different places.
      stride: steps from one to the next.
      closed: whether the links close a ring.
    """

    length: int
    stride: int
    closed: bool


class Network:
    """The links of a topology under a mesh."""

    def __init__(self, topology: Topology, mesh: Sequence[int]):
        self._topology = topology
        devices = described_devices(topology)[: math.prod(mesh)]
        grid = device_grid(tuple(mesh), devices)
        axes = range(len(topology.shape))
        self._places = np.array([[device.coords[axis] for axis in axes] for device in grid.flat])
        self._places = self._places.reshape(*grid.shape, len(topology.shape))
        self._slices = np.array([device.slice_index for device in grid.flat]).reshape(grid.shape)

    def seconds(self, message: Message) -> tuple[float, float]:
        """Seconds in the slice's own network, and in the one between slices.

        With w the bytes per second of a link in one direction, n chips in the group, s the stride, and B bytes in all
        (of an all-to-all: of one chip):

        - all-gather, reduce-scatter: (n - 1) / n · B over the sum of 2 w / s for each closed axis and w / s for each
          open one. An all-reduce sends twice as much.
        - all-to-all: half of all data crosses the middle of the longest axis, of length e: B e s / (8 w) if it is
          closed, B e s / (4 w) if not.
        - collective-permute: B over w, times the messages of the busiest link.
        - Over m slices, i chips of the group in each: within the slices all of B, between them 1 / i of it, each by the
          formulas above with i and m for n.
        - Behind a switch: the bytes sent over w.
        """
        chip, sent = self._topology.chip, message.bytes_sent
        places, slices = self._group(message.axes)
        chips, count = len(slices), len(set(slices.tolist()))
        if chips == 1 or sent == 0:
            return 0.0, 0.0
        inner = chips // count
        if message.kind == "collective-permute":
            return (
                sent * self._hops(message.axes) / chip.link_bytes_per_second,
                sent / chip.dcn_bytes_per_second if count > 1 else 0.0,
            )
        whole = sent * chips / (chips - 1)  # what a group of any size would send a part of
        inside = whole * (inner - 1) / inner
        between = whole * (count - 1) / count / (1 if message.kind == "all-to-all" else inner)
        extents = self._extents(places[slices == slices[0]])
        if chip.switched:
            ici = inside / chip.link_bytes_per_second
        elif message.kind == "all-to-all":
            ici = max((self._across(whole, extent) for extent in extents), default=0.0)
        else:
            lanes = sum((2 if extent.closed else 1) / extent.stride for extent in extents)
            ici = inside / (chip.link_bytes_per_second * lanes) if lanes else 0.0
        return float(ici), float(between / chip.dcn_bytes_per_second)

    def _group(self, axes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Places and slices of the chips of one group."""
        index = tuple(slice(None) if axis in axes else 0 for axis in AXES)
        return self._places[index].reshape(-1, self._places.shape[-1]), self._slices[index].reshape(-1)

    def _extents(self, places: np.ndarray) -> list[_Extent]:
        found = []
        for axis, size in enumerate(self._topology.shape):
            values = np.unique(places[:, axis])
            if len(values) > 1:
                stride = int(np.diff(values).min())
                closed = self._topology.wraps[axis] and len(values) * stride == size
                found.append(_Extent(len(values), stride, closed))
        return found

    def _across(self, whole: float, extent: _Extent) -> float:
        width = 8 if extent.closed else 4
        return whole * extent.length * extent.stride / (width * self._topology.chip.link_bytes_per_second)

    def _hops(self, axes: Sequence[str]) -> int:
        """Messages that the busiest link carries, one way, if every chip sends one to its neighbour along the last of
        the axes, over the torus axis by axis; 1 behind a switch."""
        if self._topology.chip.switched:
            return 1
        axis, shape = AXES.index(axes[-1]), self._topology.shape
        chips = np.moveaxis(self._places, axis, 0).reshape(self._places.shape[axis], -1, len(shape))
        load: dict[tuple, int] = {}
        for start, stop in zip(chips[:-1].reshape(-1, len(shape)), chips[1:].reshape(-1, len(shape)), strict=True):
            at = start.tolist()
            for dimension, size in enumerate(shape):
                way = int(stop[dimension]) - at[dimension]
                if self._topology.wraps[dimension] and abs(way) > size / 2:
                    way -= size if way > 0 else -size
                for _ in range(abs(way)):
                    link = (*at, dimension, way > 0)
                    load[link] = load.get(link, 0) + 1
                    at[dimension] = (at[dimension] + (1 if way > 0 else -1)) % size
        return max(load.values(), default=1)
