"""Checkpoints on disk: Orbax data with the run's config beside it as plain JSON.

    RUN/config.json   RUN/checkpoints/STEP/{params,ema,model_state,trainer}   written while training
    MODEL/config.json MODEL/weights                                           weights alone, small, to be shipped

Both can be given wherever a model is read; of a run, RUN@STEP is the checkpoint of a step, and RUN@best the best of
those that were kept. Nothing here knows a model: trees come in and go out.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from jukebox_jax import config as config_lib
from jukebox_jax.checkpoint.checksums import find_damage
from jukebox_jax.checkpoint.reading import UnreadableError, check_same, load_parts, stored_parts
from jukebox_jax.checkpoint.runs import BEST, CHECKPOINTS, chosen_step
from jukebox_jax.errors import UserError
from jukebox_jax.files import atomic_folder

PyTree = Any

CONFIG_FILE = "config.json"
_METADATA_FILE = "metadata.json"
_WEIGHTS = "weights"
# A model above this size is written array by array, in pieces: beside itself it then needs little memory.
_LARGE_BYTES, _CHUNK_BYTES = 2**30, 2**26


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
    folder, _ = _existing(folder)
    return config_lib.load_json(folder / CONFIG_FILE)


def load_metadata(folder: os.PathLike | str) -> dict[str, Any]:
    """What `save_model` was given as `metadata`; `{}` if nothing, and for a run folder `{"step": …}`."""
    folder, step = _existing(folder)
    if not (folder / _WEIGHTS).is_dir():
        return {"step": chosen_step(folder, step)}
    return config_lib.load_json(folder / _METADATA_FILE) if (folder / _METADATA_FILE).exists() else {}


def load_licence(folder: os.PathLike | str) -> str:
    """The licence of the weights in a run folder or model folder, "" where nobody has said.

    It stands under "licence" in `config.json`, or where an importer put it, in `metadata.json`.

    Raises:
      UserError: no such folder, or not the step of it that is named.
    """
    folder, step = _existing(folder)
    if step is not None and (folder / CHECKPOINTS).is_dir():
        chosen_step(folder, step)
    for name in (CONFIG_FILE, _METADATA_FILE):
        licence = config_lib.load_json(folder / name).get("licence") if (folder / name).is_file() else None
        if isinstance(licence, str) and licence:
            return licence
    return ""


def load_model(
    folder: os.PathLike | str,
    abstract: PyTree | None = None,
    *,
    dtype: Any = None,
    shardings: PyTree | None = None,
) -> PyTree:
    """Reads weights from a model folder, or from a checkpoint of a run folder: the latest, RUN@STEP or RUN@best.

    Of a training checkpoint the optimizer's state is neither read nor checked.

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
    folder, step = _existing(folder)
    with _told(folder):
        stored, read = _open_weights(folder, step)
        if abstract is not None:
            if isinstance(abstract, Mapping):
                abstract = {name: part for name, part in abstract.items() if jax.tree.leaves(part)}
            check_same(stored, abstract, folder)
        return read(_abstract(stored if abstract is None else abstract, dtype, shardings))


def open_model(folder: os.PathLike | str) -> Callable[[tuple[str, ...]], PyTree]:
    """A function that reads a part of what `load_model` would read, as numpy arrays in float32: `("params", "decoder")`
    for a tree, the names down to a leaf for one array. What it reads from is checked for damage once, at first.

    Raises:
      UserError: as `load_model`, now and when parts are read.
    """
    folder, step = _existing(folder)
    with _told(folder):
        stored, read = _open_weights(folder, step, some=True)

    def read_part(names: tuple[str, ...]) -> PyTree:
        part = stored
        for name in names:
            part = part[name]
        wanted = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), tuple(leaf.shape)), part)
        for name in reversed(names):
            wanted = {name: wanted}
        with _told(folder):
            found = read(wanted)
        for name in names:
            found = found[name]
        return found

    return read_part


def weight_files(folder: os.PathLike | str) -> list[Path]:
    """The files of the checkpoint that `load_model` would read, and of a compact model its one file, in order."""
    folder, step = _existing(folder)
    if (folder / CHECKPOINTS).is_dir():
        folder = folder / CHECKPOINTS / str(chosen_step(folder, step))
    notes = {folder / CONFIG_FILE, folder / _METADATA_FILE}
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".") and path not in notes
    )


def stored_model(folder: os.PathLike | str) -> PyTree:
    """What `load_model` would read, as a tree of leaves with shape and dtype; nothing but metadata is read.

    Raises:
      UserError: as `load_model`, but for damage within arrays.
    """
    folder, step = _existing(folder)
    with _told(folder):
        return _open_weights(folder, step)[0]


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except UnreadableError as error:
        raise UserError(f"The checkpoint in {folder} cannot be read ({error}): restore it or train it again.") from None


def _open_weights(folder: Path, step: str | None, some: bool = False) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """The stored weights' shapes and dtypes, and the function that reads them, or `some` of them, into an abstract
    tree."""
    if (folder / _WEIGHTS).is_dir():
        checkpoint = folder / _WEIGHTS
        stored = stored_parts(checkpoint, [_WEIGHTS])[_WEIGHTS]
        return stored, lambda tree: load_parts(checkpoint, {_WEIGHTS: tree}, some)[_WEIGHTS]

    checkpoint = folder / CHECKPOINTS / str(chosen_step(folder, step))
    stored = stored_parts(checkpoint, ["params"], but=["trainer"])
    names = {"params": "ema" if "ema" in stored else "params"}
    if "model_state" in stored:
        names["model_state"] = "model_state"

    whole = functools.cache(lambda: find_damage(checkpoint, within=[f"{name}/" for name in names.values()]))

    def read(tree: PyTree) -> PyTree:
        if whole() is not None:
            raise UnreadableError(whole())
        parts = load_parts(checkpoint, {names[key]: part for key, part in tree.items()}, some)
        return {key: parts[names[key]] for key in tree}

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


def split_step(folder: os.PathLike | str) -> tuple[Path, str | None]:
    """RUN@STEP and RUN@best in two; without a step None."""
    name, at, step = os.fspath(folder).rpartition("@")
    if at and (step == BEST or step.isdecimal()) and not Path(folder).exists():
        return Path(name), step
    return Path(folder), None


def _existing(folder: os.PathLike | str) -> tuple[Path, str | None]:
    folder, step = split_step(folder)
    if not folder.is_dir():
        raise UserError(f"There is no checkpoint folder {folder}: check the path.")
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder} is no checkpoint (it has no {CONFIG_FILE}): give a run folder or a model folder.")
    return folder, step
