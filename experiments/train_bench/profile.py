"""Which parts of a profiled step took longest."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from jax.profiler import ProfileData


def longest_parts(folder: Path, most: int = 15) -> str:
    """A Markdown table of the compiled program's operations in the newest trace below a folder, over all threads."""
    traces = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    spent: Counter[str] = Counter()
    for plane in ProfileData.from_file(str(traces[-1])).planes:
        for line in plane.lines:
            for event in line.events:
                operation = dict(event.stats).get("hlo_op")
                if operation is not None:
                    spent[str(operation)] += event.duration_ns
    total = sum(spent.values())
    lines = ["| operation | ms | part |", "|---|---:|---:|"]
    lines += [f"| {name} | {time / 1e6:,.1f} | {time / total:.1%} |" for name, time in spent.most_common(most)]
    return "\n".join(lines)
