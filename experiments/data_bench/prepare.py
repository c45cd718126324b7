"""`prepare`: decoding one piece in one process, and a whole run from files to a dataset, for files of every kind.

The limit of a piece is what the libraries take alone: soundfile to decode it and, where the rate changes, soxr to
resample it. A whole run has none; it decodes with a process on every core.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

from experiments.data_bench.music import FORMATS, SAMPLE_RATE, write_file
from experiments.data_bench.row import Bench, Speed, measure
from jukebox_jax.audio.decode import BLOCK_FRAMES
from jukebox_jax.corpus.piece import Piece
from jukebox_jax.corpus.prepare import prepare
from jukebox_jax.corpus.song import SongSettings, decode_song
from jukebox_jax.pipeline.dataset import RecordReader

RATES = (44_100, 48_000)
PIECE_SECONDS = 60.0
WHOLE_SONGS = 8


def rows(bench: Bench) -> Iterator[Speed]:
    reader = RecordReader(bench.audio, "train")
    for rate in RATES:
        kind = f"{rate / 1000:g} kHz" + (f" to {SAMPLE_RATE / 1000:g}" if rate != SAMPLE_RATE else "")
        with tempfile.TemporaryDirectory(prefix="data_bench_") as folder:
            sound = reader.read_song(0, "audio")[: round(PIECE_SECONDS * rate)]
            for suffix in FORMATS:
                path = Path(folder) / f"piece{suffix}"
                write_file(path, sound, rate)
                yield _piece(bench, path, f"{suffix.removeprefix('.')}, {kind}", len(sound) / rate)
        with tempfile.TemporaryDirectory(prefix="data_bench_") as folder:
            source, seconds = Path(folder) / "music", 0.0
            source.mkdir()
            for song, suffix in zip(range(min(WHOLE_SONGS, len(reader.songs))), itertools.cycle(FORMATS), strict=False):
                sound = reader.read_song(song, "audio")
                write_file(source / f"song {song}{suffix}", sound, rate)
                seconds += len(sound) / rate
            yield _whole(bench, source, f"whole run, all of these, {kind}", seconds)


def _piece(bench: Bench, path: Path, what: str, seconds: float) -> Speed:
    def decode() -> None:
        finding = decode_song(Piece(path.name, str(path)), SongSettings(), lambda block: None)
        assert finding.usable, finding.verdict

    limit, _ = measure(lambda: _decode_alone(path), seconds, bench.repeats)
    return Speed("prepare", what, *measure(decode, seconds, bench.repeats), core_limit=limit)


def _decode_alone(path: Path) -> None:
    import soundfile
    import soxr

    with soundfile.SoundFile(path) as file:
        resampler = soxr.ResampleStream(file.samplerate, SAMPLE_RATE, file.channels, dtype="float32", quality="HQ")
        for block in file.blocks(BLOCK_FRAMES, dtype="float32", always_2d=True):
            if file.samplerate != SAMPLE_RATE:
                resampler.resample_chunk(block)


def _whole(bench: Bench, source: Path, what: str, seconds: float) -> Speed:
    runs = itertools.count()

    def run() -> None:
        prepare(source, source.with_name(f"dataset {next(runs)}"))

    return Speed("prepare", what, *measure(run, seconds, bench.repeats))
