"""Activations of a prior as features of music: audio in, hidden states of one layer out, pooled over time.

clips ──cut──▶ windows of the prior ──codec──▶ codes ──prior, `layer` layers──▶ states ──summed into frames──▶ embedding

A layer in the middle of a large top prior tells more of music than the last, which knows the next token above all
(Castellon, Donahue and Liang, 2021, arXiv:2107.05677: layer 36 of 72, averaged over one window of about 24 s).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import partial
from itertools import islice
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64, Int, Int32

from jukebox_jax import __version__
from jukebox_jax.audio.decode import HIGHEST_RATE, LOWEST_RATE, AudioStream, resampled
from jukebox_jax.checkpoint.models import TrainedCodec, TrainedPrior
from jukebox_jax.errors import UserError
from jukebox_jax.models.prior import Prior, PriorConfig
from jukebox_jax.models.vqvae import Codec, VQVAEConfig, encode
from jukebox_jax.sampling.cascade import Level, Request, SongLabels, song_labels, window_conditioning

#: What becomes of the time axis: one vector for the clip, one for each window, or every token's own.
PoolingName = Literal["mean", "window", "none"]
#: One of these, or a frame's length in seconds, over which tokens are averaged.
Pooling = PoolingName | float
#: Of a clip that is longer than a window: the first window only, or one after the other until the clip ends.
Windows = Literal["first", "all"]


@dataclass(frozen=True)
class EmbeddingSettings:
    """What is computed of each clip.

    Attributes:
      level: whose prior: the highest is the top one.
      layer: after how many of its layers: 0 are the embeddings, all of them what stands before the output projection.
      batch_size: windows computed at once. It is compiled in, and a batch that is not full is filled up with silence:
        at one size a clip has the same bits whatever its neighbours.
    """

    level: int
    layer: int
    pooling: Pooling = "mean"
    windows: Windows = "first"
    batch_size: int = 1


@dataclass(frozen=True)
class Clip:
    """Mono audio at the model's rate, nominally in [-1, 1], and what the prior is told of it."""

    audio: Float[np.ndarray, " t"]
    artist: str = "unknown"
    genre: str = "unknown"
    lyrics: str = ""


@dataclass(frozen=True)
class Embedding:
    """The activations of one clip.

    Attributes:
      values: (d,) with the pooling "mean", otherwise (t, d).
      times_seconds: where in the clip each of the t begins. The state of a token has heard the tokens before it, so the
        clip up to this time.
      provenance: the generator, the hash of the codec, and the settings.
    """

    values: Float32[np.ndarray, "*t d"]
    times_seconds: Float64[np.ndarray, "*t"]
    provenance: dict[str, Any] = field(default_factory=dict)


def chosen_level(codec: VQVAEConfig, level: int | None) -> int:
    """The level, the top one by default.

    Raises:
      UserError: the model has no such level.
    """
    level = codec.levels - 1 if level is None else level
    if not 0 <= level < codec.levels:
        raise UserError(f"level={level} is none of the model: give one from 0 to {codec.levels - 1}.")
    return level


def embedding_settings(
    codec: VQVAEConfig,
    prior: PriorConfig,
    *,
    layer: int | None = None,
    pooling: str | float = "mean",
    windows: str = "first",
    batch_size: int = 1,
) -> EmbeddingSettings:
    """The settings, with the middle layer by default.

    Raises:
      UserError: a layer that the prior does not have, or a pooling, windows or batch size that cannot be.
    """
    layer = prior.depth // 2 if layer is None else layer
    if not 0 <= layer <= prior.depth:
        raise UserError(f"layer={layer} is none of the prior of level {prior.level}: give one from 0 to {prior.depth}.")
    if isinstance(pooling, str):
        if pooling not in get_args(PoolingName):
            names = ", ".join(get_args(PoolingName))
            raise UserError(f"pooling={pooling!r} is unknown: choose one of {names}, or a number of seconds.")
    else:
        pooling, token = float(pooling), codec.hops[prior.level] / codec.sample_rate
        if not (math.isfinite(pooling) and pooling >= token):
            raise UserError(
                f"pooling={pooling:g} s is less than a token of level {prior.level} or not finite: give at least "
                f'{math.ceil(1e6 * token) / 1e6:g}, or "none" for every token.'
            )
    if windows not in get_args(Windows):
        raise UserError(f"windows={windows!r} is unknown: choose one of {', '.join(get_args(Windows))}.")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}: compute at least 1 window at once.")
    return EmbeddingSettings(prior.level, layer, pooling, windows, batch_size)


