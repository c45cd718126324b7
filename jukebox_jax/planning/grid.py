"""Grids: which combinations of strategy, mesh, batch, rematerialisation and accumulation are looked at."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from jukebox_jax.config import nearest
from jukebox_jax.errors import UserError
from jukebox_jax.models.transformer import Remat
from jukebox_jax.parallel.mesh import AXES, mesh_sizes
from jukebox_jax.parallel.strategies import get_strategy
from jukebox_jax.planning.bench_step import Here
from jukebox_jax.planning.layouts import Combination, Run
from jukebox_jax.training.run import CodecRun

OWN = "own"

#: Values by name, as people gave them.
Grid = Mapping[str, Sequence[Any]]


def parse_grid(words: Sequence[str], run: Run) -> Grid:
    """Reads `NAME=VALUE,VALUE,…` each, as strategy=dp,fsdp batch=8,16 remat=none,block accumulate=1,2 mesh=own,1x4x2x1.

    Raises:
      UserError: an unknown name or value (says the nearest one), a name given twice, no value, or remat for a codec.
    """
    grid: dict[str, list[Any]] = {}
    for word in words:
        name, _, values = word.partition("=")
        if name not in _READERS:
            raise UserError(f"--grid {word}: there is no {name!r} in a grid: {nearest(name, _READERS)}")
        if name in grid:
            raise UserError(f"--grid {word}: {name} is given twice: give all its values at once, {name}=A,B.")
        if not all(values.split(",")):
            raise UserError(f"--grid {word}: give {name} at least one value, as in {_EXAMPLES[name]}.")
        if name == "remat" and isinstance(run, CodecRun):
            raise UserError(f"--grid {word}: a codec recomputes nothing: leave remat out.")
        grid[name] = list(dict.fromkeys(_READERS[name](word, value) for value in values.split(",")))
    return grid


def combinations(run: Run, grid: Grid, here: Here) -> list[Combination]:
    """Every combination of a grid, in its order; what it leaves out is as in the run's config.

    A mesh is the strategy's own, unless the grid has meshes or, without strategies in the grid, the config has one.
    Where that cannot be laid over the devices, it stays as it was asked for.
    """
    train, codec = run.train, isinstance(run, CodecRun)
    default = OWN if "strategy" in grid else train.mesh or OWN
    axes = (
        grid.get("strategy", [train.strategy]),
        grid.get("mesh", [default]),
        grid.get("batch", [train.batch_size]),
        grid.get("remat", [None if codec else run.model.remat]),
        grid.get("accumulate", [train.accumulate]),
    )
    found = []
    for strategy, mesh, batch_size, remat, accumulate in itertools.product(*axes):
        shape = get_strategy(strategy).mesh_shape if mesh == OWN else mesh
        try:
            sizes = mesh_sizes(shape, here.devices, here.slices)
        except UserError:  # its row will say so
            sizes = tuple(here.slices if size == "slices" else size for size in shape)
        found.append(Combination(strategy, sizes, batch_size, accumulate, remat))
    return list(dict.fromkeys(found))


def _strategy(word: str, value: str) -> str:
    del word
    get_strategy(value)
    return value


def _remat(word: str, value: str) -> str:
    if value not in get_args(Remat):
        raise UserError(f"--grid {word}: there is no remat {value!r}: {nearest(value, get_args(Remat))}")
    return value


def _count(word: str, value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise UserError(f"--grid {word}: {value!r} is no number: give whole numbers from 1.")
    return int(value)


def _mesh(word: str, value: str) -> str | tuple[int, ...]:
    if value == OWN:
        return OWN
    sizes = value.split("x")
    if len(sizes) != len(AXES) or not all(size == "-1" or (size.isdecimal() and int(size) > 0) for size in sizes):
        raise UserError(
            f"--grid {word}: {value!r} is no mesh: give own, or sizes of {', '.join(AXES)}, as 1x4x2x1 (-1: the rest)."
        )
    return tuple(map(int, sizes))


_READERS: dict[str, Callable[[str, str], Any]] = {
    "strategy": _strategy,
    "mesh": _mesh,
    "batch": _count,
    "remat": _remat,
    "accumulate": _count,
}
_EXAMPLES = {
    "strategy": "strategy=dp,fsdp",
    "mesh": "mesh=own,1x4x2x1",
    "batch": "batch=8,16",
    "remat": "remat=none,block",
    "accumulate": "accumulate=1,2",
}
