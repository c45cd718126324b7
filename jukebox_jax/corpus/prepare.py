"""A folder of music becomes a dataset folder.

The folder holds audio files and, if it likes, `metadata.jsonl`: one JSON object a line with `file_name` (a path inside
the folder) and optionally `title`, `artist`, `genre`, `lyrics` and `split` ("train" or "validation"); other keys are
left alone. Without that file every audio file found is taken, untitled and unlabelled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float

from jukebox_jax.audio.files import READABLE_SUFFIXES, UNREADABLE_SUFFIXES, audio_info, read_audio, to_int16
from jukebox_jax.corpus.records import DatasetWriter, new_dataset_folder
from jukebox_jax.errors import UserError
from jukebox_jax.labels.ids import UNKNOWN, LabelTable
from jukebox_jax.pipeline.dataset import RECORD_SAMPLES, SPLITS, Dataset, Song, open_dataset

VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class Piece:
    """One row of the metadata. `split` is empty until it is decided."""

    path: Path
    file_name: str
    title: str
    artist: str
    genre: str
    lyrics: str
    split: str


def prepare(
    source: os.PathLike | str,
    out: os.PathLike | str,
    *,
    sample_rate: int = 44_100,
    channels: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Dataset:
    """Decodes, resamples and stores every piece of `source` in the new folder `out`.

    The same input gives the same bytes. All files are checked by their headers before anything is written, and `out`
    appears only when it is complete.

    Args:
      channels: 1 (mono) or 2; None takes 1 if every file is mono, else 2.
      progress: called after each piece with (pieces done, pieces in all, title).

    Raises:
      UserError: bad metadata (file and line are named), a missing, corrupt or unreadable audio file, a file outside
        `source`, no training piece, or `out` exists or is being written.
    """
    source = Path(source)
    pieces = assign_splits(find_pieces(source))
    if not any(piece.split == "train" for piece in pieces):
        raise UserError(f'{source} has no piece for training: give some rows of metadata.jsonl the split "train".')
    channels = _channels(pieces, channels)
    labels = LabelTable.of((piece.artist for piece in pieces), (piece.genre for piece in pieces))
    with new_dataset_folder(out) as folder:
        header = Dataset(
            folder=folder,
            sample_rate=sample_rate,
            channels=channels,
            record_samples=RECORD_SAMPLES,
            fields={"audio": 1},
            splits={},
            labels=labels,
            shards={},
            codec={},
        )
        writer = DatasetWriter(folder, header)
        try:
            for done, piece in enumerate(pieces, start=1):
                samples = to_int16(_to_channels(read_audio(piece.path, sample_rate), channels, piece.path))
                song = Song(
                    title=piece.title,
                    artist=piece.artist,
                    genre=piece.genre,
                    lyrics=piece.lyrics,
                    file_name=piece.file_name,
                    samples=len(samples),
                    first_record=0,
                )
                writer.add(piece.split, song, {"audio": samples})
                if progress is not None:
                    progress(done, len(pieces), piece.title)
            writer.finish()
        finally:
            writer.close()
    return open_dataset(out)


def find_pieces(source: Path) -> list[Piece]:
    """The pieces of a folder, from its `metadata.jsonl` or, without one, from the audio files found in it.

    Raises:
      UserError: as `prepare`.
    """
    if not source.is_dir():
        raise UserError(f"{source} is not a folder: name the folder that holds the audio files.")
    metadata = source / "metadata.jsonl"
    if metadata.exists():
        pieces = _read_metadata(metadata)
    else:
        found = sorted(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file())
        for name in found:
            if PurePosixPath(name).suffix.lower() in UNREADABLE_SUFFIXES:
                raise UserError(f"{source / name} is in a format that cannot be decoded here: convert it to FLAC.")
        names = [name for name in found if PurePosixPath(name).suffix.lower() in READABLE_SUFFIXES]
        pieces = [_piece({"file_name": name}, source, f"{source / name}") for name in names]
    if not pieces:
        raise UserError(f"{source} holds no audio: put WAV, FLAC, Ogg or MP3 files there.")
    return pieces


def assign_splits(pieces: list[Piece]) -> list[Piece]:
    """Gives a split to each piece that has none: about a tenth, by a hash of title and artist, goes to validation.

    Versions of one piece share a hash, so they stay together. Of two or more distinct pieces at least one is in each
    split.
    """
    keys = [hashlib.sha256(f"{piece.title.lower()}\n{piece.artist.lower()}".encode()).hexdigest() for piece in pieces]
    undecided = {key for key, piece in zip(keys, pieces, strict=True) if not piece.split}
    held_out = {key for key in undecided if int(key[:8], 16) < VALIDATION_SHARE * 2**32}
    decided = {piece.split for piece in pieces if piece.split}
    # The extremes of the hash order move first, so that adding pieces moves as few others as possible.
    if "validation" not in decided and not held_out and len(undecided) + ("train" in decided) >= 2:
        held_out = {min(undecided)}
    if "train" not in decided and held_out == undecided:
        held_out = undecided - {max(undecided, default="")}
    return [
        piece if piece.split else replace(piece, split="validation" if key in held_out else "train")
        for key, piece in zip(keys, pieces, strict=True)
    ]


def _read_metadata(path: Path) -> list[Piece]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}): save it as UTF-8.") from None
    pieces, seen = [], {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where} is not JSON ({error}): write one object a line.") from None
        piece = _piece(row, path.parent, where)
        if piece.path in seen:
            raise UserError(f"{where} names {piece.file_name} again (first on line {seen[piece.path]}): remove one.")
        seen[piece.path] = number
        pieces.append(piece)
    return pieces


def _piece(row: object, source: Path, where: str) -> Piece:
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str) or not row["file_name"]:
        raise UserError(f'{where} has no "file_name": give the path of an audio file inside {source}.')
    text = {}
    for key in ("title", "artist", "genre", "lyrics", "split"):
        value = row.get(key)
        if value is not None and not isinstance(value, str):
            raise UserError(f'{where}: "{key}" is {json.dumps(value)}, not text: put it in quotes, or leave it out.')
        text[key] = value or ""
    if text["split"] not in ("", *SPLITS):
        raise UserError(f'{where}: "split" is "{text["split"]}": use "train", "validation" or "test", or leave it out.')
    if any("\0" in part or not _is_text(part) for part in (row["file_name"], *text.values())):
        raise UserError(f"{where} holds characters that are not text (NUL or half a surrogate pair): remove them.")
    path = (source / row["file_name"]).resolve()
    if not path.is_relative_to(source.resolve()):
        raise UserError(f"{where}: {row['file_name']} lies outside {source}: copy the file into the folder.")
    if not path.exists():
        raise UserError(f"{where}: {source / row['file_name']} does not exist: add the file, or remove the row.")
    return Piece(
        path=path,
        file_name=row["file_name"],
        title=text["title"].strip() or PurePosixPath(row["file_name"]).stem,
        artist=text["artist"].strip() or UNKNOWN,
        genre=text["genre"].strip() or UNKNOWN,
        lyrics=text["lyrics"],
        split=text["split"],
    )


def _is_text(value: str) -> bool:
    """JSON can spell half a surrogate pair, which no file can hold."""
    return not any(0xD800 <= ord(character) < 0xE000 for character in value)


def _channels(pieces: list[Piece], channels: int | None) -> int:
    """Reads every header, so that a bad file is found before anything is decoded."""
    widest = max(audio_info(piece.path).channels for piece in pieces)
    if channels not in (None, 1, 2):
        raise UserError(f"{channels} channels cannot be stored: choose 1 or 2.")
    return channels or min(widest, 2)


def _to_channels(samples: Float[np.ndarray, "t c1"], channels: int, path: Path) -> Float[np.ndarray, "t c2"]:
    if samples.shape[1] == channels:
        return samples
    if channels == 1:
        return samples.mean(axis=1, keepdims=True)
    if samples.shape[1] == 1:
        return np.repeat(samples, channels, axis=1)
    raise UserError(f"{path} has {samples.shape[1]} channels: convert it to stereo, or prepare with one channel.")
