"""`jukebox-jax demo`: the whole cascade, small, from music files to a page one can listen to."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from jukebox_jax.cli import arguments

DESCRIPTION = """Train the whole cascade on the music that ships with the package, and listen to it.

Prepares the corpus, trains the VQ-VAE, encodes, trains three priors, samples, decodes, and writes audio files,
report.json and a page to open in a browser."""
EXAMPLE = "  jukebox-jax demo --out demo"
IF_INTERRUPTED = "The same command goes on; finished stages are kept."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", metavar="FOLDER", type=arguments.local_path, default=Path("demo"), help="folder to write (demo)"
    )
    parser.add_argument(
        "--seed", type=arguments.seed, default=0, help="same seed and same number of steps repeat the run (0)"
    )
    for model in ("codec", "prior"):
        parser.add_argument(
            f"--{model}-steps",
            metavar="N",
            type=arguments.count,
            help=f"train {'the codec' if model == 'codec' else 'each prior'} for exactly N steps, not by the clock",
        )


def run(args: argparse.Namespace) -> None:
    from jukebox_jax.demo import run_demo
    from jukebox_jax.recipe import Effort
    from jukebox_jax.training.host_memory import keep_freed_memory

    keep_freed_memory()
    effort = Effort()
    if args.codec_steps is not None:
        effort = dataclasses.replace(effort, codec_seconds=None, codec_steps=(1, args.codec_steps))
    if args.prior_steps is not None:
        effort = dataclasses.replace(effort, prior_seconds=None, prior_steps=(1, args.prior_steps))
    run_demo(args.out, seed=args.seed, effort=effort)
