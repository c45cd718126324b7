"""What training and decode steps need of TPUs that are not there: memory and traffic, from the TPU compiler.

    pip install -c constraints.txt -e ".[tpu]"
    python -m experiments.tpu_plans                       # every row of README.md; hours on two cores
    python -m experiments.tpu_plans --topology v5e:8x8 --config configs/prior.py:5b
    python -m experiments.tpu_plans --topology v6e:8x8 --slices 2 --config configs/prior.py:5b \\
        --config.train.accumulate=4
    python -m experiments.tpu_plans --decode              # the sampling engine with every released prior
    python -m experiments.tpu_plans --decode prior_5b

Nothing runs, so it says nothing about speed. One compilation at a time: they use all cores and some gigabytes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

_PODS = ("v5e:8x8", "v5p:4x4x4", "v6e:8x8")
_WHOLE = ("--config.train.mesh=(1,64,1,1)", "--config.train.accumulate=1")

#: What is compiled if nothing is named: (config, topology, slices, batch over all chips, further values).
CASES = [
    *(("configs/prior.py:5b", pod, 1, 64, _WHOLE) for pod in _PODS),
    *(("configs/prior.py:5b", pod, 1, None, ()) for pod in _PODS[1:]),  # on v5e there is no room for groups of 16
    ("configs/prior.py:5b", "v6e:8x8", 2, None, ("--config.train.accumulate=4",)),
    *((f"configs/prior.py:{name}", "v5e:8x8", 1, None, ()) for name in ("upsampler_1", "upsampler_0", "1b_lyrics")),
    ("configs/prior.py:5b_lyrics", "v5p:4x4x4", 1, None, ()),
    ("configs/prior.py:small", "v5e:2x2", 1, None, ()),
    ("configs/vqvae.py:small", "v5e:2x2", 1, None, ()),
    ("configs/vqvae.py:released", "v6e:8x8", 1, None, ()),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--decode", nargs="*", metavar="MODEL", help="compile decode steps instead, of these priors or of all"
    )
    parser.add_argument("--config", metavar="FILE.py:VARIANT", help="what to compile (default: every row of README.md)")
    parser.add_argument("--topology", default="v5e:8x8", help="of one slice, as v5e:8x8 or v5p:4x4x4 (default v5e:8x8)")
    parser.add_argument("--slices", type=int, default=1, help="slices, joined by a data-centre network (default 1)")
    parser.add_argument("--batch", type=int, help="examples over all chips (default: the config's)")
    parser.add_argument("--hlo", type=Path, metavar="FILE", help="also write the program that the compiler made")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to this file")
    args, overrides = parser.parse_known_args()
    if any(not text.startswith("--config.") for text in overrides):
        parser.error(f"unknown arguments: {' '.join(overrides)}")
    cases = [(args.config, args.topology, args.slices, args.batch, tuple(overrides))] if args.config else CASES

    # Before jax is imported: no TPU is asked for, and none is looked for in the cloud's metadata.
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    if args.decode is not None:
        sys.exit(_decode(args.decode, args.json))
    from experiments.tpu_plans.compile import compile_step, table
    from jukebox_jax.cli.flags import load_config
    from jukebox_jax.errors import UserError

    rows = []
    for config, topology, slices, batch, values in cases:
        try:
            row, hlo = compile_step(load_config(config, values), config, topology, slices, batch)
        except UserError as error:
            print(f"{config} on {slices} × {topology}: {error}", file=sys.stderr, flush=True)
            continue
        rows.append(row)
        print(table([row]), flush=True)
        if args.hlo is not None:
            args.hlo.write_text(hlo, encoding="utf-8")
    if len(cases) > 1:
        print(table(rows))
    if args.json is not None:
        args.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if len(rows) == len(cases) else 2)


def _decode(models: list[str], json_file: Path | None) -> int:
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
