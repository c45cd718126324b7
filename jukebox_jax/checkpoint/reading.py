"""Orbax's ways of reading a checkpoint, with its ways of failing turned into one."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from jukebox_jax.errors import UserError

PyTree = Any


class UnreadableError(Exception):
    """A checkpoint is damaged; the message is its cause in a few words."""


# What Orbax and TensorStore raise for missing, cut or garbled files (NoEntryError is a KeyError).
_DAMAGE = (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError)


def stored_parts(folder: Path, needed: Iterable[str] = (), but: Iterable[str] = ()) -> dict[str, PyTree]:
    """The stored parts, `but` for some, as trees of leaves with shape and dtype; `needed` ones must be among them.

    Raises:
      UnreadableError: a part is missing or has no readable metadata.
    """
    with _quiet():
        parts = dict(ocp.checkpointables_metadata(folder.absolute()).metadata)
    for name in but:
        parts.pop(name, None)
    for name in {*parts, *needed}:
        if parts.get(name) is None:
            raise UnreadableError(f"{name} is missing or has no readable metadata")
    if not parts:
        raise UnreadableError("it is empty")
    return parts


def stored_about(folder: Path) -> dict[str, Any]:
    """What was stored beside the parts.

    Raises:
      UnreadableError: it cannot be read.
    """
    with _quiet():
        return dict(ocp.checkpointables_metadata(folder.absolute()).custom_metadata or {})


def load_parts(folder: Path, abstract: dict[str, PyTree], some: bool = False) -> dict[str, PyTree]:
    """The parts as arrays like those of `abstract`; parts that it does not name are not read.

    Args:
      some: it may name some arrays of a part only.

    Raises:
      UnreadableError: files are missing, cut or garbled.
    """
    options = ocp.Context()
    options.pytree.loading.partial_load = some
    with _quiet(), options:
        return ocp.load_checkpointables(folder.absolute(), abstract)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Turns what Orbax raises on damage into one `UnreadableError` and drops the pages of tracebacks it logs."""
    loggers = [logging.getLogger("asyncio"), logging.getLogger("absl")]
    levels, hook = [logger.level for logger in loggers], sys.unraisablehook
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda _: None  # its coroutines that never ran say so when they are collected
    try:
        yield
    except _DAMAGE as error:
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        text = str(cause).strip().splitlines() or [type(cause).__name__]
        del error, cause
        time.sleep(0.2)  # reads still under way fail in their own threads
        gc.collect()  # while the hook is off
        raise UnreadableError(text[0][:160]) from None
    finally:
        sys.unraisablehook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def check_same(stored: PyTree, wanted: PyTree, where: Path, writer: str = "") -> None:
    """Raises a UserError that names the first parameter in which a checkpoint and a model differ.

    Args:
      writer: what to say of who wrote it, behind its name.
    """
    there, here = shapes(stored), shapes(wanted)
    for name in [*here, *there]:
        if here.get(name) == there.get(name):
            continue
        if name not in there:
            what = f"it has no {name}"
        elif name not in here:
            what = f"this model has no {name}"
        else:
            what = f"{name} has shape {there[name]} there and {here[name]} here"
        raise UserError(
            f"{where}{writer} is a checkpoint of another model: {what}. Use the config it was trained with."
        )


def shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Path → shape of every leaf, paths with slashes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(int(size) for size in leaf.shape)
        for path, leaf in leaves
    }
