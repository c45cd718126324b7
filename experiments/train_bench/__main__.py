"""How long training steps take, beside what the machine could do at best and what the original took.

    python -m experiments.train_bench                     # all cases; ten minutes or so on two cores at rest
    python -m experiments.train_bench --only vqvae_step prior_2048_step --json FILE
    python -m experiments.train_bench --readme            # puts the table into README.md, where it is explained
    python -m experiments.train_bench --profile DIR       # and a trace of a step of each case, with its longest parts

On an accelerator the cases are larger and in bfloat16. Needs jax, flax and optax only.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
from pathlib import Path

import jax

from experiments.limits import copy_bytes_per_core_second, numpy_matmul_flops_per_second
from experiments.train_bench.cases import accelerator_cases, cpu_cases
from experiments.train_bench.measure import measure, table
from experiments.train_bench.profile import longest_parts
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
    parser.add_argument("--readme", action="store_true", help="also put the table into README.md")
    parser.add_argument("--profile", type=Path, metavar="DIR", help="also trace a step of each case into this folder")
    args = parser.parse_args()
    if args.repeats < 1:
        parser.error(f"--repeats {args.repeats} measures nothing: choose 1 or more")

    keep_freed_memory()
    limits = {
        "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy_matmul_flops_per_second": numpy_matmul_flops_per_second(args.repeats),
        "copy_bytes_per_core_second": copy_bytes_per_core_second(args.repeats),
    }
    head = (
        f"{limits['device']}, Python {limits['python']}, jax {limits['jax']}; numpy multiplies at "
        f"{limits['numpy_matmul_flops_per_second'] / 1e9:,.0f} GFLOP/s, memory copy: "
        f"{limits['copy_bytes_per_core_second'] / 1e6:,.0f} MB per core-second."
    )
    print(head, flush=True)
    rows, missing = [], []
    for name in args.only or cases:
        try:
            row = measure(cases[name], args.repeats, "float32" if on_cpu else "bfloat16", args.profile)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            missing.append(f"{name} does not fit into this device's memory.")
            continue
        rows.append(row)
        print(f"{name}: {row.seconds:.3g} s, {row.of_matmul:.0%} of the matrix product", flush=True)
        if args.profile is not None:
            print(longest_parts(args.profile / name))
    text = "\n\n".join([head, table(rows), *missing])
    print(text)
    if args.json is not None:
        result = {"limits": limits, "rows": [dataclasses.asdict(row) for row in rows], "missing": missing}
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.readme:
        before, rest = README.read_text(encoding="utf-8").split(_BEGIN)
        README.write_text(f"{before}{_BEGIN}\n{text}\n\n{_END}{rest.split(_END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
