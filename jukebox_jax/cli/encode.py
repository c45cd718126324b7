"""`jukebox-jax encode`: an audio dataset becomes a token dataset."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """Encode a dataset of audio into the tokens that the priors learn from."""
EXAMPLE = "  jukebox-jax encode data/audio --checkpoint runs/mine/vqvae --out data/tokens"
IF_INTERRUPTED = "Run the same command again; nothing half-written is left in place of the dataset."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="dataset of audio, as written by prepare; may be a URL")
    parser.add_argument("--checkpoint", metavar="CODEC", type=Path, required=True, help="run folder of a trained codec")
    parser.add_argument("--out", metavar="TOKENS", type=Path, required=True, help="token dataset folder to write")


def run(args: argparse.Namespace) -> None:
    from jukebox_jax.corpus.encode import encode_dataset

    encode_dataset(args.dataset, args.checkpoint, args.out)
    print(f"token dataset: {args.out}")
