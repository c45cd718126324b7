"""Checkpoints on disk: Orbax data with the run's config beside it as plain JSON.

    RUN/config.json   RUN/checkpoints/STEP/{params,ema,model_state,trainer}   written while training
    MODEL/config.json MODEL/weights                                           weights alone, small, to be shipped

Both can be given wherever a model is read. Nothing here knows a model: trees come in and go out.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from jukebox_jax import config as config_lib
from jukebox_jax.errors import UserError
from jukebox_jax.files import atomic_folder

PyTree = Any

CONFIG_FILE = "config.json"
_METADATA_FILE = "metadata.json"
_CHECKPOINTS = "checkpoints"
_WEIGHTS = "weights"
# A model above this size is written array by array, in pieces: beside itself it then needs little memory.
_LARGE_BYTES, _CHUNK_BYTES = 2**30, 2**26


# ---- Training checkpoints ---------------------------------------------------------------------------------------


class TrainingCheckpoints:
    """Writes a run's checkpoints, at most one at a time, in the background; keeps the latest ones.

    A checkpoint appears under its step's name only when it is complete.
    """

    def __init__(self, run_dir: os.PathLike | str, keep: int) -> None:
        self._folder, self._keep = Path(run_dir).absolute() / _CHECKPOINTS, keep
        self._checkpointer = self._open()

    def _open(self) -> ocp.training.Checkpointer:
        return ocp.training.Checkpointer(
            self._folder,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(self._keep),
            cleanup_tmp_directories=True,
        )

    def save(self, step: int, parts: Mapping[str, PyTree]) -> None:
        """Copies `parts` to the host and starts writing them; the arrays may be donated as soon as this returns."""
        # Orbax refuses parts without leaves; restoring puts them back from the abstract state.
        filled = {name: part for name, part in parts.items() if jax.tree.leaves(part)}
        self._checkpointer.save_checkpointables_async(step, filled, force=True)

    def wait(self) -> None:
        """Returns when all that was saved is on disk; raises what went wrong in the background."""
        self._checkpointer.wait()

    def forget_after(self, step: int) -> None:
        """Removes the checkpoints of later steps, on all hosts at once."""
        self._checkpointer.close()
        if jax.process_index() == 0:
            for later in steps(self._folder.parent):
                if later > step:
                    shutil.rmtree(self._folder / str(later))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("checkpoints removed")
        self._checkpointer = self._open()

    def __enter__(self) -> TrainingCheckpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._checkpointer.close()


def steps(run_dir: os.PathLike | str) -> list[int]:
    """The steps of the complete checkpoints of a run folder, ascending."""
    folder = Path(run_dir) / _CHECKPOINTS
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal() and entry.is_dir())


def restore(run_dir: os.PathLike | str, step: int, abstract: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Restores the checkpoint of a step (see `restore_latest`)."""
    try:
        return _restore_parts(Path(run_dir) / _CHECKPOINTS / str(step), abstract)
    except _UnreadableError as error:
        raise UserError(
            f"Checkpoint {step} of {run_dir} cannot be read ({error}): remove it and start again."
        ) from None


def restore_latest(run_dir: os.PathLike | str, abstract: Mapping[str, PyTree]) -> tuple[int, dict[str, PyTree]] | None:
    """Restores the latest checkpoint that can be read, directly into its shardings.

    A checkpoint that cannot be read is set aside in `run_dir` with a line on stderr, and the one before it is used.

    Args:
      abstract: the parts as trees of ShapeDtypeStructs with shardings.

    Returns:
      (step, parts), or None if there is no checkpoint.

    Raises:
      UserError: a checkpoint of another model, or none that can be read.
    """
    run_dir = Path(run_dir)
    found = steps(run_dir)
    for step in reversed(found):
        try:
            return step, _restore_parts(run_dir / _CHECKPOINTS / str(step), abstract)
        except _UnreadableError as error:
            aside = _set_aside(run_dir, step)
            print(f"Checkpoint {step} of {run_dir} cannot be read ({error}); moved to {aside}.", file=sys.stderr)
    if found:
        raise UserError(f"No checkpoint of {run_dir} can be read: remove the folder to start again from nothing.")
    return None


