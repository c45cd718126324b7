"""Songs as they are asked for, checked before anything is loaded, and how they are sampled level by level."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int32

from jukebox_jax.checkpoint.models import TrainedCodec, TrainedPrior, prior_fingerprint
from jukebox_jax.errors import UserError
from jukebox_jax.models.vqvae import VQVAEConfig
from jukebox_jax.sampling.beginning import Beginning, Codes, Prompt, beginning
from jukebox_jax.sampling.blends import Blended
from jukebox_jax.sampling.cascade import Finished, joined, level_engine, make_parts, sample_parts
from jukebox_jax.sampling.devices import divided, sampling_mesh
from jukebox_jax.sampling.drawing import SamplingConfig
from jukebox_jax.sampling.memory import LevelPlan, check_fits, choose_batch_size, free_memory, plan_level
from jukebox_jax.sampling.requests import (
    Level,
    Request,
    check_request,
    check_songs,
    level_windows,
    song_labels,
    unknown_names,
)
from jukebox_jax.sampling.session import Journal
from jukebox_jax.sampling.weights import Precision, check_precision

#: New tokens per window as a fraction of the window: of the upsamplers, and of the top prior.
HOP_FRACTION, TOP_HOP_FRACTION = 0.5, 0.125
#: How long songs become unless something else says so.
SECONDS = 6.0


@dataclass(frozen=True, eq=False)
class Order:
    """Songs that can be sampled; see `make_order`. Sequences by level have level 0 first.

    Attributes:
      sample_lengths: of each song, in samples.
      sampling: of each song, at each level.
      n_segments: into how many parts the windows of each level are cut.
      batch_sizes: songs (or segments) at once at each level; None: as many as there are and memory allows.
      mesh: of the devices to sample on.
      remarks: what the user should know, and need not change.
    """

    requests: tuple[Request, ...]
    sample_lengths: tuple[int, ...]
    seeds: tuple[int, ...]
    sampling: tuple[tuple[SamplingConfig, ...], ...]
    beginning: Beginning
    hop_fractions: tuple[float, ...]
    n_segments: tuple[int, ...]
    precision: Precision
    overrun: bool
    batch_sizes: tuple[int, ...] | None
    mesh: Mesh
    remarks: tuple[str, ...]

    def settings(self, codec: TrainedCodec, priors: Sequence[TrainedPrior]) -> dict[str, Any]:
        """All that tokens depend on but the batch sizes, as JSON."""
        return {
            "codec": codec.hash,
            "priors": [prior_fingerprint(prior) for prior in priors],
            "songs": [self.song_settings(song) for song in range(len(self.requests))],
            "hop_fractions": list(self.hop_fractions),
            "n_segments": list(self.n_segments),
            "precision": self.precision,
            "mesh": divided(self.mesh),
            "original_overrun": self.overrun,
        }

    def song_settings(self, song: int) -> dict[str, Any]:
        """What was asked for of one song, as JSON."""
        return {
            "request": asdict(self.requests[song]),
            "seed": self.seeds[song],
            "sample_length": self.sample_lengths[song],
            "sampling": [asdict(one) for one in self.sampling[song]],
            **self.beginning.provenance(song),
        }


def make_order(
    codec: TrainedCodec,
    levels: Sequence[Level],
    *,
    artist: Blended | Sequence[Blended] = "unknown",
    genre: Blended | Sequence[Blended] = "unknown",
    lyrics: str | Sequence[str] = "",
    seconds: float | Sequence[float] | None = None,
    sample_length: int | Sequence[int] | None = None,
    total_seconds: float | Sequence[float] | None = None,
    offset_seconds: float | Sequence[float] = 0.0,
    prompt: Prompt | None = None,
    continue_from: Sequence[Codes] | None = None,
    upsample: Codes | None = None,
    prompt_seconds: float | None = None,
    seed: int | Sequence[int] = 0,
    temperature: float | Mapping[int, float] | Sequence[float | Mapping[int, float]] = 0.99,
    top_k: int | Mapping[int, int] | Sequence[int | Mapping[int, int]] = 0,
    top_p: float | Mapping[int, float] | Sequence[float | Mapping[int, float]] = 0.0,
    n_samples: int | None = None,
    hop_fractions: Sequence[float] | None = None,
    parallel: int | Sequence[int] = 1,
    precision: str = "float32",
    batch_size: int | Sequence[int] | None = None,
    mesh: Mapping[str, int] | Sequence[int] | None = None,
    strict_labels: bool = False,
    original_overrun: bool = False,
) -> Order:
    """Songs, top level first: from nothing, or from a `prompt`, tokens to `continue_from` or to `upsample`.

    What may be a list has an item for each song and is repeated until there are `n_samples`, by default as many as the
    longest list has items.

    Args:
      artist, genre: a name, or a blend (see `blends.Blended`).
      lyrics: of the imagined whole song, sung at an even pace; characters that a model cannot spell are left out.
      seconds: how long songs become, with what they start from, rounded down to whole top-level tokens (6 s by
        default, or all of `upsample`); or exactly `sample_length` samples.
      total_seconds: length of the imagined whole song, which the timing labels tell the model (up to the end of
        what is sampled, or the shortest that the model knows, by default).
      offset_seconds: where in the imagined whole song the sampled part starts.
      prompt: audio that songs start with, mono (t,) at the model's sample rate; or several. In the song it sounds as
        the codec renders it.
      continue_from: tokens that songs start with, level 0 first, such as `song.tokens`; or several for each level.
      upsample: tokens of the whole top level, of one song or several; only the levels below are sampled.
      prompt_seconds: how much to use of what songs start from, rounded down to whole top-level tokens (all of it).
      seed: the same seed, song number and batch size give the same song, whatever is sampled beside it.
      temperature, top_k, top_p: of all levels, or of each: `{2: 0.99, 1: 0.98, 0: 0.97}`.
      hop_fractions: new tokens per window as a fraction of the window, level 0 first (a half, and an eighth for the
        top level).
      parallel: into how many segments an upsampled level is cut, at most, that are sampled side by side; of all levels
        below the top, or level 0 first of each. 1 is the original's way; with more, songs are approximate: at the seams
        what follows has not heard what it follows.
      precision: of the weights (see `weights.Precision`).
      batch_size: songs or segments at once, on each device; of all levels, or level 0 first of each. By default as many
        as there are, as long as memory allows.
      mesh: how many devices of this process to sample on: `replica` of them each have songs of their own, which come
        out the same on any number of replicas; each of these may be `fsdp` × `tensor` devices that divide the weights
        of a model too large for one, `tensor` also by heads, which then must be a multiple of it. By default every
        device is a replica, as long as there are songs or segments for it.
      strict_labels: refuse names that the model does not know.
      original_overrun: continue songs that are shorter than a window of the top prior as the original does, which
        adds `seconds` at the top level, whatever is there; the levels below end where they should.

    Raises:
      UserError: settings that no song could be sampled with.
    """
    each = (
        artist,
        genre,
        lyrics,
        seconds,
        sample_length,
        total_seconds,
        offset_seconds,
        seed,
        temperature,
        top_k,
        top_p,
    )
    if n_samples is None:
        n_samples = max([1, *(len(values) for values in each if isinstance(values, list | tuple))])
    if n_samples < 1:
        raise UserError(f"n_samples is {n_samples}: ask for at least 1 song.")
    check_precision(precision)
    config, songs, priors = codec.config, n_samples, [level.prior for level in levels]
    batch_sizes = None if batch_size is None else _by_level("batch_size", batch_size, config.levels)
    if batch_sizes is not None and min(batch_sizes) < 1:
        raise UserError(f"batch_size is {batch_size}: sample at least 1 song at once.")
    n_segments = _by_level("parallel", parallel, config.levels)
    if min(n_segments) < 1:
        raise UserError(f"parallel is {parallel}: 1 segment is the least, and the original's way.")
    # What a top level is about is what came before: it has nothing above to hold segments together.
    n_segments = (*n_segments[:-1], 1)
    seeds = _repeat("seed", seed, songs)
    for one in seeds:
        check_seed(one)
    drawing = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    rows = [_repeat(name, value, songs) for name, value in drawing.items()]
    sampling = tuple(_sampling(dict(zip(drawing, row, strict=True)), config.levels) for row in zip(*rows, strict=True))
    artists, genres = _repeat("artist", artist, songs), _repeat("genre", genre, songs)
    texts = _repeat("lyrics", lyrics, songs)
    remarks = [
        text
        for pair in zip(artists, genres, strict=True)
        for text in unknown_names([level.prior for level in levels], *pair, refused=strict_labels)
    ]
    if remarks and strict_labels:
        raise UserError(" ".join(dict.fromkeys(remarks)))

    if hop_fractions is None:
        hop_fractions = (HOP_FRACTION,) * (config.levels - 1) + (TOP_HOP_FRACTION,)
    start = beginning(
        codec, songs, prompt=prompt, continue_from=continue_from, upsample=upsample, prompt_seconds=prompt_seconds
    )
    if sample_length is None:
        asked = _repeat("seconds", seconds, songs)
        lengths = [_sample_length(config, one, start, song) for song, one in enumerate(asked)]
    else:
        lengths = _repeat("sample_length", sample_length, songs)
    # Before any window is counted: who takes samples for seconds asks for a great many.
    offsets, totals = _repeat("offset_seconds", offset_seconds, songs), _repeat("total_seconds", total_seconds, songs)
    requests = []
    for song in range(songs):
        offset, total = song_place(config, priors[-1], lengths[song], offsets[song], totals[song])
        requests.append(Request(song, total, offset, artists[song], genres[song], texts[song]))
    return check_order(
        levels,
        config,
        Order(
            requests=tuple(requests),
            sample_lengths=tuple(int(length) for length in lengths),
            seeds=tuple(int(one) for one in seeds),
            sampling=sampling,
            beginning=start,
            hop_fractions=tuple(float(fraction) for fraction in hop_fractions),
            n_segments=n_segments,
            precision=precision,
            overrun=original_overrun,
            batch_sizes=batch_sizes,
            mesh=sampling_mesh(mesh, songs * max(n_segments)),
            remarks=tuple(remarks),
        ),
    )


def check_order(levels: Sequence[Level], config: VQVAEConfig, order: Order) -> Order:
    """An order that can be sampled, its beginning cut to its songs, with all there is to remark.

    Raises:
      UserError: it cannot be sampled.
    """
    for length in dict.fromkeys(order.sample_lengths):
        check_request(levels, length, order.hop_fractions)
    start = order.beginning.within(config, order.sample_lengths, order.overrun)
    sampled = range(config.levels - (start.mode == "upsample"))
    windows = {
        (index, song): level_windows(
            levels[index],
            length // config.hops[index],
            order.hop_fractions[index],
            len(start.tokens[index][song]),
            order.overrun,
        )
        for index in sampled
        for song, length in enumerate(order.sample_lengths)
    }
    if not any(windows.values()):
        raise UserError("What the songs start from is as long as was asked for: ask for more seconds.")

    for index in sampled:
        for song, request in enumerate(order.requests):
            labels = song_labels(levels[index].prior, request)
            check_songs(levels[index], [labels], windows[index, song])
    top, remarks = levels[-1].prior.config.lyrics, list(order.remarks)
    texts = [request.lyrics for request in order.requests]
    if any(texts) and top is None:
        remarks.append("The model takes no lyrics: those given are ignored.")
    for text in dict.fromkeys(texts):
        if text and top is not None and not len(top.text.tokens(text)):
            raise UserError(
                f'The lyrics "{text[:40]}" hold no character that the model can spell: write them in Latin.'
            )
    return replace(order, beginning=start, remarks=tuple(dict.fromkeys(remarks)))


# ---- Sampling ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LevelDone:
    """A level of all songs, complete."""

    level: int
    tokens: tuple[Int32[np.ndarray, " _"], ...]


def plan_order(levels: Sequence[Level], order: Order) -> list[LevelPlan]:
    """Memory and batch size, on each device, of each level to sample, level 0 first.

    Raises:
      UserError: a level does not fit into the devices' free memory (says what would), or the mesh does not divide it.
    """
    devices, plans = order.mesh.devices.ravel(), []
    found = [free_memory(device) for device in devices]
    # Several CPU devices are parts of one machine and share its memory.
    free = None if None in found else min(found) // (len(found) if devices[0].platform == "cpu" else 1)
    for index, level in enumerate(levels[: len(levels) - (order.beginning.mode == "upsample")]):
        config = level.prior.config
        if order.batch_sizes is None:
            wanted = math.ceil(len(order.requests) * order.n_segments[index] / order.mesh.shape["replica"])
            plans.append(choose_batch_size(config, order.precision, wanted, free, order.mesh))
        else:
            plans.append(plan_level(config, order.precision, order.batch_sizes[index], order.mesh))
            check_fits(plans[-1], config, order.precision, free, order.mesh)
    return plans


def sample_order(
    levels: Sequence[Level], order: Order, plans: Sequence[LevelPlan], journal: Journal | None, progress: bool
) -> Iterator[tuple[int, Finished] | LevelDone]:
    """Samples level after level, the top one first; one prior at a time is in memory.

    Yields every window as it is finished, or found in the journal, with its level; and every level when it is complete,
    those that were given too.
    """
    from tqdm import tqdm

    above: Sequence[Int32[np.ndarray, " _"]] | None = None
    for index in reversed(range(len(levels))):
        level, given = levels[index], order.beginning.tokens[index]
        if index >= len(plans):  # given whole
            above = given
            yield LevelDone(index, tuple(given))
            continue
        parts = make_parts(
            level,
            order.requests,
            [length // level.hop_samples for length in order.sample_lengths],
            seeds=order.seeds,
            sampling=[one[index] for one in order.sampling],
            hop_fraction=order.hop_fractions[index],
            given=given,
            upper=above,
            overrun=order.overrun,
            n_segments=order.n_segments[index],
        )
        work = sum(window.target - window.given for part in parts for window in part.windows)
        found = [] if journal is None else journal.restore(index, parts)
        with tqdm(total=work, desc=f"level {index}", unit="token", file=sys.stderr, disable=not progress) as bar:
            for finished in found:
                bar.update(finished.window.target - finished.window.given)
                yield index, finished
            bar.unpause()  # what was found says nothing about speed
            if any(part.windows for part in parts):
                engine = level_engine(level, plans[index].batch_size, order.precision, order.mesh)
                for event in sample_parts(engine, level, parts):
                    if isinstance(event, int):
                        bar.update(event)
                        continue
                    if journal is not None:
                        journal.write(index, event)
                    yield index, event
                del engine
        above = tuple(joined(parts, song) for song in range(len(order.requests)))
        yield LevelDone(index, above)


def resumed(order: Order, recorded: Mapping[str, Any] | None) -> Order:
    """The order with the batch sizes of the session that it goes on with, unless it has its own."""
    if recorded is None or order.batch_sizes is not None or "batch_sizes" not in recorded:
        return order
    sizes = recorded["batch_sizes"]
    return replace(order, batch_sizes=tuple(sizes + [1] * (len(order.hop_fractions) - len(sizes))))


# ---- What is asked for, piece by piece --------------------------------------------------------------------------


def check_seed(seed: Any) -> None:
    """Raises UserError unless a seed is a whole number of 32 bits."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}: choose a whole number from 0 to {2**32 - 1}.")


