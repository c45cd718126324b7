"""`jukebox-jax prepare`: a folder of music becomes an audio dataset."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

DESCRIPTION = """Turn a folder of music into a dataset that training reads.

SOURCE holds audio files and, if it likes, metadata.jsonl: one JSON object a line with file_name and, all optional,
title, artist, genre, lyrics and split ("train" or "validation")."""
EXAMPLE = "  jukebox-jax prepare my-music --out data/audio"
IF_INTERRUPTED = "The same command starts this dataset again; nothing half-written is left in its place."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", type=Path, help="folder of music")
    parser.add_argument("--out", metavar="DATASET", type=Path, required=True, help="dataset folder to write")


def run(args: argparse.Namespace) -> None:
    from jukebox_jax.corpus.prepare import prepare

    prepare(args.source, args.out, progress=_print_progress)
    print(f"dataset: {args.out}")


def _print_progress(done: int, total: int, title: str) -> None:
    print(f"prepared {done}/{total}: {title}", file=sys.stderr)
