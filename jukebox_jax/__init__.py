"""Jukebox in JAX: music as raw audio, from a VQ-VAE, a top prior and two upsamplers."""

__version__ = "0.1.0"
