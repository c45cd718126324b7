"""python -m experiments.parity PATH…: a line for every recorded quantity; status 0 only if all of them agree."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# The fixtures are float32 on a CPU; accelerators multiply in less unless told otherwise.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.parity", description=__doc__)
    parser.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="a fixture (X.npz or X.json) or a folder")
    paths = parser.parse_args(arguments).paths

    from experiments.parity.fixture import discover
    from experiments.parity.report import failure
    from experiments.parity.run import run

    passed = failed = 0
    seen: set[Path] = set()
    for path in paths:
        stems = discover(path)
        reports = (run(stem) for stem in stems if stem.resolve() not in seen)
        for lines in reports if stems else [[failure(str(path), "no fixture here")]]:
            for line in lines:
                print(line, flush=True)
                passed, failed = passed + line.passed, failed + (not line.passed)
        seen.update(stem.resolve() for stem in stems)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
