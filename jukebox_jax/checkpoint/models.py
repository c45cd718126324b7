"""Trained models as they are used: a codec or a prior read from a model folder or a run folder, and written to one."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.core import meta

from jukebox_jax import config as config_lib
from jukebox_jax.checkpoint import compact, reading, store
from jukebox_jax.checkpoint.runs import BEST
from jukebox_jax.errors import UserError
from jukebox_jax.labels.ids import LabelTable
from jukebox_jax.models.prior import PriorConfig, init_params
from jukebox_jax.models.vqvae import Codec, VQVAEConfig, init_codec

#: Folder names of a whole cascade: the codec and one prior per level, level 0 at the bottom.
CODEC_FOLDER = "vqvae"
_EDGE_BYTES = 2**16


def level_folder(level: int) -> str:
    """Name of a prior's folder in a cascade."""
    return f"level_{level}"


@dataclass(frozen=True)
class TrainedCodec:
    """A codec with the config it was trained with, the hash that its tokens carry, and the licence of its weights (""
    if nobody has said)."""

    config: VQVAEConfig
    codec: Codec
    hash: str
    licence: str = ""


@dataclass(frozen=True)
class TrainedPrior:
    """A prior, the names its label ids stand for (None if it takes no labels), and the hash of its tokens' codec.

    Its parameters are in memory, or stay in the folder `source` until they are read. Its licence is "" if nobody has
    said.
    """

    config: PriorConfig
    params: dict | None
    labels: LabelTable | None
    codec_hash: str
    source: str = ""
    licence: str = ""

    def read_params(self) -> dict:
        """The parameters in float32, as a tree of its own.

        Raises:
          UserError: they cannot be read from where they are.
        """
        if self.params is not None:
            return jax.tree.map(lambda leaf: leaf, self.params)
        return _load_weights(self.source)["params"]

    def open_params(self) -> Callable[..., Any]:
        """A function that reads the part of the parameters under some names, `("decoder", "tokens")`, so that they need
        not all be in memory at once.

        Raises:
          UserError: they cannot be read from where they are.
        """
        if self.params is None:
            read = store.open_model(self.source)
            return lambda *names: read(("params", *names))
        return lambda *names: functools.reduce(lambda tree, name: tree[name], names, self.params)


def codec_hash(config: VQVAEConfig, codec: Codec) -> str:
    """SHA-256 over the config and every weight: tokens of two codecs can only be mixed if theirs are equal."""
    return _hash(config, {"params": codec.params, "codebooks": list(codec.codebooks)})


def prior_hash(prior: TrainedPrior) -> str:
    """SHA-256 over a prior's config and every weight."""
    return _hash(prior.config, prior.read_params())


def load_codec(folder: os.PathLike | str) -> TrainedCodec:
    """Reads a codec in float32.

    Raises:
      UserError: no checkpoint there, a damaged one, or one that is not a codec's.
    """
    stored = _load_config(folder, "codec")
    config = config_lib.from_dict(VQVAEConfig, stored["model"])
    tree = _load_weights(folder)
    # Training keeps whole codebooks with their statistics, an exported model the codes alone.
    state = tree["model_state"]
    levels = [state[str(level)] if isinstance(state, Mapping) else state[level] for level in range(config.levels)]
    codec = Codec(tree["params"], tuple(_codes(level) for level in levels))
    _check_shapes(folder, codec.params, lambda: init_codec(config, jax.random.key(0)))
    return TrainedCodec(config, codec, codec_hash(config, codec), store.load_licence(folder))


def load_prior(folder: os.PathLike | str) -> TrainedPrior:
    """Reads a prior in float32.

    Raises:
      UserError: no checkpoint there, a damaged one, or one that is not a prior's.
    """
    prior = find_prior(folder)
    return dataclasses.replace(prior, params=prior.read_params())


def find_prior(folder: os.PathLike | str) -> TrainedPrior:
    """A prior whose parameters stay where they are until somebody reads them; what is there is checked now.

    Raises:
      UserError: no checkpoint there, a damaged one, or one that is not a prior's.
    """
    config, labels, codec = load_prior_config(folder)
    # A compact model is small, and read to be checked.
    small = compact.is_compact(folder)
    stored = compact.load(folder) if small else store.stored_model(folder)
    _check_shapes(folder, stored["params"], lambda: init_params(config, jax.random.key(0)))
    params = stored["params"] if small else None
    return TrainedPrior(config, params, labels, codec, str(folder), store.load_licence(folder))


def prior_fingerprint(prior: TrainedPrior) -> str:
    """Tells priors apart without reading all of their weights: SHA-256 over the config, the names that labels stand for
    and, of every file of weights, name, size, beginning and end; over all weights if they are in memory only."""
    names = None if prior.labels is None else prior.labels.to_json()
    digest = hashlib.sha256(json.dumps([config_lib.to_dict(prior.config), names], sort_keys=True).encode())
    if not prior.source:
        digest.update(prior_hash(prior).encode())
        return digest.hexdigest()
    for path in store.weight_files(prior.source):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(_EDGE_BYTES))
            file.seek(max(0, size - _EDGE_BYTES))
            digest.update(file.read(_EDGE_BYTES))
    return digest.hexdigest()


