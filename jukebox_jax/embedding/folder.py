"""Embeddings of whole collections: one .npz for each file of music, and a manifest of what they are.

    OUT/manifest.json        the settings, the models' hashes and configs; once all is done, what could not be read
    OUT/folder/song.mp3.npz  `values` and `times_seconds` (see `clips.Embedding`), and of the file that they are of
                             `source_bytes` and `source_modified_ns`

A file whose embedding is there and whose size and time of change are the same is done: the same command goes on.
"""

from __future__ import annotations

import os
import sys
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jukebox_jax import __version__
from jukebox_jax.audio.files import read_audio
from jukebox_jax.checkpoint.models import (
    CODEC_FOLDER,
    TrainedCodec,
    TrainedPrior,
    level_folder,
    load_codec,
    load_level,
    load_prior_config,
    prior_hash,
    split_cascade,
)
from jukebox_jax.config import load_json, save_json, to_dict
from jukebox_jax.corpus.piece import Catalogue, Piece
from jukebox_jax.corpus.sources.find import find_pieces
from jukebox_jax.corpus.sources.tfds_items import PREFIX
from jukebox_jax.embedding.clips import (
    Clip,
    Embedding,
    EmbeddingSettings,
    chosen_level,
    embed_clips,
    embedding_settings,
)
from jukebox_jax.errors import UserError
from jukebox_jax.files import atomic_file, folder_lock, is_unfinished, remove_unfinished
from jukebox_jax.remote import is_remote, local_copy

MANIFEST = "manifest.json"

