"""Curves of a cascade's training runs: losses, with what they looked like in runs that went well, and codes in use."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from jukebox_jax.checkpoint.models import CODEC_FOLDER, level_folder
from jukebox_jax.export.plots import Band, LossCurve
from jukebox_jax.training.telemetry import METRICS_FILE, read_metrics

CODEC_NAME = "VQ-VAE"
#: Which metric of a run is its loss, with its unit.
CODEC_LOSS, PRIOR_LOSS = ("loss", "loss"), ("bits_per_token", "bits per token")


def training_curves(runs: os.PathLike | str, levels: int = 3, bands: bool = False) -> list[LossCurve]:
    """Loss of the codec, its codes in use, and loss of the priors, top first, of those runs that have metrics.

    Args:
      bands: draw what is normal behind them; that is known of the demo's models only.
    """
    curves, normal = [], normal_bands() if bands else {}
    models = {CODEC_FOLDER: CODEC_NAME} | {level_folder(i): f"prior, level {i}" for i in reversed(range(levels))}
    for part, name in models.items():
        folder = Path(runs) / part
        if not (folder / METRICS_FILE).exists():
            continue
        key, unit = CODEC_LOSS if part == CODEC_FOLDER else PRIOR_LOSS
        rows = read_metrics(folder)
        train, held_out = metric_points(rows, key), metric_points(rows, f"eval_{key}")
        curves.append(LossCurve(name, unit, train, held_out, normal.get(name, ())))
        if part == CODEC_FOLDER:
            curves += _usage(rows, levels)
    return curves


def metric_points(rows: Sequence[Mapping[str, float | int | None]], name: str) -> list[tuple[int, float]]:
    """(step, value) of a metric, of those rows that have it."""
    return [(int(row["step"]), float(row[name])) for row in rows if row.get(name) is not None]


def _usage(rows: Sequence[Mapping[str, float | int | None]], levels: int) -> list[LossCurve]:
    """How many codes of each level were in use (see `codec_task`), where the metrics tell."""
    found = []
    for level in range(levels):
        points = metric_points(rows, f"usage_l{level + 1}")
        if points:
            found.append(LossCurve(f"{CODEC_NAME}, level {level}", "codes in use", points))
    return found


def normal_bands() -> dict[str, Band]:
    """Of each of the demo's models (step, lowest, highest) training loss, recorded by `experiments.normal_curves`."""
    text = resources.files("jukebox_jax.export").joinpath("normal.json").read_text(encoding="utf-8")
    return {name: tuple((int(step), low, high) for step, low, high in band) for name, band in json.loads(text).items()}
