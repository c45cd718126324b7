"""Kills runs at random moments and sees whether they end as if nothing had been.

    python -m experiments.fault_drill                          # 20 kills of every drill; runs have 200 steps
    python -m experiments.fault_drill --kills 3 --only prior --seed 7

The last line is `N passed, N failed`; the exit status is 1 if any failed. README.md says what is done.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

# Those who compare results do it here; the drilled runs get their own devices.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def main(arguments: list[str] | None = None) -> int:
    from experiments.fault_drill.drills import NAMES, make_drills, write_data
    from experiments.fault_drill.engine import run_drill
    from experiments.fault_drill.report import as_json, table, write_readme

    parser = argparse.ArgumentParser(
        prog="python -m experiments.fault_drill",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=20, help="of every drill (20)")
    parser.add_argument("--steps", type=int, default=200, help="of every training run (200)")
    parser.add_argument("--seed", type=int, default=0, help="of what comes when (0)")
    parser.add_argument("--only", metavar="NAME", choices=NAMES, nargs="+", help=f"some of {', '.join(NAMES)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    parser.add_argument("--readme", action="store_true", help="also put the table into this folder's README.md")
    args = parser.parse_args(arguments)
    if args.kills < 1 or args.steps < 20:
        parser.error("there must be a kill at least, and 20 steps")

    from tqdm import tqdm

    with tempfile.TemporaryDirectory(prefix="fault_drill_") as folder:
        work = Path(folder)
        data = write_data(work / "data")
        drills = make_drills(data, work / "compiled", args.steps, args.only or NAMES)
        results = []
        with tqdm(total=len(drills), unit="drill", file=sys.stderr, dynamic_ncols=True) as bar:
            for drill in drills:

                def tell(text: str, name: str = drill.name) -> None:
                    bar.set_description_str(f"{name}, {text}")

                results.append(run_drill(drill, work, args.kills, args.seed, tell))
                bar.update()
    print(table(results))
    for result in results:
        for problem in result.problems:
            print(f"{result.name}: {problem}")
    if args.json is not None:
        args.json.write_text(json.dumps(as_json(results), indent=1) + "\n", encoding="utf-8")
    if args.readme:
        write_readme(results)
    failed = sum(not result.passed for result in results)
    print(f"{len(results) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