# Files that are decoded while the device works; each is in memory whole.
_READERS, _AHEAD = 2, 4
# numpy and zipfile raise whatever the damage happens to break.
_DAMAGE = (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Report:
    """What became of the files: how many embeddings there are, how many of them are new, and what could not be read
    (name → why)."""

    embedded: int
    new: int
    unreadable: dict[str, str]


def embed_folder(
    sources: Sequence[os.PathLike | str],
    model: os.PathLike | str,
    out: os.PathLike | str,
    *,
    layer: int | None = None,
    level: int | None = None,
    pooling: str | float = "mean",
    windows: str = "first",
    batch_size: int = 1,
    progress: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> Report:
    """Writes the embedding of every file of music in `sources` to the folder `out`, which mirrors their folders.

    Of the model only the codec and one prior are loaded. After a kill the same command goes on with the files that are
    not done, and ends with the same bytes.

    Args:
      sources: folders, globs and files, as `corpus.sources.find_pieces` takes them.
      model: a folder with a codec and priors.
      layer, level, pooling, windows, batch_size: as of `api.Model.embed`; the prior is told no names and no lyrics.
      tell: is told each file that cannot be read, in a line.

    Raises:
      UserError: no music, no such model or layer, none of the files can be read; `out` is in use, or holds something
        else, or embeddings of another model, with other settings or of other sources.
    """
    out = Path(out)
    _check_out(out)
    sources = [os.fspath(source) for source in sources]
    if any(source.startswith(PREFIX) for source in sources):
        raise UserError(f"A dataset of TFDS ({PREFIX}…) has no files to embed: name folders or audio files.")
    catalogue = find_pieces(sources)
    folder, at = split_cascade(model)
    codec = load_codec(f"{folder / CODEC_FOLDER}{at}")
    level = chosen_level(codec.config, level)
    config, _, _ = load_prior_config(f"{folder / level_folder(level)}{at}")
    choice = {"layer": layer, "pooling": pooling, "windows": windows, "batch_size": batch_size}
    settings = embedding_settings(codec.config, config, **choice)
    manifest = {
        "generator": f"jukebox_jax {__version__}",
        "settings": asdict(settings),
        "sources": [source if is_remote(source) else os.path.abspath(os.path.expanduser(source)) for source in sources],
        "codec": {"hash": codec.hash, "config": to_dict(codec.config)},
        "prior": {"config": to_dict(config)},
    }
    _check_same(out, manifest)  # before the prior is loaded, which may take minutes
    prior = load_level(folder, at, codec, level)
    manifest["prior"]["hash"] = prior_hash(prior)
    with folder_lock(out):
        _check_same(out, manifest)
        remove_unfinished(out, below=True)
        save_json(out / MANIFEST, manifest)
        report = _embed_missing(catalogue, codec, prior, settings, out, progress, tell)
        save_json(out / MANIFEST, manifest | {"unreadable": report.unreadable})
    if not report.embedded:
        name, why = next(iter(report.unreadable.items()))
        raise UserError(f"None of {len(report.unreadable)} files could be read (the first: {name} {why.rstrip('.')}).")
    return report


def read_embedding(path: os.PathLike | str) -> Embedding:
    """Reads what `embed_folder` wrote for a file; what it is of stands in the manifest.

    Raises:
      UserError: the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return Embedding(stored["values"], stored["times_seconds"])
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: check the path.") from None
    except _DAMAGE as error:
        raise UserError(f"{path} holds no embedding ({error}): remove it, and embed the folder again.") from None


# ---- The folder -------------------------------------------------------------------------------------------------


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder.")
    if not out.is_dir() or (out / MANIFEST).exists():
        return
    if any(path.name != ".lock" and not is_unfinished(path) for path in out.iterdir()):
        raise UserError(f"{out} holds something else than embeddings: choose another folder.")


def _check_same(out: Path, manifest: dict[str, Any]) -> None:
    """Raises a UserError if the folder's embeddings are others than those of the manifest."""
    if not (out / MANIFEST).exists():
        return
    stored = load_json(out / MANIFEST)
    for key in ("settings", "sources", "codec", "prior"):
        ours, theirs = manifest[key], stored.get(key)
        if key == "sources":
            if ours != theirs:
                raise UserError(f"{out} holds embeddings of other sources ({theirs}): choose another folder.")
            continue
        theirs = theirs if isinstance(theirs, dict) else {}
        changed = [name for name in ours if theirs.get(name) != ours[name]]
        if changed and key == "settings":
            told = ", ".join(f"{name}={theirs.get(name)} (now {ours[name]})" for name in changed)
            raise UserError(f"{out} holds embeddings with {told}: choose another folder, or those settings.")
        if changed:
            raise UserError(f"{out} holds embeddings of another {key}: choose another folder, or that model.")


def _path(out: Path, piece: Piece) -> Path:
    # The suffix stays in the name: song.mp3 and song.flac are two files.
    return out / f"{piece.file_name}.npz"


def _is_done(out: Path, piece: Piece) -> bool:
    try:
        with np.load(_path(out, piece), allow_pickle=False) as stored:
            return (int(stored["source_bytes"]), int(stored["source_modified_ns"])) == (piece.size, piece.modified)
    except _DAMAGE:  # or missing
        return False


# ---- The work ---------------------------------------------------------------------------------------------------


def _embed_missing(
    catalogue: Catalogue,
    codec: TrainedCodec,
    prior: TrainedPrior,
    settings: EmbeddingSettings,
    out: Path,
    progress: bool,
    tell: Callable[[str], None],
) -> Report:
    from tqdm import tqdm

    pieces = catalogue.pieces
    missing = [piece for piece in pieces if not _is_done(out, piece)]
    waiting: deque[Piece] = deque()  # whose embeddings are being computed
    unreadable = {problem.where: problem.reason for problem in catalogue.problems if problem.left_out}
    for name, why in unreadable.items():
        tell(f"{name} {why}")
    there, new = len(pieces) - len(missing), 0
    # What an earlier run did says nothing about this one's rate. Delayed, so that a refusal stays one line.
    bar = tqdm(
        desc="embed",
        unit="file",
        total=len(pieces),
        initial=there,
        file=sys.stderr,
        disable=not progress,
        delay=0.5,
    )

    def clips() -> Iterator[Clip]:
        for piece, audio in _read_ahead(missing, codec.config.sample_rate):
            if isinstance(audio, str):
                unreadable[piece.file_name] = audio
                with bar.external_write_mode(file=sys.stderr):
                    tell(f"{piece.file_name} {audio}")
                bar.update()
            else:
                waiting.append(piece)
                yield Clip(audio)

    with bar:
        for embedding in embed_clips(codec, prior, settings, clips()):
            piece = waiting.popleft()
            with atomic_file(_path(out, piece)) as temporary:
                np.savez(
                    temporary,
                    values=embedding.values,
                    times_seconds=embedding.times_seconds,
                    source_bytes=np.int64(piece.size),
                    source_modified_ns=np.int64(piece.modified),
                )
            new += 1
            bar.update()
    return Report(there + new, new, unreadable)


def _read_ahead(pieces: Sequence[Piece], sample_rate: int) -> Iterator[tuple[Piece, Float[np.ndarray, " t"] | str]]:
    """Each piece with its sound in mono or, where it cannot be read, with the reason; reads a few pieces ahead."""
    with ThreadPoolExecutor(_READERS) as pool:
        running: deque[tuple[Piece, Future]] = deque()
        try:
            for piece in pieces:
                running.append((piece, pool.submit(_read, piece, sample_rate)))
                if len(running) > _AHEAD:
                    done, audio = running.popleft()
                    yield done, audio.result()
            for done, audio in running:
                yield done, audio.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _read(piece: Piece, sample_rate: int) -> Float[np.ndarray, " t"] | str:
    try:
        with local_copy(piece.path) as path:
            return read_audio(path, sample_rate).mean(axis=1)
    except UserError as error:
        return str(error).removeprefix(f"{piece.path} ")
    except Exception as error:  # whatever else a decoder raises for a bad file
        return f"cannot be decoded ({type(error).__name__}: {error}): export it again, or remove it."
