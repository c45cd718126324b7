"""`jukebox-jax sample`: songs from trained models."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jukebox_jax.cli import arguments
from jukebox_jax.errors import UserError

DESCRIPTION = """Sample songs: top prior, two upsamplers, decoder.

The same seed and batch size give the same songs, whatever is sampled beside them."""
EXAMPLE = """  jukebox-jax sample --demo --seconds 6 --seed 1 --out songs
  jukebox-jax sample --model runs/mine --artist "Anna Magdalena" --artist "Johann" --n-samples 4 --out songs"""
IF_INTERRUPTED = "Run the same command again: the same seed gives the same songs."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--demo", action="store_true", help="the small trained model that ships with the package")
    which.add_argument(
        "--model", metavar="FOLDER", type=Path, help="folder that holds vqvae, level_0, level_1 and level_2"
    )
    parser.add_argument("--out", metavar="FOLDER", type=Path, default=Path("songs"), help="where to write (songs)")
    parser.add_argument("--artist", action="append", help="in whose manner; given again, for the next song")
    parser.add_argument("--genre", action="append", help="in which genre; given again, for the next song")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=arguments.number, help="how much music to make")
    length.add_argument("--sample-length", metavar="SAMPLES", type=int, help="the same in audio samples, exactly")
    parser.add_argument("--total-seconds", type=arguments.number, help="length of the imagined whole song")
    parser.add_argument("--seed", type=arguments.seed, default=0, help="(0)")
    parser.add_argument("--n-samples", type=arguments.count, default=1, help="how many songs (1)")
    parser.add_argument("--batch-size", type=arguments.count, help="songs sampled at once (4)")
    parser.add_argument("--temperature", type=arguments.number, help="above 1 bolder, below 1 safer")
    parser.add_argument("--top-k", type=int, help="draw each token from the k likeliest")
    parser.add_argument("--top-p", type=float, help="draw each token from the likeliest that hold this probability")


def run(args: argparse.Namespace) -> None:
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out {args.out} is a file: name a folder.")
    names = ("artist", "genre", "seconds", "sample_length", "total_seconds", "batch_size")
    names += ("temperature", "top_k", "top_p")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}

    with _writable_folder(args.out):
        from jukebox_jax import api

        model = api.load(None if args.demo else args.model)
        songs = model.sample(seed=args.seed, n_samples=args.n_samples, **given)
        for index, song in enumerate(songs):
            path = args.out / f"seed_{args.seed}_song_{index}.wav"
            song.save(path)
            print(path)


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
