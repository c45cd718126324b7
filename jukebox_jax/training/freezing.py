"""Parts of a model that stay as they are while the rest is trained."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from jukebox_jax.errors import UserError

PyTree = Any


def partition(params: PyTree, frozen: tuple[str, ...]) -> tuple[PyTree, PyTree]:
    """Nested dicts in two, without empty ones: what is trained, and what is frozen.

    Args:
      params: nested dicts of anything; returned as it is if nothing is frozen.
      frozen: patterns of names with slashes, as in "decoder/transformer/*" (`*` also stands for slashes); a pattern
        takes what is below a name, too: "labels" is "labels" and "labels/*".

    Raises:
      UserError: a pattern matches nothing (names the nearest parameters), or together they match everything.
    """
    if not frozen:
        return params, {}
    flat = flatten_dict(params, sep="/")
    kept = {name for name in flat if any(_matches(name, pattern) for pattern in frozen)}
    for pattern in frozen:
        if not any(_matches(name, pattern) for name in flat):
            raise UserError(f"train.frozen: no parameter is called {pattern!r}: {_nearest(pattern, flat)}")
    if len(kept) == len(flat):
        raise UserError(f"train.frozen={','.join(frozen)} freezes every parameter: leave some to be trained.")
    trained = {name: leaf for name, leaf in flat.items() if name not in kept}
    return unflatten_dict(trained, sep="/"), unflatten_dict({name: flat[name] for name in kept}, sep="/")


def combine(trained: PyTree, frozen: PyTree) -> PyTree:
    """The inverse of `partition`."""
    if not frozen:
        return trained
    flat = flatten_dict(trained, sep="/") | flatten_dict(frozen, sep="/")
    return unflatten_dict(dict(sorted(flat.items())), sep="/")


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}/*")


def _nearest(pattern: str, names: Mapping[str, Any]) -> str:
    """The closest of all names and of the names of groups."""
    groups = {"/".join(name.split("/")[:end]) for name in names for end in range(1, name.count("/") + 2)}
    close = difflib.get_close_matches(pattern.rstrip("/*"), sorted(groups), n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"the groups are {', '.join(sorted({name.split('/')[0] for name in names}))}."
