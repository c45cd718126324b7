"""`jukebox-jax embed`: music becomes features, the activations of a prior."""

from __future__ import annotations

import argparse
import sys
from importlib import resources
from typing import Any

from jukebox_jax.cli import arguments

DESCRIPTION = """Turn music into features: what a layer of a prior makes of it, averaged over time.

For every audio file below SOURCE (folders, globs in quotes, files) there is OUT/…/NAME.npz with `values` and
`times_seconds`; OUT/manifest.json says what they are. By default that is the mean of the middle layer of the top prior
over the beginning of a file, as far as the prior hears at once (24 s in the original models)."""
EXAMPLE = """  jukebox-jax embed my-music --demo --out features
  jukebox-jax embed my-music --model models/5b --layer 36 --windows all --pooling 1.0 --out features"""
IF_INTERRUPTED = "The same command goes on with the files that are not done."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", nargs="+", help="music: folders, globs, audio files; may be URLs")
    arguments.add_model(parser, "folder that holds vqvae and level_0, level_1, …, of which one is loaded")
    parser.add_argument("--out", metavar="OUT", type=arguments.local_path, required=True, help="folder to write")
    parser.add_argument("--layer", metavar="N", type=int, help="after how many layers, from 0 (half of them)")
    parser.add_argument("--level", metavar="L", type=int, help="whose prior; upsamplers are 0, 1, … (the top one)")
    parser.add_argument(
        "--pooling",
        metavar="mean|window|none|SECONDS",
        type=_pooling,
        default="mean",
        help="one mean of all, one of each window, every token, or a mean of so many seconds each (mean)",
    )
    parser.add_argument(
        "--windows", choices=("first", "all"), default="first", help="of longer files: their beginning, or all (first)"
    )
    parser.add_argument("--batch-size", metavar="N", type=arguments.count, default=1, help="windows at once (1)")


def run(args: argparse.Namespace) -> None:
    if args.demo:
        with resources.as_file(resources.files("jukebox_jax") / "toy") as toy:
            _run(args, toy)
    else:
        _run(args, args.model)


def _run(args: argparse.Namespace, model: Any) -> None:
    from jukebox_jax.cli.prepare import quiet_decoders
    from jukebox_jax.embedding.folder import embed_folder

    with quiet_decoders():
        report = embed_folder(
            args.source,
            model,
            args.out,
            layer=args.layer,
            level=args.level,
            pooling=args.pooling,
            windows=args.windows,
            batch_size=args.batch_size,
            tell=lambda line: print(f"jukebox-jax: {line}", file=sys.stderr),
        )
    refused = f"; {len(report.unreadable)} could not be read" if report.unreadable else ""
    print(f"{report.embedded} embeddings, {report.new} of them new{refused}: {args.out}")


def _pooling(text: str) -> str | float:
    return text if text in ("mean", "window", "none") else arguments.number(text)
