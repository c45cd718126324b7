"""`jukebox-jax prepare`: music becomes an audio dataset."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Iterator

from jukebox_jax.cli import arguments

DESCRIPTION = """Turn music into a dataset that training reads.

SOURCE is a folder, a glob, an audio file, a manifest (*.jsonl, *.jsonl.gz) or tfds:NAME. Titles, artists, genres and
lyrics come from metadata.csv, .jsonl or .parquet, manifests, sidecar files (.json, .lrc, .txt), tags and folder names;
`jukebox-jax inspect SOURCE` shows what is found, and writes nothing."""
EXAMPLE = "  jukebox-jax prepare my-music --out data/audio"
IF_INTERRUPTED = "The same command goes on from here; work in progress is kept beside the dataset."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", nargs="+", help="music: folders, globs, manifests, tfds:NAME")
    parser.add_argument("--out", metavar="DATASET", required=True, help="dataset folder to write, here or in a bucket")
    add_settings(parser)
    work = parser.add_argument_group("where the work is done (it does not change the result)")
    work.add_argument("--workers", metavar="N", type=arguments.count, help="processes that decode (one for each core)")
    work.add_argument("--work", metavar="FOLDER", help="for work in progress (beside DATASET)")
    work.add_argument(
        "--beam",
        metavar="FLAGS",
        nargs="?",
        const="",
        help="decode and store on Apache Beam, with its flags in one word: --beam='--runner=DataflowRunner …'",
    )


def add_settings(parser: argparse.ArgumentParser) -> None:
    """What decides the dataset's contents; `inspect` takes the same."""
    sound = parser.add_argument_group("sound")
    sound.add_argument(
        "--sample-rate", metavar="HZ", type=arguments.count, default=44_100, help="rate to store the music at (44100)"
    )
    sound.add_argument(
        "--channels", type=int, choices=(1, 2), help="1 for mono, 2 for stereo (stereo unless all files are mono)"
    )
    sound.add_argument(
        "--min-seconds", metavar="S", type=arguments.number, default=1.0, help="leave out what is shorter (1)"
    )
    sound.add_argument("--soundfont", metavar="SF2", help="renders MIDI files (.mid)")
    sound.add_argument("--data-dir", metavar="FOLDER", help="where the datasets of tfds:NAME lie")
    choice = parser.add_argument_group("choice and labels")
    choice.add_argument(
        "--split-by",
        choices=("song", "artist"),
        default="song",
        help="what is never divided between training and validation (song)",
    )
    choice.add_argument(
        "--validation-share",
        metavar="PART",
        type=float,
        default=0.1,
        help="part of the music without an official split that is held out (0.1)",
    )
    choice.add_argument(
        "--keep-near-duplicates", action="store_true", help="keep other encodings of a recording, not only exact copies"
    )
    choice.add_argument(
        "--min-label-songs",
        metavar="N",
        type=arguments.count,
        default=1,
        help="artists and genres with fewer songs become unknown (1)",
    )
    choice.add_argument(
        "--labels",
        metavar="TABLE",
        type=arguments.local_path,
        help="labels.json of an earlier dataset (or its folder) whose ids stay; new names are added behind",
    )


def settings_of(args: argparse.Namespace):
    """The settings, and the table of labels to extend or None."""
    from jukebox_jax.corpus.plan import PlanSettings
    from jukebox_jax.corpus.prepare import PrepareSettings
    from jukebox_jax.corpus.song import SongSettings
    from jukebox_jax.labels.ids import LabelTable

    settings = PrepareSettings(
        song=SongSettings(
            sample_rate=args.sample_rate,
            channels=args.channels,
            min_seconds=args.min_seconds,
            soundfont=args.soundfont,
            data_dir=args.data_dir,
        ),
        plan=PlanSettings(
            split_by=args.split_by,
            validation_share=args.validation_share,
            near_duplicates=not args.keep_near_duplicates,
            min_label_songs=args.min_label_songs,
        ),
    )
    if args.labels is None:
        return settings, None
    return settings, LabelTable.load(args.labels / "labels.json" if args.labels.is_dir() else args.labels)


def run(args: argparse.Namespace) -> None:
    import json

    from jukebox_jax.corpus.parts import crashed
    from jukebox_jax.corpus.prepare import prepare
    from jukebox_jax.corpus.report import summary
    from jukebox_jax.corpus.runners import beam_runner, local_runner
    from jukebox_jax.remote import as_path

    settings, labels = settings_of(args)
    if args.beam is not None:
        decode = store = beam_runner(shlex.split(args.beam))
    else:
        decode, store = local_runner(args.workers, crashed), local_runner(1)
    with quiet_decoders(), ProgressBars() as bars:
        prepare(
            args.source,
            args.out,
            settings,
            labels=labels,
            work=args.work,
            decode_runner=decode,
            store_runner=store,
            progress=bars,
        )
    print(summary(json.loads((as_path(args.out) / "report.json").read_text())))
    print(f"dataset: {args.out}")


@contextlib.contextmanager
def quiet_decoders() -> Iterator[None]:
    """Keeps what C libraries write past Python, such as libmpg123's notes on odd frames, out of the bars.

    What becomes of each file stands in its verdict.
    """
    ours, screen = sys.stderr, os.dup(2)
    silence = os.open(os.devnull, os.O_WRONLY)
    ours.flush()
    os.dup2(silence, 2)
    try:
        if ours is sys.__stderr__:
            with open(
                screen, "w", buffering=1, encoding=ours.encoding, errors=ours.errors, closefd=False
            ) as sys.stderr:
                yield
        else:  # a notebook's, or a test's
            yield
    finally:
        sys.stderr = ours
        os.dup2(screen, 2)
        os.close(screen)
        os.close(silence)


class ProgressBars:
    """A bar on stderr for each stage, with the seconds of music that are done and how much faster than real time."""

    def __init__(self) -> None:
        self._stage, self._bar, self._first_seconds = "", None, 0.0

    def __call__(self, stage: str, done: int, total: int, seconds: float) -> None:
        from tqdm import tqdm

        if stage != self._stage:
            self._close()
            unit = {"find": "file", "decode": "piece", "store": "shard"}[stage]
            # Delayed, so that a refusal stays one line. What an earlier run did says nothing about this one's rate.
            self._bar = tqdm(desc=stage, unit=unit, initial=done, total=total or None, file=sys.stderr, delay=0.5)
            self._stage, self._first_seconds = stage, seconds
        bar = self._bar
        bar.total = total or None
        if seconds > self._first_seconds:
            speed = (seconds - self._first_seconds) / max(bar.format_dict["elapsed"], 1e-3)
            bar.set_postfix_str(f"{seconds / 3600:.2f} h of music, {speed:.0f}× real time", refresh=False)
        bar.update(done - bar.n)

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
