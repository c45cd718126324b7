"""Memory of the host that steps on the CPU compute in."""

from __future__ import annotations

import ctypes

import jax

# Names and numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Lets the process keep what a step on the CPU has freed for the next step; call it before the first array.

    XLA allocates a step's gigabytes anew at every step. glibc gives blocks of that size back to the system at once,
    which then clears and maps every page again: a third of the processor time of a codec's step. With one arena that is
    never trimmed, steps find their pages in place, and the process stays as large as it has ever been.

    Returns:
      Whether anything was changed: not on accelerators, and not with another C library.
    """
    if jax.default_backend() != "cpu":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(_M_ARENA_MAX, 1), mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, -1)])
