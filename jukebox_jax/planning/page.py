"""A plan as one HTML file: its rows, and a picture of where the time goes; no script, no network."""

from __future__ import annotations

import html
from collections.abc import Sequence

from jukebox_jax.parallel.plan import GIB
from jukebox_jax.planning.plan import Row

_STYLE = """
:root { color-scheme: light dark; --paper: light-dark(#fdfcf9, #16171a); --ink: light-dark(#222, #e6e4df);
  --faint: light-dark(#ddd8cc, #3a3b40); --compute: #b4482e; --hbm: #2d6f8f; --ici: #7a8f2d; --dcn: #8f5a9c; }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; max-width: 75rem;
  margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
div.wide { overflow-x: auto; }
td, th { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--faint); white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
tr.no { opacity: .5; }
i { display: inline-block; width: .8em; height: .8em; }
svg { max-width: 100%; height: auto; }
"""
_PARTS = ("compute", "hbm", "ici", "dcn")
_WIDTH, _LINE, _LEFT = 1100, 22, 430


def as_html(rows: Sequence[Row], advice: Sequence[str]) -> str:
    """The page. All times are modelled; memory and messages are the compiler's where a row says so."""
    known = [row for row in rows if row.memory is not None]
    refused = [row for row in rows if row.memory is None or row.reason]
    legend = " ".join(f'<i style="background:var(--{part})"></i> {part.upper()}' for part in _PARTS)
    notes = [f"{row.model} on {row.topology}, {row.combination}: {row.reason}" for row in refused if row.reason]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Sharding plan</title>',
            f"<style>{_STYLE}</style></head><body><h1>Sharding plan</h1>",
            *(f"<p>{html.escape(text)}</p>" for text in advice),
            "<h2>Where a step's time goes</h2>",
            "<p>Seconds that a step needs each resource for, one behind the other: the step's time at worst, if "
            f"nothing overlaps. At best it is as long as the longest part. All times are modelled. {legend}</p>",
            _bars(known),
            '<h2>Rows</h2><div class="wide">',
            _table(known),
            "</div>",
            *(["<h2>What cannot be</h2><ul>"] if notes else []),
            *(f"<li>{html.escape(note)}</li>" for note in notes),
            *(["</ul>"] if notes else []),
            "</body></html>\n",
        ]
    )


def _label(row: Row) -> str:
    remat = f", {row.combination.remat}" if row.combination.remat else ""
    return f"{row.model} {row.topology} {row.combination.strategy} {'×'.join(map(str, row.combination.mesh))}{remat}"


def _bars(rows: Sequence[Row]) -> str:
    longest = max((row.times.worst for row in rows), default=1.0)
    drawn = []
    for index, row in enumerate(rows):
        y, x = index * _LINE, float(_LEFT)
        opacity = 1 if row.fits else 0.35
        drawn.append(
            f'<text x="{_LEFT - 8}" y="{y + 15}" text-anchor="end" font-size="12" fill="currentColor" '
            f'opacity="{opacity}">{html.escape(_label(row))}</text>'
        )
        times = {"compute": row.times.matrix, "hbm": row.times.hbm, "ici": row.times.ici, "dcn": row.times.dcn}
        for part, seconds in times.items():
            width = (_WIDTH - _LEFT - 90) * seconds / longest
            drawn.append(
                f'<rect x="{x:.1f}" y="{y + 4}" width="{width:.1f}" height="{_LINE - 8}" fill="var(--{part})" '
                f'opacity="{opacity}"><title>{part} {seconds:.3g} s</title></rect>'
            )
            x += width
        text = f"{row.times.worst:.3g} s" + ("" if row.fits else ", does not fit")
        drawn.append(f'<text x="{x + 6:.1f}" y="{y + 15}" font-size="12" fill="currentColor">{text}</text>')
    height = _LINE * max(1, len(rows))
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="time by resource">{"".join(drawn)}</svg>'


def _table(rows: Sequence[Row]) -> str:
    head = (
        "what",
        "batch",
        "from",
        "HBM, GiB",
        "TFLOP (executed)",
        "sent, GB",
        "step, s",
        "MFU",
        "audio h/day",
        "$/10⁹ tokens",
    )
    lines = ["<table><tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in head) + "</tr>"]
    for row in rows:
        c = row.combination
        price = row.dollars_per_billion_tokens
        cells = (
            _label(row),
            f"{c.batch_size}" + (f" in {c.accumulate}" if c.accumulate > 1 else ""),
            "compiler" if row.compiled else "model",
            f"{row.hbm_bytes_per_chip / GIB:.1f} of {row.hbm_limit / GIB:.1f}",
            f"{row.model_flops_per_chip / 1e12:.3g} ({row.executed_flops_per_chip / 1e12:.3g})",
            f"{sum(message.bytes_sent for message in row.messages) / 1e9:.3g}",
            f"{row.times.best:.3g} to {row.times.worst:.3g}",
            f"{row.mfu_worst:.0%} to {row.mfu_best:.0%}",
            f"{row.audio_hours_per_day:,.0f}",
            "" if price is None else f"{price:,.0f}",
        )
        mark = "" if row.fits else ' class="no"'
        lines.append(f"<tr{mark}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    return "\n".join([*lines, "</table>"])
