"""`jukebox-jax bench`: what the devices at hand really do."""

from __future__ import annotations

import argparse
from pathlib import Path

from jukebox_jax.cli import arguments

DESCRIPTION = """Time real training steps on the devices at hand, over a grid of ways to divide them.

`bench sharding` runs every combination of the grid's strategies, meshes, batches, remats and accumulations in a process
of its own. One that does not fit, fails or takes too long says so, and the table goes on. What was measured lies in
--store and is not measured again, so that the same command goes on where it was interrupted."""
EXAMPLE = """  jukebox-jax bench sharding --config configs/prior.py:demo_top --devices 8 \\
      --grid strategy=dp,fsdp,fsdp_sp batch=8,16 remat=none,block"""
IF_INTERRUPTED = "The same command goes on with the rows that are not done."
TAKES_CONFIG = True

_GRID = """NAME=VALUE,VALUE,… each: strategy, mesh (own: the strategy's; or sizes as 1x4x2x1), batch, remat, accumulate;
what is left out is as in the config, and a mesh is the strategy's own where strategies are given"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    benches = parser.add_subparsers(title="benches", metavar="BENCH", required=True)
    sharding = benches.add_parser(
        "sharding",
        help="strategies, meshes and batches of a training step",
        description=DESCRIPTION,
        epilog=f"example:\n{EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    sharding.add_argument("--config", metavar="FILE.py[:VARIANT]", required=True, help="what would be trained")
    sharding.add_argument("--grid", metavar="NAME=VALUES", nargs="+", default=[], help=_GRID)
    sharding.add_argument(
        "--devices", metavar="N", type=arguments.count, help="so many CPU devices, in place of those that there are"
    )
    sharding.add_argument(
        "--steps", metavar="N", type=arguments.count, default=10, help="steps that are timed (default: 10)"
    )
    sharding.add_argument(
        "--minutes", metavar="M", type=arguments.number, default=10.0, help="time limit of a row (default: 10)"
    )
    sharding.add_argument(
        "--store",
        metavar="FILE.jsonl",
        type=arguments.local_path,
        default=Path("sharding.jsonl"),
        help="where rows are kept, added to if it exists (default: sharding.jsonl)",
    )
    sharding.add_argument("--again", action="store_true", help="also measure what the store has")
    for name, what in (("json", "as a list of rows"), ("csv", "for spreadsheets"), ("report", "in Markdown")):
        sharding.add_argument(f"--{name}", metavar="FILE", type=arguments.local_path, help=f"also write it {what}")
    sharding.add_argument("--quiet", action="store_true", help="no progress line")
    sharding.set_defaults(bench=_sharding)


def run(args: argparse.Namespace) -> None:
    args.bench(args)


def _sharding(args: argparse.Namespace) -> None:
    from jukebox_jax import config as config_lib
    from jukebox_jax.cli.flags import load_config
    from jukebox_jax.files import atomic_file, check_targets
    from jukebox_jax.planning.bench import Bench, devices_here, measure_all
    from jukebox_jax.planning.bench_report import as_csv, as_json, as_markdown, with_predictions
    from jukebox_jax.planning.grid import combinations, parse_grid
    from jukebox_jax.planning.predict import predict
    from jukebox_jax.planning.store import open_store

    bench = Bench(load_config(args.config, args.overrides), args.steps, args.minutes, args.devices)
    grid = parse_grid(args.grid, bench.run)
    check_targets(args.json, args.csv, args.report)
    here = devices_here(bench.cpu_devices)
    with open_store(args.store) as store:
        wanted = combinations(bench.run, grid, here)
        rows = measure_all(bench, here, wanted, store, args.again, progress=not args.quiet)
    lines = with_predictions(rows, lambda row: predict(bench.run, row))
    table = as_markdown(lines)
    for path, text in ((args.csv, as_csv(lines)), (args.report, f"{table}\n")):
        if path is not None:
            with atomic_file(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
    if args.json is not None:
        config_lib.save_json(args.json, as_json(lines))
    print(table)
