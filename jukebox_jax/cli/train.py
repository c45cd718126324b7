"""`jukebox-jax train`: one model (the codec or one prior) is trained, or goes on where it stopped."""

from __future__ import annotations

import argparse

from jukebox_jax.cli import arguments

DESCRIPTION = """Train one model, or go on where its run folder stopped.

--config names a Python file and, after a colon, one of its variants. Any value in it can be changed with
--config.KEY=VALUE: keys are dotted paths, tuples are written "(1,2)", and `none` empties an optional value. A misspelt
key is answered with the nearest valid one."""
EXAMPLE = """  jukebox-jax train --config configs/vqvae.py --data data/audio --out runs/mine/vqvae
  jukebox-jax train --config configs/prior.py:demo_top --config.train.optimizer.learning_rate=1e-4 \\
      --data data/tokens --codec runs/mine/vqvae --out runs/mine/level_2
  jukebox-jax train --config configs/prior.py:demo_top --data data/audio --codec runs/mine/vqvae --out runs/mine/level_2
  jukebox-jax train --config configs/prior.py:1b_lyrics --init-from models/1b/level_2 \\
      --data data/tokens --out runs/fine"""
IF_INTERRUPTED = "The same command goes on from the last checkpoint."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE.py[:VARIANT]", required=True, help="what to train")
    parser.add_argument(
        "--data",
        metavar="DATASET",
        required=True,
        help="audio dataset for the codec, tokens or audio for a prior; may be a URL",
    )
    parser.add_argument(
        "--out", metavar="RUN", type=arguments.local_path, required=True, help="run folder for checkpoints and metrics"
    )
    parser.add_argument(
        "--codec",
        metavar="CODEC",
        type=arguments.local_path,
        help="for a prior: what made its tokens or encodes its audio",
    )
    parser.add_argument(
        "--init-from",
        "--init",
        metavar="MODEL",
        type=arguments.local_path,
        help="start from the weights of a model or run folder (RUN@STEP, RUN@best: of a certain checkpoint)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress line")


def run(args: argparse.Namespace) -> None:
    from jukebox_jax.cli.flags import load_config

    config = load_config(args.config, args.overrides)

    from jukebox_jax.training.run import train_run

    train_run(config, args.data, args.out, args.codec, init=args.init_from, progress=not args.quiet)
    print(f"run: {args.out}")
