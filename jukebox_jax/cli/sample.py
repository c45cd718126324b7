"""`jukebox-jax sample`: songs from trained models."""

from __future__ import annotations

import argparse
import contextlib
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jukebox_jax.cli import arguments
from jukebox_jax.errors import UserError

if TYPE_CHECKING:
    from jukebox_jax.api import Model

DESCRIPTION = """Sample songs: top prior, two upsamplers, decoder.

The same seed and batch size give the same songs, whatever is sampled beside them. Songs start from nothing, from audio
(--prompt), from the tokens of an earlier song (--continue), or from its top level alone (--upsample)."""
EXAMPLE = """  jukebox-jax sample --demo --seconds 6 --seed 1 --out songs
  jukebox-jax sample --demo --seconds 9 --continue songs/seed_1_song_0.tokens.npz --seed 2 --out longer
  jukebox-jax sample --model runs/mine --artist "Anna Magdalena" --artist "Johann" --n-samples 4 --out songs"""
IF_INTERRUPTED = "Run the same command again: the same seed gives the same songs."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--demo", action="store_true", help="the small trained model that ships with the package")
    which.add_argument(
        "--model",
        metavar="FOLDER",
        type=arguments.local_path,
        help="folder that holds vqvae, level_0, level_1 and level_2",
    )
    parser.add_argument(
        "--out", metavar="FOLDER", type=arguments.local_path, default=Path("songs"), help="where to write (songs)"
    )
    parser.add_argument("--artist", action="append", help="in whose manner; given again, for the next song")
    parser.add_argument("--genre", action="append", help="in which genre; given again, for the next song")
    lyrics = parser.add_mutually_exclusive_group()
    lyrics.add_argument(
        "--lyrics", metavar="TEXT", action="append", help="of the whole song; given again, for the next song"
    )
    lyrics.add_argument(
        "--lyrics-file", metavar="FILE", type=arguments.local_path, action="append", help="the same from UTF-8 text"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=arguments.number, help="how long songs become (6, or all of --upsample)")
    length.add_argument("--sample-length", metavar="SAMPLES", type=int, help="the same in audio samples, exactly")
    parser.add_argument("--total-seconds", type=arguments.number, help="length of the imagined whole song")
    parser.add_argument("--offset-seconds", type=_offset, help="where in it the sampled part starts (0)")
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--prompt",
        metavar="FILE",
        type=arguments.local_path,
        action="append",
        help="audio to start from; given again, for the next song",
    )
    start.add_argument(
        "--continue",
        metavar="TOKENS.npz",
        type=arguments.local_path,
        action="append",
        dest="continue_from",
        help="song to go on with; given again, for the next song",
    )
    start.add_argument(
        "--upsample",
        metavar="TOKENS.npz",
        type=arguments.local_path,
        action="append",
        help="song of which only the top level is kept; given again, for the next song",
    )
    parser.add_argument("--prompt-seconds", type=arguments.number, help="how much to use of what songs start from")
    parser.add_argument("--seed", type=arguments.seed, default=0, help="(0)")
    parser.add_argument("--n-samples", type=arguments.count, default=1, help="how many songs (1)")
    parser.add_argument("--batch-size", type=arguments.count, help="songs sampled at once (4)")
    parser.add_argument("--temperature", type=arguments.number, help="above 1 bolder, below 1 safer")
    parser.add_argument("--top-k", type=int, help="draw each token from the k likeliest")
    parser.add_argument("--top-p", type=float, help="draw each token from the likeliest that hold this probability")

    parser.add_argument("--strict-labels", action="store_true", help="refuse names that the model does not know")
    parser.add_argument(
        "--original-overrun",
        action="store_true",
        help="prolong the top level of short songs beyond what was asked for, as the original does",
    )


def run(args: argparse.Namespace) -> None:
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out {args.out} is a file: name a folder.")
    names = ("artist", "genre", "lyrics", "seconds", "sample_length", "total_seconds", "offset_seconds", "batch_size")
    names += ("prompt_seconds", "temperature", "top_k", "top_p", "strict_labels", "original_overrun")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.lyrics_file:
        given["lyrics"] = [_read_text(path) for path in args.lyrics_file]
    _check_start(args)

    with _writable_folder(args.out):
        from jukebox_jax import api

        model = api.load(None if args.demo else args.model)
        songs = model.sample(seed=args.seed, n_samples=args.n_samples, **given, **_start(args, model))
        for index, song in enumerate(songs):
            path = args.out / f"seed_{args.seed}_song_{index}.wav"
            song.save(path)
            song.save_tokens(path.with_suffix(".tokens.npz"))
            print(path)


def _offset(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text} is no place in a song: give a finite number, 0 or more")
    return value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"--lyrics-file {path} cannot be read ({error.strerror}): check the path.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--lyrics-file {path} is not UTF-8 text ({error.reason}): save it as that.") from None


def _check_start(args: argparse.Namespace) -> None:
    """Refuses before anything is loaded what can be seen without the model."""
    files = args.prompt or args.continue_from or args.upsample or []
    if args.prompt_seconds is not None and not files:
        raise UserError("--prompt-seconds cuts what songs start from: give --prompt, --continue or --upsample.")
    if len(files) > args.n_samples:
        raise UserError(f"{len(files)} songs to start from are more than --n-samples {args.n_samples}: ask for more.")
    for path in files:
        if not path.is_file():
            raise UserError(f"{path} is no file: check the path.")
    if args.prompt:
        from jukebox_jax.audio.files import audio_info

        for path in args.prompt:
            audio_info(path)


def _start(args: argparse.Namespace, model: Model) -> dict[str, Any]:
    """What songs start from, as `Model.sample` takes it."""
    import numpy as np

    from jukebox_jax.audio.files import read_audio

    def stacked(paths: Sequence[Path]) -> list[np.ndarray]:
        songs = [model.load_tokens(path) for path in paths]
        for path, song in zip(paths, songs, strict=True):
            if [len(codes) for codes in song] != [len(codes) for codes in songs[0]]:
                raise UserError(f"{paths[0]} and {path} are songs of different lengths: take them one at a time.")
        return [np.stack(level) for level in zip(*songs, strict=True)]

    if args.prompt:
        rate = model.codec.config.sample_rate
        return {"prompt": [read_audio(path, rate).mean(axis=1) for path in args.prompt]}
    if args.continue_from:
        return {"continue_from": stacked(args.continue_from)}
    return {"upsample": stacked(args.upsample)[-1]} if args.upsample else {}


@contextlib.contextmanager
def _writable_folder(folder: Path) -> Iterator[None]:
    """A folder that can be written, tried out at once; what was created for it goes again if nothing came into it.

    Raises:
      OSError: it cannot be created or written.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(bytes(4096))  # a full disk may still have room for a name
        except OSError as error:
            error.filename = str(folder)
            raise
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty, or never created
            for path in created:
                path.rmdir()
