"""Audio to tokens: chunks of many songs in batches of one compiled shape, on all devices of this process."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, UInt16

from jukebox_jax.audio.files import to_float32
from jukebox_jax.checkpoint.models import load_codec
from jukebox_jax.corpus.chunks import Chunk, Chunking
from jukebox_jax.corpus.records import upload_dataset
from jukebox_jax.corpus.tokens import SongId, check_encodable, finished_dataset, open_work, song_ids, token_header
from jukebox_jax.errors import UserError
from jukebox_jax.models.vqvae import Codec, VQVAEConfig, encode
from jukebox_jax.parallel.mesh import make_mesh
from jukebox_jax.parallel.strategies import batch_sharding, get_strategy
from jukebox_jax.pipeline.dataset import Dataset, RecordReader, open_dataset
from jukebox_jax.remote import as_path, exists, is_remote

#: Audio (b, t, 1) and, where rows end early, their lengths (b,) → codes (b, t / hop) of each level, on the devices.
BatchEncoder = Callable[..., list[Int[Array, "b _"]]]


def encode_dataset(
    dataset: os.PathLike | str,
    checkpoint: os.PathLike | str,
    out: os.PathLike | str,
    *,
    batch_size: int | None = None,
    chunk_samples: int | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
    progress: bool = True,
) -> Dataset | None:
    """Encodes every song of an audio dataset with a codec into a token dataset at `out`.

    Songs are dealt out to processes: those of one `jax.distributed` job, or any machines that see the same files.
    Process 0 waits for the others and writes `out`. After a kill the same command goes on with the songs that are not
    done. With one batch size and kind of device the bytes are the same for any number of processes, devices and kills.

    Args:
      out: a folder here, or in a bucket, to which the finished dataset is uploaded; the work is then done in the
        current folder.
      batch_size: chunks encoded at once on each device; by default 1 on a CPU, 4 on accelerators.
      chunk_samples: length of a chunk; by default at least ten times what it shares with its neighbours, unless all
        songs are shorter.
      process_index, process_count: which of how many processes this is; by default what jax says.

    Returns:
      The token dataset; None in a process other than 0.

    Raises:
      UserError: no such dataset or codec, another sample rate, too many codes, too little free space; `out` exists, is
        being written, or was begun with other settings; other processes stopped before their songs were done.
    """
    if is_remote(out):
        options = {"batch_size": batch_size, "chunk_samples": chunk_samples, "progress": progress}
        options |= {"process_index": process_index, "process_count": process_count}
        return _encode_and_upload(dataset, checkpoint, out, options)
    index, count = _this_process(process_index, process_count)
    audio = open_dataset(dataset)
    trained = load_codec(checkpoint)
    config = trained.config
    hops = {f"level_{level}": hop for level, hop in enumerate(config.hops)}
    check_encodable(audio, hops, config.codes)
    check_rate(audio, config)
    chunking = Chunking.of(
        config, max(song.samples for songs in audio.splits.values() for song in songs), chunk_samples
    )
    rows = batch_size or (1 if jax.local_devices()[0].platform == "cpu" else 4)
    batch_size = rows * jax.local_device_count()

    header = token_header(audio, hops, trained.hash, config.codes)
    settings = {"chunk_samples": chunking.samples, "batch_size": rows}
    if (done := finished_dataset(audio, header, out, settings)) is not None:
        return done
    with open_work(audio, header, out, settings, index, count) as work:
        mine = song_ids(audio)[index::count]
        finished = work.finished()
        missing = [song for song in mine if song.name not in finished]
        encoder = batch_encoder(config, trained.codec, batch_size)
        codes = _chunk_codes(config, encoder, _read_chunks(audio, missing, chunking), batch_size)
        with _progress_bar(audio, mine, missing, progress) as bar:
            for song in missing:
                with work.new_part(song) as part:
                    for chunk, tokens in islice(codes, chunking.count(_song_samples(audio, song))):
                        part.append(tokens)
                        bar.update((chunk.last - chunk.first) / audio.sample_rate)
        return work.assemble() if index == 0 else None


def _encode_and_upload(
    dataset: os.PathLike | str, checkpoint: os.PathLike | str, out: os.PathLike | str, options: Mapping[str, Any]
) -> Dataset | None:
    if exists(as_path(out) / "songs.json"):
        raise UserError(f"{out} already exists: remove it or choose another folder.")
    local = Path.cwd() / f".{as_path(out).name}.encoded"
    if (local / "songs.json").exists():  # killed while uploading
        done = open_dataset(local)
        if done.codec["hash"] != load_codec(checkpoint).hash or done.splits != open_dataset(dataset).splits:
            raise UserError(f"{local} holds tokens of something else, not yet uploaded: remove it.")
    elif encode_dataset(dataset, checkpoint, local, **options) is None:
        return None
    upload_dataset(local, out)
    shutil.rmtree(local)
    return open_dataset(out)


def encode_song(
    config: VQVAEConfig, codec: Codec, audio: Float[np.ndarray, " t"], *, chunk_samples: int | None = None
) -> list[Int[np.ndarray, " _"]]:
    """Codes of a whole mono song at every level, each of t // hop tokens, up to the last whole hop of the top level.

    It is encoded in overlapping chunks, by default as long as in `encode_dataset`; the codes are those of encoding it
    in one piece.
    """
    chunking = Chunking.of(config, len(audio), chunk_samples)
    chunks = [chunking.chunk(len(audio), index) for index in range(chunking.count(len(audio)))]
    padded = ((chunk, _padded(audio[chunk.start : chunk.stop], chunking.samples)) for chunk in chunks)
    parts = [tokens for _, tokens in _chunk_codes(config, partial(_encode, config, codec, None), padded, 1)]
    return [np.concatenate(level).astype(np.int32) for level in zip(*parts, strict=True)]


def batch_encoder(
    config: VQVAEConfig, codec: Codec, batch_size: int, levels: tuple[int, ...] | None = None
) -> BatchEncoder:
    """The encoder for batches of one size, whose rows lie over as many of this process's devices as divide it."""
    devices = jax.local_devices()
    devices = devices[: math.gcd(batch_size, len(devices))]
    mesh = make_mesh((len(devices),), devices)
    rows = batch_sharding(mesh, get_strategy("dp").rules, batch_size)
    codec = jax.device_put(codec, NamedSharding(mesh, PartitionSpec()))

    def encode_batch(
        audio: Float[np.ndarray, "b t 1"], valid: Int[np.ndarray, " b"] | None = None
    ) -> list[Int[Array, "b _"]]:
        with jax.set_mesh(mesh):  # whatever mesh the caller works on
            return _encode(config, codec, levels, *jax.device_put((audio, valid), rows))

    return encode_batch


