"""What a notebook uses: load a model, sample songs, save them."""

from __future__ import annotations

import json
import math
import os
import warnings
import zipfile
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
from jukebox_jax.checkpoint.models import (
    CODEC_FOLDER,
    TrainedCodec,
    TrainedPrior,
    load_codec,
    load_level,
    split_cascade,
)
from jukebox_jax.embedding.clips import (
    Clip,
    Embedding,
    chosen_level,
    embed_clips,
    embedding_settings,
    mono_clips,
)
from jukebox_jax.errors import UserError
from jukebox_jax.files import atomic_file
from jukebox_jax.models.vqvae import Codec, VQVAEConfig, decode
from jukebox_jax.sampling.beginning import Beginning, Codes, Prompt, beginning
from jukebox_jax.sampling.cascade import (
    Level,
    Request,
    check_request,
    check_songs,
    level_windows,
    sample_level,
    song_labels,
    unknown_names,
)
from jukebox_jax.sampling.decode import SamplingConfig

#: New tokens per window as a fraction of the window: of the upsamplers, and of the top prior.
HOP_FRACTION, TOP_HOP_FRACTION = 0.5, 0.125
#: How long songs become unless something else says so.
SECONDS = 6.0
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

    def save_tokens(self, path: os.PathLike | str) -> None:
        """Writes the tokens of all levels as an npz file, with the hash of their codec, for `Model.load_tokens`.

        Raises:
          UserError: a suffix other than .npz.
        """
        path = Path(path)
        if path.suffix.lower() != ".npz":
            raise UserError(f"{path}: tokens are written as .npz: choose this suffix.")
        levels = {f"level_{level}": codes for level, codes in enumerate(self.tokens)}
        with atomic_file(path) as temporary:
            np.savez_compressed(temporary, codec=np.asarray(self.provenance["codec"]), **levels)


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
        lyrics: str | Sequence[str] = "",
        seconds: float | None = None,
        sample_length: int | None = None,
        total_seconds: float | None = None,
        offset_seconds: float = 0.0,
        prompt: Prompt | None = None,
        continue_from: Sequence[Codes] | None = None,
        upsample: Codes | None = None,
        prompt_seconds: float | None = None,
        seed: int = 0,
        temperature: float = 0.99,
        top_k: int = 0,
        top_p: float = 0.0,
        n_samples: int = 1,
        hop_fractions: Sequence[float] | None = None,
        batch_size: int = BATCH_SIZE,
        strict_labels: bool = False,
        original_overrun: bool = False,
        progress: bool = True,
    ) -> list[Song]:
        """Samples songs, top level first: from nothing, or from a `prompt`, tokens to `continue_from` or to `upsample`.

        Args:
          artist, genre, lyrics: one for all songs, or a list that is repeated until there are `n_samples`. Lyrics are
            those of the imagined whole song, sung at an even pace; characters that a model cannot spell are left out.
          seconds: how long the songs become, with what they start from, rounded down to whole top-level tokens (6 s by
            default, or all of `upsample`); or exactly `sample_length` samples.
          total_seconds: length of the imagined whole song, which the timing labels tell the model (up to the end of
            what is sampled, or the shortest that the model knows, by default).
          offset_seconds: where in the imagined whole song the sampled part starts.
          prompt: audio that songs start with, mono (t,) at the model's sample rate; or several of one length, repeated
            until there are `n_samples`. In the song it sounds as the codec renders it.
          continue_from: tokens that songs start with, level 0 first, such as `song.tokens`: (t,) for all songs, or
            (songs, t), repeated likewise.
          upsample: tokens of the whole top level, (t,) or (songs, t); only the levels below are sampled.
          prompt_seconds: how much to use of what songs start from, rounded down to whole top-level tokens (all of it).
          seed: the same seed, song number and `batch_size` give the same song, whatever is sampled beside it.
          hop_fractions: new tokens per window as a fraction of the window, level 0 first (a half, and an eighth for the
            top level).
          batch_size: songs per compiled batch, of which the last is filled up; larger is faster for many songs.
          strict_labels: refuse names that the model does not know.
          original_overrun: continue songs that are shorter than a window of the top prior as the original does, which
            adds `seconds` at the top level, whatever is there; the levels below end where they should.

        Raises:
          UserError: settings that no song could be sampled with; nothing has been sampled then.

        Warns:
          UserWarning: for each name that the model does not know and takes as unknown, and for lyrics that it ignores.
        """
        if n_samples < 1:
            raise UserError(f"n_samples is {n_samples}: ask for at least 1 song.")
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: sample at least 1 song at once.")
        if not 0 <= seed < 2**32:
            raise UserError(f"seed is {seed}: choose a whole number from 0 to {2**32 - 1}.")
        sampling = SamplingConfig(temperature, top_k, top_p)
        artists, genres = _repeat("artist", artist, n_samples), _repeat("genre", genre, n_samples)
        texts = _repeat("lyrics", lyrics, n_samples)
        remarks = [
            text
            for pair in dict.fromkeys(zip(artists, genres, strict=True))
            for text in unknown_names(self.priors, *pair)
        ]
        if remarks and strict_labels:
            raise UserError(" ".join(dict.fromkeys(remarks)))

        codec, levels = self.codec.config, self.levels
        if hop_fractions is None:
            hop_fractions = (HOP_FRACTION,) * (codec.levels - 1) + (TOP_HOP_FRACTION,)
        start = beginning(
            self.codec,
            n_samples,
            prompt=prompt,
            continue_from=continue_from,
            upsample=upsample,
            prompt_seconds=prompt_seconds,
        )
        if sample_length is None:
            sample_length = self._sample_length(seconds, start)
        check_request(levels, sample_length, hop_fractions)
        start = start.within(codec, sample_length, original_overrun)
        lengths = [sample_length // hop for hop in codec.hops]
        to_sample = range(codec.levels - (start.mode == "upsample"))
        windows = [
            level_windows(levels[i], lengths[i], hop_fractions[i], start.tokens[i].shape[1], original_overrun)
            for i in to_sample
        ]
        if not any(windows):
            raise UserError("What the songs start from is as long as was asked for: ask for more seconds.")

        offset, total_samples = self._place(sample_length, offset_seconds, total_seconds)
        requests = [Request(i, total_samples, offset, artists[i], genres[i], texts[i]) for i in range(n_samples)]
        labels = [[song_labels(levels[i].prior, request) for request in requests] for i in to_sample]
        for i in to_sample:
            check_songs(levels[i], labels[i], windows[i])
        if any(texts) and self.priors[-1].config.lyrics is None:
            remarks.append("The model takes no lyrics: those given are ignored.")
        for text in dict.fromkeys(remarks):
            warnings.warn(text, stacklevel=2)

        tokens = list(start.tokens)
        for index in reversed(to_sample):
            tokens[index] = sample_level(
                levels[index],
                labels[index],
                lengths[index],
                seed=seed,
                sampling=sampling,
                hop_fraction=hop_fractions[index],
                batch_size=batch_size,
                upper=tokens[index + 1] if index + 1 < codec.levels else None,
                given=start.tokens[index],
                overrun=original_overrun,
                progress=progress,
            )

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
                **start.provenance(index),
                "original_overrun": original_overrun,
            }
            songs.append(Song(ours, self.decode(ours), codec.sample_rate, provenance))
        return songs

    def embed(
        self,
        audio: np.ndarray | Sequence[np.ndarray],
        *,
        layer: int | None = None,
        level: int | None = None,
        pooling: str | float = "mean",
        windows: str = "first",
        sample_rate: int | None = None,
        artist: str | Sequence[str] = "unknown",
        genre: str | Sequence[str] = "unknown",
        lyrics: str | Sequence[str] = "",
        batch_size: int = 1,
    ) -> Embedding | list[Embedding]:
        """Activations of a prior as it listens to audio, as features of the music (see `embedding.clips`).

        Args:
          audio: a mono clip (t,), or several, as a list or (n, t), which give a list of embeddings. Short ones are
            followed by silence, which no average counts.
          layer: after how many layers of the prior: 0 are the embeddings, all of them what stands before the output
            projection (half of them).
          level: whose prior (the top one). An upsampler is told the codes of the level above.
          pooling: "mean" of all tokens, "window" for a mean of each window, "none" for every token, or a number of
            seconds, over each of which tokens are averaged.
          windows: "first", the beginning of a clip as far as the prior hears at once (24 s in the original), or "all",
            one after the other.
          sample_rate: that of the audio, which is resampled (the model's).
          artist, genre, lyrics: what the prior is told, one for all clips or one for each.
          batch_size: windows computed at once; one window of a large prior is work enough for a device. At one size a
            clip has the same bits whatever its neighbours.

        Raises:
          UserError: no audio, or settings that the model does not have.

        Warns:
          UserWarning: for each name that the prior takes as unknown, and for lyrics that it ignores.
        """
        prior = self.priors[chosen_level(self.codec.config, level)]
        several = not (isinstance(audio, np.ndarray) and audio.ndim == 1)
        chosen = {"layer": layer, "pooling": pooling, "windows": windows, "batch_size": batch_size}
        settings = embedding_settings(self.codec.config, prior.config, **chosen)
        clips = mono_clips(list(audio) if several else [audio], sample_rate, self.codec.config.sample_rate)
        told = [_one_each(*of, len(clips)) for of in (("artist", artist), ("genre", genre), ("lyrics", lyrics))]
        remarks = [text for pair in zip(*told[:2], strict=True) for text in unknown_names([prior], *pair)]
        if any(told[2]) and prior.config.lyrics is None:
            remarks.append("This prior takes no lyrics: those given are ignored.")
        for text in dict.fromkeys(remarks):
            warnings.warn(text, stacklevel=2)
        named = [Clip(*each) for each in zip(clips, *told, strict=True)]
        embeddings = list(embed_clips(self.codec, prior, settings, named))
        return embeddings if several else embeddings[0]

    def load_tokens(self, path: os.PathLike | str) -> tuple[Int[np.ndarray, " _"], ...]:
        """Reads the tokens that `Song.save_tokens` wrote, level 0 first.

        Raises:
          UserError: the file is missing or damaged, or its tokens are another codec's.
        """
        path = Path(path)
        try:
            with np.load(path, allow_pickle=False) as stored:
                codec = str(stored["codec"])
                tokens = tuple(stored[f"level_{level}"] for level in range(self.codec.config.levels))
        except FileNotFoundError:
            raise UserError(f"{path} does not exist: check the path.") from None
        # numpy and zipfile raise whatever the damage happens to break.
        except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} holds no tokens of a song ({error}): name a file that was saved by it.") from None
        if codec != self.codec.hash:
            raise UserError(f"{path} holds tokens of another codec: use the model that they were sampled with.")
        if not all(codes.ndim == 1 and np.issubdtype(codes.dtype, np.integer) for codes in tokens):
            raise UserError(f"{path} holds no tokens of a song: name a file that was saved by it.")
        return tuple(codes.astype(np.int32) for codes in tokens)

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

    def _sample_length(self, seconds: float | None, start: Beginning) -> int:
        config = self.codec.config
        if seconds is None and start.mode == "upsample":
            return start.tokens[-1].shape[1] * config.hops[-1]
        seconds = SECONDS if seconds is None else seconds
        if not math.isfinite(seconds * config.sample_rate):
            raise UserError(f"seconds is {seconds}: ask for a finite number of seconds.")
        sample_length = int(seconds * config.sample_rate) // config.hops[-1] * config.hops[-1]
        if sample_length <= 0:
            raise UserError(f"{seconds} s is less than one token of the top level: ask for more seconds.")
        return sample_length

    def _place(self, sample_length: int, offset_seconds: float, total_seconds: float | None) -> tuple[int, int]:
        """Where the sampled part starts in the imagined whole song, and how long that is, in samples."""
        rate, labels = self.codec.config.sample_rate, self.priors[-1].config.labels
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
            raise UserError(
                f"A whole song of {total / rate:.2f} s is outside what the model knows, "
                f"{labels.min_duration_seconds:g} to {labels.max_duration_seconds:g} s: change total_seconds."
            )
        return offset, total


