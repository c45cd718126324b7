"""A pickle read as data: a stack machine for the few instructions a checkpoint needs, which imports and calls nothing.

Python's own unpickler resolves names, calls objects, sets attributes and grows its memo as the file tells it to. Here
a name stays an inert `Name`, "calling" one means a look into the table of `_call`, and an instruction outside the
list is refused. What a hostile file can claim is bounded by the constants below, not by its own counts.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

#: A 5B prior with its optimizer state needs about 1 MB and 200,000 instructions.
LONGEST_PICKLE = 1 << 24
MOST_INSTRUCTIONS = 1 << 20
#: Wider than any number: the only bytes in a checkpoint's pickle are those of numpy scalars.
LONGEST_ENCODED = 32

#: What the elements of each storage type are; the data is little-endian.
STORAGE_DTYPES = {
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
    "torch.ComplexFloatStorage": np.dtype("<c8"),
    "torch.ComplexDoubleStorage": np.dtype("<c16"),
}
#: The names a checkpoint may hold besides storage types; `_call` says what each one does.
CALLED_NAMES = frozenset(
    {
        "collections.OrderedDict",
        "torch.Size",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "numpy.dtype",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "_codecs.encode",
    }
)
_SCALAR_CODES = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})

_UNTRUSTED = "get the file from a source you trust"
DAMAGED = "is cut short or damaged: download it again"


class Refused(Exception):
    """Why a file is refused and what helps, worded to follow the file's name: "is cut short: download it again"."""


@dataclass(frozen=True)
class Name:
    """A global that the pickle names. It stands for nothing but its text."""

    text: str


@dataclass
class _ScalarType:
    """A numpy dtype under construction: the pickle makes it first and tells its byte order later."""

    code: str
    order: str = "<"


def shown(text: str) -> str:
    """Text from the file for a message: short, and without characters that a terminal might obey."""
    return ascii(text)[1:-1][:80]


