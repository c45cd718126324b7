"""The levels of songs: every song's windows one after another, all songs side by side (spec: sampling, section 3)."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, Int32, Key

from jukebox_jax.models.prior import batch_spec
from jukebox_jax.sampling.drawing import SamplingConfig, song_keys
from jukebox_jax.sampling.engine import Engine, Entry, make_engine
from jukebox_jax.sampling.requests import Level, Request, SongLabels, level_windows, song_labels, window_conditioning
from jukebox_jax.sampling.weights import Precision, decoding_config, pack
from jukebox_jax.sampling.windows import Window, segments

#: Tokens drawn before the host looks at what there is: few enough to be interrupted soon, too many to cost time.
TURNS = 256


@dataclass(eq=False)
class Part:
    """Windows of one level of a song that follow each other: all of them, or a segment that is sampled beside others.

    Attributes:
      song: its place among the songs.
      number: which of the song's segments; 0 if there is but one.
      windows: those left to sample; a segment that is not the first begins with a window of which nothing is given.
      tokens: the level so far, whole length, filled in window by window.
      begin: the first token that is this part's own: what a segment samples before it only leads up to it.
      upper: the song's tokens of the level above.
    """

    song: int
    number: int
    labels: SongLabels
    key: Key[Array, ""]
    sampling: SamplingConfig
    windows: deque[Window]
    tokens: Int32[np.ndarray, " t"]
    begin: int
    upper: Int[np.ndarray, " u"] | None = None


@dataclass(frozen=True, eq=False)
class Finished:
    """A window that has been sampled, or been read from a journal."""

    part: Part
    window: Window

    @property
    def new(self) -> slice:
        """Its new tokens, counted in the level."""
        return slice(self.window.start + self.window.given, self.window.start + self.window.target)


def make_parts(
    level: Level,
    songs: Sequence[Request] | Sequence[SongLabels],
    totals: Sequence[int],
    *,
    seeds: Sequence[int],
    sampling: Sequence[SamplingConfig],
    hop_fraction: float,
    given: Sequence[Int[np.ndarray, " _"]],
    upper: Sequence[Int[np.ndarray, " _"]] | None = None,
    overrun: bool = False,
    n_segments: int = 1,
) -> list[Part]:
    """The parts of a level for songs that become `totals` tokens long after those `given`; no song need be like others.

    Args:
      upper: tokens of the level above, for an upsampler.
      overrun: sample as many tokens as the original would after a prompt (see `windows.plan`).
      n_segments: into how many parts the windows of each song are cut, at most; with more than one the result is an
        approximation (see `windows.segments`).
    """
    parts = []
    for index, (song, total, known) in enumerate(zip(songs, totals, given, strict=True)):
        labels = song_labels(level.prior, song)
        (key,) = song_keys(seeds[index], jnp.asarray([labels.index]), level.prior.config.level)
        windows = level_windows(level, total, hop_fraction, len(known), overrun)
        length = max([len(known), *(window.start + window.target for window in windows)])
        for number, (segment, begin) in enumerate(segments(windows, n_segments)):
            tokens = np.zeros(length, np.int32)
            tokens[: len(known)] = known
            above = None if upper is None else upper[index]
            parts.append(Part(index, number, labels, key, sampling[index], deque(segment), tokens, begin, above))
    return parts


def sample_parts(engine: Engine, level: Level, parts: Sequence[Part]) -> Iterator[Finished | int]:
    """Samples what is left of the parts; yields every window as it is finished, and in between how many tokens have
    been drawn since the last time.

    Parts take the slots in their order; a slot that has become free goes to its part's next window, or the next part.
    """
    waiting, running = deque(part for part in parts if part.windows), {}
    slots = engine.empty()
    while waiting or running:
        entries = {}
        for slot in engine.places:
            if slot not in running and waiting:
                running[slot] = waiting.popleft()
                part = running[slot]
                entries[slot] = entry_of(level, part, part.windows[0], part.tokens)
        if entries:
            slots = engine.admit(slots, entries)
        before = np.asarray(slots.position)
        slots = engine.advance(slots, TURNS)
        position = np.asarray(slots.position)
        yield int(np.sum(position - before))
        done = [slot for slot in running if position[slot] == np.asarray(slots.target)[slot]]
        if not done:
            continue
        codes = engine.codes(slots)
        for slot in done:
            part = running.pop(slot)
            finished = Finished(part, part.windows.popleft())
            part.tokens[finished.new] = codes[slot, finished.window.given : finished.window.target]
            if part.windows:
                waiting.appendleft(part)
            yield finished


def entry_of(level: Level, part: Part, window: Window, tokens: Int32[np.ndarray, " t"]) -> Entry:
    """A window of a part's song, for which `tokens` of the level are known as far as it says."""
    n_ctx = level.prior.config.n_ctx
    known = window.start + window.given
    batch = {name: rows[0] for name, rows in window_conditioning(level, [part.labels], window.start, known).items()}
    codes = np.zeros(n_ctx, np.int32)
    codes[: window.given] = tokens[window.start : known]
    batch["tokens"] = codes
    if "upper" in batch_spec(level.prior.config):
        above = slice(window.start // level.ratio, (window.start + n_ctx) // level.ratio)
        batch["upper"] = part.upper[above]
    return Entry(batch, window.given, window.target, window.start, part.key, part.sampling)


def joined(parts: Sequence[Part], song: int) -> Int32[np.ndarray, " t"]:
    """A song's tokens from its finished parts."""
    ours = [part for part in parts if part.song == song]
    tokens = ours[0].tokens.copy()
    for part, following in zip(ours, [*ours[1:], None], strict=True):
        own = slice(part.begin, None if following is None else following.begin)
        tokens[own] = part.tokens[own]
    return tokens


def level_engine(level: Level, batch_size: int, precision: Precision = "float32", mesh: Mesh | None = None) -> Engine:
    """An engine with the level's weights, which are read for it, on a mesh (see `devices.sampling_mesh`)."""
    config = level.prior.config
    weights = pack(level.prior.open_params(), config, precision, batch_size, mesh)
    return make_engine(decoding_config(config, precision), weights, batch_size, mesh)


def sample_level(
    level: Level,
    songs: Sequence[Request] | Sequence[SongLabels],
    total: int,
    *,
    seed: int,
    sampling: SamplingConfig,
    hop_fraction: float,
    batch_size: int,
    upper: Sequence[Int[np.ndarray, " _"]] | Int[np.ndarray, "n u"] | None = None,
    given: Sequence[Int[np.ndarray, " _"]] | Int[np.ndarray, "n g"] | None = None,
    overrun: bool = False,
    precision: Precision = "float32",
    n_segments: int = 1,
    progress: bool = False,
) -> Int[np.ndarray, "n t"]:
    """One level of songs of the same length and settings: all tokens, those `given` (as many of each song) first."""
    from tqdm import tqdm

    known = [np.zeros(0, np.int32)] * len(songs) if given is None else list(given)
    settings = {"seeds": [seed] * len(songs), "sampling": [sampling] * len(songs), "hop_fraction": hop_fraction}
    extra = {"overrun": overrun, "n_segments": n_segments, "upper": None if upper is None else list(upper)}
    parts = make_parts(level, songs, [total] * len(songs), given=known, **settings, **extra)
    engine = level_engine(level, batch_size, precision)
    described = f"level {level.prior.config.level}"
    with tqdm(total=_work(parts), desc=described, unit="token", file=sys.stderr, disable=not progress) as bar:
        for event in sample_parts(engine, level, parts):
            if isinstance(event, int):
                bar.update(event)
    return np.stack([joined(parts, song) for song in range(len(songs))])


def _work(parts: Sequence[Part]) -> int:
    return sum(window.target - window.given for part in parts for window in part.windows)
