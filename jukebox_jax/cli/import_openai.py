"""`jukebox-jax import-openai`: the original's checkpoints as model folders."""

from __future__ import annotations

import argparse
import sys

from jukebox_jax.cli import arguments

DESCRIPTION = """Read the original's checkpoint files (.pth.tar), without torch and without running anything in them.

OpenAI's weights are licensed for noncommercial use only."""
EXAMPLE = """  jukebox-jax import-openai vqvae.pth.tar prior_level_0.pth.tar prior_level_1.pth.tar --out models/5b \\
      --artists v2_artist_ids.txt --genres v2_genre_ids.txt
  jukebox-jax import-openai 5b_lyrics/prior_level_2.pth.tar --config prior_5b_lyrics --out models/5b \\
      --artists v2_artist_ids.txt --genres v2_genre_ids.txt
  jukebox-jax sample --model models/5b --artist "Ella Fitzgerald" --genre Jazz --seconds 24"""
IF_INTERRUPTED = "Nothing has been written; run the same command again."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", metavar="FILE", nargs="+", type=arguments.local_path, help="the VQ-VAE and priors, in any order"
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=arguments.local_path,
        required=True,
        help="gets vqvae, level_0, level_1, level_2",
    )
    parser.add_argument(
        "--config",
        metavar="NAME",
        action="append",
        default=[],
        help="which model a file is (vqvae, prior_5b, prior_5b_lyrics, prior_1b_lyrics, upsampler_level_0, "
        "upsampler_level_1), once for each file; without it the file itself tells",
    )
    parser.add_argument(
        "--artists", metavar="FILE", type=arguments.local_path, help="table of artists, one name;id a line"
    )
    parser.add_argument(
        "--genres", metavar="FILE", type=arguments.local_path, help="table of genres, one name;id a line"
    )


def run(args: argparse.Namespace) -> None:
    from jukebox_jax.interop.openai import import_openai
    from jukebox_jax.interop.released import LICENCE
    from jukebox_jax.models.prior import PriorConfig

    imported = import_openai(args.files, args.out, names=args.config, artists=args.artists, genres=args.genres)
    for model in imported:
        print(model.folder)
    priors = [model.config for model in imported if isinstance(model.config, PriorConfig)]
    if any(config.labels for config in priors) and None in (args.artists, args.genres):
        print(
            "Without --artists and --genres these models know their labels by number only, as in --artist '#145'.",
            file=sys.stderr,
        )
    print(LICENCE, file=sys.stderr)
