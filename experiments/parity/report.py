"""Comparing what was computed with what was recorded, and the lines that say how it went."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.parity.fixture import Fixture


@dataclass(frozen=True)
class Tolerance:
    """How far a number may lie from the recorded one: absolutely, relative to it, and relative to the largest of its
    array. All zero: it must be equal."""

    absolute: float = 0.0
    relative: float = 0.0
    of_largest: float = 0.0

    def allowed(self, recorded: np.ndarray) -> np.ndarray:
        size = np.abs(np.where(np.isfinite(recorded), recorded, 0))
        return self.absolute + self.relative * size + self.of_largest * np.max(size, initial=0)

    def __str__(self) -> str:
        terms = [(self.absolute, ""), (self.relative, "*|x|"), (self.of_largest, "*max|x|")]
        return "+".join(f"{value:.1e}{unit}".replace(".0e", "e") for value, unit in terms if value) or "exact"


# The table of the fixtures' description.
EXACT = Tolerance()
ACTIVATIONS = Tolerance(absolute=1e-4, relative=1e-4)
DEEP_ACTIVATIONS = Tolerance(absolute=2e-4, relative=1e-4)
BITS = Tolerance(absolute=1e-5)
GRADIENT = Tolerance(of_largest=1e-3)
AUDIO = Tolerance(absolute=1e-4)
SPECTRAL = Tolerance(relative=1e-4)
CODEBOOK = Tolerance(absolute=1e-4)
STEP = Tolerance(absolute=1e-6)
OTHER = Tolerance(absolute=1e-5, relative=1e-4)
JSON_NUMBER = Tolerance(relative=1e-6)

#: Two best choices closer than this are a near-tie that rounding decides.
NEAR_TIE = 1e-3


def _as_it_is(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Check:
    """One quantity: what the package computed for it, and how near the recorded one must be.

    `name` is a recorded quantity; "extra/…" is one of the sidecar's extra facts. Where not the quantity itself is
    determined but something about it, `value` is that, `view` computes it from what was recorded, and `aspect` is
    its name.
    """

    name: str
    value: Any
    tolerance: Tolerance = EXACT
    view: Callable[[Any], Any] = _as_it_is
    aspect: str = ""


@dataclass(frozen=True)
class Line:
    """The verdict on one quantity. `error` is the largest absolute difference, or why there is none."""

    name: str
    error: float | str
    tolerance: str
    passed: bool

    def __str__(self) -> str:
        error = self.error if isinstance(self.error, str) else f"{self.error:.2e}"
        return f"{self.name}  {error}  {self.tolerance}  {'ok' if self.passed else 'FAIL'}"


def failure(name: str, reason: str) -> Line:
    """A line for what could not be compared."""
    return Line(name, " ".join(reason.split()) or "failed", "-", False)


def compare(fixture: Fixture, checks: Iterable[Check], read: Collection[str] = ()) -> list[Line]:
    """Judges every check, and everything recorded that is neither checked nor was `read` as an input."""
    lines, checked = [], set()
    for check in checks:
        checked.add(check.name)
        lines.append(_judge(fixture, check))
    for name, (shape, dtype) in fixture.declared.items():
        if name not in fixture.arrays:
            if name not in checked:
                lines.append(failure(name, "missing"))
        elif (fixture.arrays[name].shape, str(fixture.arrays[name].dtype)) != (shape, dtype):
            found = fixture.arrays[name]
            lines.append(failure(name, f"is {found.dtype}{found.shape}, declared {dtype}{shape}"))
    for name in fixture.arrays:
        if name not in read and not _covered(name, checked):
            lines.append(failure(name, "not checked"))
        elif fixture.declared and name not in fixture.declared:
            lines.append(failure(name, "not declared in the sidecar"))
    return [Line(f"{fixture.name}/{line.name}", line.error, line.tolerance, line.passed) for line in lines]


def _covered(name: str, checked: Collection[str]) -> bool:
    """Whether the quantity, or a part of the tree that holds it, was checked."""
    parts = name.split("/")
    return any("/".join(parts[:count]) in checked for count in range(1, len(parts) + 1))


def _judge(fixture: Fixture, check: Check) -> Line:
    name = f"{check.name}#{check.aspect}" if check.aspect else check.name
    try:
        recorded = _recorded(fixture, check.name)
    except (KeyError, TypeError):
        return failure(name, "missing")
    try:
        error, passed = _difference(check.view(recorded), check.value, check.tolerance)
    except (IndexError, TypeError, ValueError) as problem:
        return failure(name, f"not comparable: {problem}")
    return Line(name, error, str(check.tolerance), passed)


def _recorded(fixture: Fixture, name: str) -> Any:
    if name in fixture.arrays:
        return fixture.arrays[name]
    node: Any = fixture.tree
    for part in name.split("/"):
        node = node[int(part)] if isinstance(node, list) and part.isdigit() and int(part) < len(node) else node[part]
    return node


def _difference(recorded: Any, computed: Any, tolerance: Tolerance) -> tuple[float | str, bool]:
    if isinstance(recorded, (np.ndarray, np.generic)):
        computed = np.asarray(computed)
        if (recorded.shape, recorded.dtype) != (computed.shape, computed.dtype):
            return f"is {recorded.dtype}{recorded.shape}, computed {computed.dtype}{computed.shape}", False
        return _numbers(recorded, computed, tolerance)
    return _trees(recorded, computed, tolerance)


def _numbers(recorded: np.ndarray, computed: np.ndarray, tolerance: Tolerance) -> tuple[float | str, bool]:
    if recorded.dtype.kind not in "biuf":
        return f"{recorded.dtype} is no number", False
    a, b = recorded.astype(np.float64), computed.astype(np.float64)
    if np.isnan(a).any() or np.isnan(b).any():
        return "nan", False
    with np.errstate(invalid="ignore"):
        error = np.where(a == b, 0.0, np.abs(a - b))
    return float(np.max(error, initial=0.0)), bool(np.all(error <= tolerance.allowed(a)))


def _trees(recorded: Any, computed: Any, tolerance: Tolerance) -> tuple[float | str, bool]:
    """JSON values. Numbers are numbers whether they are written with a point or not; all else is equal or not."""
    if isinstance(recorded, dict) and isinstance(computed, dict):
        if recorded.keys() != computed.keys():
            return f"differs in {sorted(recorded.keys() ^ computed.keys())[0]}", False
        recorded, computed = list(recorded.values()), [computed[key] for key in recorded]
    if isinstance(recorded, list) and isinstance(computed, list):
        if len(recorded) != len(computed):
            return f"has {len(recorded)} items, computed {len(computed)}", False
        if recorded and all(map(_is_number, [*recorded, *computed])):
            return _numbers(np.asarray(recorded), np.asarray(computed), tolerance)
        results = [_trees(a, b, tolerance) for a, b in zip(recorded, computed, strict=True)]
        reasons = [error for error, _ in results if isinstance(error, str)]
        error = reasons[0] if reasons else max((error for error, _ in results), default=0.0)
        return error, all(passed for _, passed in results)
    if _is_number(recorded) and _is_number(computed):
        return _numbers(np.asarray(recorded), np.asarray(computed), tolerance)
    if type(recorded) is type(computed) and recorded == computed:
        return 0.0, True
    return f"computed {computed!r:.200}", False


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
