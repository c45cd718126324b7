"""Codecs of random weights whose codes tell the parts of a song apart, and small datasets of stereo noise."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from jukebox_jax.checkpoint import compact
from jukebox_jax.config import to_dict
from jukebox_jax.corpus.records import DatasetWriter, new_dataset_folder
from jukebox_jax.labels.ids import LabelTable
from jukebox_jax.models.vqvae import VQVAE, Codec, VQVAEConfig, init_codec
from jukebox_jax.pipeline.dataset import Dataset, Song, open_dataset

RECORD_SAMPLES = 4096

#: Strides 2 and 4, one to three levels, with and without a cycle of dilations.
CODECS = {
    "released shape": VQVAEConfig(widths=(8, 4, 4), depths=(2, 2, 1), emb_width=8, codes=32),
    "one level": VQVAEConfig(downs=(2,), strides=(4,), widths=(8,), depths=(3,), emb_width=8, codes=32),
    "cycle": VQVAEConfig(
        downs=(1, 2), strides=(4, 2), widths=(8, 4), depths=(4, 3), emb_width=8, codes=32, dilation_cycle=2
    ),
}


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)


@functools.cache
def random_codec(config: VQVAEConfig) -> Codec:
    """Its codes are latents of noise: far enough apart, and all in use."""
    params = meta.unbox(init_codec(config, jax.random.key(0)))
    audio = jnp.asarray(noise(config.hops[-1] * config.codes, seed=9)[None, :, None])

    @functools.partial(jax.jit, static_argnums=0)
    def latents(level):
        return VQVAE(config).apply({"params": params}, audio, level, method="encode_latents")[0]

    return Codec(params, tuple(latents(level)[:: config.hops[-1] // hop] for level, hop in enumerate(config.hops)))


def write_codec(folder: Path, config: VQVAEConfig) -> Path:
    codec = random_codec(config)
    books = {str(level): {"codes": codes} for level, codes in enumerate(codec.codebooks)}
    compact.save(folder, {"params": codec.params, "model_state": books}, {"kind": "codec", "model": to_dict(config)})
    return folder


def write_songs(out: Path, train: tuple[int, ...], validation: tuple[int, ...] = (), rate: int = 44_100) -> Dataset:
    header = Dataset(out, rate, 2, RECORD_SAMPLES, {"audio": 1}, {}, LabelTable.of(["Bach"], ["Song"]), {}, {})
    with new_dataset_folder(out) as folder:
        writer = DatasetWriter(folder, header)
        for split, lengths in (("train", train), ("validation", validation)):
            for index, samples in enumerate(lengths):
                audio = np.random.default_rng(index).integers(-(2**14), 2**14, (samples, 2), dtype=np.int16)
                song = Song(f"{split} {index}", "Bach", "Song", "", f"{split}-{index}.wav", samples, 0)
                writer.add(split, song, {"audio": audio})
        writer.finish()
    return open_dataset(out)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
