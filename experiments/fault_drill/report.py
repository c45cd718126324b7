"""The table of a drill."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.fault_drill.engine import KINDS, Result
from jukebox_jax.files import atomic_file

README = Path(__file__).with_name("README.md")
_BEGIN, _END = "<!-- table -->\n", "<!-- end of table -->\n"


def table(results: Sequence[Result]) -> str:
    """One Markdown table: a row for each drill."""
    head = ["drill", "what", "kills met", *KINDS, "resumes", "done again", "largest difference", "seconds", "verdict"]
    lines = [_row(head), _row(["---", "---", *["---:"] * (len(head) - 3), "---"])]
    for result in results:
        compared = result.comparison
        difference = "" if compared is None else f"{compared.difference:.2g} ({compared.measure})"
        lines.append(
            _row(
                [
                    result.name,
                    result.what,
                    f"{result.met} of {result.planned}",
                    *(str(result.kills[kind] or "") for kind in KINDS),
                    str(result.resumes),
                    str(result.again),
                    difference,
                    f"{result.seconds:.0f}",
                    "passed" if result.passed else "**failed**",
                ]
            )
        )
    return "\n".join(lines)


def as_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The results as plain values."""
    return [dataclasses.asdict(result) | {"passed": result.passed} for result in results]


def write_readme(results: Sequence[Result], readme: Path = README) -> None:
    """Puts the table in place of the one in the README."""
    before, _, rest = readme.read_text(encoding="utf-8").partition(_BEGIN)
    after = rest.partition(_END)[2]
    with atomic_file(readme) as temporary:
        temporary.write_text(f"{before}{_BEGIN}\n{table(results)}\n\n{_END}{after}", encoding="utf-8")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
