"""How fast music becomes batches, beside what the machine could do at best.

    python -m experiments.data_bench                      # an hour of synthetic music; ten minutes or so
    python -m experiments.data_bench --part stream --hours 10 --json data.json
    python -m experiments.data_bench --part memory --music FOLDER

Every part is a function in a file of its own that takes a `Bench` and gives rows; README.md says what they mean.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

from experiments.data_bench import encode, memory, prepare, stream
from experiments.data_bench.limits import machine_limits
from experiments.data_bench.music import write_music
from experiments.data_bench.row import Bench, table

PARTS = {"prepare": prepare.rows, "stream": stream.rows, "encode": encode.rows, "memory": memory.rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1.0, help="of stereo music in the dataset (default 1)")
    parser.add_argument("--repeats", type=int, default=5, help="of every measurement (default 5)")
    parser.add_argument("--part", choices=PARTS, action="append", help="measure this only; may be repeated")
    parser.add_argument("--music", type=Path, metavar="FOLDER", help="recordings to measure memory with")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to this file")
    args = parser.parse_args()
    if args.music is not None and not args.music.is_dir():
        parser.error(f"{args.music} is no folder: name one with more than an hour of music")

    with tempfile.TemporaryDirectory(prefix="data_bench_") as folder:
        audio, tokens = write_music(Path(folder), args.hours)
        limits = machine_limits(audio, args.repeats)
        print(limits.text(), flush=True)
        bench = Bench(audio, tokens, limits, args.repeats, args.music)
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