def load(folder: os.PathLike | str | None = None) -> Model:
    """Loads a cascade: a folder with `vqvae`, `level_0`, `level_1` and `level_2`, or, without one, the shipped toy.

    FOLDER@best takes of each part that is a run folder the best checkpoint instead of the latest.

    Raises:
      UserError: a part is missing, damaged, or belongs to another codec.
    """
    if folder is None:
        with resources.as_file(resources.files("jukebox_jax") / "toy") as toy:
            return load(toy)
    folder, at = split_cascade(folder)
    codec = load_codec(f"{folder / CODEC_FOLDER}{at}")
    priors = tuple(load_level(folder, at, codec, level) for level in range(codec.config.levels))
    return Model(codec, priors)


@partial(jax.jit, static_argnums=(0, 3))
def _decode(config: VQVAEConfig, codec: Codec, codes: Int[Array, "b u"], level: int) -> Float[Array, "b t 1"]:
    return decode(config, codec, codes, level)


def _one_each(what: str, texts: str | Sequence[str], count: int) -> list[str]:
    texts = [texts] * count if isinstance(texts, str) else list(texts)
    if len(texts) != count:
        raise UserError(f"{what} is {len(texts)} texts for {count} clips: give one for each, or one for all.")
    return texts


def _repeat(what: str, names: str | Sequence[str], count: int) -> list[str]:
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise UserError(f"{what} is an empty list: give at least one name, or leave it out.")
    return [names[index % len(names)] for index in range(count)]
