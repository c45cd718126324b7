"""`--config FILE.py:VARIANT` and `--config.KEY=VALUE`: a config file's dataclass, with values changed by hand.

The dataclass is the truth. For the command line it wears a locked ConfigDict, whose flags parse each text by the type
of the value that it replaces; `from_dict` then builds, and so checks, the same dataclass again.
"""

from __future__ import annotations

import difflib
import re
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from jukebox_jax.config import from_dict, to_dict
from jukebox_jax.errors import UserError


def load_config(reference: str, overrides: Sequence[str] = ()) -> Any:
    """The dataclass that `get_config` of a config file returns, with overrides applied.

    Args:
      reference: `FILE.py` or `FILE.py:VARIANT`; the variant is the argument of `get_config`.
      overrides: `--config.KEY=VALUE` each; the last one for a key holds.

    Raises:
      UserError: a missing or failing file, an unknown variant or key, a value of another type.
    """
    config = _call_get_config(reference)
    # There and back once: an int that stands for a float becomes one, or the flag would refuse 1e-4.
    values = to_dict(from_dict(type(config), to_dict(config)))

    changes = dict(override.removeprefix("--config.").split("=", 1) for override in overrides)
    leaves, groups = _keys(values)
    for key, text in changes.items():
        # A whole group can only be emptied.
        if key not in leaves and not (key in groups and text.lower() == "none"):
            inside = [leaf for leaf in leaves if leaf.startswith(f"{key}.")]
            nearest = inside[0] if inside else _nearest(key, leaves)
            raise UserError(f"--config.{key}: {reference} has no such value: did you mean --config.{nearest}?")

    # config_flags knows no way to empty a value; from_dict says whether this one may be empty.
    emptied = [key for key, text in changes.items() if text.lower() == "none"]
    typed = [f"--config.{key}={text}" for key, text in changes.items() if key not in emptied]
    values = _parse_flags(values, typed)
    for key in emptied:
        _set(values, key, None)
    return from_dict(type(config), values)


def _call_get_config(reference: str) -> Any:
    match = re.fullmatch(r"(.+\.py)(?::(.+))?", reference)
    if match is None:
        raise UserError(f"--config {reference}: give a Python file, or a file and a variant, as in FILE.py:VARIANT.")
    path, variant = Path(match[1]), match[2]
    if not path.is_file():
        raise UserError(f"--config {reference}: there is no file {path}.")
    # Run by hand rather than imported: no __pycache__ beside the user's file, and an edit always counts.
    module = types.ModuleType(f"jukebox_jax_config_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where the annotations of a dataclass in this file are looked up
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
        config = module.get_config() if variant is None else module.get_config(variant)
        to_dict(config)
    except UserError:
        raise
    except Exception as error:  # the file is the user's program: it may raise anything, and that is its own mistake
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        if isinstance(error, SyntaxError):
            lines = [error.lineno]
        where = f"{path}, line {lines[-1]}" if lines else f"{path}"
        raise UserError(f"--config {reference}: {where}: {type(error).__name__}: {error}") from error
    return config


def _parse_flags(values: dict[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    flag_values = flags.FlagValues()  # private: flags of other libraries in this process have no say here
    try:
        config_flags.DEFINE_config_dict(
            "config", _wear(values), flag_values=flag_values, sys_argv=["jukebox-jax", *arguments]
        )
        flag_values(["jukebox-jax", *arguments])
    except flags.Error as error:
        raise UserError(str(error).replace("flag --", "--", 1)) from None
    return _unwear(flag_values.config)


def _wear(values: Any) -> Any:
    """Plain values as config_flags can parse them: it reads tuples, not lists, and cannot see the type of None."""
    if isinstance(values, dict):
        return config_dict.ConfigDict({key: _wear(value) for key, value in values.items()})
    if isinstance(values, list):
        return tuple(_wear(value) for value in values)
    return config_dict.placeholder(object) if values is None else values


def _unwear(values: Any) -> Any:
    if isinstance(values, config_dict.ConfigDict):
        return {key: _unwear(value) for key, value in values.items()}
    return [_unwear(value) for value in values] if isinstance(values, tuple) else values


def _keys(values: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The dotted keys of all single values, and those of the groups around them."""
    leaves, groups = [], []
    for key, value in _walk("", values):
        (groups if _is_group(value) else leaves).append(key)
    return leaves, groups


def _is_group(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict) for item in value))


def _walk(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if key:
        yield key, value
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _walk(f"{key}.{name}" if key else name, item)
    elif _is_group(value):
        for index, item in enumerate(value):
            yield from _walk(f"{key}[{index}]", item)


def _nearest(key: str, leaves: Sequence[str]) -> str:
    """The leaf most like `key`; a shared last name counts more than the path to it."""

    def likeness(leaf: str) -> tuple[float, float]:
        last = difflib.SequenceMatcher(None, key.rpartition(".")[2], leaf.rpartition(".")[2]).ratio()
        return last + difflib.SequenceMatcher(None, key, leaf).ratio(), last

    return max(leaves, key=likeness)


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *path, last = [int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", key)]
    holder = values
    for part in path:
        holder = holder[part]
    holder[last] = value
