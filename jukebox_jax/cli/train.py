"""`jukebox-jax train`: one model (the codec or one prior) is trained, or goes on where it stopped."""

from __future__ import annotations

import argparse
import contextlib
import signal

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
TAKES_CONFIG = True


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
    parser.add_argument(
        "--hosts",
        metavar="HOSTS",
        help="one run on several hosts, started on each of them: auto where the cluster says who they are (Cloud TPU, "
        "GKE, Slurm, Open MPI), or ADDRESS:PORT,COUNT,INDEX with the address of host 0",
    )
    parser.add_argument(
        "--wait-minutes",
        metavar="N",
        type=arguments.number,
        default=10.0,
        help="how long to wait for the other hosts at the start (default: 10)",
    )
    parser.add_argument(
        "--compile-cache",
        metavar="DIR",
        help="where compiled programs are kept between runs (default: jukebox_jax in the user's cache folder), or none",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress line")


def run(args: argparse.Namespace) -> None:
    import jax

    from jukebox_jax.cli.compile_cache import keep_compiled
    from jukebox_jax.cli.flags import load_config
    from jukebox_jax.parallel import hosts

    config = load_config(args.config, args.overrides)
    together = contextlib.nullcontext()
    if args.hosts is not None:
        together = hosts.join(hosts.parse_hosts(args.hosts), args.wait_minutes)
    from jukebox_jax.training.host_memory import keep_freed_memory
    from jukebox_jax.training.run import train_run

    with together:
        keep_compiled(args.compile_cache)
        keep_freed_memory()
        try:
            train_run(config, args.data, args.out, args.codec, init=args.init_from, progress=not args.quiet)
        except SystemExit as stop:
            if stop.code != 128 + signal.SIGTERM:
                raise
            return  # whoever asked for the end got it: the state is saved
        if jax.process_index() == 0:
            print(f"run: {args.out}")
