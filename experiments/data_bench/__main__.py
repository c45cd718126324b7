"""How fast music becomes batches, beside what the machine could do at best.

    python -m experiments.data_bench                      # an hour of synthetic music; a few minutes
    python -m experiments.data_bench --hours 10 --json data.json

Every part is a function in a file of its own that takes a `Bench` and gives rows. Speeds are medians of several
repeats, in seconds of audio for each second of processor time (of all threads of this process).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

from experiments.data_bench import stream
from experiments.data_bench.limits import machine_limits
from experiments.data_bench.music import write_music
from experiments.data_bench.row import Bench, table

PARTS = {"stream": stream.rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1.0, help="of stereo music in the dataset (default 1)")
    parser.add_argument("--repeats", type=int, default=5, help="of every measurement (default 5)")
    parser.add_argument("--part", choices=PARTS, action="append", help="measure this only; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to this file")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="data_bench_") as folder:
        audio, tokens = write_music(Path(folder), args.hours)
        limits = machine_limits(audio, args.repeats)
        print(limits.text(), flush=True)
        bench = Bench(audio, tokens, limits, args.repeats)
        rows = [row for name in args.part or PARTS for row in PARTS[name](bench)]
    print(table(rows))
    if args.json is not None:
        result = {
            "hours": args.hours,
            "limits": dataclasses.asdict(limits),
            "rows": [dataclasses.asdict(row) for row in rows],
        }
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
