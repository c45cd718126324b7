"""Batches of random windows, as a pure function of (seed, position) and as a stream that reads ahead.

`Stream.batch(seed, position)` is the definition; `Stream.batches` gives the same batches in order, read ahead. The
position counts examples over all epochs and hosts, so training resumes anywhere at once, under any batch size.
"""

from __future__ import annotations

import collections
import concurrent.futures
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64, Num

from jukebox_jax.audio.files import to_float32
from jukebox_jax.errors import UserError
from jukebox_jax.labels.ids import LabelTable
from jukebox_jax.labels.lyrics import LyricText, lyric_window
from jukebox_jax.labels.timing import check_total_length, timing_bins
from jukebox_jax.pipeline.dataset import Dataset, RecordReader, Song
from jukebox_jax.pipeline.order import BLEND, SHIFT, random_integers, shuffled_index, tensorflow, window_chunks
from jukebox_jax.remote import is_remote

# Batches read ahead of the one in use: enough to hide a slow read, little enough for a small machine.
READ_AHEAD_BATCHES = 2
# Windows read at once: a disk keeps few threads busy, a bucket answers late and to many.
LOCAL_READERS, REMOTE_READERS = 2, 16

TIMING = ("total", "absolute", "relative")


@dataclass(frozen=True)
class TimingSpec:
    """The range and resolution of a top prior's timing bins (spec/prior.md 7).

    `hop_samples` is what one token covers; by default the hop of the stream's first field.
    """

    time_bins: int
    min_duration_seconds: float
    max_duration_seconds: float
    hop_samples: int | None = None


@dataclass(frozen=True)
class LyricSpec:
    """How a model spells lyrics, and how many of their tokens go with a window (an even number)."""

    text: LyricText
    n_tokens: int


@dataclass(frozen=True)
class LabelSpec:
    """The labels a model takes: its own name table (the dataset's may differ), genre slots, and, of timing and lyrics,
    what it has."""

    table: LabelTable
    max_genres: int = 1
    timing: TimingSpec | None = None
    lyrics: LyricSpec | None = None


