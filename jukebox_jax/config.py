"""Trees of frozen dataclasses to JSON and back, with errors a user can act on.

Dataclasses are the truth about what can be configured. This module only moves them: it knows no field of its own.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from jukebox_jax.errors import UserError
from jukebox_jax.files import atomic_file

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """Turns a dataclass into nested dicts, lists, numbers, strings, booleans and None.

    Raises:
      TypeError: a field holds something that JSON cannot carry.
    """
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"Expected an instance of a dataclass, not {config!r}.")
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """Builds `cls` from what `to_dict` made (or a part of it: fields with a default may be absent).

    Raises:
      UserError: an unknown or missing key, or a value of another type; the message carries the dotted key.
    """
    return _build(cls, values, "")


def save_json(path: os.PathLike | str, config: Any) -> None:
    """Writes a dataclass or a JSON-able dict to `path`, whole or not at all."""
    plain = _plain(config)
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(plain, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def load_json(path: os.PathLike | str) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      UserError: the file is missing, unreadable, or not a JSON object.
    """
    path = Path(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: check the path.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON ({error}): restore it or choose another folder.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object: restore it or choose another folder.")
    return values


def differences(a: Any, b: Any) -> list[str]:
    """The dotted keys, sorted, at which two configs (dataclasses or dicts) differ or which only one of them has."""
    left, right = _flatten(_plain(a)), _flatten(_plain(b))
    absent = object()
    return sorted(key for key in left.keys() | right.keys() if left.get(key, absent) != right.get(key, absent))


def nearest(name: str, candidates: Iterable[str]) -> str:
    """The words `did you mean 'x'?`, or a list of what is valid when nothing is close."""
    candidates = sorted(candidates)
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"valid are {', '.join(candidates)}." if candidates else "nothing is valid here."


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"A config may not hold {value!r} of type {type(value).__name__}.")


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(_flatten(value, f"{prefix}.{key}" if prefix else key))
    return flat


def _build(cls: type[T], values: Any, path: str) -> T:
    if not isinstance(values, Mapping):
        raise UserError(f"Config key {path or cls.__name__!r} takes a group of keys, not {values!r}.")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    prefix = f"{path}." if path else ""
    for key in values:
        if key not in fields:
            raise UserError(f"Unknown config key {prefix + str(key)!r}: {nearest(str(key), fields)}")
    arguments = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _convert(hints[name], values[name], prefix + name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            close = difflib.get_close_matches(name, [str(key) for key in values], n=1, cutoff=0.5)
            hint = f" (the nearest key given is {prefix + close[0]!r})" if close else ""
            raise UserError(f"Missing config key {prefix + name!r}{hint}: give it a value.")
    return cls(**arguments)


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else _build(hint, value, path)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(hint, arguments, value, path)
    if origin is typing.Literal:
        if value in arguments:
            return value
        hints = nearest(str(value), [str(argument) for argument in arguments])
        raise UserError(f"Config key {path!r} cannot be {value!r}: {hints}")
    if origin in (tuple, list) and isinstance(value, (list, tuple)):
        if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
            if len(arguments) != len(value):
                raise UserError(f"Config key {path!r} takes {len(arguments)} values, not {len(value)}.")
            items = arguments
        else:
            items = (arguments[0],) * len(value)
        pairs = zip(items, value, strict=True)
        return origin(_convert(item, entry, f"{path}.{i}") for i, (item, entry) in enumerate(pairs))
    if origin is dict and isinstance(value, Mapping):
        return {str(key): _convert(arguments[1], entry, f"{path}.{key}") for key, entry in value.items()}
    if hint is type(None) and value is None:
        return None
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (bool, str) and isinstance(value, hint):
        return value
    raise UserError(f"Config key {path!r} takes {_describe(hint)}, not {value!r}.")


def _convert_union(hint: Any, arguments: tuple, value: Any, path: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    members = [argument for argument in arguments if argument is not type(None)]
    if len(members) == 1:  # Optional: the one member's own message says more than the union's
        return _convert(members[0], value, path)
    for member in members:
        try:
            return _convert(member, value, path)
        except UserError:
            continue
    raise UserError(f"Config key {path!r} takes {_describe(hint)}, not {value!r}.")


def _describe(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    if hint in names:
        return names[hint]
    if typing.get_origin(hint) in (tuple, list):
        return "a list"
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_describe(argument) for argument in typing.get_args(hint))
    return str(hint)
