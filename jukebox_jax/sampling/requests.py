"""What a song should be, and what a prior is told of it in each window (spec: sampling, sections 1 and 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Shaped

from jukebox_jax.checkpoint.models import TrainedPrior
from jukebox_jax.errors import UserError
from jukebox_jax.labels.ids import LabelTable, Match, normalise
from jukebox_jax.labels.lyrics import LyricWindow, lyric_window
from jukebox_jax.labels.timing import timing_bins
from jukebox_jax.sampling.blends import MOST_PAIRS, Blended, parse_blend
from jukebox_jax.sampling.windows import Window, hop_tokens, plan


@dataclass(frozen=True)
class Request:
    """What one song should be. `total_samples` is the length of the imagined whole song, in which the sampled part
    starts at `offset_samples` and over which `lyrics` are sung; `index` distinguishes songs of one seed. Artist and
    genre may be blends, whose moments are seconds of the sampled part."""

    index: int
    total_samples: int
    offset_samples: int = 0
    artist: Blended = "unknown"
    genre: Blended = "unknown"
    lyrics: str = ""


@dataclass(frozen=True)
class Pair:
    """A part of a blend: label ids and their weight."""

    artist: int
    genres: tuple[int, ...]
    weight: float


@dataclass(frozen=True, eq=False)
class SongLabels:
    """A request in the numbers of one prior.

    Attributes:
      artist: its id, of no account if the prior takes no labels.
      genres: as many ids as the prior takes, -1 where there is none.
      lyrics: the tokens of the whole song's lyrics.
      blend: where artist and genre are not one each: at a time in seconds, pairs of them with weights.
    """

    index: int
    total_samples: int
    offset_samples: int
    artist: int
    genres: tuple[int, ...]
    lyrics: Int32[np.ndarray, " l"]
    blend: Callable[[float], list[Pair]] | None = None


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
    config, pairs = prior.config, [Pair(0, (), 1.0)]
    artists, genres = parse_blend("artist", song.artist), parse_blend("genre", song.genre)

    def blend(seconds: float) -> list[Pair]:
        return [
            Pair(
                prior.labels.artist_id(artist),
                tuple(prior.labels.genre_ids(genre, config.labels.max_genres)),
                artist_weight * genre_weight,
            )
            for artist, artist_weight in artists.at(seconds)
            for genre, genre_weight in genres.at(seconds)
        ]

    if config.labels is not None:
        parts = len(artists.names) * len(genres.names)
        if parts > MOST_PAIRS:
            raise UserError(
                f"{len(artists.names)} artists and {len(genres.names)} genres make {parts} pairs to blend, more than "
                f"{MOST_PAIRS}: leave some out."
            )
        for genre in genres.names:  # one of too many words is seen now, not where it begins
            prior.labels.genre_ids(genre, config.labels.max_genres)
        pairs = blend(0.0)
    lyrics = np.zeros(0, np.int32) if config.lyrics is None else config.lyrics.text.tokens(song.lyrics)
    blended = config.labels is not None and len(artists.names) * len(genres.names) > 1
    first = pairs[0]
    return SongLabels(
        song.index,
        song.total_samples,
        song.offset_samples,
        first.artist,
        first.genres,
        lyrics,
        blend if blended else None,
    )


def check_songs(level: Level, songs: Sequence[SongLabels], windows: Sequence[Window]) -> None:
    """Raises UserError if the prior cannot be told what it has to be in one of these windows (of `level_windows`)."""
    for window in [*windows[:1], *windows[-1:]]:
        window_conditioning(level, songs, window.start)


def unknown_names(priors: Sequence[TrainedPrior], artist: Blended, genre: Blended, refused: bool = False) -> list[str]:
    """A sentence for each name (of a genre of several words, each word) that some prior of the cascade takes as
    unknown, if it is not `refused`, with the closest names that it knows. Priors come level 0 first."""
    artists, genres = parse_blend("artist", artist).names, parse_blend("genre", genre).names
    levels = [prior.config.level for prior in priors if prior.labels]
    missed: dict[tuple[str, str], list[int]] = {}
    closest: dict[tuple[str, str], tuple[str, ...]] = {}
    for prior in reversed(priors):
        if not prior.labels:
            continue
        matches = [(("artist", artist), prior.labels.artist(artist)) for artist in artists]
        matches += [(("genre", word), match) for genre in genres for word, match in _genre_words(prior.labels, genre)]
        for name, match in matches:
            if not match.known:
                missed.setdefault(name, []).append(prior.config.level)
                closest.setdefault(name, match.closest)
    sentences, taken = [], "" if refused else " and takes it as unknown"
    for (kind, name), where in missed.items():
        who = "The model" if len(where) == len(levels) else f"The prior of level {' and '.join(map(str, where))}"
        near = f" The closest it knows: {', '.join(closest[kind, name])}." if closest[kind, name] else ""
        sentences.append(f'{who} does not know the {kind} "{name}"{taken}.{near}')
    return sentences


def _genre_words(labels: LabelTable, genre: str) -> list[tuple[str, Match]]:
    matches = labels.genres_of(genre)
    words = normalise(genre, "v2").split("_") if len(matches) > 1 else [genre]
    return list(zip(words, matches, strict=True))


# ---- Window by window --------------------------------------------------------------------------------------------


def level_windows(level: Level, total: int, hop_fraction: float, have: int = 0, overrun: bool = False) -> list[Window]:
    """The windows that take a level from its first `have` tokens to `total` (see `windows.plan`); raises as
    `hop_tokens`."""
    config = level.prior.config
    hop = hop_tokens(config.n_ctx, hop_fraction, level.ratio, total, config.level)
    return plan(total, config.n_ctx, hop, have, overrun)


def window_conditioning(
    level: Level, songs: Sequence[SongLabels], start: int, new: int | None = None
) -> dict[str, Shaped[np.ndarray, " b *t"]]:
    """What the prior is told, besides tokens, of the window that starts at token `start`: label ids, and as it takes
    them, timing bins and lyrics. The timing is that of the whole window even where less is sampled.

    Blends are those of token `new`, by default the window's first; `artist` and `genres` then have an axis of pairs,
    and `weights` stand beside them.

    Raises:
      UserError: a window outside the song, or outside what the prior was built for.
    """
    config, arrays = level.prior.config, {}
    if config.labels is not None and any(song.blend is not None for song in songs):
        seconds = (start if new is None else new) * level.hop_samples / level.sample_rate
        alone = [[Pair(song.artist, song.genres, 1.0)] for song in songs]
        pairs = [one if song.blend is None else song.blend(seconds) for song, one in zip(songs, alone, strict=True)]
        most = max(map(len, pairs))
        pairs = [row + [dataclasses.replace(row[0], weight=0.0)] * (most - len(row)) for row in pairs]
        arrays["artist"] = np.asarray([[pair.artist for pair in row] for row in pairs], np.int32)
        arrays["genres"] = np.asarray([[pair.genres for pair in row] for row in pairs], np.int32)
        arrays["weights"] = np.asarray([[pair.weight for pair in row] for row in pairs], np.float32)
    elif config.labels is not None:
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
