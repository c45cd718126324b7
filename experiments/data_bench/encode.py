"""`encode`: songs of a dataset into a token dataset, by a codec of the released size with random weights.

The limit is `models/vqvae.encode` over the same music in memory, cut into pieces as long as a chunk: without the
overlap that makes the codes those of the whole song, without reading and storing.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np
from flax.core import meta

from experiments.data_bench.music import write_audio_dataset
from experiments.data_bench.row import Bench, Speed, measure
from jukebox_jax.audio.files import to_float32
from jukebox_jax.checkpoint import compact
from jukebox_jax.checkpoint.models import load_codec
from jukebox_jax.config import to_dict
from jukebox_jax.corpus.chunks import Chunking
from jukebox_jax.corpus.encode import encode_dataset
from jukebox_jax.interop.released import VQVAE
from jukebox_jax.models.vqvae import VQVAEConfig, encode, init_codec
from jukebox_jax.pipeline.dataset import RecordReader

CONFIG = VQVAE
SONG_SECONDS = 120.0
# Seconds of work each, and hardly a difference between them.
REPEATS = 2


def rows(bench: Bench) -> Iterator[Speed]:
    sound = RecordReader(bench.audio, "train").read_song(0, "audio")[: round(SONG_SECONDS * bench.audio.sample_rate)]
    repeats = min(bench.repeats, REPEATS)
    with tempfile.TemporaryDirectory(prefix="data_bench_") as name:
        folder = Path(name)
        audio = write_audio_dataset(folder / "audio", iter([sound]))
        _write_codec(folder / "codec", CONFIG)
        chunk = Chunking.of(CONFIG, len(sound)).samples
        plain = _plain(folder / "codec", to_float32(sound).mean(axis=1), chunk, repeats)
        outs = (folder / f"tokens {number}" for number in itertools.count())

        def run() -> None:
            encode_dataset(audio.folder, folder / "codec", next(outs), progress=False)

        run()  # compiles
        speed = measure(run, len(sound) / audio.sample_rate, repeats)
    yield Speed("encode", f"released size, chunks of {chunk:,} samples", *speed, *plain)


def _plain(codec: Path, mono: np.ndarray, chunk: int, repeats: int) -> tuple[float, float]:
    trained = load_codec(codec)
    encoded = jax.jit(partial(encode, trained.config))
    pieces = mono[: len(mono) // chunk * chunk].reshape(-1, 1, chunk, 1)
    jax.block_until_ready(encoded(trained.codec, pieces[0]))  # compiles

    def run() -> None:
        for piece in pieces:
            jax.device_get(encoded(trained.codec, piece))

    return measure(run, pieces.size / trained.config.sample_rate, repeats)


def _write_codec(folder: Path, config: VQVAEConfig) -> None:
    """Weights of about the right size: what they are makes no difference to the speed."""
    rng = np.random.default_rng(0)

    def weight(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return rng.standard_normal(leaf.shape, np.float32) / np.float32(np.prod(leaf.shape[:-1])) ** 0.5

    shapes = meta.unbox(jax.eval_shape(partial(init_codec, config), jax.random.key(0)))
    books = {
        str(level): {"codes": rng.standard_normal((config.codes, config.emb_width), np.float32)}
        for level in range(config.levels)
    }
    tree = {"params": jax.tree.map(weight, shapes), "model_state": books}
    compact.save(folder, tree, {"kind": "codec", "model": to_dict(config)})
