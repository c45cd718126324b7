"""`jukebox-jax prepare`: a folder of music becomes an audio dataset."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jukebox_jax.cli import arguments

DESCRIPTION = """Turn a folder of music into a dataset that training reads.

SOURCE holds audio files and, if it likes, metadata.jsonl: one JSON object a line with file_name and, all optional,
title, artist, genre, lyrics and split ("train" or "validation")."""
EXAMPLE = "  jukebox-jax prepare my-music --out data/audio"
IF_INTERRUPTED = "The same command starts this dataset again; nothing half-written is left in its place."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", type=Path, help="folder of music")
    parser.add_argument("--out", metavar="DATASET", type=Path, required=True, help="dataset folder to write")
    parser.add_argument(
        "--sample-rate", metavar="HZ", type=arguments.count, default=44_100, help="rate to store the music at (44100)"
    )
    parser.add_argument(
        "--channels", type=int, choices=(1, 2), help="1 for mono, 2 for stereo (stereo unless all files are mono)"
    )


def run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from jukebox_jax.corpus.prepare import prepare

    # Delayed, so that a refusal stays one line.
    with tqdm(desc="prepare", unit="piece", file=sys.stderr, delay=0.5) as bar:

        def advance(done: int, total: int, title: str) -> None:
            del done, title
            bar.total = total  # known when the folder has been read
            bar.update()

        prepare(args.source, args.out, sample_rate=args.sample_rate, channels=args.channels, progress=advance)
    print(f"dataset: {args.out}")
