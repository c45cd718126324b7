"""What decode loops need of TPUs that are not there, from the TPU compiler. Training steps: `jukebox-jax plan`.

    pip install -c constraints.txt -e ".[tpu]"
    python -m experiments.tpu_plans                       # the sampling engine with every released prior; an hour or so
    python -m experiments.tpu_plans prior_5b

Nothing runs, so it says nothing about speed. One compilation at a time: they use all cores and some gigabytes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="priors (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to this file")
    args = parser.parse_args()

    # Before jax is imported: no TPU is asked for, and none is looked for in the cloud's metadata.
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    sys.exit(compile_all(args.models, args.json))


def compile_all(models: list[str], json_file: Path | None) -> int:
    """Compiles, prints the table; returns the exit status."""
    from experiments.tpu_plans.decode import CHIPS, MODELS, PRECISIONS, compile_decode, decode_table
    from jukebox_jax.errors import UserError

    if unknown := [name for name in models if name not in MODELS]:
        print(f"Unknown models {', '.join(unknown)}: choose among {', '.join(MODELS)}.", file=sys.stderr)
        return 2
    cases = [
        (model, chip, precision, batch, 1)
        for model in models or MODELS
        for chip in CHIPS
        for precision in PRECISIONS
        for batch in (1, None)
    ]
    if not models or "prior_5b" in models:
        cases += [("prior_5b", "v5e", precision, 1, 4) for precision in PRECISIONS]
    rows, failed = [], False
    for case in cases:
        try:
            row = compile_decode(*case)
        except UserError as error:
            print(f"{' '.join(map(str, case))}: {error}", file=sys.stderr, flush=True)
            failed = True
            continue
        if row is not None:
            rows.append(row)
            print(decode_table([row]), flush=True)
    print(decode_table(rows))
    if json_file is not None:
        json_file.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    return 2 if failed else 0


if __name__ == "__main__":
    main()
