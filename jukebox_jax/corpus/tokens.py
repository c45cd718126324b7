"""Token datasets: the codes of every song, under the record numbers of the audio they came from."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int16

from jukebox_jax.corpus.records import DatasetWriter, new_dataset_folder
from jukebox_jax.errors import UserError
from jukebox_jax.pipeline.dataset import Dataset, RecordReader, Song, open_dataset

MAX_CODES = 2**16  # they are stored as uint16

EncodeSong = Callable[[str, Song, Int16[np.ndarray, "t channels"]], Mapping[str, np.ndarray]]


def write_token_dataset(
    audio: Dataset,
    out: os.PathLike | str,
    hops: Mapping[str, int],
    encode_song: EncodeSong,
    codec_hash: str,
    progress: Callable[[int, int, str], None] | None = None,
    *,
    codes: int | None = None,
) -> Dataset:
    """Encodes every song of an audio dataset into a new folder with the same song table and labels.

    Args:
      hops: level name → hop in samples, {"level_0": 8, "level_1": 32, "level_2": 128}.
      encode_song: (split, song, its samples) → for each level uint16 codes (n,), at least up to the last whole
        hop of the coarsest level and at most to the end of the last record; the rest is filled with zeros.
      codec_hash: what made the codes; stored, so that a prior is not trained on the codes of another codec.
      progress: called after each song with (songs done, songs in all, title).
      codes: how many codes a level has; stored, so that a prior has as many. None leaves it open.

    Raises:
      UserError: `audio` holds no audio, a hop does not divide a record, more codes than can be stored, or `out` exists
        or is being written.
      ValueError: `encode_song` returned codes of another type or length.
    """
    if "audio" not in audio.fields:
        raise UserError(f"{audio.folder} holds tokens, not audio: name the folder that `jukebox-jax prepare` wrote.")
    for level, hop in hops.items():
        if audio.record_samples % hop:
            raise UserError(
                f"The hop of {level}, {hop} samples, does not divide a record of {audio.record_samples} samples: "
                "use a codec whose hops are powers of two."
            )
    if codes is not None and codes > MAX_CODES:
        raise UserError(f"The codec has {codes} codes, but only {MAX_CODES} can be stored: train one with fewer.")
    codec = {"hash": codec_hash} | ({} if codes is None else {"codes": codes})
    songs = [(split, index, song) for split, table in audio.splits.items() for index, song in enumerate(table)]
    readers = {split: RecordReader(audio, split) for split in audio.splits}
    with new_dataset_folder(out) as folder:
        writer = DatasetWriter(folder, dataclasses.replace(audio, fields=dict(hops), codec=codec))
        try:
            for done, (split, index, song) in enumerate(songs, start=1):
                writer.add(split, song, encode_song(split, song, readers[split].read_song(index, "audio")))
                if progress is not None:
                    progress(done, len(songs), song.title)
            writer.finish()
        finally:
            writer.close()
    return open_dataset(Path(out))
