"""`jukebox-jax sample`: songs from trained models."""

from __future__ import annotations

import argparse
from pathlib import Path

from jukebox_jax.errors import UserError

DESCRIPTION = """Sample songs: top prior, two upsamplers, decoder.

The same seed gives the same songs, whatever is sampled beside them."""
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
    length.add_argument("--seconds", type=float, help="how much music to make")
    length.add_argument("--sample-length", metavar="SAMPLES", type=int, help="the same in audio samples, exactly")
    parser.add_argument("--total-seconds", type=float, help="length of the imagined whole song")
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    parser.add_argument("--n-samples", type=int, default=1, help="how many songs (1)")
    parser.add_argument("--temperature", type=float, help="above 1 bolder, below 1 safer")
    parser.add_argument("--top-k", type=int, help="draw each token from the k likeliest")
    parser.add_argument("--top-p", type=float, help="draw each token from the likeliest that hold this probability")


def run(args: argparse.Namespace) -> None:
    if args.n_samples < 1:
        raise UserError(f"--n-samples is {args.n_samples}: ask for at least 1 song.")
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out {args.out} is a file: name a folder.")
    names = ("artist", "genre", "seconds", "sample_length", "total_seconds", "temperature", "top_k", "top_p")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}

    from jukebox_jax import api

    model = api.load(None if args.demo else args.model)
    songs = model.sample(seed=args.seed, n_samples=args.n_samples, **given)
    args.out.mkdir(parents=True, exist_ok=True)
    for index, song in enumerate(songs):
        path = args.out / f"seed_{args.seed}_song_{index}.wav"
        song.save(path)
        print(path)
