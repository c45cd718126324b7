"""`jukebox-jax plan`: what a training step would need of chips that one does not have."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from jukebox_jax.cli import arguments

if TYPE_CHECKING:
    from jukebox_jax.parallel.topology import Topology
    from jukebox_jax.planning.layouts import Combination
    from jukebox_jax.planning.plan import Question, Row

DESCRIPTION = """Plan a training step for chips that are not there: memory, traffic, time, cost.

A row for every strategy. By default the TPU compiler, which needs no TPU (extra [tpu]), compiles the step that is
recommended and says what memory it takes and what the chips send one another; --compile all does so for every row, and
--no-compile for none. Times are always modelled: a range from everything overlapped to nothing overlapped, with the
figures of jukebox_jax/parallel/hardware.toml."""
EXAMPLE = """  jukebox-jax plan --config configs/prior.py:5b --topology v5p:4x4x4
  jukebox-jax plan --config configs/prior.py:5b --topology v5p:8x8x8 2xv5p:8x8x8 --strategy all --mesh all \\
      --remat block dots --batch 512 --no-compile --csv plan.csv
  jukebox-jax plan --config configs/prior.py:upsampler_0 --topology gpu:8xh100"""
IF_INTERRUPTED = "The same command does not compile again what it compiled."
TAKES_CONFIG = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE.py[:VARIANT]", required=True, help="what would be trained")
    parser.add_argument(
        "--topology",
        metavar="NAME",
        nargs="+",
        required=True,
        help="chips, as v5e:8x8, v5p:4x4x4, v6e:16x16, 2xv5p:8x8x8 (slices), gpu:8xh100, gpu:64xh200",
    )
    parser.add_argument(
        "--strategy", metavar="NAMES", default="all", help="with commas between them, or all (default: all)"
    )
    parser.add_argument(
        "--mesh",
        metavar="SIZES",
        default="best",
        help="own: that of the strategy; best: of all that powers of two make, the fastest that fits (default); all: "
        "each of these; or sizes of replica, fsdp, sequence, tensor, as 4x16x1x1",
    )
    parser.add_argument(
        "--step",
        choices=("train", "decode", "prefill", "encode"),
        default="train",
        help="a training step (default); a token of every song; a window of known tokens; audio to codes",
    )
    parser.add_argument(
        "--precision",
        choices=("bfloat16", "int8"),
        default="bfloat16",
        help="of weights, in decode and prefill (default: bfloat16)",
    )
    parser.add_argument(
        "--batch", metavar="N", type=arguments.count, help="examples (songs, windows) of a step over all chips"
    )
    parser.add_argument(
        "--accumulate", metavar="N", type=arguments.count, help="microbatches (default: the fewest that fit)"
    )
    parser.add_argument("--remat", metavar="REMAT", nargs="+", default=[], help="none, block, dots, offload")
    parser.add_argument(
        "--compile",
        choices=("recommended", "all", "none"),
        help="which rows the TPU compiler checks (default: recommended, if the extra [tpu] is there)",
    )
    parser.add_argument("--no-compile", action="store_const", const="none", dest="compile", help="--compile none")
    parser.add_argument(
        "--minutes", metavar="M", type=arguments.number, default=30.0, help="time limit of a compilation (default: 30)"
    )
    parser.add_argument(
        "--store",
        metavar="FILE.jsonl",
        type=arguments.local_path,
        help="where compiled rows are kept (default: compiled.jsonl beside the compilation cache)",
    )
    parser.add_argument(
        "--assumptions",
        metavar="FILE.toml",
        type=arguments.local_path,
        help="figures to take in place of those of hardware.toml, as prices",
    )
    for name, what in (("json", "as a list of rows"), ("csv", "for spreadsheets"), ("report", "as a page")):
        parser.add_argument(f"--{name}", metavar="FILE", type=arguments.local_path, help=f"also write it {what}")
    parser.add_argument("--quiet", action="store_true", help="no progress line")


def run(args: argparse.Namespace) -> None:
    from jukebox_jax import config as config_lib
    from jukebox_jax.cli.flags import load_config
    from jukebox_jax.errors import UserError
    from jukebox_jax.files import atomic_file, check_targets
    from jukebox_jax.parallel.topology import load_assumptions, parse_topology
    from jukebox_jax.planning.layouts import parse_meshes, parse_remats, strategies
    from jukebox_jax.planning.page import as_html
    from jukebox_jax.planning.plan import Question, advice
    from jukebox_jax.planning.serving import SERVING
    from jukebox_jax.planning.table import as_csv, as_json, as_markdown

    config = load_config(args.config, args.overrides)
    if args.step != "train" and args.compile not in (None, "none"):
        raise UserError(f"{args.step} is planned from the model alone: leave --compile out.")
    _check_step(args.step, config)
    question = Question(
        name=args.config.rpartition("/")[2],
        run=config,
        strategies=SERVING if args.step != "train" and args.strategy == "all" else strategies(args.strategy),
        batch_size=args.batch,
        remats=parse_remats(args.remat, config),
        meshes="all" if args.mesh == "best" else parse_meshes(args.mesh),
        accumulate=args.accumulate,
        step=args.step,
        precision=args.precision,
    )
    assumptions = load_assumptions(args.assumptions)
    topologies = [parse_topology(name, assumptions) for name in args.topology]
    check_targets(args.json, args.csv, args.report)
    found, told = [], []
    for topology in topologies:
        rows = _rows_on(topology, question, args)
        found += rows
        told.append(advice(topology, rows))
    print(as_markdown(found))
    print("\n" + "\n".join(told))
    if any(not row.compiled and row.memory is not None for row in found):
        print("Rows from the model were not compiled; all times are modelled.")
    if args.json is not None:
        config_lib.save_json(args.json, as_json(found))
    for path, text in ((args.csv, as_csv(found)), (args.report, as_html(found, told))):
        if path is not None:
            with atomic_file(path) as temporary:
                temporary.write_text(text, encoding="utf-8")


def _check_step(step: str, config: Any) -> None:
    from jukebox_jax.errors import UserError
    from jukebox_jax.training.run import CodecRun

    codec = isinstance(config, CodecRun)
    if step != "train" and codec != (step == "encode"):
        raise UserError(f"--step {step} is for {'priors' if codec else 'the codec'}: choose another, or --config.")


def _rows_on(topology: Topology, question: Question, args: argparse.Namespace) -> list[Row]:
    """The rows of one topology, those compiled that were asked for."""
    from tqdm import tqdm

    from jukebox_jax.cli.compile_cache import default_folder
    from jukebox_jax.errors import UserError
    from jukebox_jax.parallel.topology import require_compiler
    from jukebox_jax.planning.compiled import compiled
    from jukebox_jax.planning.plan import best_layouts, count, rows, with_compiled

    bar = {"desc": f"model {topology.name}", "unit": "row", "total": count(question, topology)}
    found = list(tqdm(rows(question, topology), **bar, disable=args.quiet, leave=False))
    if args.mesh == "best":
        found = best_layouts(found)
    if args.compile == "none" or args.step != "train" or topology.chip.switched:
        return found
    try:
        require_compiler(topology)
    except UserError as error:
        if args.compile is not None:
            raise
        print(f"jukebox-jax: nothing is compiled: {error}", file=sys.stderr)
        return found
    store = args.store or default_folder() / "compiled.jsonl"
    store.parent.mkdir(parents=True, exist_ok=True)
    tried: set[Combination] = set()
    with tqdm(desc=f"compile for {topology.name}", unit="row", disable=args.quiet, leave=False) as progress:
        while row := next_to_compile(found, tried, args.compile == "all"):
            tried.add(row.combination)
            progress.set_postfix_str(f"{row.combination}")
            run = row.combination.of(question.run)
            answer = compiled(run, topology.name, store, 60 * args.minutes)
            found[found.index(row)] = with_compiled(row, question.run, answer, topology)
            progress.update()
    return found


def next_to_compile(found: list[Row], tried: set[Combination], every: bool) -> Row | None:
    """The next row for the compiler: any, or that which is recommended by what is known by now. A row that it finds not
    to fit is recommended no more."""
    from jukebox_jax.planning.plan import recommended

    rows = found if every else [recommended(found)]
    return next((row for row in rows if row and row.memory is not None and row.combination not in tried), None)
