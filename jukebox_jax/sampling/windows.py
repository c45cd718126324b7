"""Where the windows of a level start (spec: sampling, section 3)."""

from __future__ import annotations

from jukebox_jax.errors import UserError


def window_starts(total: int, n_ctx: int, hop: int) -> list[int]:
    """First tokens of the windows that cover `total` tokens, `hop` apart; the last is shifted left to be full.

    Fewer tokens than a window give one partial window.

    >>> window_starts(10335, 8192, 1024)
    [0, 1024, 2048, 2143]
    """
    if total < n_ctx:
        return [0]
    starts = []
    for start in range(0, total - n_ctx + hop, hop):
        if start + n_ctx >= total:
            return [*starts, total - n_ctx]
        starts.append(start)
    return starts


def hop_tokens(n_ctx: int, hop_fraction: float, ratio: int, total: int, level: int) -> int:
    """New tokens per window.

    Raises:
      UserError: a fraction outside (0, 1], or windows of an upsampler that would not start on a whole token of the
        level above (`ratio` tokens here for one there).
    """
    if not 0 < hop_fraction <= 1:
        raise UserError(f"hop fraction {hop_fraction} of level {level} is not in (0, 1]: 0.5 is a good value.")
    hop = int(hop_fraction * n_ctx)
    if hop == 0 or hop % ratio or (total > n_ctx and (total - n_ctx) % ratio):
        valid = max(ratio, round(hop / ratio) * ratio) / n_ctx
        raise UserError(
            f"hop fraction {hop_fraction} of level {level} makes windows start between tokens of the level above: "
            f"use {valid!r}."
        )
    return hop
