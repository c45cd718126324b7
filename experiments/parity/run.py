"""One fixture from files to lines. Which set it belongs to is told by what it contains, not by its file's name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from experiments.parity import (
    attention,
    checkpoints,
    filter_logits,
    labels,
    manifest,
    pipeline,
    plan,
    prior,
    train_utils,
    transformer,
    vqvae,
)
from experiments.parity.fixture import Fixture, Reader, UnreadableError, load
from experiments.parity.report import Check, Line, compare, failure


@dataclass(frozen=True)
class Computed:
    """All checks of a fixture, the quantities that served as their inputs, and what stopped the computation, if so."""

    checks: tuple[Check, ...]
    read: frozenset[str]
    problem: str | None = None


def run(stem: Path) -> list[Line]:
    """The lines of the fixture `stem`.json with `stem`.npz."""
    try:
        fixture = load(stem)
    except UnreadableError as error:
        return [failure(stem.name, str(error))]
    checks_of = set_of(fixture)
    if checks_of is None:
        return [failure(fixture.name, "belongs to no known set")]
    return verdict(fixture, compute(fixture, checks_of))


def set_of(fixture: Fixture) -> Callable[[Reader], Iterator[Check]] | None:
    """The checks of the set that the fixture belongs to."""
    tree, config = fixture.tree, fixture.config
    if "plans" in tree:
        return plan.checks
    if "windows" in tree:
        return labels.checks
    if "models" in tree:
        return manifest.checks
    if "files" in tree:
        return checkpoints.checks
    if "priors" in config:
        return pipeline.checks
    if {"hps", "bandwidth"} <= config.keys():
        return vqvae.checks
    if {"hps", "vqvae"} <= config.keys():
        return prior.checks
    if "n_state" in config:
        return attention.checks
    if "attn_order" in config:
        return transformer.checks
    if "cases" in fixture.extra:
        return filter_logits.checks
    if "loss_scaler" in fixture.extra:
        return train_utils.checks
    return None


def compute(fixture: Fixture, checks_of: Callable[[Reader], Iterator[Check]]) -> Computed:
    """Runs the package on a fixture; comparing is `verdict`'s part, so that it can be repeated."""
    reader, checks, problem = Reader(fixture), [], None
    try:
        for check in checks_of(reader):
            checks.append(check)
    # A damaged fixture can break anything anywhere, and is promised a line instead of a traceback.
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    return Computed(tuple(checks), frozenset(reader.read), problem)


def verdict(fixture: Fixture, computed: Computed) -> list[Line]:
    """The lines of a fixture whose checks are computed."""
    lines = compare(fixture, computed.checks, computed.read)
    if computed.problem is not None:
        lines.append(failure(fixture.name, computed.problem))
    return lines
