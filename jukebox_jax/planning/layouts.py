"""Combinations: a strategy with the sizes of its mesh, its batch, and what it recomputes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

from jukebox_jax.config import nearest
from jukebox_jax.errors import UserError
from jukebox_jax.models.transformer import Remat
from jukebox_jax.parallel.mesh import AXES, mesh_sizes
from jukebox_jax.parallel.strategies import STRATEGIES, get_strategy
from jukebox_jax.training.run import CodecRun, PriorRun

Run = CodecRun | PriorRun
Mesh = tuple[int, ...]
#: Which meshes of a strategy are looked at: its own, or all whose sizes are powers of two.
Meshes = Literal["own", "all"]


@dataclasses.dataclass(frozen=True)
class Combination:
    """How a run's step is laid over devices.

    Attributes:
      mesh: sizes of (replica, fsdp, sequence, tensor).
      batch_size: examples of a step, over all devices.
      remat: of a prior; None of a codec, which recomputes nothing.
    """

    strategy: str
    mesh: tuple[int, ...]
    batch_size: int
    accumulate: int = 1
    remat: Remat | None = None

    @property
    def examples(self) -> float:
        """Examples of a microbatch for each group of devices that share them (along `sequence` and `tensor`)."""
        return self.batch_size / self.accumulate / (self.mesh[0] * self.mesh[1])

    def of(self, run: Run) -> Run:
        """The run with this combination in its config.

        Raises:
          UserError: what a config refuses, as a batch that `accumulate` does not divide.
        """
        train = dataclasses.replace(
            run.train,
            strategy=self.strategy,
            mesh=self.mesh,
            batch_size=self.batch_size,
            accumulate=self.accumulate,
        )
        model = run.model if self.remat is None else dataclasses.replace(run.model, remat=self.remat)
        return dataclasses.replace(run, model=model, train=train)

    def __str__(self) -> str:
        """For people."""
        parts = [self.strategy, "×".join(map(str, self.mesh)), f"batch {self.batch_size}"]
        parts += [f"accumulate {self.accumulate}"] * (self.accumulate > 1)
        parts += [f"remat {self.remat}"] * (self.remat is not None)
        return ", ".join(parts)


def meshes_of(strategy: str, chips: int, slices: int, meshes: Meshes | Mesh) -> Iterator[Mesh]:
    """Meshes of all chips for a strategy; its own first. `single` has one, of one chip.

    Raises:
      UserError: an unknown strategy, or a mesh that does not fit the chips.
    """
    shape = get_strategy(strategy).mesh_shape
    if not isinstance(meshes, str):
        yield mesh_sizes(meshes, chips, slices)
        return
    try:
        own = mesh_sizes(shape, chips, slices)
    except UserError:  # pairs, of an odd number of chips
        if meshes == "own":
            raise
        own = None
    if own is not None:
        yield own
    if meshes == "all" and strategy not in ("single", "dp"):
        for mesh in _powers(strategy, chips):
            crossing = math.prod(mesh[1:]) > chips // slices  # only copies lie in different slices
            if mesh != own and not crossing:
                yield mesh


def _powers(strategy: str, chips: int) -> Iterator[Mesh]:
    """Every way to divide chips among the axes of a strategy by powers of two."""
    pairs = {"fsdp_sp": 2, "fsdp_tp": 3}.get(strategy)
    inner = 1
    while inner * 2 <= chips and chips % (inner * 2) == 0:
        inner *= 2
        for group in _factors(chips // inner) if pairs else [chips // inner]:
            sizes = [chips // inner // group, group, 1, 1] if pairs else [inner, group, 1, 1]
            if pairs:
                sizes[pairs] = inner
            if strategy != "fsdp" and (pairs or group > 1):
                yield tuple(sizes)


def _factors(chips: int) -> Iterator[int]:
    group = 1
    while chips % group == 0:
        yield group
        group *= 2


def strategies(names: str) -> tuple[str, ...]:
    """Reads `all`, or names with commas between them; of `all`, `single` is none.

    Raises:
      UserError: an unknown name; says the nearest one.
    """
    if names == "all":
        return tuple(name for name in STRATEGIES if name != "single")
    found = tuple(name.strip() for name in names.split(","))
    for name in found:
        get_strategy(name)
    return found


def parse_meshes(text: str) -> Meshes | Mesh:
    """Reads `own`, `all`, or sizes as 4x16x1x1 (-1: the rest).

    Raises:
      UserError: it is none of these.
    """
    if text in ("own", "all"):
        return text
    sizes = text.split("x")
    if len(sizes) != len(AXES) or not all(size == "-1" or (size.isdecimal() and int(size) > 0) for size in sizes):
        raise UserError(
            f"{text!r} is no mesh: give own, all, or sizes of {', '.join(AXES)}, as 1x4x2x1 (-1: the rest)."
        )
    return tuple(map(int, sizes))


def parse_remats(names: Sequence[str], run: Run) -> tuple[Remat, ...]:
    """Ways of rematerialisation.

    Raises:
      UserError: an unknown one, or any for a codec.
    """
    if names and isinstance(run, CodecRun):
        raise UserError("A codec recomputes nothing: leave --remat out.")
    for name in names:
        if name not in get_args(Remat):
            raise UserError(f"There is no remat {name!r}: {nearest(name, get_args(Remat))}")
    return tuple(names)


def accumulations(batch_size: int, mesh: Sequence[int], most: int = 1024) -> Iterator[int]:
    """Numbers of microbatches that divide a batch so that every group of chips has as many whole examples of each."""
    groups = mesh[0] * mesh[1]
    for parts in range(1, min(most, batch_size) + 1):
        if batch_size % (parts * groups) == 0:
            yield parts