def _sample_length(config: VQVAEConfig, seconds: float | None, start: Beginning, song: int) -> int:
    if seconds is None and start.mode == "upsample":
        return len(start.tokens[-1][song]) * config.hops[-1]
    seconds = SECONDS if seconds is None else seconds
    if not math.isfinite(seconds * config.sample_rate):
        raise UserError(f"seconds is {seconds}: ask for a finite number of seconds.")
    sample_length = int(seconds * config.sample_rate) // config.hops[-1] * config.hops[-1]
    if sample_length <= 0:
        raise UserError(f"{seconds} s is less than one token of the top level: ask for more seconds.")
    return sample_length


def song_place(
    config: VQVAEConfig, top: TrainedPrior, sample_length: int, offset_seconds: float, total_seconds: float | None
) -> tuple[int, int]:
    """Where the sampled part starts in the imagined whole song, and how long that is, in samples.

    Raises:
      UserError: a place outside the song, or a length that the prior does not know.
    """
    rate, labels = config.sample_rate, top.config.labels
    if not (math.isfinite(offset_seconds * rate) and offset_seconds >= 0):
        raise UserError(f"offset_seconds is {offset_seconds}: give a finite number of seconds, 0 or more.")
    offset = int(offset_seconds * rate)
    end = offset + sample_length
    if total_seconds is not None:
        if not math.isfinite(total_seconds * rate):
            raise UserError(f"total_seconds is {total_seconds}: give a finite number of seconds, or leave it out.")
        total = int(total_seconds * rate)
        if total < end:
            raise UserError(
                f"total_seconds={total_seconds} is shorter than the {sample_length / rate:.2f} s to sample"
                f"{f', from {offset / rate:.2f} s on' if offset else ''}: "
                "it is the length of the whole imagined song."
            )
    else:
        total = max(end, int(np.ceil(labels.min_duration_seconds * rate)) if labels else 0)
    if labels and not labels.min_duration_seconds * rate <= total < labels.max_duration_seconds * rate:
        # Who asks for thousands of times too much has most likely counted samples.
        samples = total_seconds is None and sample_length / rate > 1000 * labels.max_duration_seconds
        raise UserError(
            f"A whole song of {total / rate:.2f} s is outside what the model knows, "
            f"{labels.min_duration_seconds:g} to {labels.max_duration_seconds:g} s: "
            f"{'seconds are not samples (give sample_length for those)' if samples else 'change total_seconds'}."
        )
    return offset, total


def _sampling(values: Mapping[str, Any], levels: int) -> tuple[SamplingConfig, ...]:
    for name, value in values.items():
        if isinstance(value, Mapping) and set(value) != set(range(levels)):
            raise UserError(
                f"{name} {dict(value)} must name each of the levels 0 to {levels - 1}: add what is missing."
            )
    return tuple(
        SamplingConfig(**{n: value[level] if isinstance(value, Mapping) else value for n, value in values.items()})
        for level in range(levels)
    )


def _by_level(what: str, value: int | Sequence[int], levels: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * levels
    if len(value) != levels:
        raise UserError(f"{what} are {len(value)} numbers: give one, or {levels}, level 0 first.")
    return tuple(value)


def _repeat(what: str, values: Any, count: int) -> list[Any]:
    values = list(values) if isinstance(values, list | tuple) else [values]
    if not values:
        raise UserError(f"{what} is an empty list: give at least one, or leave it out.")
    return [values[index % len(values)] for index in range(count)]
