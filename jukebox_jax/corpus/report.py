"""What became of every file: `report.json` and `metadata.jsonl` of a dataset folder, and a table for people."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jukebox_jax.corpus.piece import FIELDS, Catalogue, Finding
from jukebox_jax.corpus.plan import Coverage, Plan, title_of
from jukebox_jax.pipeline.dataset import SPLITS

#: How many examples of one kind a table shows.
_EXAMPLES = 3


def make_report(
    catalogue: Catalogue, findings: Sequence[Finding], plan: Plan, settings: Any, sample_rate: int
) -> dict[str, Any]:
    """The report as JSON: totals, splits, labels with their counts, a verdict for every file, and problems.

    Args:
      findings: one for each piece of the catalogue.
      settings: a dataclass, kept as it is.
    """
    stored = {kept.piece.file_name: kept.piece.split for kept in plan.kept}
    duplicate_of = {duplicate.file_name: duplicate for duplicate in plan.duplicates}
    files = []
    for piece, finding in zip(catalogue.pieces, findings, strict=True):
        if piece.file_name in stored:
            verdict = f"stored in {stored[piece.file_name]}"
        elif piece.file_name in duplicate_of:
            duplicate = duplicate_of[piece.file_name]
            verdict = f"left out: {duplicate.kind} duplicate of {duplicate.kept}"
        else:
            verdict = f"refused: {finding.verdict}"
        files.append({"file_name": piece.file_name, "verdict": verdict, "notes": list(finding.notes)})
    seconds = {
        split: sum(kept.finding.samples for kept in plan.kept if kept.piece.split == split) / sample_rate
        for split in SPLITS
    }
    songs = {split: sum(kept.piece.split == split for kept in plan.kept) for split in SPLITS}
    return {
        "settings": dataclasses.asdict(settings),
        "files_found": len(catalogue.pieces),
        "songs_stored": len(plan.kept),
        "hours": round(sum(seconds.values()) / 3600, 4),
        "refused": sum(not finding.usable for finding in findings),
        "duplicates": len(plan.duplicates),
        "splits": {split: {"songs": songs[split], "hours": round(seconds[split] / 3600, 4)} for split in SPLITS},
        "artists": _coverage(plan.artists),
        "genres": _coverage(plan.genres),
        "files": files,
        "problems": [dataclasses.asdict(problem) for problem in catalogue.problems],
        "other_files": dict(catalogue.other_files),
    }


def write_tables(folder: Path, report: dict[str, Any], plan: Plan, sample_rate: int) -> None:
    """Writes `report.json`, and `metadata.jsonl` with a row for every song: its labels, what said so, its sound."""
    text = json.dumps(report, ensure_ascii=False, indent=1) + "\n"
    (folder / "report.json").write_text(text, encoding="utf-8")
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as file:
        for piece, finding in ((kept.piece, kept.finding) for kept in plan.kept):
            row = {"file_name": piece.file_name} | {field: getattr(piece, field) for field in FIELDS}
            row |= {"title": title_of(piece), "seconds": round(finding.samples / sample_rate, 3)}
            row |= {name: getattr(finding, name) for name in ("source_rate", "source_channels")}
            row |= {"peak": round(finding.peak, 5), "rms": round(finding.rms, 5), "origins": dict(piece.origins)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def summary(report: dict[str, Any]) -> str:
    """The report as a few aligned lines, with examples of what was left out and why."""
    lines = [
        ("files found", f"{report['files_found']}"),
        ("songs stored", f"{report['songs_stored']}, {duration(3600 * report['hours'])}"),
        *(
            (f"  {split}", f"{part['songs']}, {duration(3600 * part['hours'])}")
            for split, part in report["splits"].items()
        ),
        ("duplicates left out", f"{report['duplicates']}"),
        ("refused", f"{report['refused']}"),
        ("other problems", f"{len(report['problems'])}"),
        ("no music by name", ", ".join(f"{s}: {n}" for s, n in report["other_files"].items()) or "0"),
    ]
    for kind in ("artists", "genres"):
        coverage = report[kind]
        text = f"{len(coverage['songs'])} names for {100 * coverage['known_share']:.1f} % of the songs"
        if coverage["rare"]:
            lost = sum(coverage["rare"].values())
            text += f"; {len(coverage['rare'])} rarer names became unknown ({lost} songs)"
        lines.append((kind, text))
    width = max(len(name) for name, _ in lines)
    text = [f"{name:<{width}}  {value}" for name, value in lines]
    left_out = [f"{entry['file_name']}: {entry['verdict']}" for entry in report["files"] if _is_left_out(entry)]
    left_out += [f"{problem['where']}: {problem['reason']}" for problem in report["problems"]]
    text += [f"  {' '.join(line.split())}" for line in left_out[:_EXAMPLES]]
    if len(left_out) > _EXAMPLES:
        text.append(f"  … and {len(left_out) - _EXAMPLES} more: see report.json")
    return "\n".join(text)


def duration(seconds: float) -> str:
    """A length for people: "1.25 hours", "12.5 minutes"."""
    return f"{seconds / 3600:.2f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def _is_left_out(entry: dict[str, Any]) -> bool:
    return not entry["verdict"].startswith("stored")


def _coverage(coverage: Coverage) -> dict[str, Any]:
    return {
        "known_share": round(coverage.share, 4),
        "unlabelled": coverage.unlabelled,
        "songs": dict(coverage.songs),
        "rare": dict(coverage.rare),
    }
