"""An in-memory file system that fails like a network: the first calls of an operation, or for ever."""

from __future__ import annotations

import time
from collections import Counter
from typing import ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class FaultyFileSystem(MemoryFileSystem):
    """fsspec's MemoryFileSystem under `faulty://`, with faults. `reset` takes them back and empties the store.

    Attributes:
      faults: operation → the errors its next calls raise; a number instead makes that call hang for so many seconds.
      calls: how often each operation was asked for.
      moved: bytes read by each call of cat_file.
    """

    protocol = "faulty"
    store: ClassVar[dict] = {}  # fsspec's own way of sharing it between instances
    pseudo_dirs: ClassVar[list[str]] = [""]
    faults: ClassVar[dict[str, list[Exception | float]]] = {}
    calls: ClassVar[Counter] = Counter()
    moved: ClassVar[list[int]] = []

    @classmethod
    def reset(cls) -> None:
        cls.store.clear()
        cls.pseudo_dirs[:] = [""]
        cls.faults.clear()
        cls.calls.clear()
        cls.moved.clear()

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("faulty://"))

    def _met(self, operation: str) -> None:
        self.calls[operation] += 1
        if self.faults.get(operation):
            fault = self.faults[operation].pop(0)
            if isinstance(fault, Exception):
                raise fault
            time.sleep(fault)

    def ls(self, path, detail=True, **kwargs):
        self._met("ls")
        return super().ls(path, detail=detail, **kwargs)

    def cat_file(self, path, start=None, end=None, **kwargs):
        self._met("cat_file")
        data = super().cat_file(path, start=start, end=end, **kwargs)
        self.moved.append(len(data))
        return data

    def put_file(self, lpath, rpath, **kwargs):
        self._met("put_file")
        super().put_file(lpath, rpath, **kwargs)
        if self.faults.get("short"):
            self.faults["short"].pop(0)
            self.pipe_file(rpath, self.store[self._strip_protocol(rpath)].getvalue()[:-1])


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