def load(file: io.BytesIO, storage: Callable[[tuple], Any], tensor: Callable[[Any, Any, Any, Any], Any]) -> Any:
    """Reads one pickle and leaves `file` behind it.

    Args:
      file: positioned at the pickle, and no longer than `LONGEST_PICKLE`.
      storage: makes a storage of a persistent id, a tuple of anything.
      tensor: makes a tensor of (storage, offset, size, stride); each may be anything the pickle put there.

    Returns: numbers, texts, tuples, lists, dicts (also for an OrderedDict, whose attributes are dropped), `Name`s,
      numpy scalars, and what the two functions returned. Lists and dicts may contain themselves.

    Raises:
      Refused: the pickle is malformed, names anything outside the list or uses an instruction outside the list.
    """
    stack: list[Any] = []
    outer: list[list[Any]] = []
    memo: dict[int, Any] = {}

    for instruction, argument in _instructions(file):
        match instruction:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return _pop(stack, object)
            case "NONE":
                stack.append(None)
            case "NEWTRUE":
                stack.append(True)
            case "NEWFALSE":
                stack.append(False)
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8":
                stack.append(argument)
            case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8":
                stack.append(argument)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = _top(stack, object)
            case "MEMOIZE":
                memo[len(memo)] = _top(stack, object)
            case "BINGET" | "LONG_BINGET":
                if argument not in memo:
                    raise Refused(DAMAGED)
                stack.append(memo[argument])
            case "MARK":
                outer.append(stack)
                stack = []
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1":
                stack.append((_pop(stack, object),))
            case "TUPLE2":
                last = _pop(stack, object)
                stack.append((_pop(stack, object), last))
            case "TUPLE3":
                last, middle = _pop(stack, object), _pop(stack, object)
                stack.append((_pop(stack, object), middle, last))
            case "TUPLE":
                items, stack = stack, _pop(outer, list)
                stack.append(tuple(items))
            case "EMPTY_LIST":
                stack.append([])
            case "APPEND":
                item = _pop(stack, object)
                _top(stack, list).append(item)
            case "APPENDS":
                items, stack = stack, _pop(outer, list)
                _top(stack, list).extend(items)
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM":
                value = _pop(stack, object)
                key = _pop(stack, object)
                _set_items(_top(stack, dict), [key, value])
            case "SETITEMS":
                items, stack = stack, _pop(outer, list)
                _set_items(_top(stack, dict), items)
            case "GLOBAL":
                stack.append(_name(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                attribute = _pop(stack, str)
                stack.append(_name(f"{_pop(stack, str)}.{attribute}"))
            case "BINPERSID":
                stack.append(storage(_pop(stack, tuple)))
            case "REDUCE":
                arguments = _pop(stack, tuple)
                stack.append(_call(_pop(stack, Name).text, arguments, tensor))
            case "BUILD":
                state = _pop(stack, object)
                _set_state(_top(stack, object), state)
            case _:
                what = f"{instruction} {shown(argument)}" if isinstance(argument, str) else instruction
                raise Refused(
                    f"holds the pickle instruction {what}, which no checkpoint needs and which was not run: "
                    f"{_UNTRUSTED}"
                )
    raise Refused(DAMAGED)


def _instructions(file: io.BytesIO) -> Iterator[tuple[str, Any]]:
    steps = pickletools.genops(file)
    for _ in range(MOST_INSTRUCTIONS):
        try:
            opcode, argument, _ = next(steps)
        except StopIteration:
            return
        except ValueError:
            raise Refused(DAMAGED) from None
        yield opcode.name, argument
    raise Refused(
        f"holds a pickle of more than {MOST_INSTRUCTIONS:,} instructions, which no checkpoint needs: {_UNTRUSTED}"
    )


def _pop(stack: list[Any], kind: type) -> Any:
    if not stack or not isinstance(stack[-1], kind):
        raise Refused(DAMAGED)
    return stack.pop()


def _top(stack: list[Any], kind: type) -> Any:
    if not stack or not isinstance(stack[-1], kind):
        raise Refused(DAMAGED)
    return stack[-1]


def _set_items(target: dict, items: list[Any]) -> None:
    if len(items) % 2:
        raise Refused(DAMAGED)
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Hashing a nest of shared tuples takes exponential time, and large integers can be made to collide.
        if not isinstance(key, str) and not (isinstance(key, int) and -(2**31) <= key < 2**31):
            raise Refused(f"holds a dict whose key is a {type(key).__name__}, which no checkpoint needs: {_UNTRUSTED}")
        target[key] = value


def _name(text: str) -> Name:
    if text not in CALLED_NAMES and text not in STORAGE_DTYPES:
        raise Refused(f"names {shown(text)}, which no Jukebox checkpoint needs and which was not run: {_UNTRUSTED}")
    return Name(text)


def _call(name: str, arguments: tuple, tensor: Callable[[Any, Any, Any, Any], Any]) -> Any:
    # Patterns name the type beside the value: a tensor compared with a text has no truth value.
    match name, arguments:
        case "collections.OrderedDict", ():
            return {}
        case "torch.Size", (tuple() as size,):
            return size
        case "torch._utils._rebuild_tensor_v2", (storage, offset, size, stride, _, _, *_):
            return tensor(storage, offset, size, stride)
        case "torch._utils._rebuild_parameter", (data, _, _):
            return data
        case "numpy.dtype", (str() as code, _, _) if code in _SCALAR_CODES:
            return _ScalarType(code)
        case (
            ("numpy.core.multiarray.scalar" | "numpy._core.multiarray.scalar"),
            (_ScalarType() as kind, bytes() as raw),
        ):
            dtype = np.dtype(kind.order + kind.code)
            if len(raw) == dtype.itemsize:
                return np.frombuffer(raw, dtype)[0]
        case "_codecs.encode", (str() as text, str("latin1")) if (
            len(text) <= LONGEST_ENCODED and max(text, default="") < "\u0100"
        ):
            return text.encode("latin1")
    raise Refused(f"calls {name} with arguments that torch.save never gives it: download it again")


def _set_state(target: Any, state: Any) -> None:
    if isinstance(target, dict):
        return  # the attributes of an OrderedDict, of which torch gives a state dict one: versions of its modules
    match target, state:
        case _ScalarType(), (_, str("<" | ">" | "|") as order, *_):
            target.order = order
        case _:
            raise Refused(f"sets the state of a {type(target).__name__}, which no checkpoint needs: {_UNTRUSTED}")
