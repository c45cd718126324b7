"""What a notebook uses: load a model, sample songs, save them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

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
from jukebox_jax.evaluation.alignment import alignment_head, looking_layers, record_head
from jukebox_jax.evaluation.likelihood import token_bits
from jukebox_jax.evaluation.monotone import HeadScore, search_heads
from jukebox_jax.export.comparison import length_difference, sound_difference
from jukebox_jax.export.curves import training_curves
from jukebox_jax.export.lyrics import Alignment, align_lyrics
from jukebox_jax.export.page import write_page
from jukebox_jax.export.plots import Series
from jukebox_jax.export.song_page import song_sample, songs_page
from jukebox_jax.export.tags import parse_provenance, read_provenance
from jukebox_jax.sampling.blends import Blended
from jukebox_jax.sampling.cascade import Finished
from jukebox_jax.sampling.memory import LevelPlan
from jukebox_jax.sampling.order import (
    HOP_FRACTION,
    TOP_HOP_FRACTION,
    LevelDone,
    Order,
    make_order,
    plan_order,
    resumed,
    sample_order,
    song_place,
)
from jukebox_jax.sampling.provenance import (
    order_again,
    other_environment,
    recorded_hop_fraction,
    recorded_request,
    song_provenance,
    token_differences,
)
from jukebox_jax.sampling.requests import Level, Request, unknown_names
from jukebox_jax.sampling.seams import measure_seams
from jukebox_jax.sampling.session import open_journal, recorded_settings, settings_hash
from jukebox_jax.sampling.stream import Chunk, Streamer, decode_level
from jukebox_jax.song import Reproduction, Song


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
        self, *, session: os.PathLike | str | None = None, progress: bool = True, **settings: Any
    ) -> Song | list[Song]:
        """Samples a song, or a list of songs if `n_samples` is given or there are several.

        Args:
          session: folder in which every finished window is kept; after whatever end, the same settings go on from
            there.
          settings: what is to be sampled; `sampling.order.make_order` says what there is.

        Raises:
          UserError: settings that no song could be sampled with; nothing has been sampled then.

        Warns:
          UserWarning: for each name that the model does not know and takes as unknown, and for lyrics that it ignores.
        """
        order = self.order(**settings)
        (songs,) = (event for event in self.run(order, session=session, progress=progress) if isinstance(event, list))
        return songs[0] if len(songs) == 1 and settings.get("n_samples") is None else songs

    def stream(
        self, *, session: os.PathLike | str | None = None, progress: bool = False, **settings: Any
    ) -> Iterator[Chunk]:
        """Samples songs as `sample` does, and yields their sound piece by piece as it is finished: all of the top level
        first, then of the level below, …; the sound of level 0 is the final one."""
        order = self.order(**settings)
        streamer = Streamer(self.codec, [len(level) for level in order.beginning.tokens])
        for event in self.run(order, session=session, progress=progress):
            if not isinstance(event, list):
                yield from streamer.heard(event)

    def order(self, **settings: Any) -> Order:
        """What is to be sampled, checked; see `sampling.order.make_order`. Warns as `sample` does."""
        order = make_order(self.codec, self.levels, **settings)
        for text in order.remarks:
            warnings.warn(text, stacklevel=3)
        return order

    def plan(self, order: Order) -> list[LevelPlan]:
        """How much memory each level will take, level 0 first, with the batch sizes that fit.

        Raises:
          UserError: one does not fit; says what would.
        """
        return plan_order(self.levels, order)

    def session_name(self, order: Order) -> str:
        """A name of its own for the session of an order with this model."""
        return settings_hash(order.settings(self.codec, self.priors))[:16]

    def run(
        self,
        order: Order,
        *,
        session: os.PathLike | str | None = None,
        progress: bool = True,
        tell: Callable[[Sequence[LevelPlan]], None] | None = None,
    ) -> Iterator[tuple[int, Finished] | LevelDone | list[Song]]:
        """Samples an order: yields what `sampling.order.sample_order` does, and in the end the songs; `tell` is called
        with the plan of memory before anything is loaded."""
        if session is not None:
            order = resumed(order, recorded_settings(Path(session)))
        plans = self.plan(order)
        if tell is not None:
            tell(plans)
        sizes = [plan.batch_size for plan in plans]
        settings = order.settings(self.codec, self.priors) | {"batch_sizes": sizes}
        journal = contextlib.nullcontext() if session is None else open_journal(Path(session), settings)
        tokens: dict[int, tuple[np.ndarray, ...]] = {}
        with journal as opened:
            for event in sample_order(self.levels, order, plans, opened, progress):
                if isinstance(event, LevelDone):
                    tokens[event.level] = event.tokens
                yield event
        yield [
            self._song(order, sizes, song, tuple(tokens[level][song] for level in range(len(tokens))))
            for song in range(len(order.requests))
        ]

    def _song(self, order: Order, batch_sizes: list[int], song: int, tokens: tuple[np.ndarray, ...]) -> Song:
        provenance = song_provenance(self.codec, self.priors, order, batch_sizes, song, tokens)
        levels = self.decode(tokens)
        if max(order.n_segments) > 1:
            provenance["seams"] = measure_seams(self.levels, order, song, tokens, levels)
        return Song(tokens, levels, self.codec.config.sample_rate, provenance)

    def reproduce(
        self,
        source: os.PathLike | str | Mapping[str, Any],
        *,
        prompt: Float[np.ndarray, " _"] | None = None,
        tokens: Sequence[Int[np.ndarray, " _"]] | None = None,
        session: os.PathLike | str | None = None,
        progress: bool = True,
    ) -> Reproduction:
        """Samples a song again, as its tags or its sidecar say, and compares.

        Args:
          source: the file of an exported song, or the provenance of one.
          prompt, tokens: what the song started from, if it did (see `sampling.provenance.order_again`).
          session: see `sample`.

        Raises:
          UserError: a file that does not say where it comes from, other models than those of the song, or not what it
            started from.
        """
        path = None if isinstance(source, Mapping) else Path(source)
        provenance = source if path is None else read_provenance(path)
        order = self.order_again(provenance, prompt=prompt, tokens=tokens)
        elsewhere, level = tuple(other_environment(provenance)), provenance.get("level", 0)
        if path is not None:
            if level not in range(len(self.priors)):
                raise UserError(f"{path} says that it is of level {level}, which the model does not have.")
            seconds = order.sample_lengths[0] / self.codec.config.sample_rate
            overrun = order.overrun and level == len(self.priors) - 1
            different = None if overrun else length_difference(path, seconds)
            if different:
                return Reproduction(None, (different,), elsewhere)
        (songs,) = (event for event in self.run(order, session=session, progress=progress) if isinstance(event, list))
        song = dataclasses.replace(songs[0], provenance=songs[0].provenance | {"song": provenance.get("song", 0)})
        differences = token_differences(provenance, song.tokens)
        if path is not None:
            differences.append(sound_difference(path, song.levels[level], song.sample_rate, provenance))
        return Reproduction(song, tuple(filter(None, differences)), elsewhere)

    def order_again(
        self,
        provenance: Mapping[str, Any],
        *,
        prompt: Float[np.ndarray, " _"] | None = None,
        tokens: Sequence[Int[np.ndarray, " _"]] | None = None,
    ) -> Order:
        """What samples a song again; see `sampling.provenance.order_again`."""
        return order_again(self.codec, self.priors, self.levels, provenance, prompt=prompt, tokens=tokens)

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

    def page(
        self,
        songs: Song | Sequence[Song],
        path: os.PathLike | str,
        *,
        titles: Sequence[str] | None = None,
        alignments: Sequence[Alignment | None] | None = None,
        surprise: bool = False,
        runs: os.PathLike | str | None = None,
        progress: bool = True,
    ) -> None:
        """Writes songs as one HTML file to listen to: all levels, spectrograms, how they were made.

        Args:
          titles: of the songs; by default their numbers.
          alignments: of each song's lyrics, by `align`: they light up as they are sung.
          surprise: also draw how many bits each token of the top level takes; the top prior hears the songs for it.
          runs: folder of the runs that trained this model, for their loss curves.
          progress: whether to draw progress lines on stderr.
        """
        from tqdm import tqdm

        songs = [songs] if isinstance(songs, Song) else songs
        codes, rate = self.codec.config.codes, self.codec.config.sample_rate
        series: list[list[Series]] = [[] for _ in songs]
        if surprise:
            heard = tqdm(songs, desc="surprise", unit="song", file=sys.stderr, disable=not progress)
            series = [[self.surprise(song)] for song in heard]
        samples = [
            song_sample(song.levels, song.tokens, codes, song.provenance, *more)
            for song, *more in zip(
                songs, alignments or [None] * len(songs), titles or [None] * len(songs), series, strict=True
            )
        ]
        curves = [] if runs is None else training_curves(runs, self.codec.config.levels)
        write_page(path, songs_page(samples, rate, curves), progress=progress)

    def surprise(self, song: Song | Sequence[Int[np.ndarray, " _"]], level: int | None = None) -> Series:
        """How many bits each token of a level (the top one) takes a prior that is told what the song was sampled by."""
        level = len(self.priors) - 1 if level is None else level
        tokens = song.tokens if isinstance(song, Song) else song
        _, request, provenance = self._sung(song, {})
        upper = tokens[level + 1] if level + 1 < len(self.priors) else None
        hop_fraction = recorded_hop_fraction(provenance, level, TOP_HOP_FRACTION if upper is None else HOP_FRACTION)
        bits = token_bits(self.levels[level], np.asarray(tokens[level]), request, hop_fraction, upper)
        seconds = np.arange(len(bits)) * self.codec.config.hops[level] / self.codec.config.sample_rate
        return Series(f"Surprise, level {level}", "bits per token", seconds.tolist(), bits.tolist())

    def align(
        self,
        song: Song | Sequence[Int[np.ndarray, " _"]],
        lyrics: str | None = None,
        *,
        artist: Blended | None = None,
        genre: Blended | None = None,
        total_seconds: float | None = None,
        offset_seconds: float | None = None,
        layer: int | None = None,
        head: int | None = None,
        progress: bool = True,
    ) -> Alignment:
        """When each word of a song's lyrics is sung, by what the top prior looks at as it listens to the song.

        Args:
          song: a song, or tokens, level 0 first (only those of the top level count).
          lyrics, artist, genre, total_seconds, offset_seconds: as for `sample`; by default as the song was sampled.
          layer, head: whose attention is read; by default what `search_alignment` recorded, or the prior's config says.

        Raises:
          UserError: a prior that takes no lyrics or whose head for them is not known, or no lyrics that it can spell.
        """
        layer, head = alignment_head(self.priors[-1], layer, head)
        told = {"lyrics": lyrics, "artist": artist, "genre": genre}
        codes, request, provenance = self._sung(song, told, total_seconds, offset_seconds)
        hop_fraction = recorded_hop_fraction(provenance, -1, TOP_HOP_FRACTION)
        return align_lyrics(self.levels[-1], codes, request, hop_fraction, layer, head, progress)

    def search_alignment(
        self,
        songs: Sequence[Song | Sequence[Int[np.ndarray, " _"]]],
        lyrics: Sequence[str] | None = None,
        *,
        record: bool = False,
        progress: bool = True,
    ) -> list[HeadScore]:
        """Looks for the head of the top prior whose attention follows the lyrics: all that could, the best first.

        Args:
          songs: a few, with different lyrics, sampled or encoded; see `align`.
          lyrics: of each song; by default those it was sampled with.
          record: note the best beside the prior's folder, where `align` finds it.

        Raises:
          UserError: a prior that takes no lyrics, or no song that has some.
        """
        prior = self.priors[-1]
        looking_layers(prior.config)
        texts = [None] * len(songs) if lyrics is None else _one_each("lyrics", lyrics, len(songs), "songs")
        sung = [self._sung(song, {"lyrics": text}) for song, text in zip(songs, texts, strict=True)]
        hop_fraction = recorded_hop_fraction(sung[0][2] if sung else {}, -1, TOP_HOP_FRACTION)
        codes, requests = [one[0] for one in sung], [one[1] for one in sung]
        found = search_heads(self.levels[-1], codes, requests, hop_fraction, progress)
        if record:
            record_head(prior, found[0].layer, found[0].head)
        return found

    def _sung(
        self,
        song: Song | Sequence[Int[np.ndarray, " _"]],
        told: Mapping[str, Any],
        total_seconds: float | None = None,
        offset_seconds: float | None = None,
    ) -> tuple[Int[np.ndarray, " _"], Request, Mapping[str, Any]]:
        """A song's top-level tokens, what it was sampled by, changed by what is told, and where it comes from."""
        provenance = song.provenance if isinstance(song, Song) else {}
        codes = np.asarray((song.tokens if isinstance(song, Song) else song)[-1], np.int32)
        told = {name: value for name, value in told.items() if value is not None}
        recorded = recorded_request(provenance)
        if recorded is None or (total_seconds, offset_seconds) != (None, None):
            length = len(codes) * self.codec.config.hops[-1]
            place = song_place(self.codec.config, self.priors[-1], length, offset_seconds or 0.0, total_seconds)
            told["offset_samples"], told["total_samples"] = place
        request = dataclasses.replace(recorded or Request(index=0, total_samples=0), **told)
        # Half of a surrogate pair, as JSON may hold, is no character, and could not be written.
        lyrics = request.lyrics.encode("utf-8", "ignore").decode()
        return codes, dataclasses.replace(request, lyrics=lyrics), provenance

    def load_tokens(self, path: os.PathLike | str) -> tuple[Int[np.ndarray, " _"], ...]:
        """Reads the tokens that `Song.save_tokens` wrote, level 0 first.

        Raises:
          UserError: the file is missing or damaged, or its tokens are another codec's.
        """
        return self._stored(Path(path))[0]

    def load_song(self, path: os.PathLike | str, *, decode: bool = True) -> Song:
        """Reads the song whose tokens `Song.save_tokens` wrote; its provenance is {} if the file does not say where it
        comes from.

        Args:
          decode: whether to decode its sound; without, the song has `levels` ().

        Raises:
          UserError: as `load_tokens`, or what it says of its origin is damaged.
        """
        tokens, text = self._stored(Path(path))
        provenance = {} if text is None else parse_provenance(text, path)
        return Song(tokens, self.decode(tokens) if decode else (), self.codec.config.sample_rate, provenance)

    def _stored(self, path: Path) -> tuple[tuple[Int[np.ndarray, " _"], ...], str | None]:
        """The tokens in a file, and its provenance as it stands there."""
        try:
            # Opened here, since numpy forgets to close what is damaged.
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                codec = str(stored["codec"])
                tokens = tuple(stored[f"level_{level}"] for level in range(self.codec.config.levels))
                text = str(stored["provenance"]) if "provenance" in stored else None
        except FileNotFoundError:
            raise UserError(f"{path} does not exist: check the path.") from None
        # numpy and zipfile raise whatever the damage happens to break.
        except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            what = error if path.suffix.lower() == ".npz" else f"{path.suffix or 'no suffix'} instead of .npz"
            raise UserError(f"{path} holds no tokens of a song ({what}): name its .tokens.npz.") from None
        if codec != self.codec.hash:
            raise UserError(f"{path} holds tokens of another codec: use the model that they were sampled with.")
        if not all(codes.ndim == 1 and np.issubdtype(codes.dtype, np.integer) for codes in tokens):
            raise UserError(f"{path} holds no tokens of a song: name its .tokens.npz.")
        return tuple(codes.astype(np.int32) for codes in tokens), text

    def decode(self, tokens: Sequence[Int[np.ndarray, " _"]]) -> tuple[Float[np.ndarray, " _"], ...]:
        """Audio of one song from the tokens of each level (level 0 first), every level decoded alone."""
        return tuple(decode_level(self.codec, level, codes) for level, codes in enumerate(tokens))

    @property
    def levels(self) -> list[Level]:
        """What sampling needs of each level, level 0 first."""
        config = self.codec.config
        ratios = [config.hops[i + 1] // config.hops[i] for i in range(config.levels - 1)] + [1]
        return [
            Level(prior, config.hops[index], ratios[index], config.sample_rate)
            for index, prior in enumerate(self.priors)
        ]


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


def _one_each(what: str, texts: str | Sequence[str], count: int, of: str = "clips") -> list[str]:
    texts = [texts] * count if isinstance(texts, str) else list(texts)
    if len(texts) != count:
        raise UserError(f"{what} is {len(texts)} texts for {count} {of}: give one for each, or one for all.")
    return texts
