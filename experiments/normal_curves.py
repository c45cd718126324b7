"""What the demo's loss curves look like when all goes well: recorded from finished runs, for the page's grey bands.

    python -m experiments.normal_curves demo/runs [MORE/runs …]

Writes jukebox_jax/export/normal.json: of each model, at steps that double, the lowest and highest running mean of the
training loss over all runs, with a tenth of the value to either side for other machines and seeds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jukebox_jax
from jukebox_jax.export.curves import training_curves
from jukebox_jax.files import atomic_file

TARGET = Path(jukebox_jax.__file__).parent / "export/normal.json"
#: To either side, as a part of the value.
ROOM = 0.1


def main(folders: list[str]) -> None:
    if not folders:
        sys.exit(__doc__)
    found: dict[str, list[list[tuple[int, float]]]] = {}
    for folder in folders:
        for curve in training_curves(folder):
            if curve.unit == "codes in use":
                continue
            found.setdefault(curve.model, []).append([(step, float(value)) for step, value in curve.train])
    bands = {name: band(curves) for name, curves in found.items()}
    with atomic_file(TARGET) as temporary:
        temporary.write_text(json.dumps(bands, indent=1) + "\n", encoding="utf-8")
    print(f"{TARGET}: {', '.join(bands)}, from {len(folders)} runs")


def band(curves: list[list[tuple[int, float]]]) -> list[tuple[int, float, float]]:
    """(step, lowest, highest) of the means of curves over the steps around powers of the square root of two, as far as
    the longest goes."""
    last = max(curve[-1][0] for curve in curves)
    steps = [*(round(2 ** (power / 2)) for power in range(8, 64) if 2 ** (power / 2) < last), last]
    rows = []
    for step in steps:
        near = [[value for at, value in curve if step / 1.2 <= at <= step * 1.2] for curve in curves]
        means = [sum(values) / len(values) for values in near if values]
        if means:
            rows.append((step, round((1 - ROOM) * min(means), 4), round((1 + ROOM) * max(means), 4)))
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
