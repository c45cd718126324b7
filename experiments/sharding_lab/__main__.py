"""Every strategy for the released models on many slices: by the cost model, and of a subset by the TPU compiler.

    python -m experiments.sharding_lab                       # tables and charts, by the model; a few minutes
    pip install -c constraints.txt -e ".[tpu]"
    python -m experiments.sharding_lab --compile             # the subset, too: an hour or two on two cores
    python -m experiments.sharding_lab --compile 5b --at-most 2

What is compiled is kept in compiled.jsonl and not compiled again, so that the command can be interrupted at any time.
Writes results.json (every row), compiled.json (those that the compiler saw), the charts, and the tables of README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from experiments.sharding_lab.charts import crossover_chart, long_context_chart, scaling_chart
from jukebox_jax.cli.flags import load_config
from jukebox_jax.files import atomic_file
from jukebox_jax.parallel.plan import GIB
from jukebox_jax.parallel.topology import parse_topology, require_compiler
from jukebox_jax.planning.compiled import compiled
from jukebox_jax.planning.layouts import strategies
from jukebox_jax.planning.plan import Question, Row, best_of_each, recommended, rows, with_compiled
from jukebox_jax.planning.table import as_json

HERE = Path(__file__).parent
#: Models by name, with examples of a step for every chip.
MODELS = {
    "vqvae": ("configs/vqvae.py:released", 2),
    "upsampler_0": ("configs/prior.py:upsampler_0", 1),
    "1b_lyrics": ("configs/prior.py:1b_lyrics", 1),
    "5b": ("configs/prior.py:5b", 1),
    "5b_lyrics": ("configs/prior.py:5b_lyrics", 1),
}
TOPOLOGIES = (
    *("v5e:4x4", "v5e:8x8", "v5e:16x16", "v5p:4x4x4", "v5p:8x8x8", "v6e:8x8", "v6e:16x16"),
    *("2xv5p:4x4x4", "2xv5p:8x8x8"),
)
COMPILED_ON = ("v5e:8x8", "v5p:4x4x4", "v6e:8x8")
STRONG_BATCH = 512
#: 5b on 64 chips of v5p, with fewer and fewer examples.
CROSSOVER_ON, CROSSOVER_BATCHES = "v5p:4x4x4", (4, 8, 16, 32, 64, 128, 256)
LONG_TOKENS = (8192, 16384, 32768, 65536, 131072)
LONG_ON = ("v5e:16x16", "v5p:4x4x4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", nargs="*", metavar="MODEL", choices=MODELS, help="of these models, or of all")
    parser.add_argument("--at-most", type=int, metavar="N", help="compile no more than N programs that are not known")
    parser.add_argument("--seconds", type=float, default=1800, help="that the compiler may take for each (1800)")
    args = parser.parse_args()

    if args.compile is not None:
        compile_subset(args.compile or list(MODELS), args.at_most, args.seconds)
    started = time.monotonic()
    found = {(name, place): lab_rows(name, place) for name in MODELS for place in TOPOLOGIES}
    best = {key: best_of_each(some, lambda row: row.combination.strategy) for key, some in found.items()}
    print(f"{sum(map(len, found.values()))} rows modelled in {time.monotonic() - started:.0f} s", flush=True)
    seen = _read(HERE / "compiled.json")
    strong = {name: [strong_row(name, place) for place in TOPOLOGIES if "v5p" in place] for name in MODELS}
    crossing = [row for batch in CROSSOVER_BATCHES for row in crossover_rows(batch)]
    long = [row for tokens in LONG_TOKENS for row in long_rows(tokens)]
    write(HERE / "results.json", as_text([row for some in best.values() for row in some]))
    write(HERE / "compiled.json", as_text(seen))
    write(HERE / "scaling.svg", scaling_chart(best, strong))
    write(HERE / "crossover.svg", crossover_chart(crossing))
    write(HERE / "long_context.svg", long_context_chart(long))
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    tables = {
        "rows": "\n\n".join(f"### {name}\n\n{table([*best_rows(best, name)])}" for name in MODELS),
        "compiled": compiled_table(seen),
        "crossover": table(crossing),
        "long": table(long),
    }
    for name, text in tables.items():
        before, rest = readme.split(f"<!-- {name} -->\n")
        readme = (
            f"{before}<!-- {name} -->\n\n{text}\n\n<!-- end of {name} -->{rest.split(f'<!-- end of {name} -->')[1]}"
        )
    write(HERE / "README.md", readme)


def question(name: str, chips: int, batch: int | None = None) -> Question:
    """All strategies and meshes for one of `MODELS`; priors with and without their matrix products kept."""
    config, each = MODELS[name]
    run = load_config(config)
    remats = () if name == "vqvae" else ("block", "dots")
    return Question(name, run, strategies("all"), batch or each * chips, remats, "all")


@cache
def lab_rows(name: str, place: str) -> list[Row]:
    """One example (of the codec two) for each chip."""
    topology = parse_topology(place)
    return list(rows(question(name, topology.chips), topology))


def strong_row(name: str, place: str) -> Row:
    """The fastest row at a fixed batch."""
    topology = parse_topology(place)
    some = list(rows(question(name, topology.chips, STRONG_BATCH), topology))
    return recommended(some) or some[0]


def crossover_rows(batch: int) -> list[Row]:
    """5b with so many examples a step: of each strategy the best, those that cannot be left out."""
    topology = parse_topology(CROSSOVER_ON)
    some = [row for row in rows(question("5b", topology.chips, batch), topology) if row.fits]
    return sorted(best_of_each(some, lambda row: row.combination.strategy), key=_order)


def long_rows(tokens: int) -> list[Row]:
    """The long prior with another context, 64 windows of 65,536 tokens' worth at once, on `LONG_ON`."""
    run = load_config("configs/prior.py:long")
    side = 2 ** ((tokens.bit_length() - 1) // 2)
    model = dataclasses.replace(run.model, n_ctx=tokens, blocks=side)
    found = []
    for place in LONG_ON:
        topology = parse_topology(place)
        asked = Question(f"long, {tokens} tokens", dataclasses.replace(run, model=model), ("fsdp_sp",), 64, (), "all")
        some = list(rows(asked, topology))
        found.append(recommended(some) or some[0])
    return found


def best_rows(best: dict[tuple[str, str], list[Row]], name: str) -> list[Row]:
    """Those of a model, the recommended strategy of a topology first."""
    return [row for (model, _), some in best.items() if model == name for row in sorted(some, key=_order)]


def _order(row: Row) -> tuple[bool, float]:
    return not row.fits, row.times.worst or float("inf")


def subset(names: Sequence[str]) -> list[Row]:
    """FSDP, and the best other strategy, of each model on `COMPILED_ON`."""
    found = []
    for name in names:
        for place in COMPILED_ON:
            some = [row for row in lab_rows(name, place) if row.memory is not None]
            fsdp = [row for row in some if row.combination.strategy == "fsdp"]
            found += best_of_each(fsdp, lambda row: row.combination.strategy)
            if other := recommended([row for row in some if row.combination.strategy != "fsdp"]):
                found.append(other)
    return found


def compile_subset(names: Sequence[str], at_most: int | None, seconds: float) -> None:
    """Compiles what is not in the store."""
    known = {_place(entry) for entry in _read(HERE / "compiled.json")}
    left = at_most
    for row in subset(names):
        if _place(as_json([row])[0]) in known:
            continue
        if left == 0:
            return
        left = None if left is None else left - 1
        topology = parse_topology(row.topology)
        require_compiler(topology)
        run = load_config(MODELS[row.model][0])
        answer = compiled(row.combination.of(run), row.topology, HERE / "compiled.jsonl", seconds)
        row = with_compiled(row, run, answer, topology)
        print(
            f"{row.model} {row.topology} {row.combination}: {row.reason or f'{row.compile_seconds:.0f} s'}", flush=True
        )
        if row.compiled:
            entries = [*_read(HERE / "compiled.json"), *as_json([dataclasses.replace(row, model=_config(row.model))])]
            write(HERE / "compiled.json", as_text(entries))


def _config(name: str) -> str:
    return Path(MODELS[name][0]).name


def _place(entry: dict) -> tuple:
    name = entry["model"] if ".py" in entry["model"] else _config(entry["model"])
    keys = ("topology", "strategy", "global_batch", "accumulate", "remat")
    return (name, tuple(entry["mesh"]), *(entry[key] for key in keys))


def _read(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def as_text(found: Sequence[Row] | Sequence[dict]) -> str:
    """JSON, a row a line."""
    entries = [entry if isinstance(entry, dict) else as_json([entry])[0] for entry in found]
    return "[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n"


def write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def table(some: Sequence[Row]) -> str:
    """Markdown: what a reader compares."""
    head = (
        "| topology | strategy | mesh | remat | batch | memory, GiB | fits | sent, GB | compute, s | HBM | network | "
    )
    lines = [head + "step, s | MFU | $/10⁹ tokens |", "|---|---|---|---|---|---:|---|---:|---:|---:|---:|---|---|---:|"]
    for row in some:
        c, t = row.combination, row.times
        start = [row.topology, c.strategy, "×".join(map(str, c.mesh)), c.remat or ""]
        batch = f"{c.batch_size}" + (f" in {c.accumulate}" if c.accumulate > 1 else "")
        if row.memory is None:
            lines.append(f"| {' | '.join([*start, batch, *[''] * 8, 'no such step'])} |")
            continue
        price = row.dollars_per_billion_tokens
        cells = [
            *start,
            batch,
            f"{row.hbm_bytes_per_chip / GIB:.1f}",
            "yes" if row.fits else "no",
            f"{sum(message.bytes_sent for message in row.messages) / 1e9:.3g}",
            *(f"{seconds:.3g}" for seconds in (t.matrix, t.hbm, t.ici + t.dcn)),
            f"{t.best:.3g} to {t.worst:.3g}",
            f"{row.mfu_worst:.0%} to {row.mfu_best:.0%}",
            "" if price is None else f"{price:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def compiled_table(entries: Sequence[dict]) -> str:
    """Markdown: the compiler beside the model."""
    head = "| config | topology | strategy | mesh | batch | remat | memory in use, GiB | modelled | needed of | "
    lines = [head + "sent, GB | compiled in |", "|---|---|---|---|---:|---|---:|---:|---:|---|---:|"]
    for entry in entries:
        memory = entry["modelled_memory"]
        modelled = sum(memory.values()) / GIB
        sent = [
            f"{kind} {axes} {size / 1e9:.3g}"
            for kind, by_axes in entry["collective_bytes"].items()
            for axes, size in by_axes.items()
            if size > 2e8
        ]
        cells = [
            entry["model"],
            entry["topology"],
            entry["strategy"],
            "×".join(map(str, entry["mesh"])),
            f"{entry['global_batch']}",
            entry["remat"] or "",
            f"{entry['peak_bytes'] / GIB:.2f}" if entry["peak_bytes"] else "does not fit",
            f"{modelled:.2f}",
            f"{entry['hbm_bytes_per_chip'] / GIB:.2f} of {entry['hbm_limit'] / GIB:.2f}",
            ", ".join(sent),
            f"{entry['compile_seconds'] or 0:.0f} s",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