def _restore_parts(folder: Path, abstract: Mapping[str, PyTree]) -> dict[str, PyTree]:
    filled = {name: part for name, part in abstract.items() if jax.tree.leaves(part)}
    stored = _stored(folder)
    # Empty parts are not stored, so that a part which only one side has is a difference, too.
    check_same(stored, filled, folder)
    return {**abstract, **_load(folder, filled)}


def _set_aside(run_dir: Path, step: int) -> Path:
    """Moves a broken checkpoint away: left in place it would count as the latest one, and good ones would go."""
    target = run_dir / f"unreadable_checkpoint_{step}"
    number = 1
    while target.exists():
        number += 1
        target = run_dir / f"unreadable_checkpoint_{step}_{number}"
    if jax.process_index() == 0:
        os.replace(run_dir / _CHECKPOINTS / str(step), target)
    return target


# ---- Model folders ----------------------------------------------------------------------------------------------


def save_model(
    folder: os.PathLike | str,
    tree: PyTree,
    config: Any,
    *,
    dtype: Any = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes a model folder: `config.json`, the weights in few small files, and `metadata.json` if given.

    Args:
      folder: must not exist, or be empty.
      tree: nested dicts of arrays; for a model, `{"params": …, "model_state": …}` (the latter only if it has leaves).
      config: a dataclass or JSON-able dict.
      dtype: casts floating-point leaves, e.g. `jnp.bfloat16`; zstd then brings normal weights to about 1.6 bytes each.

    Raises:
      UserError: the folder holds something already.
    """
    if dtype is not None:
        tree = jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)
    if isinstance(tree, Mapping):
        tree = {name: part for name, part in tree.items() if jax.tree.leaves(part)}
    # Orbax copies numpy arrays before it writes them, jax arrays not.
    tree = jax.tree.map(lambda leaf: jax.device_put(leaf) if isinstance(leaf, np.ndarray) else leaf, tree)
    options = ocp.Context()
    if sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) > _LARGE_BYTES:
        # The database that gathers small arrays in few files keeps all of them in memory until it closes.
        options.array_options.saving.use_ocdbt = False
        options.array_options.saving.storage_options.chunk_byte_size = _CHUNK_BYTES
    # A few files without duplicated metadata: whoever reads weights states their shardings.
    options.array_options.saving.enable_write_sharding_file = False
    options.array_options.saving.array_metadata_store = None
    with atomic_folder(folder) as temporary:
        config_lib.save_json(temporary / CONFIG_FILE, config)
        if metadata is not None:
            config_lib.save_json(temporary / _METADATA_FILE, metadata)
        with options:
            ocp.save_checkpointables((temporary / _WEIGHTS).absolute(), {_WEIGHTS: tree})


def save_config(folder: os.PathLike | str, config: Any) -> None:
    """Writes `config.json` of a run folder or model folder."""
    config_lib.save_json(Path(folder) / CONFIG_FILE, config)


def load_config(folder: os.PathLike | str) -> dict[str, Any]:
    """Reads `config.json` of a run folder or model folder.

    Raises:
      UserError: no such folder, or no checkpoint in it.
    """
    folder = _existing(folder)
    return config_lib.load_json(folder / CONFIG_FILE)


def load_metadata(folder: os.PathLike | str) -> dict[str, Any]:
    """What `save_model` was given as `metadata`; `{}` if nothing, and for a run folder `{"step": …}`."""
    folder = _existing(folder)
    if not (folder / _WEIGHTS).is_dir():
        return {"step": _latest(folder)}
    return config_lib.load_json(folder / _METADATA_FILE) if (folder / _METADATA_FILE).exists() else {}


def load_model(
    folder: os.PathLike | str,
    abstract: PyTree | None = None,
    *,
    dtype: Any = None,
    shardings: PyTree | None = None,
) -> PyTree:
    """Reads weights from a model folder, or from the latest checkpoint of a run folder.

    From a run folder the tree is `{"params": …, "model_state": …}`, with the average of the weights as `params` if
    one was kept, and `model_state` only if the task has one: what `save_model` takes.

    Args:
      abstract: tree of anything with `shape` (and `dtype`), to be matched exactly; None takes what is stored.
      dtype: of floating-point leaves; None keeps that of `abstract`, else the stored one.
      shardings: one sharding or a tree of them; None puts everything on the first device.

    Raises:
      UserError: no such folder, no checkpoint in it, one that cannot be read, or one of another model (names the first
        parameter that differs).
    """
    folder = _existing(folder)
    try:
        stored, read = _open_weights(folder)
        if abstract is not None:
            if isinstance(abstract, Mapping):
                abstract = {name: part for name, part in abstract.items() if jax.tree.leaves(part)}
            check_same(stored, abstract, folder)
        return read(_abstract(stored if abstract is None else abstract, dtype, shardings))
    except _UnreadableError as error:
        raise UserError(f"The checkpoint in {folder} cannot be read ({error}): restore it or train it again.") from None


def _open_weights(folder: Path) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """The stored weights' shapes and dtypes, and the function that reads them into an abstract tree."""
    if (folder / _WEIGHTS).is_dir():
        checkpoint = folder / _WEIGHTS
        return _stored(checkpoint, [_WEIGHTS])[_WEIGHTS], lambda tree: _load(checkpoint, {_WEIGHTS: tree})[_WEIGHTS]

    checkpoint = folder / _CHECKPOINTS / str(_latest(folder))
    stored = _stored(checkpoint, ["params"])
    names = {"params": "ema" if "ema" in stored else "params"}
    if "model_state" in stored:
        names["model_state"] = "model_state"

    def read(tree: PyTree) -> PyTree:
        parts = _load(checkpoint, {name: tree[key] for key, name in names.items()})
        return {key: parts[name] for key, name in names.items()}

    return {key: stored[name] for key, name in names.items()}, read


def _abstract(tree: PyTree, dtype: Any, shardings: PyTree | None) -> PyTree:
    if shardings is None:
        shardings = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if isinstance(shardings, jax.sharding.Sharding):
        sharding = shardings
        shardings = jax.tree.map(lambda _: sharding, tree)

    def one(leaf: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
        floating = dtype is not None and jnp.issubdtype(leaf.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(tuple(leaf.shape), dtype if floating else leaf.dtype, sharding=sharding)

    return jax.tree.map(one, tree, shardings)


def _existing(folder: os.PathLike | str) -> Path:
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no checkpoint folder {folder}: check the path.")
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder} is no checkpoint (it has no {CONFIG_FILE}): give a run folder or a model folder.")
    return folder


def _latest(run_dir: Path) -> int:
    found = steps(run_dir)
    if not found:
        raise UserError(f"{run_dir} holds no complete checkpoint: train longer, or give another folder.")
    return found[-1]


# ---- Orbax ------------------------------------------------------------------------------------------------------


class _UnreadableError(Exception):
    """A checkpoint is damaged; the message is its cause in a few words."""


# What Orbax and TensorStore raise for missing, cut or garbled files (NoEntryError is a KeyError).
_DAMAGE = (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError)


def _stored(folder: Path, needed: Iterable[str] = ()) -> dict[str, PyTree]:
    """The stored parts as trees of leaves with shape and dtype; `needed` parts must be among them."""
    with _quiet():
        parts = ocp.checkpointables_metadata(folder.absolute()).metadata
    for name in {*parts, *needed}:
        if parts.get(name) is None:
            raise _UnreadableError(f"{name} is missing or has no readable metadata")
    return parts


def _load(folder: Path, abstract: dict[str, PyTree]) -> dict[str, PyTree]:
    with _quiet():
        return ocp.load_checkpointables(folder.absolute(), abstract)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Turns what Orbax raises on damage into one `_UnreadableError` and drops the pages of tracebacks it logs."""
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
        raise _UnreadableError(text[0][:160]) from None
    finally:
        sys.unraisablehook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def check_same(stored: PyTree, wanted: PyTree, where: Path) -> None:
    """Raises a UserError that names the first parameter in which a checkpoint and a model differ."""
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
        raise UserError(f"{where} is a checkpoint of another model: {what}. Use the config it was trained with.")


def shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Path → shape of every leaf, paths with slashes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(int(size) for size in leaf.shape)
        for path, leaf in leaves
    }
