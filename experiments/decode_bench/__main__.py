"""How fast the engine decodes and takes prompts in, beside the machine's memory and matrix products and the original.

    python -m experiments.decode_bench                    # all cases; a quarter of an hour or so on two cores at rest
    python -m experiments.decode_bench --only small_prior/int8/1 --json FILE
    python -m experiments.decode_bench --readme           # puts the tables into README.md, where they are explained

On an accelerator the released priors take the place of the small ones. Needs jax and flax only.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.decode_bench.cases import ACCELERATOR_CASCADES, CPU_CASCADES, accelerator_cases, cpu_cases
from experiments.decode_bench.measure import (
    DecodeRow,
    PrefillRow,
    decode_table,
    first_second_table,
    first_seconds,
    measure,
    prefill_table,
)
from experiments.limits import copy_bytes_per_core_second, numpy_matmul_flops_per_second
from jukebox_jax.training.host_memory import keep_freed_memory

README = Path(__file__).parent / "README.md"
_BEGIN, _END = "<!-- measured -->\n", "<!-- end of measured -->\n"


def main() -> None:
    on_cpu = jax.default_backend() == "cpu"
    cases = {case.name: case for case in (cpu_cases() if on_cpu else accelerator_cases())}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=cases, metavar="NAME", help=f"some of {', '.join(cases)}")
    parser.add_argument("--repeats", type=int, default=5, help="of every measurement (default 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to this file")
    parser.add_argument("--readme", action="store_true", help="also put the tables into README.md")
    args = parser.parse_args()
    if args.repeats < 1:
        parser.error(f"--repeats {args.repeats} measures nothing: choose 1 or more")

    keep_freed_memory()
    machine = {
        "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy_matmul_flops_per_second": numpy_matmul_flops_per_second(args.repeats),
        "copy_bytes_per_core_second": copy_bytes_per_core_second(args.repeats),
    }
    head = (
        f"{machine['device']}, Python {machine['python']}, jax {machine['jax']}; numpy multiplies at "
        f"{machine['numpy_matmul_flops_per_second'] / 1e9:,.0f} GFLOP/s, memory copy: "
        f"{machine['copy_bytes_per_core_second'] / 1e6:,.0f} MB per core-second."
    )
    print(head, flush=True)
    decoded: list[DecodeRow] = []
    prefilled: list[PrefillRow] = []
    missing = []
    for name in args.only or cases:
        try:
            row, prefills = measure(cases[name], args.repeats, 16 if on_cpu else 128)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            missing.append(f"{name} does not fit into this device's memory.")
            continue
        decoded.append(row)
        prefilled += prefills
        print(f"{name}: {1e3 * row.step_seconds:.3g} ms a step, {row.of_memory:.0%} of the memory's rate", flush=True)
    sounding = [
        row
        for cascade in (CPU_CASCADES if on_cpu else ACCELERATOR_CASCADES)
        if {cases[name].model for name in args.only or cases} >= set(cascade.priors)
        for row in first_seconds(cascade, tuple(cases.values()), decoded, args.repeats)
    ]
    text = "\n\n".join(
        [
            head,
            decode_table(decoded),
            *([prefill_table(prefilled)] if prefilled else []),
            *([first_second_table(sounding)] if sounding else []),
            *missing,
        ]
    )
    print(text)
    if args.json is not None:
        rows = {"decode": _plain(decoded), "prefill": _plain(prefilled), "first_second": _plain(sounding)}
        result = {"limits": machine, **rows, "missing": missing}
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.readme:
        before, rest = README.read_text(encoding="utf-8").split(_BEGIN)
        README.write_text(f"{before}{_BEGIN}\n{text}\n\n{_END}{rest.split(_END)[1]}", encoding="utf-8")


def _plain(rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Rows with what is computed from their fields."""
    computed = [[name for name, value in vars(type(row)).items() if isinstance(value, property)] for row in rows]
    return [
        dataclasses.asdict(row) | {name: getattr(row, name) for name in names}
        for row, names in zip(rows, computed, strict=True)
    ]


if __name__ == "__main__":
    main()
