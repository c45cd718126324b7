"""`jukebox-jax inspect`: what a source of music holds, and what prepare would make of it."""

from __future__ import annotations

import argparse
import json
import sys

from jukebox_jax.cli import prepare

DESCRIPTION = """Show what a source of music holds and what prepare would make of it; only reads.

Prints files, hours, rates, channels, how many pieces have an artist, a genre and lyrics and what said so, suspected
duplicates, and problems with their number and examples."""
EXAMPLE = "  jukebox-jax inspect my-music"
IF_INTERRUPTED = "Nothing was written; run the same command again."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", nargs="+", help="music, as prepare takes it")
    parser.add_argument("--json", action="store_true", help="print everything as JSON instead of the table")
    prepare.add_settings(parser)


def run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from jukebox_jax.corpus.inspect import inspect, table

    settings, _ = prepare.settings_of(args)
    # Delayed, so that a refusal stays one line.
    with prepare.quiet_decoders(), tqdm(unit="file", file=sys.stderr, delay=0.5) as bar:

        def advance(stage: str, done: int, total: int) -> None:
            bar.set_description(stage, refresh=False)
            bar.total = total or None
            bar.update(done - bar.n)

        result = inspect(args.source, settings, advance)
    print(json.dumps(result, ensure_ascii=False, indent=1) if args.json else table(result))