def mono_clips(clips: Sequence[Any], sample_rate: int | None, model_rate: int) -> list[Float[np.ndarray, " _"]]:
    """Clips of one sample rate (the model's by default) at the model's rate.

    Raises:
      UserError: a rate that no audio has, or a clip that is not mono floating-point samples (t,), at least one, all of
        them finite.
    """
    rate = model_rate if sample_rate is None else sample_rate
    if rate != model_rate and not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise UserError(f"sample_rate={rate} is no rate of audio: give one from {LOWEST_RATE} to {HIGHEST_RATE} Hz.")
    for index, clip in enumerate(clips):
        if not (isinstance(clip, np.ndarray) and clip.ndim == 1 and np.issubdtype(clip.dtype, np.floating)):
            raise UserError(f"Clip {index} is not mono audio: give floating-point samples of shape (t,) in [-1, 1].")
        if not clip.size:
            raise UserError(f"Clip {index} holds no samples: leave it out.")
        if not np.isfinite(clip).all():
            raise UserError(f"Clip {index} holds samples that are not finite numbers: give it without them.")
    if rate == model_rate:
        return list(clips)
    streams = (AudioStream(rate, 1, len(clip), iter([clip.astype(np.float32)[:, None]])) for clip in clips)
    heard = [np.concatenate(list(resampled(stream, model_rate)))[:, 0] for stream in streams]
    for index, clip in enumerate(heard):
        if not clip.size:
            raise UserError(f"Clip {index} holds too few samples to resample to {model_rate} Hz: leave it out.")
    return heard


def embed_clips(
    codec: TrainedCodec, prior: TrainedPrior, settings: EmbeddingSettings, clips: Iterable[Clip]
) -> Iterator[Embedding]:
    """The embedding of each clip, in order. Clips are taken as they are needed, and the next while the device works.

    What is shorter than a window, and the end of a longer clip, is followed by silence up to a whole window; the tokens
    of that silence are in no average and in no result.

    Raises:
      UserError: labels that the prior cannot be told.
    """
    weights = jax.device_put((codec.codec, prior.read_params()))
    windows = (window for clip in clips for window in _cut(codec.config, prior, settings, clip))
    provenance = {"generator": f"jukebox_jax {__version__}", "codec": codec.hash, **asdict(settings)}
    running: tuple[list[_Window], Array] | None = None
    parts: list[tuple[_Window, np.ndarray]] = []

    def finished(batch: list[_Window], rows: Array) -> Iterator[Embedding]:
        for window, row in zip(batch, np.asarray(rows), strict=False):
            parts.append((window, row))
            if window.last:
                yield replace(_joined(codec.config, prior.config, settings, parts), provenance=provenance)
                parts.clear()

    while batch := list(islice(windows, settings.batch_size)):
        rows = _dispatch(codec.config, prior, settings, weights, batch)
        if running is not None:
            yield from finished(*running)
        running = batch, rows
    if running is not None:
        yield from finished(*running)


# ---- Windows ----------------------------------------------------------------------------------------------------


class _Window(NamedTuple):
    """Window number `index` of a clip, the `last` or not: its samples, how many tokens they fill, what it is told."""

    index: int
    last: bool
    samples: Float[np.ndarray, " _"]
    tokens: int
    labels: SongLabels


