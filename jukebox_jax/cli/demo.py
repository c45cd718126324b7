"""`jukebox-jax demo`: the whole cascade, small, from music files to a page one can listen to."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """Train the whole cascade on the music that ships with the package, and listen to it.

Prepares the corpus, trains the VQ-VAE, encodes, trains three priors, samples, decodes, and writes audio files,
report.json and a page to open in a browser."""
EXAMPLE = "  jukebox-jax demo --out demo"
IF_INTERRUPTED = "The same command goes on; finished stages are kept."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="FOLDER", type=Path, default=Path("demo"), help="folder to write (demo)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed repeats the run (0)")


def run(args: argparse.Namespace) -> None:
    from jukebox_jax.demo import run_demo

    run_demo(args.out, seed=args.seed)
