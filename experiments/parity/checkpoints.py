"""The folder of checkpoint files: what the torch-free reader finds in them, and if it is the pipeline's weights."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.parity.fixture import Fixture, Reader, UnreadableError, load
from experiments.parity.report import JSON_NUMBER, Check
from jukebox_jax.errors import UserError
from jukebox_jax.interop.hparams import codec_config, prior_config
from jukebox_jax.interop.layout import codec_from_state, prior_from_state
from jukebox_jax.interop.torch_file import hyperparameters, read_torch, state_dict
from jukebox_jax.models.vqvae import VQVAEConfig

_CODEBOOKS = "bottleneck."


def checks(recorded: Reader) -> Iterator[Check]:
    folder, files = recorded.fixture.path.parent, recorded.fixture.tree["files"]
    pipelines = _pipelines(folder.parent)
    opened = {name: _open(folder / name) for name in files}
    codecs = [codec_config(file.hps) for file in opened.values() if isinstance(file, _File) and file.is_codec]
    for name, file in opened.items():
        found = file if isinstance(file, str) else _found(file, codecs, pipelines)
        for key in files[name]:
            value = found if isinstance(found, str) else found.get(key, "unknown")
            yield Check(f"files/{name}/{key}", value, JSON_NUMBER)
        if pipelines:
            equal = found if isinstance(found, str) else found["equal_to_pipeline"]
            yield Check(f"files/{name}/n_keys", equal, aspect="equal_to_pipeline")
    for name in sorted({path.name for path in folder.glob("*.pth.tar")} - set(files)):
        yield Check(f"files/{name}", "is not listed")


@dataclass(frozen=True)
class _File:
    path: Path
    contents: dict[str, Any]
    state: dict[str, np.ndarray]
    hps: dict[str, Any]

    @property
    def is_codec(self) -> bool:
        return any(key.startswith(_CODEBOOKS) for key in self.state)


def _open(path: Path) -> _File | str:
    """The file, or why it cannot be read."""
    try:
        contents = read_torch(path)
        return _File(path, contents, state_dict(contents), hyperparameters(contents))
    except UserError as error:
        return str(error)


def _found(file: _File, codecs: Sequence[VQVAEConfig], pipelines: Sequence[Fixture]) -> dict[str, Any] | str:
    try:
        if file.is_codec:
            codec_from_state(codec_config(file.hps), file.state, file.path.name)
        else:
            prior_from_state(prior_config(file.hps, codecs[0]), file.state, file.path.name)
    except UserError as error:
        return str(error)
    prefix = "sd_vqvae/" if file.is_codec else f"sd_prior{file.hps['level']}/"
    return {
        "bytes": file.path.stat().st_size,
        "n_keys": len(file.state),
        "hps": file.hps,
        "opt": file.contents.get("opt") is not None,
        "legacy": not zipfile.is_zipfile(file.path),
        "equal_to_pipeline": max((_equal(file.state, fixture.arrays, prefix) for fixture in pipelines), default=0),
    }


def _equal(state: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray], prefix: str) -> int:
    """How many tensors have the same values as the pipeline's."""
    recorded = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    return sum(np.array_equal(state[key], array) for key, array in recorded.items() if key in state)


def _pipelines(folder: Path) -> list[Fixture]:
    """The fixtures beside the folder that hold the weights of a whole cascade: the checkpoints are of one of them."""
    found = []
    for sidecar in sorted(folder.glob("*.json")):
        try:
            if "priors" in json.loads(sidecar.read_text(encoding="utf-8")).get("config", {}):
                found.append(load(sidecar.with_suffix("")))
        except (AttributeError, OSError, TypeError, ValueError, UnreadableError):
            continue
    return found
