"""The most memory that `prepare` and the stream hold, with a collection and with one ten times as large.

The collections are synthetic, or an hour of a folder of recordings and all of it. Every measurement is the peak of the
resident set of a process of its own (`ru_maxrss`); for the workers, of the largest of them.

`prepare` is looked at twice. Storing loads TensorFlow, which takes hundreds of megabytes, under which what came before
would not be seen; and loading it starts helpers, which count as children as large as their parent. So the peaks of
finding, decoding and deciding, and those of the workers, are read before anything is stored.
"""

from __future__ import annotations

import multiprocessing
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from experiments.data_bench.music import songs, write_file
from experiments.data_bench.row import Bench, Memory
from experiments.data_bench.stream import BATCH, CODEC_WINDOW

SMALL_HOURS, LARGE_HOURS = 0.2, 2.0
RECORDED_HOURS = 1.0  # of the folder of recordings
BATCHES = 500  # ten hours of windows


@dataclass(frozen=True)
class Peaks:
    """Of a run of `prepare`, in bytes: its largest worker, and itself before it stored and at the end."""

    hours: float
    worker: int
    decided: int
    stored: int


def rows(bench: Bench) -> Iterator[Memory]:
    with tempfile.TemporaryDirectory(prefix="data_bench_") as name:
        folder = Path(name)
        sources = [folder / "small", folder / "large"]
        if bench.recordings is None:
            for source, hours in zip(sources, (SMALL_HOURS, LARGE_HOURS), strict=True):
                _write_recordings(source, hours)
        else:
            sources[1] = bench.recordings
            _copy_recordings(bench.recordings, sources[0])
        datasets = [folder / "small dataset", folder / "large dataset"]
        # Forked by a server that holds nothing: the peak of a process that this one starts would begin with ours.
        context = multiprocessing.get_context("forkserver")
        with ProcessPoolExecutor(2, mp_context=context, max_tasks_per_child=1) as pool:
            small, large = pool.map(_prepare, sources, datasets)
            hours = small.hours, large.hours
            yield Memory("prepare", "a worker decodes", *hours, small.worker, large.worker)
            yield Memory("prepare", "finds and decides, before it stores", *hours, small.decided, large.decided)
            yield Memory("prepare", "to the end", *hours, small.stored, large.stored)
            peaks = pool.map(partial(_stream, BATCHES), datasets)
            yield Memory("stream", f"{BATCHES} batches of {BATCH} windows of the codec", *hours, *peaks)


def _prepare(source: Path, out: Path) -> Peaks:
    from jukebox_jax.corpus.prepare import prepare

    before_storing: list[int] = []

    def progress(stage: str, done: int, total: int, seconds: float) -> None:
        if stage == "store" and not before_storing:  # the workers have ended
            before_storing.extend((_peak(resource.RUSAGE_CHILDREN), _peak(resource.RUSAGE_SELF)))

    dataset = prepare(source, out, progress=progress)
    hours = sum(map(dataset.seconds, dataset.splits)) / 3600
    return Peaks(hours, *before_storing, _peak(resource.RUSAGE_SELF))


def _stream(batches: int, folder: Path) -> int:
    import itertools

    from jukebox_jax.pipeline.dataset import open_dataset
    from jukebox_jax.pipeline.stream import Stream

    dataset = open_dataset(folder)
    stream = Stream(dataset, "train", CODEC_WINDOW, batch_size=BATCH, blend=True)
    for _ in itertools.islice(stream.batches(0), batches):
        pass
    return _peak(resource.RUSAGE_SELF)


def _peak(who: int) -> int:
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _write_recordings(folder: Path, hours: float) -> None:
    folder.mkdir()
    for index, sound in enumerate(songs(hours)):
        write_file(folder / f"song {index}.flac", sound)


def _copy_recordings(source: Path, folder: Path) -> None:
    """Copies the first files that make up RECORDED_HOURS: links that lead out of a source are refused."""
    from jukebox_jax.audio.files import audio_info
    from jukebox_jax.corpus.sources.find import find_pieces

    seconds = 0.0
    for piece in find_pieces([str(source)]).pieces:
        if seconds >= RECORDED_HOURS * 3600:
            break
        copy = folder / Path(piece.file_name).name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(piece.path, copy)
        seconds += audio_info(copy).seconds
