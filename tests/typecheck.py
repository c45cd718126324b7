"""The run-time checker that conftest.py hangs on every function of the package."""

from __future__ import annotations

from collections.abc import Callable

from beartype import beartype


def check(function: Callable) -> Callable:
    """beartype, except on constructors: jax rebuilds pytree dataclasses around any leaves (shapes, shardings, None)."""
    return function if function.__name__ == "__init__" else beartype(function)
