"""Rows that were measured beside what a model predicted for them: a table, files, and how far the model errs."""

from __future__ import annotations

import csv
import io
import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jukebox_jax.config import to_dict
from jukebox_jax.parallel.mesh import AXES
from jukebox_jax.parallel.plan import size_text
from jukebox_jax.planning.bench import Row


@dataclass(frozen=True)
class Prediction:
    """What a model says of a combination: seconds of a step if everything overlaps and if nothing does, and bytes of
    each device at the step's peak."""

    step_seconds_best: float
    step_seconds_worst: float
    memory_bytes: int

    @property
    def step_seconds(self) -> float:
        """The middle of both, which rows are ranked by."""
        return (self.step_seconds_best + self.step_seconds_worst) / 2


#: Of a row that was measured, as its devices and their rates are known only then; None where the model says nothing.
Predict = Callable[[Row], Prediction | None]
Line = tuple[Row, Prediction | None]


@dataclass(frozen=True)
class Error:
    """How far a model errs.

    Attributes:
      rows: that were measured and predicted.
      pairs: of these rows, whose order can be told: their quartiles do not overlap.
      right: pairs that the prediction has in the same order.
      close: the other pairs.
      seconds_ratio, memory_ratio: medians of measured over predicted; of seconds, of the middle of best and worst.
      between: rows with a median from best to worst.
    """

    rows: int
    pairs: int
    right: int
    close: int
    seconds_ratio: float
    memory_ratio: float
    between: int

    def __str__(self) -> str:
        """For people."""
        ranked = "no pair of rows differs by more than the quartiles' spread"
        if self.pairs:
            ranked = f"the order of {self.right} of {self.pairs} pairs of rows ({self.right / self.pairs:.0%}) is right"
        return (
            f"Predicted against measured, of {self.rows} rows: {ranked} ({self.close} closer pairs are not counted). "
            f"Measured seconds are {self.seconds_ratio:.2f} times the predicted ones (median; of best and worst, the "
            f"middle), and between best and worst in {self.between} rows. Measured memory is {self.memory_ratio:.2f} "
            "times the predicted one (median)."
        )


def with_predictions(rows: Sequence[Row], predict: Predict) -> list[Line]:
    """Each row with its prediction, if it was measured and there is one."""
    return [(row, None if row.measured is None else predict(row)) for row in rows]


def error_of(lines: Sequence[Line]) -> Error | None:
    """How far the predictions are from what was measured; None where there are none."""
    known = [(row.measured, predicted) for row, predicted in lines if row.measured and predicted]
    if not known:
        return None
    pairs = right = close = 0
    for (one, of_one), (other, of_other) in itertools.combinations(known, 2):
        if one.step_seconds[0] <= other.step_seconds[2] and other.step_seconds[0] <= one.step_seconds[2]:
            close += 1
            continue
        pairs += 1
        slower = one.step_seconds[1] > other.step_seconds[1]
        right += of_one.step_seconds > of_other.step_seconds if slower else of_one.step_seconds < of_other.step_seconds
    return Error(
        rows=len(known),
        pairs=pairs,
        right=right,
        close=close,
        seconds_ratio=statistics.median(row.step_seconds[1] / predicted.step_seconds for row, predicted in known),
        memory_ratio=statistics.median(row.memory_bytes / predicted.memory_bytes for row, predicted in known),
        between=sum(
            predicted.step_seconds_best <= row.step_seconds[1] <= predicted.step_seconds_worst
            for row, predicted in known
        ),
    )


# ---- As text ----------------------------------------------------------------------------------------------------


