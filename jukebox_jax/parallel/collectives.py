"""What the chips of a compiled program send one another, read from its HLO."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from typing import Literal, get_args

import numpy as np
from jaxtyping import Int

from jukebox_jax.parallel.hlo import array_bytes, computations, operands, times_run
from jukebox_jax.parallel.mesh import AXES

Kind = Literal["all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"]

_COLLECTIVE = re.compile(rf" = (.+?) ({'|'.join(get_args(Kind))})(-start)?(\(.*)")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_CHAIN = re.compile(r'\bchain_id="(\d+)"')
_PAIRS = re.compile(r"source_target_pairs=\{([\d,{} ]*)\}")
_LISTED = re.compile(r"replica_groups=\{([\d,{} ]*)\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)")
_OF_A_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?\)?)\))? \{([^}]*)\}")
_PART = re.compile(r"\((\d+)\)(\d+)")


@dataclasses.dataclass(frozen=True)
class Message:
    """What every chip sends in one run of a program, by collectives of one kind over the same mesh axes.

    Attributes:
      axes: mesh axes along which the members of a group differ, in the order of `mesh.AXES`.
      bytes_sent: by each chip, as a ring sends them.
    """

    kind: Kind
    axes: tuple[str, ...]
    bytes_sent: float


def messages(hlo: str, mesh_sizes: tuple[int, ...]) -> list[Message]:
    """What a program sends, the largest first.

    Counted as a ring sends it: of an array of B bytes over n chips, (n - 1) / n B for all-gather, reduce-scatter and
    all-to-all (B is the whole array), twice that for all-reduce, B for collective-permute, also where it leaves out
    some chips. Loops count as often as they run. Where the TPU compiler makes something else of a collective, that is
    counted: a gather by an all-reduce of slices in zeros as an all-reduce, a gather by a chain of permutes as permutes.
    Two exceptions: the pieces of a collective that is spread over several fusions share a channel and a chain, and
    count once; and an all-reduce that is fused with the slice that is taken of it is a reduce-scatter.

    Args:
      hlo: after SPMD partitioning or later; of a program for a `Mesh`, whose partition i is the i-th of its devices.
      mesh_sizes: of `mesh.AXES`.

    Raises:
      ValueError: a loop that is not a scan, or groups of chips in an unknown form.
    """
    program = computations(hlo)
    runs = times_run(program)
    sent: dict[tuple[Kind, tuple[str, ...]], float] = defaultdict(float)
    pieces: set[tuple[str, str]] = set()
    for name, lines in program.items():
        for line in lines:
            found = _COLLECTIVE.search(line)
            if found is None or not runs[name]:
                continue
            channel, chain = _CHANNEL.search(line), _CHAIN.search(line)
            if channel and chain:
                if (channel[1], chain[1]) in pieces:
                    continue
                pieces.add((channel[1], chain[1]))
            shapes, kind, start, call = found.groups()
            groups = _groups(line, math.prod(mesh_sizes))
            size = _whole_bytes(kind, array_bytes(shapes), len(operands(call)), start is not None, groups.shape[1])
            if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
            others = (groups.shape[1] - 1) / groups.shape[1]
            factor = {"all-reduce": 2 * others, "collective-permute": 1.0}.get(kind, others)
            sent[kind, _axes(groups, mesh_sizes)] += runs[name] * factor * size
    found = [Message(kind, axes, size) for (kind, axes), size in sent.items() if axes]
    return sorted(found, key=lambda message: (-message.bytes_sent, message.kind, message.axes))


def _whole_bytes(kind: str, sizes: list[int], count: int, started: bool, chips: int) -> int:
    """Bytes of what is gathered, reduced, exchanged or passed on, over all chips of a group (of a permute, of one).

    Args:
      sizes: of the arrays in the instruction's type, which of one that only starts has operands, results and more; an
        all-reduce has results alone.
      count: operands.
    """
    if not started or kind == "all-reduce":
        return sum(sizes) * (chips if kind == "reduce-scatter" else 1)
    return sum(sizes[count : 2 * count] if kind == "all-gather" else sizes[:count])


def _axes(groups: Int[np.ndarray, "groups chips"], mesh_sizes: tuple[int, ...]) -> tuple[str, ...]:
    """Mesh axes along which the members of any group differ."""
    coordinates = np.unravel_index(groups, mesh_sizes)
    return tuple(axis for axis, c in zip(AXES, coordinates, strict=True) if (c != c[:, :1]).any())


def _groups(line: str, chips: int) -> Int[np.ndarray, "groups chips"]:
    """Partitions that take part together: of a permute, pairs of source and target; else from one of the forms
    `{{0,1},…}`, `{}` (all), `[groups,size]<=[…]T(…)` and `mesh['a'=4,…], device_ids=([…]T(…)) {'a',…}`."""
    if found := _PAIRS.search(line):
        return _listed(found[1]).reshape(-1, 2)
    if found := _IOTA.search(line):
        return _iota(found[3]).reshape(int(found[1]), int(found[2]))
    if found := _OF_A_MESH.search(line):
        return _groups_of_a_mesh(*found.groups())
    if found := _LISTED.search(line):
        ids = _listed(found[1])
        return ids.reshape(max(1, found[1].count("{")), -1) if ids.size else np.arange(chips)[None]
    raise ValueError(f"no groups of chips in: {line.strip()[:200]}")


def _groups_of_a_mesh(mesh: str, ids: str | None, along: str) -> Int[np.ndarray, "groups chips"]:
    """Partitions that differ only along some axes of a mesh that the compiler describes.

    Args:
      mesh: `'a'=4,'b'=2`.
      ids: the partitions in the mesh's order, as `[2,4]T(1,0)` or `0,2,…`; None: 0, 1, ….
      along: `'a','b'`; of an axis cut into (before, size, rest), `'a':(before)size` is the part in the middle.
    """
    sizes = {axis: int(size) for axis, size in re.findall(r"'([\w.-]+)'=(\d+)", mesh)}
    shape = tuple(sizes.values())
    coordinates = np.indices(shape).reshape(len(shape), -1)
    others, together = coordinates.copy(), 1
    for text in along.replace("'", "").replace(" ", "").split(","):
        axis, _, part = text.partition(":")
        index = list(sizes).index(axis)
        before, size = map(int, _PART.fullmatch(part).groups()) if part else (1, sizes[axis])
        rest = sizes[axis] // (before * size)
        others[index] -= coordinates[index] // rest % size * rest
        together *= size
    partitions = np.arange(math.prod(shape))
    if ids:
        partitions = _iota(ids).ravel() if ids.startswith("[") else _listed(ids)
    order = np.argsort(np.ravel_multi_index(tuple(others), shape), kind="stable")
    return partitions[order].reshape(-1, together)


def _listed(text: str) -> Int[np.ndarray, " ids"]:
    return np.array(re.findall(r"\d+", text), int)


def _iota(text: str) -> Int[np.ndarray, "*shape"]:
    """`[4,2]T(1,0)`: 0, 1, … in the shape of [4,2], transposed."""
    shape, _, order = text.partition("T")
    sizes = _listed(shape)
    ids = np.arange(math.prod(sizes.tolist())).reshape(sizes)
    return ids.transpose(_listed(order)) if order else ids
