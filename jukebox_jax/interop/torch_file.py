"""The original's checkpoints (`*.pth.tar`, which torch.save writes and no tar can open), read without torch.

torch.save has two containers, both read here (specification of the prior, section 12):

- legacy, that of the released files: pickles of a magic number, a protocol number, the writer's system, the contents
  and the list of storage keys, then for each key an int64 element count and the raw elements;
- zip: `<name>/data.pkl` holds the contents, `<name>/data/<key>` the raw elements, and nothing is compressed.

A tensor in the contents is a persistent id, which names a storage, with an offset, a size and strides in elements.
The weights stay in the file: each tensor becomes a read-only array over its memory map. Nothing in the pickle runs
(`safe_pickle`), and every size is checked against the file before an array is made.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import stat
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from jukebox_jax.errors import UserError
from jukebox_jax.files import atomic_file
from jukebox_jax.interop.safe_pickle import DAMAGED, LONGEST_PICKLE, STORAGE_DTYPES, Name, Refused, load, shown

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_ZIP_MEMBER = b"PK\x03\x04"
_MOST_DIMENSIONS = 8
_LONGEST_DIRECTORY = 1 << 24
_MOST_HYPERPARAMETERS = 10_000
_DEEPEST_HYPERPARAMETER = 16


@dataclass(frozen=True)
class _Storage:
    """`count` elements that begin `start` bytes into the file."""

    dtype: np.dtype
    start: int
    count: int


class _MappedFile:
    """The mapped file as zipfile wants one. No read copies more than a table of contents can need."""

    def __init__(self, data: mmap.mmap):
        self._data = data
        self._position = 0

    def read(self, count: int = -1) -> bytes:
        left = max(len(self._data) - self._position, 0)
        count = left if count < 0 else min(count, left)
        if count > _LONGEST_DIRECTORY:
            raise Refused(f"claims a table of contents of {count:,} bytes: download it again")
        start = self._position
        self._position += count
        return self._data[start : self._position]

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self._data)}[whence]
        if base + offset < 0:
            raise ValueError("before the start")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position


def read_torch(path: os.PathLike | str) -> dict:
    """Reads what torch.save wrote, legacy or zip, without torch and without running anything in it.

    Args:
      path: the file. It must not change while an array of it is in use.

    Returns: the dict that was saved: `model`, and perhaps `step`, `hps`, `opt`. Tensors are read-only arrays over the
      mapped file, of any alignment; bfloat16 is that of ml_dtypes; tensors that shared a storage share memory. Dicts
      and OrderedDicts are dicts, sizes are tuples, numpy scalars stay numpy scalars.

    Raises:
      UserError: there is no such file, it is something else, cut short, damaged, claims more than it holds, or names
        anything besides tensors and plain values.
    """
    path = Path(path)
    try:
        with _open_regular(path) as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _refuse_strangers(data)
        contents = _read_zip(data) if data[:4] == _ZIP_MEMBER else _read_legacy(data)
        if not isinstance(contents, dict):
            raise Refused(f"holds a single {type(contents).__name__} instead of a dict: choose a model's checkpoint")
    except Refused as error:
        raise UserError(f"{path} {error}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give the path of a checkpoint file.") from None
    return contents


def state_dict(contents: dict) -> dict[str, np.ndarray]:
    """The parameters in what `read_torch` returned, by their names in the original (prior section 11).

    Args:
      contents: has them under `model`, beside anything else, or is itself a dict of tensors.

    Returns: the arrays themselves, nothing copied, in the file's order; the `module.` that data-parallel training puts
      before every name is gone.

    Raises:
      UserError: there is no `model`, it holds something that is no tensor, or only some names begin with `module.`.
    """
    whole = "model" not in contents
    model = contents if whole else contents["model"]
    if not isinstance(model, dict) or not model:
        raise UserError("The checkpoint has no parameters: choose the checkpoint of a model.")
    for name, value in model.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray):
            missing = " has no 'model', and" if whole else ""
            raise UserError(
                f"The checkpoint{missing} holds a {type(value).__name__} and not a tensor under "
                f"'{shown(str(name))}': choose the checkpoint of a model."
            )
    prefixed = [name for name in model if name.startswith("module.")]
    if not prefixed:
        return dict(model)
    if len(prefixed) < len(model):
        bare = next(name for name in model if not name.startswith("module."))
        raise UserError(
            f"The checkpoint has names with and without 'module.' ({shown(prefixed[0])}, {shown(bare)}): "
            "give all of them the prefix, or none."
        )
    return {name.removeprefix("module."): value for name, value in model.items()}


def hyperparameters(contents: dict) -> dict[str, Any]:
    """The `hps` in what `read_torch` returned, as plain values that JSON can hold; empty if there are none.

    numpy scalars become numbers, tuples become lists, infinities and NaN become text ("nan"), for which JSON has no
    number; what is neither number, text, None, list nor dict is left out.

    Raises:
      UserError: they hold more than 10,000 values, nest deeper than 16, or hold a whole number beyond 64 bits.
    """
    seen = 0

    def plain(value: Any, depth: int) -> Any:
        nonlocal seen
        seen += 1
        # Lists that hold one another many times over are small in the file and endless here.
        if seen > _MOST_HYPERPARAMETERS or depth > _DEEPEST_HYPERPARAMETER:
            raise UserError("The checkpoint's 'hps' are too large or too deep: get the file from a source you trust.")
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, dict):
            return {k: plain(v, depth + 1) for k, v in value.items() if isinstance(k, str) and _is_plain(v)}
        if isinstance(value, list | tuple):
            return [plain(item, depth + 1) for item in value if _is_plain(item)]
        if isinstance(value, int) and value.bit_length() > 64:  # such a number may have megabytes
            raise UserError(
                "The checkpoint's 'hps' hold a number beyond 64 bits: get the file from a source you trust."
            )
        return repr(value) if isinstance(value, float) and not math.isfinite(value) else value

    hps = contents.get("hps")
    return plain(hps, 0) if isinstance(hps, dict) else {}


def write_torch(path: os.PathLike | str, contents: Mapping[str, Any], legacy: bool = True) -> None:
    """Writes a checkpoint that the original loads: `{"model", "step", "hps", "opt": None}`; needs torch.

    Args:
      path: the file; it appears when it is complete, and replaces one that is there.
      contents: `model` maps the original's names to arrays; `step` and `hps` may be left out; anything else is dropped.
        Arrays keep their bits and dtype, and arrays over the same memory (tied weights) share one storage.
      legacy: the container of the released files; otherwise zip.

    Raises:
      UserError: torch is not installed, an array has a dtype that torch files have no storage for, or the file cannot
        be written.
    """
    try:
        import torch
    except ImportError:
        raise UserError('Writing a torch checkpoint needs torch: pip install "jukebox-jax[torch]".') from None

    contents = dict(contents)
    model, tensors = OrderedDict(), {}
    for name, array in state_dict(contents).items():
        if array.dtype not in STORAGE_DTYPES.values():
            raise UserError(f"Torch checkpoints hold no {array.dtype} tensors: convert {name} to float32.")
        memory = (array.ctypes.data, array.shape, array.strides, array.dtype)
        if memory not in tensors:
            tensors[memory] = _to_tensor(array)
        model[name] = tensors[memory]
    whole = {"model": model, "step": contents.get("step", 0), "hps": hyperparameters(contents), "opt": None}
    try:
        # Given the open file and not its path, torch does not put the temporary file's name into the zip.
        with atomic_file(path) as temporary, open(temporary, "wb") as file:
            torch.save(whole, file, _use_new_zipfile_serialization=not legacy)
    except (OSError, RuntimeError) as error:  # torch tells of a full disk by the latter
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise UserError(f"{path} cannot be written ({reason}): make room or choose another place.") from None


def _open_regular(path: Path) -> IO[bytes]:
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise Refused("is a folder: give the path of the checkpoint file in it")
    if not stat.S_ISREG(status.st_mode):
        raise Refused("is not a regular file: give the path of a checkpoint file")
    if status.st_size == 0:
        raise Refused("is empty: download it again")
    return open(path, "rb")


def _refuse_strangers(data: mmap.mmap) -> None:
    """Says what a file is that is no torch file, as far as its first bytes tell."""
    head = data[:512]
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise Refused("is a web page, probably a server's error message, and not a checkpoint: download it again")
    if head[257:262] == b"ustar":
        raise Refused(
            "is a tar archive, which the released .pth.tar files are not: give the file that torch.save wrote"
        )
    if head[:2] == b"\x1f\x8b":
        raise Refused("is compressed with gzip: unpack it first")
    # Every pickle that torch.save writes begins with its protocol; a zip file with a member.
    if not head.startswith((b"\x80", _ZIP_MEMBER)):
        raise Refused("is not a torch checkpoint: give the .pth.tar file that torch.save wrote, or download it again")


def _read_legacy(data: mmap.mmap) -> Any:
    position = 0

    def unpickle(storage: Callable[..., Any] = _refuse, tensor: Callable[..., Any] = _refuse) -> Any:
        nonlocal position
        window = io.BytesIO(data[position : position + LONGEST_PICKLE])
        value = load(window, storage, tensor)
        position += window.tell()
        return value

    if unpickle() != _MAGIC:
        raise Refused("is a pickle that torch.save did not write: give the .pth.tar file of a model")
    if unpickle() != _PROTOCOL:
        raise Refused(f"does not have the protocol number {_PROTOCOL} of torch files: download it again")
    system = unpickle()
    _refuse_byte_order(isinstance(system, dict) and system.get("little_endian") is True)

    # The contents come before the elements and do not say where these begin. So they are read twice: for the storages
    # that they declare, and for the tensors once the storages are found.
    begin = position
    declared: dict[str, tuple[np.dtype, int]] = {}

    def declare(persistent_id: tuple) -> None:
        key, *kind = _declaration(persistent_id)
        if declared.setdefault(key, tuple(kind)) != tuple(kind):
            raise Refused(f"describes the storage {shown(key)} in two ways: download it again")

    unpickle(declare, lambda *_: None)
    keys = unpickle()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(declared):
        raise Refused("lists other storages than its contents name: download it again")
    storages: dict[str, _Storage] = {}
    for key in keys:
        dtype, count = declared[key]
        start = position + 8
        if start > len(data) or struct.unpack("<q", data[position:start])[0] != count:
            raise Refused(DAMAGED)
        position = start + count * dtype.itemsize
        if position > len(data):
            raise Refused(
                f"ends {position - len(data):,} bytes before its storage {shown(key)} does: download it again"
            )
        storages[key] = _Storage(dtype, start, count)

    position = begin
    return unpickle(lambda persistent_id: storages[_declaration(persistent_id)[0]], partial(_tensor, data))


def _read_zip(data: mmap.mmap) -> Any:
    try:
        with zipfile.ZipFile(_MappedFile(data)) as archive:
            members = {member.filename: member for member in archive.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error):
        raise Refused(DAMAGED) from None

    def place(name: str) -> tuple[int, int]:
        """Where a member's bytes begin and end: behind a header of its own, whose length only that header tells."""
        if name not in members:
            raise Refused(f"has no member {shown(name)}: download it again")
        member = members[name]
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise Refused(f"has a compressed member {shown(name)}: unpack and store it, or download it again")
        header = data[member.header_offset : member.header_offset + 30] if member.header_offset >= 0 else b""
        if len(header) < 30 or not header.startswith(_ZIP_MEMBER):
            raise Refused(DAMAGED)
        start = member.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        if start + member.file_size > len(data):
            raise Refused(f"claims {member.file_size:,} bytes for its member {shown(name)}: download it again")
        return start, start + member.file_size

    roots = [name.removesuffix("data.pkl") for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise Refused("is a zip archive, but not one that torch.save wrote: give the .pth.tar file of a model")
    (root,) = roots
    if f"{root}constants.pkl" in members or any(name.startswith(f"{root}code/") for name in members):
        raise Refused("is a TorchScript program, not a checkpoint: give the .pth.tar file of a model")
    if f"{root}byteorder" in members:
        start, stop = place(f"{root}byteorder")
        _refuse_byte_order(data[start : min(stop, start + 8)] == b"little")

    def storage(persistent_id: tuple) -> _Storage:
        key, dtype, count = _declaration(persistent_id)
        start, stop = place(f"{root}data/{key}")
        if stop - start != count * dtype.itemsize:
            raise Refused(f"has {stop - start:,} bytes for {count:,} elements of type {dtype}: download it again")
        return _Storage(dtype, start, count)

    start, stop = place(f"{root}data.pkl")
    if stop - start > LONGEST_PICKLE:
        raise Refused(f"has a pickle of {stop - start:,} bytes, which no checkpoint needs: download it again")
    return load(io.BytesIO(data[start:stop]), storage, partial(_tensor, data))


def _refuse(*_: Any) -> None:
    raise Refused(DAMAGED)


def _refuse_byte_order(little_endian: bool) -> None:
    if not little_endian:
        raise Refused("was written on a big-endian machine: load and save it again with torch on another")


def _declaration(persistent_id: tuple) -> tuple[str, np.dtype, int]:
    """Key, dtype and element count of ("storage", type, key, device, count); legacy files add a None."""
    match persistent_id:
        case str("storage"), Name(kind), str(key), _, int(count), *view if (
            kind in STORAGE_DTYPES and 0 <= count < 2**63 and all(part is None for part in view)
        ):
            return key, STORAGE_DTYPES[kind], count
    raise Refused("refers to something other than a tensor's storage: download it again")


def _tensor(data: mmap.mmap, storage: Any, offset: Any, size: Any, stride: Any) -> np.ndarray:
    """A read-only array over the file; all four parts come from the pickle and may be anything."""
    if (
        not isinstance(storage, _Storage)
        or not isinstance(size, tuple)
        or not isinstance(stride, tuple)
        or not len(size) == len(stride) <= _MOST_DIMENSIONS
        or not all(isinstance(n, int) and 0 <= n < 2**63 for n in (offset, *size, *stride))
    ):
        raise Refused(f"has a tensor without offset, sizes and strides (at most {_MOST_DIMENSIONS}): download it again")
    elements = math.prod(size)
    reach = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if elements else 0
    # More elements than its storage has would mean that some stand for many: a small file, and endless once copied.
    if offset + reach > storage.count or elements > storage.count or math.prod(n or 1 for n in size) >= 2**48:
        raise Refused("has a tensor that lies outside its storage: download it again")
    width = storage.dtype.itemsize
    return np.ndarray(
        size,
        storage.dtype,
        buffer=data,
        offset=storage.start + offset * width if elements else 0,
        # The step along an axis of one element is never taken and may be any number.
        strides=[step * width if n > 1 else width for n, step in zip(size, stride, strict=True)] if elements else None,
    )


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(
        value, bool | int | float | str | np.bool_ | np.integer | np.floating | list | tuple | dict
    )


def _to_tensor(array: np.ndarray) -> Any:
    import torch

    whole = np.require(array, requirements=["C_CONTIGUOUS", "ALIGNED"])
    with warnings.catch_warnings():
        # torch warns that it cannot protect a read-only array; saving only reads it.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        if whole.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(whole.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(whole)
