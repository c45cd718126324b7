"""A song from nothing, or from its beginning: top level, then each upsampler over the level above (spec: sampling,
sections 2 and 3)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Int32

from jukebox_jax.checkpoint.models import TrainedPrior
from jukebox_jax.errors import UserError
from jukebox_jax.labels.ids import LabelTable, Match, normalise
from jukebox_jax.labels.lyrics import LyricWindow, lyric_window
from jukebox_jax.labels.timing import timing_bins
from jukebox_jax.sampling.decode import SamplingConfig, sample_window, song_keys
from jukebox_jax.sampling.windows import Window, batch_sizes, hop_tokens, plan


@dataclass(frozen=True)
class Request:
    """What one song should be. `total_samples` is the length of the imagined whole song, in which the sampled part
    starts at `offset_samples` and over which `lyrics` are sung; `index` distinguishes songs of one seed."""

    index: int
    total_samples: int
    offset_samples: int = 0
    artist: str = "unknown"
    genre: str = "unknown"
    lyrics: str = ""


@dataclass(frozen=True, eq=False)
class SongLabels:
    """A request in the numbers of one prior.

    Attributes:
      artist: its id, of no account if the prior takes no labels.
      genres: as many ids as the prior takes, -1 where there is none.
      lyrics: the tokens of the whole song's lyrics.
    """

    index: int
    total_samples: int
    offset_samples: int
    artist: int
    genres: tuple[int, ...]
    lyrics: Int32[np.ndarray, " l"]


@dataclass(frozen=True)
class Level:
    """One level of the cascade: its prior, samples per token, tokens per token of the level above (1 at the top)."""

    prior: TrainedPrior
    hop_samples: int
    ratio: int
    sample_rate: int


# ---- What is asked for ------------------------------------------------------------------------------------------


def check_request(levels: Sequence[Level], sample_length: int, hop_fractions: Sequence[float]) -> None:
    """Refuses what could not be sampled, before any work (level 0 first in both sequences).

    Raises:
      UserError: a length that no hop divides, too short a song for the upsamplers' windows, or a bad hop fraction.
    """
    top = levels[-1].hop_samples
    if sample_length < top or sample_length % top:
        valid = max(1, round(sample_length / top)) * top
        raise UserError(
            f"A sample_length of {sample_length} samples is not a multiple of the top hop {top}: use {valid}."
        )
    if len(hop_fractions) != len(levels):
        raise UserError(f"hop_fractions are {len(hop_fractions)} numbers: give {len(levels)}, one for each level.")
    for level, fraction in zip(levels, hop_fractions, strict=True):
        config = level.prior.config
        total = sample_length // level.hop_samples
        if config.conditioner is not None and total < config.n_ctx:
            least = config.n_ctx * level.hop_samples
            raise UserError(
                f"{sample_length / level.sample_rate:.2f} s is less than a window of level {config.level}: "
                f"ask for at least {least / level.sample_rate:.2f} s ({least} samples)."
            )
        hop_tokens(config.n_ctx, fraction, level.ratio, total, config.level)


def song_labels(prior: TrainedPrior, song: Request | SongLabels) -> SongLabels:
    """A request in the numbers of a prior; what is in numbers already stays as it is.

    Raises:
      UserError: a genre of more words than the prior takes, or lyrics that cannot be spelled on this machine.
    """
    if isinstance(song, SongLabels):
        return song
    config, artist, genres = prior.config, 0, ()
    if config.labels is not None:
        artist = prior.labels.artist_id(song.artist)
        genres = tuple(prior.labels.genre_ids(song.genre, config.labels.max_genres))
    lyrics = np.zeros(0, np.int32) if config.lyrics is None else config.lyrics.text.tokens(song.lyrics)
    return SongLabels(song.index, song.total_samples, song.offset_samples, artist, genres, lyrics)


def check_songs(level: Level, songs: Sequence[SongLabels], windows: Sequence[Window]) -> None:
    """Raises UserError if the prior cannot be told what it has to be in one of these windows (of `level_windows`)."""
    for window in [*windows[:1], *windows[-1:]]:
        window_conditioning(level, songs, window.start)


def unknown_names(priors: Sequence[TrainedPrior], artist: str, genre: str) -> list[str]:
    """A sentence for each name (of a genre of several words, each word) that some prior of the cascade takes as
    unknown, with the closest names that it knows. Priors come level 0 first."""
    levels = [prior.config.level for prior in priors if prior.labels]
    missed: dict[tuple[str, str], list[int]] = {}
    closest: dict[tuple[str, str], tuple[str, ...]] = {}
    for prior in reversed(priors):
        if not prior.labels:
            continue
        matches = [(("artist", artist), prior.labels.artist(artist))]
        matches += [(("genre", word), match) for word, match in _genre_words(prior.labels, genre)]
        for name, match in matches:
            if not match.known:
                missed.setdefault(name, []).append(prior.config.level)
                closest.setdefault(name, match.closest)
    sentences = []
    for (kind, name), where in missed.items():
        who = "The model" if len(where) == len(levels) else f"The prior of level {' and '.join(map(str, where))}"
        near = f" The closest it knows: {', '.join(closest[kind, name])}." if closest[kind, name] else ""
        sentences.append(f'{who} does not know the {kind} "{name}" and takes it as unknown.{near}')
    return sentences


def _genre_words(labels: LabelTable, genre: str) -> list[tuple[str, Match]]:
    matches = labels.genres_of(genre)
    words = normalise(genre, "v2").split("_") if len(matches) > 1 else [genre]
    return list(zip(words, matches, strict=True))


# ---- Sampling ---------------------------------------------------------------------------------------------------


def level_windows(level: Level, total: int, hop_fraction: float, have: int = 0, overrun: bool = False) -> list[Window]:
    """The windows that take a level from its first `have` tokens to `total` (see `windows.plan`); raises as
    `hop_tokens`."""
    config = level.prior.config
    hop = hop_tokens(config.n_ctx, hop_fraction, level.ratio, total, config.level)
    return plan(total, config.n_ctx, hop, have, overrun)


def sample_level(
    level: Level,
    songs: Sequence[Request] | Sequence[SongLabels],
    total: int,
    *,
    seed: int,
    sampling: SamplingConfig,
    hop_fraction: float,
    batch_size: int,
    upper: Int[np.ndarray, "n u"] | None = None,
    given: Int[np.ndarray, "n g"] | None = None,
    overrun: bool = False,
    progress: bool = False,
) -> Int[np.ndarray, "n t"]:
    """Samples one level for every song up to `total` tokens, after those `given`.

    Songs are sampled in batches of exactly `batch_size` (the last is padded), because at one compiled size a song's
    tokens do not depend on its neighbours.

    Args:
      upper: tokens of the level above, for an upsampler.
      overrun: sample as many tokens as the original would after a prompt (see `windows.plan`).

    Returns:
      All tokens: `total`, or more if more were given, or sampled by `overrun`.
    """
    from tqdm import tqdm

    config = level.prior.config
    labels = [song_labels(level.prior, song) for song in songs]
    have = 0 if given is None else given.shape[1]
    windows = level_windows(level, total, hop_fraction, have, overrun)
    tokens = np.zeros((len(labels), max([have, *(window.start + window.target for window in windows)])), np.int32)
    if given is not None:
        tokens[:, :have] = given

    new = tokens.shape[1] - have
    described = f"level {config.level}"
    with tqdm(total=len(labels) * new, desc=described, unit="token", file=sys.stderr, disable=not progress) as bar:
        first = 0
        for real in batch_sizes(len(labels), batch_size):
            slots = np.minimum(first + np.arange(batch_size), len(labels) - 1)
            batch_labels, rows = [labels[slot] for slot in slots], tokens[slots]
            keys = song_keys(seed, jnp.asarray([song.index for song in batch_labels]), config.level)
            for window in windows:
                known, end = window.start + window.given, window.start + window.target
                codes = np.zeros((batch_size, config.n_ctx), np.int32)
                codes[:, : window.given] = rows[:, window.start : known]
                batch = {"tokens": codes, **window_conditioning(level, batch_labels, window.start)}
                if upper is not None:
                    above = slice(window.start // level.ratio, (window.start + config.n_ctx) // level.ratio)
                    batch["upper"] = upper[slots, above]
                sampled = sample_window(
                    config,
                    sampling,
                    level.prior.params,
                    {name: jnp.asarray(value) for name, value in batch.items()},
                    keys,
                    given=window.given,
                    target=window.target,
                    first=window.start,
                )
                rows[:, known:end] = np.asarray(sampled)[:, window.given : window.target]
                bar.update(real * (end - known))
            tokens[first : first + real] = rows[:real]
            first += real
    return tokens


def window_conditioning(level: Level, songs: Sequence[SongLabels], start: int) -> dict[str, Int[np.ndarray, " b *t"]]:
    """What the prior is told, besides tokens, of the window that starts at token `start`: label ids, and as it takes
    them, timing bins and lyrics. The timing is that of the whole window even where less is sampled.

    Raises:
      UserError: a window outside the song, or outside what the prior was built for.
    """
    config, arrays = level.prior.config, {}
    if config.labels is not None:
        arrays["artist"] = np.asarray([song.artist for song in songs], np.int32)
        arrays["genres"] = np.asarray([song.genres for song in songs], np.int32)
    if config.has_timing:
        bins = [
            timing_bins(
                song.total_samples,
                song.offset_samples + start * level.hop_samples,
                config.n_ctx * level.hop_samples,
                config.n_ctx,
                config.labels.time_bins,
                config.labels.min_duration_seconds,
                config.labels.max_duration_seconds,
                level.sample_rate,
            )
            for song in songs
        ]
        names = ("total", "absolute", "relative")
        arrays |= {f"{name}_bins": np.stack([getattr(b, name) for b in bins]) for name in names}
    if config.lyrics is not None:
        arrays["lyrics"] = np.stack([window_lyrics(level, song, start).tokens for song in songs])
    return arrays


def window_lyrics(level: Level, song: SongLabels, start: int) -> LyricWindow:
    """The lyrics around the window that starts at token `start`, placed in float32 as the original does here."""
    config = level.prior.config
    offset = song.offset_samples + start * level.hop_samples
    duration = config.n_ctx * level.hop_samples
    return lyric_window(song.lyrics, config.lyrics.tokens, song.total_samples, offset, duration, precision="float32")
