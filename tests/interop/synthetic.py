"""Checkpoint files in the original's layout and any size, written without torch and without holding them in memory.

Run as a program it writes one: python synthetic.py PATH NAME, with NAME of `interop.released.RELEASES`.
"""

from __future__ import annotations

import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jukebox_jax.interop import hparams, layout
from jukebox_jax.interop.released import RELEASES
from jukebox_jax.labels.ids import Normalisation
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.models.vqvae import VQVAEConfig

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_CHUNK = 2**22


class _Storage:
    def __init__(self, kind: str, key: str, count: int):
        self.kind, self.key, self.count = kind, key, count


class _Tensor:
    def __init__(self, storage: _Storage, shape: tuple[int, ...]):
        self.storage, self.shape = storage, shape

    def __reduce__(self):
        strides, step = [], 1
        for size in reversed(self.shape):
            strides.insert(0, step)
            step *= size
        arguments = (self.storage, 0, self.shape, tuple(strides), False, OrderedDict())
        return sys.modules["torch._utils"]._rebuild_tensor_v2, arguments


class _Pickler(pickle.Pickler):
    def __init__(self, file: Any, legacy: bool):
        super().__init__(file, 2)
        self._view = (None,) if legacy else ()

    def persistent_id(self, value: Any):
        if isinstance(value, _Storage):
            kind = getattr(sys.modules["torch"], value.kind)
            return ("storage", kind, value.key, "cuda:0", value.count, *self._view)
        return None


@contextmanager
def _pretend_torch() -> Iterator[None]:
    """Modules under torch's names, so that pickle writes the names that torch would."""
    saved = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "torch"}
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for kind in ("FloatStorage", "HalfStorage"):
        setattr(torch, kind, type(kind, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2():
        raise NotImplementedError

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    sys.modules |= {"torch": torch, "torch._utils": utils}
    try:
        yield
    finally:
        for name in ("torch", "torch._utils"):
            del sys.modules[name]
        sys.modules |= saved


def write(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    tied: Mapping[str, str] | None = None,
    half: bool = False,
    seed: int = 0,
    prefix: str = "",
    legacy: bool = True,
    **beside: Any,
) -> None:
    """Writes random weights (std 0.02).

    Args:
      tied: key → the key before it whose storage it shares.
      half: Conv1D weights in half precision.
      prefix: before every key, as data-parallel training leaves it.
      legacy: the container of the released files; otherwise zip.
      beside: what the file holds beside `model`, such as `step` and `hps`.
    """
    storages: dict[str, _Storage] = {}
    model = OrderedDict()
    for key, shape in shapes.items():
        kind = "HalfStorage" if half and key.endswith(".w") else "FloatStorage"
        own = _Storage(kind, str(len(storages)), int(np.prod(shape)))
        storages[key] = storages[tied[key]] if key in (tied or {}) else own
        model[prefix + key] = _Tensor(storages[key], shape)
    unique = list({storage.key: storage for storage in storages.values()}.values())
    rng = np.random.default_rng(seed)
    with _pretend_torch():
        (_write_legacy if legacy else _write_zip)(path, {"model": model, **beside}, unique, rng)


def _write_legacy(path: Path, contents: dict, storages: list[_Storage], rng: np.random.Generator) -> None:
    with open(path, "wb") as file:
        for value in (MAGIC, PROTOCOL, {"little_endian": True}):
            pickle.dump(value, file, 2)
        _Pickler(file, legacy=True).dump(contents)
        pickle.dump([storage.key for storage in storages], file, 2)
        for storage in storages:
            file.write(struct.pack("<q", storage.count))
            file.writelines(_values(storage, rng))


def _write_zip(path: Path, contents: dict, storages: list[_Storage], rng: np.random.Generator) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("archive/data.pkl", "w") as file:
            _Pickler(file, legacy=False).dump(contents)
        archive.writestr("archive/byteorder", "little")
        for storage in storages:
            with archive.open(f"archive/data/{storage.key}", "w", force_zip64=True) as file:
                file.writelines(_values(storage, rng))


def _values(storage: _Storage, rng: np.random.Generator) -> Iterable[bytes]:
    dtype = np.float16 if storage.kind == "HalfStorage" else np.float32
    for start in range(0, storage.count, _CHUNK):
        values = rng.standard_normal(min(_CHUNK, storage.count - start), np.float32) * np.float32(0.02)
        yield values.astype(dtype).tobytes()


# ---- Whole models -----------------------------------------------------------------------------------------------


def tied_keys(entries: Iterable[layout.Entry]) -> dict[str, str]:
    """Key → the key whose matrix it repeats."""
    first: dict[tuple[str, ...], str] = {}
    return {entry.key: first[entry.path] for entry in entries if first.setdefault(entry.path, entry.key) and entry.tied}


def write_codec(path: Path, config: VQVAEConfig, **options: Any) -> None:
    """A VQ-VAE with its hyper-parameters; `options` are those of `write`."""
    write(path, layout.codec_shapes(config), **{"step": 7, "hps": hparams.codec_hparams(config)} | options)


def write_prior(
    path: Path,
    config: PriorConfig,
    *,
    normalisation: Normalisation = "v3",
    names: layout.ConditionerNames = "blocks",
    **options: Any,
) -> None:
    """A prior with its hyper-parameters; `options` are those of `write`."""
    contents = {"step": 7, "hps": hparams.prior_hparams(config, normalisation, names)} | options
    tied = tied_keys(layout.prior_layout(config, names))
    write(path, layout.prior_shapes(config, names), tied=tied, half=config.merged_decoder, **contents)


if __name__ == "__main__":
    released = RELEASES[sys.argv[2]].config
    # The released files may say nothing of themselves.
    write_one = write_codec if isinstance(released, VQVAEConfig) else write_prior
    write_one(Path(sys.argv[1]), released, hps={})
