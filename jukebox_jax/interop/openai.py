"""Checkpoints of the original into model folders, and back (spec: priors, section 12)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jukebox_jax import config as config_lib
from jukebox_jax.checkpoint import store
from jukebox_jax.checkpoint.models import CODEC_FOLDER, codec_hash, level_folder, load_codec
from jukebox_jax.errors import UserError
from jukebox_jax.files import atomic_folder
from jukebox_jax.interop import hparams, layout
from jukebox_jax.interop.released import LICENCE, RELEASES, VQVAE, Release
from jukebox_jax.interop.torch_file import hyperparameters, read_torch, state_dict, write_torch
from jukebox_jax.labels.ids import UNKNOWN, LabelTable, NameTable, read_id_table
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.models.vqvae import Codec, VQVAEConfig

_CODEC_KEY = "bottleneck.level_blocks.0.k"
_PRIOR_KEY = "prior.x_emb.weight"


@dataclass(frozen=True)
class Imported:
    """A model that was imported: its folder, and which one it is."""

    folder: Path
    config: VQVAEConfig | PriorConfig


@dataclass(frozen=True)
class _File:
    """A checkpoint file that has been opened and checked to be of one of the two kinds."""

    path: Path
    state: dict[str, np.ndarray]
    hps: dict[str, Any]
    step: int | None

    @property
    def is_codec(self) -> bool:
        return _CODEC_KEY in self.state


def import_openai(
    files: Sequence[os.PathLike | str],
    out: os.PathLike | str,
    *,
    names: Sequence[str] = (),
    artists: os.PathLike | str | None = None,
    genres: os.PathLike | str | None = None,
) -> list[Imported]:
    """Writes each checkpoint file as a model folder in `out`: `vqvae`, `level_0`, `level_1`, `level_2`.

    All files are read and checked before the first folder is written. Weights keep their precision. Nothing that a
    file holds is run.

    Args:
      files: the VQ-VAE and priors, in any order; a prior finds its VQ-VAE among them, in `out`, or, if neither has one,
        takes the released one for granted.
      names: the configuration of each file, of `RELEASES`; empty: as the file says of itself, or as its shapes tell.
      artists, genres: the original's tables of names and ids for the priors among the files. Without them labels can
        only be given by number, as "#145".

    Raises:
      UserError: a file that cannot be read, another model than the config's, a label table that does not fit, a folder
        that is there already; nothing has been written then.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder to import into.")
    if names and len(names) != len(files):
        raise UserError(f"{len(names)} configs for {len(files)} files: give one for each file, in the same order.")
    tables = [None if path is None else read_id_table(path) for path in (artists, genres)]
    opened = [_open(Path(path)) for path in files]

    codec_config, codec = None, ""  # the config that priors are read with, and the hash of their tokens' codec
    parts: dict[str, tuple[_File, dict[str, Any], dict[str, Any]]] = {}  # folder → file, config, weights
    configs: dict[str, VQVAEConfig | PriorConfig] = {}
    order = sorted(range(len(opened)), key=lambda index: not opened[index].is_codec)
    for index in order:
        file, name = opened[index], names[index] if names else None
        if file.is_codec:
            config = _codec_config(file, name)
            weights = layout.codec_from_state(config, file.state, str(file.path))
            codec_config, codec = config, codec_hash(config, weights)
            books = {str(level): {"codes": codes} for level, codes in enumerate(weights.codebooks)}
            folder, tree = CODEC_FOLDER, {"params": weights.params, "model_state": books}
            stored = {"kind": "codec", "model": config_lib.to_dict(config)}
        else:
            if codec_config is None:
                codec_config, codec = _codec_in(out)
            release = _prior_release(file, name, codec_config)
            config = release.config
            folder, tree = (
                level_folder(config.level),
                {"params": layout.prior_from_state(config, file.state, str(file.path))},
            )
            labels = None if config.labels is None else _labels(release, *tables)
            stored = {
                "kind": "prior",
                "model": config_lib.to_dict(config),
                "labels": None if labels is None else labels.to_json(),
                "codec": codec,
            }
        if folder in parts:
            raise UserError(f"{parts[folder][0].path} and {file.path} are both {folder}: import one of them elsewhere.")
        if (out / folder).exists():
            raise UserError(f"{out / folder} is there already: remove it or choose another folder.")
        parts[folder], configs[folder] = (file, stored, tree), config

    _write(out, parts)
    return [Imported(out / folder, config) for folder, config in configs.items()]


def export_openai(folder: os.PathLike | str, path: os.PathLike | str, *, legacy: bool = True) -> None:
    """Writes a model folder, or a run folder's latest checkpoint, as a checkpoint file of the original; needs torch.

    Raises:
      UserError: not a model of ours, or torch is missing.
    """
    folder, path = Path(folder), Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: name the file to write.")
    stored, metadata = store.load_config(folder), store.load_metadata(folder)
    tree = store.load_model(folder)
    if stored.get("kind") == "codec":
        config = config_lib.from_dict(VQVAEConfig, stored["model"])
        books = tree["model_state"]
        books = [books[str(level)] if isinstance(books, Mapping) else books[level] for level in range(config.levels)]
        state = layout.codec_to_state(config, Codec(tree["params"], tuple(book["codes"] for book in books)))
        hps = hparams.codec_hparams(config)
    elif stored.get("kind") == "prior":
        config = config_lib.from_dict(PriorConfig, stored["model"])
        names = metadata.get("conditioner_names", "blocks")
        state = layout.prior_to_state(config, tree["params"], names)
        normalisation = None if stored["labels"] is None else stored["labels"]["normalisation"]
        hps = hparams.prior_hparams(config, normalisation, names)
    else:
        raise UserError(f"{folder} is no model of this package: give a folder of a codec or a prior.")
    step = metadata.get("step", 0)
    write_torch(path, {"model": state, "step": step, "hps": metadata.get("hps") or hps}, legacy=legacy)


