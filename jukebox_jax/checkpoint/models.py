"""Trained models as they are used: a codec or a prior read from a model folder or a run folder, and written to one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jukebox_jax import config as config_lib
from jukebox_jax.checkpoint import store
from jukebox_jax.errors import UserError
from jukebox_jax.labels.ids import LabelTable
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.models.vqvae import Codec, VQVAEConfig

#: Folder names of a whole cascade: the codec and one prior per level, level 0 at the bottom.
CODEC_FOLDER = "vqvae"


def level_folder(level: int) -> str:
    """Name of a prior's folder in a cascade."""
    return f"level_{level}"


@dataclass(frozen=True)
class TrainedCodec:
    """A codec with the config it was trained with and the hash that its tokens carry."""

    config: VQVAEConfig
    codec: Codec
    hash: str


@dataclass(frozen=True)
class TrainedPrior:
    """A prior, the names its label ids stand for (None if it takes no labels), and the hash of its tokens' codec."""

    config: PriorConfig
    params: dict
    labels: LabelTable | None
    codec_hash: str


def codec_hash(config: VQVAEConfig, codec: Codec) -> str:
    """SHA-256 over the config and every weight: tokens of two codecs can only be mixed if theirs are equal."""
    digest = hashlib.sha256(json.dumps(config_lib.to_dict(config), sort_keys=True).encode())
    leaves = jax.tree_util.tree_leaves_with_path({"params": codec.params, "codebooks": list(codec.codebooks)})
    for path, leaf in leaves:
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(leaf, np.float32).tobytes())
    return digest.hexdigest()


def load_codec(folder: os.PathLike | str) -> TrainedCodec:
    """Reads a codec in float32.

    Raises:
      UserError: no checkpoint there, a damaged one, or one that is not a codec's.
    """
    stored = _load_config(folder, "codec")
    config = config_lib.from_dict(VQVAEConfig, stored["model"])
    tree = store.load_model(folder, dtype=np.float32)
    # Training keeps whole codebooks with their statistics, a model folder the codes alone.
    state = tree["model_state"]
    levels = [state[str(level)] if isinstance(state, Mapping) else state[level] for level in range(config.levels)]
    codec = Codec(tree["params"], tuple(_codes(level) for level in levels))
    return TrainedCodec(config, codec, codec_hash(config, codec))


def load_prior(folder: os.PathLike | str) -> TrainedPrior:
    """Reads a prior in float32.

    Raises:
      UserError: no checkpoint there, a damaged one, or one that is not a prior's.
    """
    stored = _load_config(folder, "prior")
    config = config_lib.from_dict(PriorConfig, stored["model"])
    labels = LabelTable.from_json(stored["labels"], str(Path(folder) / store.CONFIG_FILE)) if stored["labels"] else None
    params = store.load_model(folder, dtype=np.float32)["params"]
    return TrainedPrior(config, params, labels, stored["codec"])


def export_codec(run_dir: os.PathLike | str, out: os.PathLike | str, dtype: Any = None) -> None:
    """Writes a run folder's codec as a model folder: parameters and codes, without the state of training."""
    codec = load_codec(run_dir)
    state = {str(level): {"codes": codes} for level, codes in enumerate(codec.codec.codebooks)}
    tree = {"params": codec.codec.params, "model_state": state}
    store.save_model(out, tree, store.load_config(run_dir), dtype=dtype)


def export_prior(run_dir: os.PathLike | str, out: os.PathLike | str, codec: str, dtype: Any = None) -> None:
    """Writes a run folder's prior as a model folder, for the codec with hash `codec`.

    The hash is given because rounding a codec's weights to a smaller dtype makes another codec of it.
    """
    config = store.load_config(run_dir) | {"codec": codec}
    store.save_model(out, {"params": load_prior(run_dir).params}, config, dtype=dtype)


def _load_config(folder: os.PathLike | str, kind: str) -> dict[str, Any]:
    stored = store.load_config(folder)
    if stored.get("kind") != kind:
        found = stored.get("kind", "something else")
        raise UserError(f"{folder} is the checkpoint of a {found}, not of a {kind}: give the folder of a {kind}.")
    return stored


def _codes(codebook: Any):
    return codebook["codes"] if isinstance(codebook, Mapping) else codebook.codes
