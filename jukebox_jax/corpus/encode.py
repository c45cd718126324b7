"""Audio to tokens: whole songs of any length, in windows of one compiled shape."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float, Int, UInt16

from jukebox_jax.audio.files import to_float32
from jukebox_jax.checkpoint.models import load_codec
from jukebox_jax.corpus.tokens import write_token_dataset
from jukebox_jax.errors import UserError
from jukebox_jax.models.vqvae import Codec, VQVAEConfig, encode, encoder_reach
from jukebox_jax.pipeline.dataset import Dataset, open_dataset

#: New samples per window; the encoders' reach is added on both sides.
WINDOW_SAMPLES = 2**18


def encode_dataset(
    dataset: os.PathLike | str, checkpoint: os.PathLike | str, out: os.PathLike | str, *, progress: bool = True
) -> Dataset:
    """Encodes every song of an audio dataset with a codec into a token dataset at `out`.

    Raises:
      UserError: no such dataset or codec, another sample rate, too many codes, or `out` exists.
    """
    from tqdm import tqdm

    audio = open_dataset(dataset)
    trained = load_codec(checkpoint)
    config = trained.config
    if audio.sample_rate != config.sample_rate:
        raise UserError(
            f"{dataset} is at {audio.sample_rate} Hz, the codec at {config.sample_rate} Hz: "
            "prepare the music again at the codec's rate."
        )
    songs = sum(len(table) for table in audio.splits.values())

    def encode_one(split, song, samples) -> dict[str, UInt16[np.ndarray, " _"]]:
        del split, song
        codes = encode_song(config, trained.codec, to_float32(samples).mean(axis=1))
        return {f"level_{level}": tokens.astype(np.uint16) for level, tokens in enumerate(codes)}

    # Delayed, so that a refusal stays one line.
    with tqdm(total=songs, desc="encode", unit="song", file=sys.stderr, disable=not progress, delay=0.5) as bar:
        hops = {f"level_{level}": hop for level, hop in enumerate(config.hops)}
        return write_token_dataset(
            audio,
            Path(out),
            hops,
            encode_one,
            trained.hash,
            lambda done, of, title: bar.update(),
            codes=config.codes,
        )


def encode_song(config: VQVAEConfig, codec: Codec, audio: Float[np.ndarray, " t"]) -> list[Int[np.ndarray, " _"]]:
    """Codes of a whole mono song at every level, each of t // hop tokens.

    The song is cut to whole top-level hops. It is encoded in overlapping windows of one shape; what lies within the
    encoders' reach of a window's inner edges is dropped, so the codes are those of encoding it in one piece. A song
    shorter than a window is followed by silence.
    """
    top = config.hops[-1]
    length = len(audio) // top * top
    reach = -(-encoder_reach(config) // top) * top
    window = WINDOW_SAMPLES + 2 * reach
    padded = np.pad(audio[:length], (0, max(0, window - length)))
    codes = [np.zeros(len(padded) // hop, np.int32) for hop in config.hops]
    done = 0
    while done < len(padded):
        start = min(max(0, done - reach), len(padded) - window)
        tokens = jax.device_get(_encode(config, codec, padded[None, start : start + window, None]))
        end = len(padded) if start + window == len(padded) else start + window - reach
        for level, hop in enumerate(config.hops):
            codes[level][done // hop : end // hop] = tokens[level][0, (done - start) // hop : (end - start) // hop]
        done = end
    return [tokens[: length // hop] for tokens, hop in zip(codes, config.hops, strict=True)]


@partial(jax.jit, static_argnums=0)
def _encode(config: VQVAEConfig, codec: Codec, audio: Float[Array, "b t 1"]) -> list[Int[Array, "b _"]]:
    return encode(config, codec, audio)