def load_prior_config(folder: os.PathLike | str) -> tuple[PriorConfig, LabelTable | None, str]:
    """Of a prior: its config, its label table, and the hash of its tokens' codec ("" if that is not known).

    Raises:
      UserError: no checkpoint there, or one that is not a prior's.
    """
    stored = _load_config(folder, "prior")
    config = config_lib.from_dict(PriorConfig, stored["model"])
    labels = LabelTable.from_json(stored["labels"], str(Path(folder) / store.CONFIG_FILE)) if stored["labels"] else None
    return config, labels, stored["codec"]


def split_cascade(folder: os.PathLike | str) -> tuple[Path, str]:
    """Parts FOLDER or FOLDER@best, a folder with a codec and priors, into the folder and what its parts end in.

    Raises:
      UserError: there is no such folder, it holds no model, or a step is named that its parts do not share.
    """
    folder, step = store.split_step(folder)
    if not folder.is_dir():
        raise UserError(f"There is no model folder {folder}: check the path, or use the shipped model with --demo.")
    if not (folder / CODEC_FOLDER).is_dir() and (folder / "runs" / CODEC_FOLDER).is_dir():
        raise UserError(f"{folder} holds no model itself: name {folder / 'runs'}, where its parts were trained.")
    if step not in (None, BEST):
        raise UserError(f"The parts of {folder} were trained apart and have no step {step} in common: give @{BEST}.")
    return folder, f"@{step}" if step else ""


def load_level(folder: Path, at: str, codec: TrainedCodec, level: int) -> TrainedPrior:
    """The prior of one level of a cascade (of `split_cascade`), whose parameters stay where they are.

    Raises:
      UserError: it is missing, damaged, of another level or kind, or belongs to another codec.
    """
    part = folder / level_folder(level)
    prior = find_prior(f"{part}{at}")
    if prior.config.level != level:
        raise UserError(f"{part} is a prior of level {prior.config.level}: put each level under its own name.")
    if (prior.config.conditioner is None) != (level == codec.config.levels - 1):
        kind = "a top prior, and" if prior.config.conditioner is None else "an upsampler, but no"
        raise UserError(f"{part} is {kind} level stands above it: train the right kind of prior for this level.")
    # Priors of the original do not say what codec they belong to.
    if prior.codec_hash not in ("", codec.hash):
        raise UserError(
            f"{part} was trained on the tokens of another codec than "
            f"{folder / CODEC_FOLDER}: put models of one training together."
        )
    return prior


def load_params(folder: os.PathLike | str, like: dict) -> dict:
    """Parameters alone, read into arrays of the same dtypes and shardings as those of `like`.

    Raises:
      UserError: no checkpoint there, a damaged one, or one with other parameters.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
    if compact.is_compact(folder):
        params = compact.load(folder)["params"]
        reading.check_same(params, like, Path(folder))
        return jax.device_put(params, shardings)
    return store.load_model(folder, {"params": like}, shardings={"params": shardings})["params"]


def export_codec(run_dir: os.PathLike | str, out: os.PathLike | str, licence: str | None = None) -> None:
    """Writes a run folder's codec in the compact format: parameters and codes, rounded to bfloat16; with a licence, if
    one is given.

    Rounding makes another codec of it, with another hash: encode with this one before training the priors to ship.
    """
    codec = load_codec(run_dir).codec
    state = {str(level): {"codes": codes} for level, codes in enumerate(codec.codebooks)}
    compact.save(out, {"params": codec.params, "model_state": state}, _config_with(run_dir, licence))


def export_prior(run_dir: os.PathLike | str, out: os.PathLike | str, licence: str | None = None) -> None:
    """Writes a run folder's prior in the compact format, rounded to bfloat16; with a licence, if one is given."""
    compact.save(out, {"params": load_prior(run_dir).params}, _config_with(run_dir, licence))


def _config_with(run_dir: os.PathLike | str, licence: str | None) -> dict[str, Any]:
    return store.load_config(run_dir) | ({} if licence is None else {"licence": licence})


def _load_config(folder: os.PathLike | str, kind: str) -> dict[str, Any]:
    stored = store.load_config(folder)
    if stored.get("kind") != kind:
        found = stored.get("kind", "something else")
        raise UserError(f"{folder} is the checkpoint of a {found}, not of a {kind}: give the folder of a {kind}.")
    for key in ("model",) if kind == "codec" else ("model", "labels", "codec"):
        if key not in stored:
            raise UserError(f"{Path(folder) / store.CONFIG_FILE} has no {key}: copy the folder again.")
    return stored


def _load_weights(folder: os.PathLike | str) -> dict[str, Any]:
    return compact.load(folder) if compact.is_compact(folder) else store.load_model(folder, dtype=np.float32)


def _check_shapes(folder: os.PathLike | str, params: dict[str, Any], init: Callable[[], Any]) -> None:
    """Raises a UserError unless the weights are those of the config beside them."""
    expected = meta.unbox(jax.eval_shape(init))
    ours, theirs = reading.shapes(params), reading.shapes(expected)
    for name in [*theirs, *ours]:
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f"{folder}: {name} has shape {ours.get(name)}, but {store.CONFIG_FILE} asks for {theirs.get(name)}: "
                "weights and config are of different models; copy the folder again."
            )


def _hash(config: VQVAEConfig | PriorConfig, weights: Any) -> str:
    digest = hashlib.sha256(json.dumps(config_lib.to_dict(config), sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(leaf, np.float32).tobytes())
    return digest.hexdigest()


def _codes(codebook: Any):
    return codebook["codes"] if isinstance(codebook, Mapping) else codebook.codes
