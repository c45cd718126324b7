"""Jukebox in JAX: music as raw audio, from a VQ-VAE, a top prior and two upsamplers."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # Who wants the version, or the command line's help, need not wait for JAX.
    if name == "load":
        from jukebox_jax.api import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
