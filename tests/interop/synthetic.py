"""Checkpoint files in the original's layout and any size, written without torch and without holding them in memory.

Run as a program it writes one: python synthetic.py PATH NAME, with NAME of `interop.released.RELEASES`.
"""

from __future__ import annotations

import pickle
import struct
import sys
import types
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


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
    def persistent_id(self, value: Any):
        if isinstance(value, _Storage):
            kind = getattr(sys.modules["torch"], value.kind)
            return ("storage", kind, value.key, "cuda:0", value.count, None)
        return None


def _pretend_torch() -> None:
    """Modules under torch's names, so that pickle writes the names that torch would."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for kind in ("FloatStorage", "HalfStorage"):
        setattr(torch, kind, type(kind, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2():
        raise NotImplementedError

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    sys.modules |= {"torch": torch, "torch._utils": utils}


def write(
    path: Path, shapes: Mapping[str, tuple[int, ...]], *, tied: Mapping[str, str], half: bool, seed: int = 0
) -> None:
    """Writes random weights (std 0.02; Conv1D weights in half precision if `half`) in the legacy container."""
    saved = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "torch"}
    _pretend_torch()
    try:
        storages: dict[str, _Storage] = {}
        model = OrderedDict()
        for key, shape in shapes.items():
            kind = "HalfStorage" if half and key.endswith(".w") else "FloatStorage"
            own = _Storage(kind, str(len(storages)), int(np.prod(shape)))
            storages[key] = storages[tied[key]] if key in tied else own
            model[key] = _Tensor(storages[key], shape)
        unique = {storage.key: storage for storage in storages.values()}
        rng = np.random.default_rng(seed)
        with open(path, "wb") as file:
            for value in (_MAGIC, _PROTOCOL, {"little_endian": True}):
                pickle.dump(value, file, 2)
            _Pickler(file, 2).dump({"model": model, "step": 7})
            pickle.dump(list(unique), file, 2)
            for storage in unique.values():
                file.write(struct.pack("<q", storage.count))
                for start in range(0, storage.count, 2**22):
                    values = rng.standard_normal(min(2**22, storage.count - start), np.float32) * np.float32(0.02)
                    file.write(values.astype(np.float16 if storage.kind == "HalfStorage" else np.float32).tobytes())
    finally:
        for name in ("torch", "torch._utils"):
            del sys.modules[name]
        sys.modules |= saved


if __name__ == "__main__":
    from jukebox_jax.interop import layout
    from jukebox_jax.interop.released import RELEASES

    config = RELEASES[sys.argv[2]].config
    own = {} if config.merged_decoder else {"prior.x_out.weight": "prior.x_emb.weight"}
    write(Path(sys.argv[1]), layout.prior_shapes(config), tied=own, half=config.merged_decoder)