def as_markdown(lines: Sequence[Line]) -> str:
    """A table, how far the model errs, and what was not measured, each with its reason."""
    measured = [line for line in lines if line[0].measured is not None]
    parts = []
    if measured:
        # A column that says nothing of any row is left out.
        columns = [(title, [cell(*line) for line in measured]) for title, cell in _COLUMNS.items()]
        columns = [(title, cells) for title, cells in columns if any(cells)]
        titles, cells = zip(*columns, strict=True)
        rule = "|---" * 3 + "|---:" * (len(titles) - 3) + "|"
        rows = [f"| {' | '.join(row)} |" for row in zip(*cells, strict=True)]
        parts.append("\n".join([f"| {' | '.join(titles)} |", rule, *rows]))
    if error := error_of(lines):
        parts.append(str(error))
    if missing := [row for row, _ in lines if row.measured is None]:
        parts.append("\n".join(["Not measured:", *(f"- {row.combination}: {row.reason}" for row in missing)]))
    return "\n\n".join(parts)


def as_json(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Everything that is known, a dict of each row, with its prediction under `predicted` (None if there is none)."""
    return [{**to_dict(row), "predicted": predicted and to_dict(predicted)} for row, predicted in lines]


def as_csv(lines: Sequence[Line]) -> str:
    """The same, flat, for spreadsheets; sizes in bytes, times in seconds."""
    rows = [_flat(row, predicted) for row, predicted in lines]
    names = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _flat(row: Row, predicted: Prediction | None) -> dict[str, Any]:
    combination, measured = row.combination, row.measured
    flat: dict[str, Any] = {"strategy": combination.strategy, **dict(zip(AXES, combination.mesh, strict=False))}
    flat |= {name: getattr(combination, name) for name in ("batch_size", "accumulate", "remat")}
    flat["reason"] = row.reason
    if measured is not None:
        values = to_dict(measured)
        quartiles, parts, rates = (values.pop(name) for name in ("step_seconds", "memory_parts", "rates"))
        flat |= dict(zip(("step_seconds_lower", "step_seconds", "step_seconds_upper"), quartiles, strict=True))
        flat |= {**values, **{f"{name}_bytes": size for name, size in parts.items()}, **rates}
    if predicted is not None:
        flat |= {f"predicted_{name}": value for name, value in to_dict(predicted).items()}
    return flat


def _seconds(row: Row, _: Prediction | None) -> str:
    low, middle, high = row.measured.step_seconds
    return f"{middle:.3g} ({low:.3g}–{high:.3g})"


def _of_matmul(row: Row, _: Prediction | None) -> str:
    found = row.measured
    possible = found.rates.matmul_flops_per_second * found.devices
    return f"{found.model_flops / found.step_seconds[1] / possible:.0%}"


#: Cells of a row that was measured, by the titles of their columns; "" where there is nothing to say.
_COLUMNS: dict[str, Callable[[Row, Prediction | None], str]] = {
    "strategy": lambda row, _: row.combination.strategy,
    "mesh": lambda row, _: "×".join(map(str, row.combination.mesh)),
    "remat": lambda row, _: row.combination.remat or "none",
    "batch": lambda row, _: f"{row.combination.batch_size}",
    "accumulate": lambda row, _: f"{row.combination.accumulate}",
    "step, s (quartiles)": _seconds,
    "predicted, s": lambda _, p: f"{p.step_seconds_best:.3g}–{p.step_seconds_worst:.3g}" if p else "",
    "measured / predicted": lambda row, p: f"{row.measured.step_seconds[1] / p.step_seconds:.2f}" if p else "",
    "memory a device": lambda row, _: size_text(row.measured.memory_bytes),
    "held": lambda row, _: "" if row.measured.held_bytes is None else size_text(row.measured.held_bytes),
    "predicted memory": lambda _, p: size_text(p.memory_bytes) if p else "",
    "a second and device": lambda row, _: f"{row.measured.units_per_second:,.3g} {row.measured.unit}".replace("_", " "),
    "of matmul": _of_matmul,
    "MFU": lambda row, _: "" if row.measured.mfu is None else f"{row.measured.mfu:.1%}",
    "load": lambda row, _: "" if row.measured.load_average is None else f"{row.measured.load_average:.1f}",
}
