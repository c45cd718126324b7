"""`jukebox-jax encode`: an audio dataset becomes a token dataset."""

from __future__ import annotations

import argparse

from jukebox_jax.cli import arguments

DESCRIPTION = """Encode a dataset of audio into the tokens that the priors learn from.

Several processes or machines share the work if each is told its number: run the same command with --process-index 0,
1, … on a file system that all of them see. Process 0 waits for the others and writes TOKENS."""
EXAMPLE = """  jukebox-jax encode data/audio --checkpoint runs/mine/vqvae --out data/tokens
  jukebox-jax encode data/audio --checkpoint runs/mine/vqvae --out data/tokens --process-index 1 --process-count 4"""
IF_INTERRUPTED = "The same command goes on with the songs that are not done."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="dataset of audio, as written by prepare; may be a URL")
    parser.add_argument(
        "--checkpoint", metavar="CODEC", type=arguments.local_path, required=True, help="run folder of a trained codec"
    )
    parser.add_argument("--out", metavar="TOKENS", required=True, help="token dataset folder to write; may be a URL")
    parser.add_argument(
        "--batch-size",
        metavar="N",
        type=arguments.count,
        help="chunks encoded at once on each device; fewer need less memory (1 on a CPU, else 4)",
    )
    parser.add_argument("--process-index", metavar="I", type=int, help="which of the processes this is, from 0")
    parser.add_argument("--process-count", metavar="N", type=arguments.count, help="how many processes share the work")


def run(args: argparse.Namespace) -> None:
    from jukebox_jax.corpus.encode import encode_dataset

    done = encode_dataset(
        args.dataset,
        args.checkpoint,
        args.out,
        batch_size=args.batch_size,
        process_index=args.process_index,
        process_count=args.process_count,
    )
    if done is None:
        print(f"process {args.process_index} is done; process 0 writes {args.out}")
    else:
        print(f"token dataset: {args.out}")
