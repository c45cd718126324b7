"""What a notebook uses: load a model, sample songs, save them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jukebox_jax import __version__
from jukebox_jax.audio.files import write_audio
from jukebox_jax.checkpoint.models import CODEC_FOLDER, TrainedCodec, TrainedPrior, level_folder, load_codec, load_prior
from jukebox_jax.errors import UserError
from jukebox_jax.files import atomic_file
from jukebox_jax.models.vqvae import Codec, VQVAEConfig, decode
from jukebox_jax.sampling.cascade import Level, Request, check_request, sample_level, warn_of_unknown
from jukebox_jax.sampling.decode import SamplingConfig

#: New tokens per window as a fraction of the window, level 0 first.
HOP_FRACTIONS = (0.5, 0.5, 0.125)
#: One size whatever the number of songs: at one compiled size a song's tokens do not depend on its neighbours.
BATCH_SIZE = 4


@dataclass(frozen=True)
class Song:
    """A sampled song.

    Attributes:
      tokens: level 0 first, each int32 (t / hop,).
      levels: audio decoded from each level alone, float32 (t,), level 0 first.
      provenance: all that is needed to sample it again with the same model.
    """

    tokens: tuple[Int[np.ndarray, " _"], ...]
    levels: tuple[Float[np.ndarray, " _"], ...]
    sample_rate: int
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def audio(self) -> Float[np.ndarray, " t"]:
        """The finished sound: level 0."""
        return self.levels[0]

    def save(self, path: os.PathLike | str, level: int = 0) -> None:
        """Writes the sound of one level, in the format of the suffix, and `PATH.json` with its provenance beside it."""
        path = Path(path)
        write_audio(path, self.levels[level], self.sample_rate)
        with atomic_file(path.with_name(path.name + ".json")) as temporary:
            temporary.write_text(json.dumps(self.provenance | {"level": level}, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Model:
    """A whole cascade: the codec and one prior per level, level 0 first."""

    codec: TrainedCodec
    priors: tuple[TrainedPrior, ...]

    @property
    def artists(self) -> tuple[str, ...]:
        """The artists that the top prior knows."""
        labels = self.priors[-1].labels
        return labels.artists.names if labels else ()

    @property
    def genres(self) -> tuple[str, ...]:
        """The genres that the top prior knows."""
        labels = self.priors[-1].labels
        return labels.genres.names if labels else ()

    def sample(
        self,
        *,
        artist: str | Sequence[str] = "unknown",
        genre: str | Sequence[str] = "unknown",
        seconds: float = 6.0,
        sample_length: int | None = None,
        total_seconds: float | None = None,
        seed: int = 0,
        temperature: float = 0.99,
        top_k: int = 0,
        top_p: float = 0.0,
        n_samples: int = 1,
        hop_fractions: Sequence[float] = HOP_FRACTIONS,
        batch_size: int = BATCH_SIZE,
        progress: bool = True,
    ) -> list[Song]:
        """Samples songs, top level first.

        Args:
          artist, genre: one name for all songs, or a list that is repeated until there are `n_samples`.
          seconds: how much to make, rounded down to whole top-level tokens; or exactly `sample_length` samples.
          total_seconds: length of the imagined whole song, which the timing labels tell the model (the sampled length,
            or the shortest the model knows, by default).
          seed: the same seed, song number and `batch_size` give the same song, whatever is sampled beside it.
          hop_fractions: new tokens per window as a fraction of the window, level 0 first.
          batch_size: songs per compiled batch, of which the last is filled up; larger is faster for many songs.

        Raises:
          UserError: settings that no song could be sampled with; nothing has been sampled then.

        Warns:
          UserWarning: once for each name that the model does not know and takes as unknown.
        """
        if n_samples < 1:
            raise UserError(f"n_samples is {n_samples}: ask for at least 1 song.")
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: sample at least 1 song at once.")
        if not 0 <= seed < 2**32:
            raise UserError(f"seed is {seed}: choose a whole number from 0 to {2**32 - 1}.")
        sampling = SamplingConfig(temperature, top_k, top_p)
        levels = self.levels
        rate, top = self.codec.config.sample_rate, self.codec.config.hops[-1]
        if sample_length is None:
            if not math.isfinite(seconds * rate):
                raise UserError(f"seconds is {seconds}: ask for a finite number of seconds.")
            sample_length = int(seconds * rate) // top * top
            if sample_length <= 0:
                raise UserError(f"{seconds} s is less than one token of the top level: ask for more seconds.")
        check_request(levels, sample_length, hop_fractions)
        total = self._total_samples(sample_length, total_seconds)
        artists, genres = _repeat("artist", artist, n_samples), _repeat("genre", genre, n_samples)
        requests = [Request(i, total, 0, artists[i], genres[i]) for i in range(n_samples)]
        for kind, names in (("artist", artists), ("genre", genres)):
            for name in dict.fromkeys(names):
                warn_of_unknown(self.priors, kind, name)

        tokens: list[Int[np.ndarray, "n _"]] = []
        for level, fraction in reversed(list(zip(levels, hop_fractions, strict=True))):
            above = tokens[0] if tokens else None
            sampled = sample_level(
                level,
                requests,
                sample_length // level.hop_samples,
                seed=seed,
                sampling=sampling,
                hop_fraction=fraction,
                batch_size=batch_size,
                upper=above,
                progress=progress,
            )
            tokens.insert(0, sampled)

        songs = []
        for index, request in enumerate(requests):
            ours = tuple(level[index] for level in tokens)
            provenance = {
                "generator": f"jukebox_jax {__version__}",
                "ai_generated": True,
                "codec": self.codec.hash,
                "seed": seed,
                "song": index,
                "batch_size": batch_size,
                "sample_length": sample_length,
                "hop_fractions": list(hop_fractions),
                "sampling": asdict(sampling),
                "request": asdict(request),
            }
            songs.append(Song(ours, self.decode(ours), rate, provenance))
        return songs

    def decode(self, tokens: Sequence[Int[np.ndarray, " _"]]) -> tuple[Float[np.ndarray, " _"], ...]:
        """Audio of one song from the tokens of each level (level 0 first), every level decoded alone."""
        config, codec = self.codec.config, self.codec.codec
        return tuple(
            np.asarray(_decode(config, codec, jnp.asarray(codes)[None], level))[0, :, 0]
            for level, codes in enumerate(tokens)
        )

    @property
    def levels(self) -> list[Level]:
        """What sampling needs of each level, level 0 first."""
        config = self.codec.config
        ratios = [config.hops[i + 1] // config.hops[i] for i in range(config.levels - 1)] + [1]
        return [
            Level(prior, config.hops[index], ratios[index], config.sample_rate)
            for index, prior in enumerate(self.priors)
        ]

    def _total_samples(self, sample_length: int, total_seconds: float | None) -> int:
        rate = self.codec.config.sample_rate
        labels = self.priors[-1].config.labels
        if total_seconds is not None:
            if not math.isfinite(total_seconds * rate):
                raise UserError(f"total_seconds is {total_seconds}: give a finite number of seconds, or leave it out.")
            total = int(total_seconds * rate)
            if total < sample_length:
                raise UserError(
                    f"total_seconds={total_seconds} is shorter than the {sample_length / rate:.2f} s to sample: "
                    "it is the length of the whole imagined song."
                )
        else:
            total = max(sample_length, int(np.ceil(labels.min_duration_seconds * rate)) if labels else 0)
        if labels and not labels.min_duration_seconds * rate <= total < labels.max_duration_seconds * rate:
            raise UserError(
                f"A whole song of {total / rate:.2f} s is outside what the model knows, "
                f"{labels.min_duration_seconds:g} to {labels.max_duration_seconds:g} s: change total_seconds."
            )
        return total


def load(folder: os.PathLike | str | None = None) -> Model:
    """Loads a cascade: a folder with `vqvae`, `level_0`, `level_1` and `level_2`, or, without one, the shipped toy.

    Raises:
      UserError: a part is missing, damaged, or belongs to another codec.
    """
    if folder is None:
        with resources.as_file(resources.files("jukebox_jax") / "toy") as toy:
            return load(toy)
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no model folder {folder}: check the path, or use the shipped model with --demo.")
    codec = load_codec(folder / CODEC_FOLDER)
    priors = tuple(load_prior(folder / level_folder(level)) for level in range(codec.config.levels))
    for level, prior in enumerate(priors):
        part = folder / level_folder(level)
        if prior.config.level != level:
            raise UserError(f"{part} is a prior of level {prior.config.level}: put each level under its own name.")
        if (prior.config.conditioner is None) != (level == codec.config.levels - 1):
            kind = "a top prior, and" if prior.config.conditioner is None else "an upsampler, but no"
            raise UserError(f"{part} is {kind} level stands above it: train the right kind of prior for this level.")
        if prior.codec_hash != codec.hash:
            raise UserError(
                f"{part} was trained on the tokens of another codec than "
                f"{folder / CODEC_FOLDER}: put models of one training together."
            )
    return Model(codec, priors)


@partial(jax.jit, static_argnums=(0, 3))
def _decode(config: VQVAEConfig, codec: Codec, codes: Int[Array, "b u"], level: int) -> Float[Array, "b t 1"]:
    return decode(config, codec, codes, level)


def _repeat(what: str, names: str | Sequence[str], count: int) -> list[str]:
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise UserError(f"{what} is an empty list: give at least one name, or leave it out.")
    return [names[index % len(names)] for index in range(count)]
