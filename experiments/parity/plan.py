"""Set f: where windows start, what each is given and asked for, how batches and prefills are split."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from experiments.parity.fixture import Reader
from experiments.parity.report import Check
from jukebox_jax.sampling.windows import plan, window_starts

_RAW_TO_TOKENS = (8, 32, 128)
_INPUTS = ("level", "n_ctx", "total", "hop", "have", "n_samples", "max_batch_size", "cond_downsample")
_KWARGS_BEFORE = {"temp": 0.99, "fp16": False, "chunk_size": 32}


def checks(recorded: Reader) -> Iterator[Check]:
    tree = recorded.fixture.tree
    for index in range(len(tree["starts"])):
        total, n_ctx, hop = (recorded[f"starts/{index}/{key}"] for key in ("total_length", "n_ctx", "hop_length"))
        yield Check(f"starts/{index}/starts", window_starts(total, n_ctx, hop))
    for index in range(len(tree["plans"])):
        for key, value in _plan({key: recorded[f"plans/{index}/{key}"] for key in _INPUTS}).items():
            yield Check(f"plans/{index}/{key}", value)
    for index in range(len(tree["split_batch"])):
        sizes = _sizes(recorded[f"split_batch/{index}/n"], recorded[f"split_batch/{index}/split"])
        yield Check(f"split_batch/{index}/sizes", sizes)
        yield Check(f"split_batch/{index}/none_passes", len(sizes))
    for index in range(len(tree["split_chunks"])):
        length, chunk = recorded[f"split_chunks/{index}/length"], recorded[f"split_chunks/{index}/chunk"]
        yield Check(f"split_chunks/{index}/sizes", _sizes(length, chunk))


def _sizes(length: int, most: int) -> list[int]:
    """How the original splits songs into batches, and given tokens into chunks; ours depend on neither."""
    return [min(most, length - start) for start in range(0, length, most)]


def _plan(case: dict[str, Any]) -> dict[str, Any]:
    """The calls as the original makes them: one for each window and sub-batch, windows with nothing new left out."""
    n_ctx, ratio = case["n_ctx"], case["cond_downsample"]
    # The original asks a partial window for `total` more tokens, whatever it already has.
    windows = plan(case["total"], n_ctx, case["hop"], case["have"], overrun=True)
    partial = case["total"] < n_ctx
    calls = [
        {
            "start": window.start,
            "y_offset_added": window.start * _RAW_TO_TOKENS[case["level"]],
            "n_samples": songs,
            "prime_tokens": window.given,
            "sample_tokens": window.target if partial else None,
            "new_tokens": window.target - window.given,
            "z_cond_range": None if ratio is None else [window.start // ratio, (window.start + n_ctx) // ratio],
        }
        for window in windows
        for songs in _sizes(case["n_samples"], case["max_batch_size"])
    ]
    last = {"sample_tokens": windows[-1].target} if partial and windows else {}
    return {
        "calls": calls,
        "final_tokens": case["have"] + sum(window.target - window.given for window in windows),
        "sampling_kwargs_after": _KWARGS_BEFORE | last | {"max_batch_size": case["max_batch_size"]},
    }
