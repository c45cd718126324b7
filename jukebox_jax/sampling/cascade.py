"""A song from nothing: top level, then each upsampler over the level above (spec: sampling, sections 2 and 3)."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Key

from jukebox_jax.checkpoint.models import TrainedPrior
from jukebox_jax.errors import UserError
from jukebox_jax.labels.timing import timing_bins
from jukebox_jax.sampling.decode import SamplingConfig, sample_window, song_keys
from jukebox_jax.sampling.windows import hop_tokens, window_starts


@dataclass(frozen=True)
class Request:
    """What one song should be. `total_samples` is the length of the imagined whole song, in which the sampled part
    starts at `offset_samples`; `index` distinguishes songs of one seed."""

    index: int
    total_samples: int
    offset_samples: int = 0
    artist: str = "unknown"
    genre: str = "unknown"


@dataclass(frozen=True)
class Level:
    """One level of the cascade: its prior, samples per token, tokens per token of the level above (1 at the top)."""

    prior: TrainedPrior
    hop_samples: int
    ratio: int
    sample_rate: int


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


def sample_level(
    level: Level,
    requests: Sequence[Request],
    total: int,
    *,
    seed: int,
    sampling: SamplingConfig,
    hop_fraction: float,
    batch_size: int,
    upper: Int[np.ndarray, "n u"] | None = None,
    given: Int[np.ndarray, "n g"] | None = None,
    progress: bool = False,
) -> Int[np.ndarray, "n t"]:
    """Samples `total` tokens of one level for every song, after those `given`.

    Songs are sampled in batches of exactly `batch_size` (the last is padded), because at one compiled size a song's
    tokens do not depend on its neighbours.
    """
    from tqdm import tqdm

    config = level.prior.config
    songs = len(requests)
    starts = window_starts(
        total, config.n_ctx, hop_tokens(config.n_ctx, hop_fraction, level.ratio, total, config.level)
    )
    tokens = np.zeros((songs, total), np.int32)
    known = 0 if given is None else min(given.shape[1], total)
    if known:
        tokens[:, :known] = given[:, :known]

    described = f"level {config.level}"
    with tqdm(
        total=songs * (total - known), desc=described, unit="token", file=sys.stderr, disable=not progress
    ) as bar:
        for first_song in range(0, songs, batch_size):
            slots = np.minimum(first_song + np.arange(batch_size), songs - 1)
            batch_requests = [requests[slot] for slot in slots]
            rows, filled = tokens[slots], known
            for start in starts:
                end = min(start + config.n_ctx, total)
                if end <= filled:
                    continue
                window = np.zeros((batch_size, config.n_ctx), np.int32)
                window[:, : filled - start] = rows[:, start:filled]
                batch = {"tokens": window, **_conditioning(level, batch_requests, start)}
                if upper is not None:
                    above = slice(start // level.ratio, (start + config.n_ctx) // level.ratio)
                    batch["upper"] = upper[slots, above]
                keys = _keys(seed, batch_requests, config.level)
                sampled = sample_window(
                    config,
                    sampling,
                    level.prior.params,
                    {name: jnp.asarray(value) for name, value in batch.items()},
                    keys,
                    given=filled - start,
                    target=end - start,
                    first=start,
                )
                rows[:, filled:end] = np.asarray(sampled)[:, filled - start : end - start]
                real = min(batch_size, songs - first_song)
                bar.update(real * (end - filled))
                filled = end
            tokens[first_song : first_song + batch_size] = rows[: songs - first_song]
    return tokens


def _keys(seed: int, requests: Sequence[Request], level: int) -> Key[jax.Array, " b"]:
    return song_keys(seed, jnp.asarray([request.index for request in requests]), level)


def _conditioning(level: Level, requests: Sequence[Request], start: int) -> dict[str, Int[np.ndarray, " b *t"]]:
    """Label ids, and for a top prior the timing bins of the window that starts at token `start`."""
    config = level.prior.config
    if config.labels is None:
        return {}
    genres = np.full((len(requests), config.labels.max_genres), -1, np.int32)
    genres[:, 0] = [label_id(level.prior, "genre", request.genre) for request in requests]
    artists = [label_id(level.prior, "artist", request.artist) for request in requests]
    arrays = {"artist": np.asarray(artists, np.int32), "genres": genres}
    if not config.has_timing:
        return arrays
    bins = [
        timing_bins(
            request.total_samples,
            request.offset_samples + start * level.hop_samples,
            config.n_ctx * level.hop_samples,
            config.n_ctx,
            config.labels.time_bins,
            config.labels.min_duration_seconds,
            config.labels.max_duration_seconds,
            level.sample_rate,
        )
        for request in requests
    ]
    names = ("total", "absolute", "relative")
    return arrays | {f"{name}_bins": np.stack([getattr(b, name) for b in bins]) for name in names}


def label_id(prior: TrainedPrior, kind: str, name: str) -> int:
    """The id of an artist or genre; a name the model does not know is "unknown"."""
    return getattr(prior.labels, f"{kind}s").lookup(name).id


def warn_of_unknown(priors: Sequence[TrainedPrior], kind: str, name: str) -> None:
    """Warns once if a prior of the cascade does not know the artist or genre (level 0 first); meant for `Model.sample`,
    whose caller the warning points to."""
    for prior in reversed(priors):
        match = getattr(prior.labels, f"{kind}s").lookup(name) if prior.labels else None
        if match and not match.known:
            closest = f" The closest it knows: {', '.join(match.closest)}." if match.closest else ""
            text = f'The model does not know the {kind} "{name}" and takes it as unknown.{closest}'
            warnings.warn(text, stacklevel=3)
            return