def _cut(codec: VQVAEConfig, prior: TrainedPrior, settings: EmbeddingSettings, clip: Clip) -> Iterator[_Window]:
    hop, length = codec.hops[settings.level], len(clip.audio)
    window = prior.config.n_ctx * hop
    total, latest = _timing(codec, prior.config, length, window)
    labels = song_labels(prior, Request(0, total, 0, clip.artist, clip.genre, clip.lyrics))
    count = -(-length // window) if settings.windows == "all" else 1
    for index in range(count):
        start = index * window
        samples = clip.audio[start : start + window]
        told = SongLabels(0, total, min(start, latest), labels.artist, labels.genres, labels.lyrics)
        yield _Window(index, index == count - 1, samples, -(-len(samples) // hop), told)


def _timing(codec: VQVAEConfig, prior: PriorConfig, length: int, window: int) -> tuple[int, int]:
    """How long the clip is said to be, and where its windows start at the latest: within what the model knows."""
    if prior.labels is None:
        return length, length
    low = prior.labels.min_duration_seconds * codec.sample_rate
    high = prior.labels.max_duration_seconds * codec.sample_rate
    # The model's range ends before `high`, as float32 has it.
    longest = int(np.nextafter(np.float32(high), np.float32(0)))
    total = min(max(length, math.ceil(low)), longest)
    # A hop before the end, lest float32 take the place of the last samples for the end itself.
    return total, max(0, min(int(high) - window, total - codec.hops[prior.level]))


# ---- The computation --------------------------------------------------------------------------------------------


def _dispatch(
    codec: VQVAEConfig,
    prior: TrainedPrior,
    settings: EmbeddingSettings,
    weights: tuple[Codec, dict],
    batch: list[_Window],
) -> Float[Array, "b _ d"]:
    """Starts the computation of a batch: sums of states in frames (b, f, d) or, with the pooling "none", states."""
    config, rows = prior.config, settings.batch_size
    hop = codec.hops[settings.level]
    audio = np.zeros((rows, config.n_ctx * hop, 1), np.float32)
    frames = np.full((rows, config.n_ctx), -1, np.int32)  # -1: in no frame
    for row, window in enumerate(batch):
        audio[row, : len(window.samples), 0] = window.samples
        ours = _frames(codec, config, settings, window)
        frames[row, : window.tokens] = ours - ours[0]
    told = [window.labels for window in batch]
    told += told[-1:] * (rows - len(told))
    level = Level(prior, hop, 1, codec.sample_rate)
    # Every row has its own place in its clip.
    each = [window_conditioning(level, [row], 0) for row in told]
    labels = {name: np.concatenate([row[name] for row in each]) for name in each[0]}
    most = _frames_in_window(codec, config, settings)
    return _states(codec, config, settings.layer, most, *weights, audio, labels, frames)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _states(
    codec_config: VQVAEConfig,
    config: PriorConfig,
    layer: int,
    most: int | None,
    codec: Codec,
    params: dict,
    audio: Float[Array, "b s 1"],
    labels: dict[str, Int[Array, b * n]],
    frames: Int[Array, "b t"],
) -> Float[Array, "b _ d"]:
    """Windows of audio to the states after `layer` layers (b, t, d), or to their sums in `most` frames (b, f, d)."""
    upper = config.conditioner is not None
    codes = encode(codec_config, codec, audio, (config.level, config.level + 1) if upper else (config.level,))
    batch = labels | {"tokens": codes[0]} | ({"upper": codes[1]} if upper else {})
    states = Prior(config).apply({"params": params}, batch, layer, method="hidden")
    if most is None:
        return states
    members = jax.nn.one_hot(frames, most, axis=1)  # -1 is a member of none
    return jnp.einsum("bft,btd->bfd", members, states, precision="highest")


# ---- Frames -----------------------------------------------------------------------------------------------------


def _frames_per_token(codec: VQVAEConfig, settings: EmbeddingSettings) -> Fraction:
    """As a fraction, so that a token on the edge of two frames is always in the second."""
    frame = Fraction(settings.pooling).limit_denominator(1_000_000)
    return min(Fraction(codec.hops[settings.level]) / (codec.sample_rate * frame), Fraction(1))


def _frames(
    codec: VQVAEConfig, prior: PriorConfig, settings: EmbeddingSettings, window: _Window
) -> Int32[np.ndarray, " t"]:
    """In which frame of its clip each token of the window is."""
    if settings.pooling in ("mean", "none"):
        return np.zeros(window.tokens, np.int32)
    if settings.pooling == "window":
        return np.full(window.tokens, window.index, np.int32)
    share = _frames_per_token(codec, settings)
    tokens = window.index * prior.n_ctx + np.arange(window.tokens, dtype=np.int64)
    return (tokens * share.numerator // share.denominator).astype(np.int32)


def _frames_in_window(codec: VQVAEConfig, prior: PriorConfig, settings: EmbeddingSettings) -> int | None:
    """How many frames a window can have a part in; None where states are not summed."""
    if settings.pooling == "none":
        return None
    if isinstance(settings.pooling, str):
        return 1
    return math.ceil((prior.n_ctx - 1) * _frames_per_token(codec, settings)) + 1


def _joined(
    codec: VQVAEConfig, prior: PriorConfig, settings: EmbeddingSettings, parts: list[tuple[_Window, np.ndarray]]
) -> Embedding:
    """The embedding of a clip, of what was computed of its windows."""
    token = codec.hops[settings.level] / codec.sample_rate
    if settings.pooling == "none":
        values = np.concatenate([states[: window.tokens] for window, states in parts])
        return Embedding(values.astype(np.float32), np.arange(len(values)) * token)
    frames = [_frames(codec, prior, settings, window) for window, _ in parts]
    sums = np.zeros((frames[-1][-1] + 1, parts[0][1].shape[-1]), np.float64)
    for ours, (_, part) in zip(frames, parts, strict=True):
        sums[ours[0] : ours[-1] + 1] += part[: ours[-1] - ours[0] + 1]
    counts = np.bincount(np.concatenate(frames))
    values = (sums / counts[:, None]).astype(np.float32)
    if settings.pooling == "mean":
        return Embedding(values[0], np.zeros((), np.float64))
    seconds = prior.n_ctx * token if settings.pooling == "window" else settings.pooling
    return Embedding(values, np.arange(len(values)) * seconds)
