"""A small model in one small file: bfloat16 weights, without the bookkeeping a large checkpoint needs.

The high bytes of bfloat16 numbers (sign and most of the exponent) are few and repeat, the low bytes (mantissa) hardly
do. Stored as two planes they compress to about 1.4 bytes a weight, where interleaved they take 1.6, and hundreds of
small arrays share one header.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from jukebox_jax import config as config_lib
from jukebox_jax.checkpoint.store import CONFIG_FILE
from jukebox_jax.errors import UserError
from jukebox_jax.files import atomic_folder

WEIGHTS_FILE = "weights.npz"


def save(folder: os.PathLike | str, tree: dict[str, Any], config: Any) -> None:
    """Writes `config.json` and `weights.npz` into a new folder.

    Args:
      tree: nested dicts of floating-point arrays; rounded to bfloat16.

    Raises:
      UserError: the folder holds something already.
    """
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf, jnp.bfloat16)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    layout = json.dumps({name: leaf.shape for name, leaf in leaves.items()})
    packed = np.concatenate([leaf.ravel() for leaf in leaves.values()]).view(np.uint16)
    with atomic_folder(folder) as temporary:
        config_lib.save_json(temporary / CONFIG_FILE, config)
        np.savez_compressed(
            temporary / WEIGHTS_FILE,
            layout=np.frombuffer(layout.encode(), np.uint8),
            high=(packed >> 8).astype(np.uint8),
            low=(packed & 0xFF).astype(np.uint8),
        )


def is_compact(folder: os.PathLike | str) -> bool:
    """Whether `save` wrote this folder."""
    return (Path(folder) / WEIGHTS_FILE).is_file()


def load(folder: os.PathLike | str) -> dict[str, Any]:
    """The tree that was saved, in float32.

    Raises:
      UserError: the file is damaged.
    """
    path = Path(folder) / WEIGHTS_FILE
    try:
        with np.load(path, allow_pickle=False) as stored:
            layout = json.loads(stored["layout"].tobytes())
            packed = stored["high"].astype(np.uint16) << 8 | stored["low"]
        weights = jnp.asarray(packed.view(jnp.bfloat16), jnp.float32)
        sizes = [math.prod(shape) for shape in layout.values()]
        if sum(sizes) != weights.size:
            raise ValueError(f"{weights.size} weights where the layout counts {sum(sizes)}")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}): install or export the model again.") from None
    tree: dict[str, Any] = {}
    start = 0
    for (name, shape), size in zip(layout.items(), sizes, strict=True):
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = weights[start : start + size].reshape(shape)
        start += size
    return tree
