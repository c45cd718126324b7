"""Rows of a plan for people and for programs: Markdown, JSON, CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

from jukebox_jax.parallel.plan import GIB
from jukebox_jax.planning.plan import Row

# fmt: off
_COLUMNS = (
    "model", "topology", "strategy", "mesh", "batch", "remat", "from", "fits", "parameters", "optimizer",
    "activations", "HBM of",
    "TFLOP", "executed", "HBM traffic", "sent", "compute", "HBM", "ICI", "DCN", "step, best", "worst", "MFU, best",
    "worst", "tokens/s/chip", "audio h/day", "$/10⁹ tokens", "compiled in",
)
# fmt: on
_LEFT = 8


def as_markdown(rows: Sequence[Row]) -> str:
    """Memory in GiB, traffic and messages in GB (10^9), times in seconds; of one chip in one step."""
    lines = [f"| {' | '.join(_COLUMNS)} |", "|---" * _LEFT + "|---:" * (len(_COLUMNS) - _LEFT) + "|"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    notes = [f"- {row.model} on {row.topology}, {row.combination}: {row.reason}" for row in rows if row.reason]
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def _cells(row: Row) -> list[str]:
    c, memory, times = row.combination, row.memory, row.times
    batch = f"{c.batch_size}" if c.accumulate == 1 else f"{c.batch_size} in {c.accumulate}"
    where = "compiler" if row.compiled else "model"
    head = [row.model, row.topology, c.strategy, "×".join(map(str, c.mesh)), batch, c.remat or "", where]
    if memory is None:
        return [*head, "no", *[""] * (len(_COLUMNS) - len(head) - 1)]
    optimizer = memory.optimizer + memory.average
    sent = ", ".join(
        f"{message.kind} {'×'.join(message.axes)} {message.bytes_sent / 1e9:.3g}"
        for message in row.messages
        if message.bytes_sent >= 0.01 * sum(other.bytes_sent for other in row.messages)
    )
    return [
        *head,
        "yes" if row.fits else "no",
        f"{memory.parameters / GIB:.2f}",
        f"{optimizer / GIB:.2f}",
        f"{memory.activations / GIB:.2f}",
        f"{row.hbm_bytes_per_chip / GIB:.2f} of {row.hbm_limit / GIB:.2f}",
        f"{row.model_flops_per_chip / 1e12:.3g}",
        f"{row.executed_flops_per_chip / 1e12:.3g}",
        f"{row.hbm_traffic_bytes / 1e9:.3g}",
        sent,
        *(f"{seconds:.3g}" for seconds in (times.compute, times.hbm, times.ici, times.dcn)),
        f"{times.best:.3g}",
        f"{times.worst:.3g}",
        f"{row.mfu_best:.0%}",
        f"{row.mfu_worst:.0%}",
        "" if row.tokens_per_second_per_chip is None else f"{row.tokens_per_second_per_chip:,.0f}",
        f"{row.audio_hours_per_day:,.0f}",
        "" if row.dollars_per_billion_tokens is None else f"{row.dollars_per_billion_tokens:,.0f}",
        "" if row.compile_seconds is None else f"{row.compile_seconds:.0f} s",
    ]


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A flat object for each row."""
    return [_flat(row) for row in rows]


def _flat(row: Row) -> dict[str, Any]:
    c = row.combination
    collectives: dict[str, dict[str, float]] = {}
    for message in row.messages:
        collectives.setdefault(message.kind, {})["/".join(message.axes)] = message.bytes_sent
    return {
        "model": row.model,
        "topology": row.topology,
        "chips": row.chips,
        "strategy": c.strategy,
        "mesh": list(c.mesh),
        "global_batch": c.batch_size,
        "accumulate": c.accumulate,
        "remat": c.remat,
        "compiled": row.compiled,
        "fits": row.fits,
        "hbm_bytes_per_chip": row.hbm_bytes_per_chip,
        "peak_bytes": row.peak_bytes,
        "hbm_limit": row.hbm_limit,
        "modelled_memory": None if row.memory is None else dataclasses.asdict(row.memory),
        "model_flops_per_chip": row.model_flops_per_chip,
        "executed_flops_per_chip": row.executed_flops_per_chip,
        "hbm_traffic_bytes": row.hbm_traffic_bytes,
        "collective_bytes": collectives,
        "seconds": dataclasses.asdict(row.times),
        "step_seconds_best": row.times.best,
        "step_seconds_worst": row.times.worst,
        "mfu_best": row.mfu_best,
        "mfu_worst": row.mfu_worst,
        "tokens_per_second_per_chip": row.tokens_per_second_per_chip,
        "audio_hours_per_day": row.audio_hours_per_day,
        "dollars_per_billion_tokens": row.dollars_per_billion_tokens,
        "dollars_per_audio_hour": row.dollars_per_audio_hour,
        "compile_seconds": row.compile_seconds,
        "reason": row.reason,
    }


def as_csv(rows: Sequence[Row]) -> str:
    """The same for spreadsheets: nested values with dots in their names."""
    flat = [_dotted("", entry) for entry in as_json(rows)]
    names = list(dict.fromkeys(name for entry in flat for name in entry))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _dotted(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _dotted(f"{prefix}{name}.", value)
        else:
            found[f"{prefix}{name}"] = "x".join(map(str, value)) if isinstance(value, list) else value
    return found
