"""The figures as tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jukebox_jax.labels.timed import TimedWord


def table(figures: dict[str, Any], found: Sequence[TimedWord], spoken: Sequence[TimedWord]) -> str:
    """Errors of word starts, all heads with their scores, and the words of one clip."""
    guesses = {
        "attention, the head that the search chose": figures["found"],
        "spread evenly by characters over the clip": figures["linear"],
        "the median of training clips with as many words": figures["fitted"],
    }
    rows = [
        f"{figures['words']} words of {figures['clips']} held-out clips: how far from where it begins a word is found.",
        "",
        "| word starts by | median error | 9 of 10 within | within 0.1 s |",
        "|---|---:|---:|---:|",
        *(f"| {name} | {_errors(errors)} |" for name, errors in guesses.items()),
        "",
        f"The median error is {figures['times_better_than_linear']:.1f} times smaller than that of the even spread.",
        "",
        "| layer | head | score of the search | median error | 9 of 10 within | within 0.1 s |",
        "|---:|---:|---:|---:|---:|---:|",
        *(f"| {h['layer']} | {h['head']} | {h['score']:.3f} | {_errors(h)} |" for h in figures["heads"]),
        "",
        "The first held-out clip (alignment.png shows it):",
        "",
        "| word | spoken, s | found, s |",
        "|---|---:|---:|",
        *(f"| {is_.text} | {is_.start:.2f} | {word.start:.2f} |" for is_, word in zip(spoken, found, strict=True)),
    ]
    return "\n".join(rows)


def _errors(errors: dict[str, float]) -> str:
    return f"{errors['median_seconds']:.3f} s | {errors['p90_seconds']:.2f} s | {errors['within_100_ms']:.0%}"