def check_rate(audio: Dataset, config: VQVAEConfig) -> None:
    """Raises a UserError unless the music is at the codec's rate."""
    if audio.sample_rate != config.sample_rate:
        raise UserError(
            f"{audio.folder} is at {audio.sample_rate} Hz, the codec at {config.sample_rate} Hz: "
            "prepare the music again at the codec's rate."
        )


@partial(jax.jit, static_argnums=(0, 2))
def _encode(
    config: VQVAEConfig,
    codec: Codec,
    levels: tuple[int, ...] | None,
    audio: Float[Array, "b t 1"],
    valid: Int[Array, " b"] | None = None,
) -> list[Int[Array, "b _"]]:
    return encode(config, codec, audio, levels, valid)


def _this_process(index: int | None, count: int | None) -> tuple[int, int]:
    if index is None and count is None:
        return jax.process_index(), jax.process_count()
    if index is None or count is None or not 0 <= index < count:
        raise UserError(f"Process {index} of {count}: give both, the first from 0 to one below the second.")
    return index, count


def _song_samples(audio: Dataset, song: SongId) -> int:
    return audio.splits[song.split][song.index].samples


def _read_chunks(
    audio: Dataset, songs: Iterable[SongId], chunking: Chunking
) -> Iterator[tuple[Chunk, Float[np.ndarray, " t"]]]:
    """Every chunk of the songs in order, mixed to mono and padded with zeros."""
    readers = {split: RecordReader(audio, split) for split, table in audio.splits.items() if table}
    for song in songs:
        length = _song_samples(audio, song)
        for index in range(chunking.count(length)):
            chunk = chunking.chunk(length, index)
            samples = np.zeros(0, np.float32)
            if chunk.stop > chunk.start:
                (stored,) = readers[song.split].read(song.index, chunk.start, chunk.stop, ("audio",))
                samples = to_float32(stored).mean(axis=1)
            yield chunk, _padded(samples, chunking.samples)


def _padded(samples: Float[np.ndarray, " t"], length: int) -> Float[np.ndarray, " u"]:
    return np.pad(samples, (0, length - len(samples)))


def _chunk_codes(
    config: VQVAEConfig,
    encoder: BatchEncoder,
    chunks: Iterable[tuple[Chunk, Float[np.ndarray, " t"]]],
    batch_size: int,
) -> Iterator[tuple[Chunk, list[UInt16[np.ndarray, " _"]]]]:
    """Each chunk with the codes that are kept of it, level 0 first. Reads the next batch while the devices work."""
    chunks = iter(chunks)
    running: tuple[list[Chunk], list[Array]] | None = None
    while batch := list(islice(chunks, batch_size)):
        of_batch = [chunk for chunk, _ in batch]
        audio = np.zeros((batch_size, len(batch[0][1]), 1), np.float32)
        valid = np.zeros(batch_size, np.int32)
        for row, (chunk, samples) in enumerate(batch):
            audio[row, :, 0], valid[row] = samples, chunk.stop - chunk.start
        codes = encoder(audio, valid)
        if running is not None:
            yield from _kept(config, *running)
        running = of_batch, codes
    if running is not None:
        yield from _kept(config, *running)


def _kept(
    config: VQVAEConfig, chunks: list[Chunk], codes: list[Array]
) -> Iterator[tuple[Chunk, list[UInt16[np.ndarray, " _"]]]]:
    rows = jax.device_get(codes)
    for row, chunk in enumerate(chunks):
        first, last = chunk.first - chunk.start, chunk.last - chunk.start
        yield (
            chunk,
            [
                level[row, first // hop : last // hop].astype(np.uint16)
                for level, hop in zip(rows, config.hops, strict=True)
            ],
        )


def _progress_bar(audio: Dataset, mine: list[SongId], missing: list[SongId], progress: bool):
    """In seconds of audio; what an earlier run did counts as done, but not for the rate."""
    from tqdm import tqdm

    total, left = (sum(_song_samples(audio, song) for song in songs) / audio.sample_rate for songs in (mine, missing))
    return tqdm(
        desc="encode",
        total=total,
        initial=total - left,
        unit=" s of audio",
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of audio "
        "[{elapsed}<{remaining}, {rate_noinv_fmt}]",
        file=sys.stderr,
        disable=not progress,
        delay=0.5,  # so that a refusal stays one line
    )
