"""Which tokens are sampled together: the windows of a level, and how work is split (spec: sampling, 3 and 4)."""

from __future__ import annotations

from dataclasses import dataclass

from jukebox_jax.errors import UserError


@dataclass(frozen=True)
class Window:
    """A window that has something to sample.

    Attributes:
      start: its first token, counted in the level.
      given: how many of its tokens are known before it is sampled.
      target: how many are known after.
    """

    start: int
    given: int
    target: int


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


def plan(total: int, n_ctx: int, hop: int, have: int = 0, overrun: bool = False) -> list[Window]:
    """The windows that take a level from its first `have` tokens to `total`; those with nothing new are left out.

    Args:
      overrun: where `total` is less than a window, add `total` tokens to those there are, instead of up to `total`: so
        does the original, which then makes more of a prompt than was asked for.

    >>> plan(100, 32, 16, have=88)
    [Window(start=64, given=24, target=32), Window(start=68, given=28, target=32)]
    >>> plan(20, 32, 16, have=25, overrun=True)
    [Window(start=13, given=12, target=32)]
    """
    if total < n_ctx:
        new = total if overrun else total - have
        start = max(0, have + new - n_ctx)
        return [Window(start, have - start, have + new - start)] if new > 0 else []
    windows, filled = [], have
    for start in window_starts(total, n_ctx, hop):
        if start + n_ctx > filled:
            windows.append(Window(start, filled - start, n_ctx))
            filled = start + n_ctx
    return windows


def segments(windows: list[Window], most: int) -> list[tuple[list[Window], int]]:
    """Cuts a sequence of windows into at most `most` parts of about the same length, to be sampled side by side.

    Each part comes with the first token that is its own. A part that is not the first has nothing to go on from: its
    first window is sampled whole, under the tokens of the level above alone, and what it has before its first own
    token only leads up to that. So the tokens behind a cut follow others than those that will stand before them.

    >>> [begin for _, begin in segments(plan(100, 32, 16), 3)]
    [0, 48, 80]
    >>> segments(plan(64, 32, 16), 2)[1]
    ([Window(start=16, given=0, target=32), Window(start=32, given=16, target=32)], 32)
    """
    count = max(1, min(most, len(windows)))
    parts = []
    for number in range(count):
        part = windows[number * len(windows) // count : (number + 1) * len(windows) // count]
        begin = part[0].start + part[0].given if part else 0
        if number:
            part = [Window(part[0].start, 0, part[0].target), *part[1:]]
        parts.append((part, begin if number else 0))
    return parts


def hop_tokens(n_ctx: int, hop_fraction: float, ratio: int, total: int, level: int) -> int:
    """New tokens per window.

    Raises:
      UserError: a fraction outside (0, 1], or windows of an upsampler that would not start on a whole token of the
        level above (`ratio` tokens here for one there).
    """
    if not 0 < hop_fraction <= 1:
        raise UserError(f"hop fraction {hop_fraction} of level {level} is not in (0, 1]: 0.5 is a good value.")
    hop = int(hop_fraction * n_ctx)
    if hop == 0 or any(start % ratio for start in window_starts(total, n_ctx, hop)):
        valid = max(ratio, round(hop / ratio) * ratio) / n_ctx
        raise UserError(
            f"hop fraction {hop_fraction} of level {level} makes windows start between tokens of the level above: "
            f"use {valid!r}."
        )
    return hop