def long_enough(dataset: Dataset, split: str, window_samples: int) -> list[int]:
    """Indices of the split's songs that hold a whole window."""
    # In whole hops of the coarsest level, in use or not: that is how far every level's codes go.
    coarsest = max(dataset.fields.values())
    songs = enumerate(dataset.splits[split])
    return [index for index, song in songs if song.samples // coarsest * coarsest >= window_samples]


class Stream:
    """Windows of one split, in the stateless order of `pipeline/order.py`.

    Songs shorter than a window are left out (`skipped_songs` names them); n_windows = total length // window.

    Args:
      window_samples: length of a window, a multiple of every field's hop.
      batch_size: examples of one batch over all hosts; each host gets its slice of batch_size / process_count.
      fields: ("audio",), or a level and, for an upsampler, the level above it: ("level_0", "level_1").
      labels: adds "artist", "genres" and, with timing, the three bins, with lyrics, "lyrics".
      shuffle: permute the windows of each epoch; else they come in order.
      shift: move each window by a random part of its length, in whole hops, within its song.
      blend: mix stereo by a random weight per example instead of one half (the paper's augmentation).

    Raises:
      UserError: a field the dataset lacks, a window no hop divides, no song long enough, a song outside the timing
        range, a genre of too many words, lyrics that cannot be spelled here, or a batch that the hosts cannot share
        evenly.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        window_samples: int,
        *,
        batch_size: int,
        fields: tuple[str, ...] = ("audio",),
        labels: LabelSpec | None = None,
        shuffle: bool = True,
        shift: bool = True,
        blend: bool = False,
        process_index: int = 0,
        process_count: int = 1,
    ):
        for field in fields:
            if field not in dataset.fields:
                raise UserError(
                    f"{dataset.folder} has no {field}, only {', '.join(dataset.fields)}: "
                    "tokens come from `jukebox-jax encode`, audio from `jukebox-jax prepare`."
                )
        self._unit = max(dataset.fields[field] for field in fields)
        for field in fields:
            if window_samples < 1 or window_samples % dataset.fields[field]:
                raise UserError(
                    f"A window of {window_samples} samples is not a multiple of the hop of {field}, "
                    f"{dataset.fields[field]}: choose a multiple of {self._unit}."
                )
        if batch_size < 1 or batch_size % process_count:
            raise UserError(
                f"A batch of {batch_size} cannot be shared by {process_count} processes: choose a multiple."
            )
        self.dataset, self.split, self.fields = dataset, split, fields
        self.window_samples, self.batch_size, self.labels = window_samples, batch_size, labels
        self.shuffle, self.shift, self.blend = shuffle, shift, blend
        self._local_batch = batch_size // process_count
        self._local_start = process_index * self._local_batch

        songs = dataset.splits[split]
        coarsest = max(dataset.fields.values())
        self._window = window_samples // self._unit
        used = set(long_enough(dataset, split, window_samples))
        self._songs = np.array(sorted(used), np.int64)
        self.skipped_songs = tuple(song.title for i, song in enumerate(songs) if i not in used)
        if not len(self._songs):
            longest = max((song.samples for song in songs), default=0)
            raise UserError(
                f"No song in the {split} split of {dataset.folder} is as long as a window of {window_samples} samples "
                f"(the longest has {longest}): choose a shorter window, or add longer songs."
            )
        units = [songs[i].samples // coarsest * coarsest // self._unit for i in self._songs]
        self._ends = np.cumsum(units, dtype=np.int64)
        self.n_windows = int(self._ends[-1]) // self._window
        self._reader = RecordReader(dataset, split)
        if labels is not None:
            self._resolve_labels(labels)

    def batch(self, seed: int, position: int) -> dict[str, np.ndarray]:
        """This host's slice of the batch whose first example is number `position`.

        Returns:
          {"audio": float32 (b, t, 1)} in [-1, 1], or {"tokens": int32 (b, t / hop)} and, with a second field,
          "upper": int32 (b, t / upper hop). With labels "artist": int32 (b,), "genres": int32 (b, max_genres), -1 for
          an empty slot, with timing "total_bins" (b,), "absolute_bins" and "relative_bins" (b, n_ctx), and with lyrics
          "lyrics" (b, n_tokens), all padding for a song without.

        Raises:
          UserError: a damaged record.
        """
        draws = self._draw(self._examples(position), seed)
        arrays, jobs = self._plan(*(draw.numpy() for draw in draws))
        for job in jobs:
            job()
        return arrays

    def batches(self, seed: int, position: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """`batch(seed, position)`, `batch(seed, position + batch_size)`, … without end, read ahead by a few threads.

        Raises:
          UserError: a damaged record, or a bucket that does not answer.
        """
        tf = tensorflow()
        # TensorFlow says what to read, and Python's threads read it: an iterator of tf.data that runs Python code must
        # wait for it when it is dropped, and was seen to do so with Python's lock in its hand, for ever.
        examples = tf.constant(self._examples(0))
        options = tf.data.Options()
        options.autotune.enabled = False
        options.threading.private_threadpool_size = 1
        draws = (
            tf.data.Dataset.range(position, np.iinfo(np.int64).max, self.batch_size)
            .map(lambda start: self._draw(start + examples, seed))
            .with_options(options)
        )
        readers = REMOTE_READERS if is_remote(self.dataset.folder) else LOCAL_READERS
        pool = concurrent.futures.ThreadPoolExecutor(readers, "read_windows")
        ahead: collections.deque = collections.deque()
        try:
            for draw in draws.as_numpy_iterator():
                arrays, jobs = self._plan(*draw)
                ahead.append((arrays, [pool.submit(job) for job in jobs]))
                if len(ahead) > READ_AHEAD_BATCHES:
                    arrays, running = ahead.popleft()
                    for job in running:
                        job.result()
                    yield arrays
        finally:  # the threads end with the pool, once they have nothing to do
            for _, running in ahead:
                for job in running:
                    job.cancel()

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of a batch."""
        names = ("audio",) if self.fields == ("audio",) else ("tokens", "upper")[: len(self.fields)]
        if self.labels is not None:
            names += ("artist", "genres")
            if self.labels.timing is not None:
                names += tuple(f"{name}_bins" for name in TIMING)
            if self.labels.lyrics is not None:
                names += ("lyrics",)
        return names

    def read_window(self, item: int) -> Float[np.ndarray, "t channels"]:
        """Window `item` of an unshifted epoch in order, as float32 audio with all its channels."""
        items = np.array([item], np.int64)
        (song,), (offset,) = self._place(items, np.zeros_like(items))
        (audio,) = self._reader.read(int(song), int(offset), int(offset) + self.window_samples, ("audio",))
        return to_float32(audio)

    def windows(self, seed: int, position: int) -> tuple[Int64[np.ndarray, " b"], Int64[np.ndarray, " b"]]:
        """(song index within the split, offset in samples) of each example of `batch(seed, position)`."""
        items, shifts, _ = self._draw(self._examples(position), seed)
        return self._place(items.numpy(), shifts.numpy())

    def _examples(self, position: int) -> Int64[np.ndarray, " b"]:
        return position + self._local_start + np.arange(self._local_batch, dtype=np.int64)

    def _draw(self, examples, seed: int):
        """What is random about the examples, as tensors (b,): window, shift in units, weight of the left channel."""
        tf = tensorflow()
        examples = tf.convert_to_tensor(examples, tf.int64)
        windows, shifts = examples % self.n_windows, tf.zeros_like(examples)
        left = tf.fill(tf.shape(examples), 0.5)
        if self.shuffle:
            windows = shuffled_index(examples, seed, self.n_windows)
        half = self._window // 2
        if self.shift and half:
            shifts = random_integers(examples, seed, SHIFT, 2 * half) - half
        if self.blend:
            left = tf.cast(random_integers(examples, seed, BLEND, 2**24), tf.float32) / 2**24
        return windows, shifts, left

    def _place(
        self, windows: Int64[np.ndarray, " b"], shifts: Int64[np.ndarray, " b"]
    ) -> tuple[Int64[np.ndarray, " b"], Int64[np.ndarray, " b"]]:
        song, offset = window_chunks(windows, shifts, self._ends, self._window)
        return self._songs[song], offset * self._unit

    def _plan(
        self,
        windows: Int64[np.ndarray, " b"],
        shifts: Int64[np.ndarray, " b"],
        left: Float[np.ndarray, " b"],
    ) -> tuple[dict[str, np.ndarray], list[Callable[[], None]]]:
        """A batch yet to be filled, and what fills it, in any order and at once if one likes."""
        songs, offsets = self._place(windows, shifts)
        if self.fields == ("audio",):
            music = {"audio": np.empty((len(songs), self.window_samples, 1), np.float32)}
        else:
            music = {
                key: np.empty((len(songs), self.window_samples // self.dataset.fields[field]), np.int32)
                for key, field in zip(("tokens", "upper"), self.fields, strict=False)
            }
        batch = dict.fromkeys(self.keys) | music  # in the order of `keys`

        def labels() -> None:
            batch.update(self._label_arrays(songs, offsets))

        jobs = [
            functools.partial(self._fill, [array[row] for array in music.values()], song, offset, left[row])
            for row, (song, offset) in enumerate(zip(songs.tolist(), offsets.tolist(), strict=True))
        ]
        return batch, jobs if self.labels is None else [*jobs, labels]

    def _fill(self, rows: list[np.ndarray], song: int, offset: int, left: np.float32) -> None:
        """Writes one window into its row of each array, record by record: what was just read is still in the cache."""
        done = [0] * len(rows)
        for pieces in self._reader.pieces(song, offset, offset + self.window_samples, self.fields):
            for index, (row, piece) in enumerate(zip(rows, pieces, strict=True)):
                target = row[done[index] : done[index] + len(piece)]
                if self.fields == ("audio",):
                    mono(piece, left, target)
                else:
                    target[:] = piece
                done[index] += len(piece)

    def _label_arrays(self, songs: Int64[np.ndarray, " b"], offsets: Int64[np.ndarray, " b"]) -> dict[str, np.ndarray]:
        labels = self.labels
        assert labels is not None
        arrays = {"artist": self._artist_ids[songs], "genres": self._genre_ids[songs]}
        table = self.dataset.splits[self.split]
        places = [(table[song].samples, offset) for song, offset in zip(songs.tolist(), offsets.tolist(), strict=True)]
        if labels.timing is not None:
            hop = labels.timing.hop_samples or self.dataset.fields[self.fields[0]]
            bins = [
                timing_bins(
                    samples,
                    offset,
                    self.window_samples,
                    self.window_samples // hop,
                    labels.timing.time_bins,
                    labels.timing.min_duration_seconds,
                    labels.timing.max_duration_seconds,
                    self.dataset.sample_rate,
                )
                for samples, offset in places
            ]
            arrays |= {f"{name}_bins": np.stack([getattr(b, name) for b in bins]) for name in TIMING}
        if labels.lyrics is not None:
            windows = [
                lyric_window(self._lyrics[song], labels.lyrics.n_tokens, samples, offset, self.window_samples)
                for song, (samples, offset) in zip(songs.tolist(), places, strict=True)
            ]
            arrays["lyrics"] = np.stack([window.tokens for window in windows])
        return arrays

    def _resolve_labels(self, labels: LabelSpec) -> None:
        if labels.max_genres < 1:
            raise UserError("max_genres must be at least 1: a song's genre needs a slot.")
        songs = self.dataset.splits[self.split]
        self._artist_ids = np.array([labels.table.artist_id(song.artist) for song in songs], np.int32)
        self._genre_ids = np.array([self._genres(labels, song) for song in songs], np.int32)
        if labels.lyrics is not None:
            text, n_tokens = labels.lyrics.text, labels.lyrics.n_tokens
            if n_tokens < 2 or n_tokens % 2:
                raise UserError(f"A window cannot have {n_tokens} lyric tokens: choose an even number, 2 or more.")
            # In one byte each, as small as the text itself.
            self._lyrics = {int(i): text.tokens(songs[i].lyrics).astype(np.uint8) for i in self._songs}
        if labels.timing is None:
            return
        hop = labels.timing.hop_samples
        if hop is not None and self.window_samples % hop:
            raise UserError(
                f"A window of {self.window_samples} samples is not a multiple of {hop}, the samples of a token: "
                "choose a multiple."
            )
        usable = [songs[index] for index in self._songs]
        # The extremes stand for all, and the value that the message proposes then holds for all.
        for song in (max(usable, key=lambda song: song.samples), min(usable, key=lambda song: song.samples)):
            try:
                check_total_length(
                    song.samples,
                    labels.timing.min_duration_seconds,
                    labels.timing.max_duration_seconds,
                    self.dataset.sample_rate,
                )
            except UserError as error:
                raise _of_song(song, error) from None

    @staticmethod
    def _genres(labels: LabelSpec, song: Song) -> list[int]:
        try:
            return labels.table.genre_ids(song.genre, labels.max_genres)
        except UserError as error:
            raise _of_song(song, error) from None


def _of_song(song: Song, error: UserError) -> UserError:
    return UserError(f'"{song.title}" ({song.file_name}): {error}')


def mono(audio: Num[np.ndarray, "t channels"], left: np.float32 | float, out: Float[np.ndarray, "t 1"]) -> None:
    """Writes audio of one or two channels, in the range of int16, to `out` as float32 in [-1, 1].

    Two channels become left · L + (1 - left) · R.
    """
    # A power of two, so that scaling the weights is scaling the samples.
    left, scale = np.float32(left), np.float32(2**-15)
    if audio.shape[1] == 1:
        np.multiply(audio, scale, out=out)
        return
    np.multiply(audio[:, :1], left * scale, out=out)
    out += audio[:, 1:] * ((np.float32(1) - left) * scale)