# ---- Reading ----------------------------------------------------------------------------------------------------


def _open(path: Path) -> _File:
    contents = read_torch(path)
    with _naming(path):
        state, hps = state_dict(contents), hyperparameters(contents)
    if _CODEC_KEY not in state and _PRIOR_KEY not in state:
        raise UserError(
            f"{path} has neither {_CODEC_KEY} nor {_PRIOR_KEY}: it is no VQ-VAE and no prior of the original."
        )
    step = contents.get("step")
    known = isinstance(step, int | np.integer) and 0 <= step < 2**63
    return _File(path, state, hps, int(step) if known else None)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Says in which file a mistake is."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _codec_config(file: _File, name: str | None) -> VQVAEConfig:
    if name is not None:
        return _named(name, VQVAEConfig, file).config
    with _naming(file.path):
        return hparams.codec_config(file.hps) if "l_bins" in file.hps else VQVAE


def _codec_in(out: Path) -> tuple[VQVAEConfig, str]:
    """Config and hash of the codec imported before; the released config, without a hash, if there is none."""
    if not (out / CODEC_FOLDER).is_dir():
        return VQVAE, ""
    codec = load_codec(out / CODEC_FOLDER)
    return codec.config, codec.hash


def _prior_release(file: _File, name: str | None, codec: VQVAEConfig) -> Release:
    if name is not None:
        return _named(name, PriorConfig, file)
    if "prior_width" in file.hps:
        if strange := hparams.unsupported(file.hps):
            raise UserError(f"{file.path} was trained with {', '.join(strange)}, which this package does not have.")
        with _naming(file.path):
            return Release(hparams.prior_config(file.hps, codec), "v3" if file.hps.get("labels_v3") else "v2")
    return _recognised(file)


def _named(name: str, kind: type, file: _File) -> Release:
    if name not in RELEASES:
        raise UserError(f"There is no config {name!r}: {config_lib.nearest(name, RELEASES)}")
    release = RELEASES[name]
    if not isinstance(release.config, kind):
        raise UserError(
            f"{file.path} is a {'VQ-VAE' if file.is_codec else 'prior'}, but {name} is not: change --config."
        )
    return release


def _recognised(file: _File) -> Release:
    """The released prior that has this file's keys and shapes; of the two upsamplers, which have the same, the file's
    name tells."""
    found = {}
    for name, release in RELEASES.items():
        if isinstance(release.config, PriorConfig):
            try:
                layout.check_state(layout.prior_shapes(release.config), file.state, str(file.path))
            except UserError:
                continue
            found[name] = release
    level = re.search(r"level_(\d)", file.path.name)
    if len(found) > 1 and level is not None:
        found = {name: release for name, release in found.items() if release.config.level == int(level[1])}
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise UserError(f"{file.path} could be {' or '.join(found)}: say which with --config.")
    raise UserError(
        f"{file.path} is none of the released priors and does not say what it is: name its configuration with --config "
        "to see how it differs."
    )


def _labels(release: Release, artists: NameTable | None, genres: NameTable | None) -> LabelTable:
    config = release.config.labels
    tables = []
    for kind, table, rows in (("artists", artists, config.artists), ("genres", genres, config.genres)):
        if table is None:
            table = NameTable.from_pairs([(UNKNOWN, 0)], rows)
        elif table.rows > rows:
            raise UserError(
                f"The table of {kind} has ids up to {table.rows - 1}, but level {release.config.level} knows "
                f"{rows} of them: give the table of this model (v2 and v3 have each their own)."
            )
        tables.append(table)
    return LabelTable(*tables, release.normalisation)


# ---- Writing ----------------------------------------------------------------------------------------------------


def _write(out: Path, parts: Mapping[str, tuple[_File, dict[str, Any], dict[str, Any]]]) -> None:
    """Writes all parts or none: the whole of `out` at once if it is new, else each in turn, whole."""
    if out.exists() and any(out.iterdir()):
        for folder, part in parts.items():
            _write_part(out / folder, *part)
        return
    with atomic_folder(out) as temporary:
        for folder, part in parts.items():
            _write_part(temporary / folder, *part)


def _write_part(folder: Path, file: _File, stored: dict[str, Any], tree: dict[str, Any]) -> None:
    metadata: dict[str, Any] = {
        "source": file.path.name,
        "licence": LICENCE,
        "hps": file.hps,
        "conditioner_names": layout.conditioner_names(file.state),
    }
    if file.step is not None:
        metadata["step"] = file.step
    store.save_model(folder, tree, stored, metadata=metadata)
