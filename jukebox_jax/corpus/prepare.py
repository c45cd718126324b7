"""Music becomes a dataset folder: find, decode, decide, store. Read `prepare` from top to bottom.

Work in progress lies in a folder of its own (`.NAME.partial` beside the output): decoded pieces, then shards. Whatever
ends a run, the same command goes on from there and ends with the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from etils import epath

from jukebox_jax.corpus.parts import DecodeTask, Fingerprints, crashed, decode_piece, read_finding
from jukebox_jax.corpus.piece import Catalogue, Finding
from jukebox_jax.corpus.plan import Kept, Plan, PlanSettings, make_plan, title_of
from jukebox_jax.corpus.records import ShardTask, StoredSong, finish_dataset, plan_shards, upload_dataset, write_shard
from jukebox_jax.corpus.report import make_report, write_tables
from jukebox_jax.corpus.runners import Runner, local_runner
from jukebox_jax.corpus.song import SongSettings, check_settings
from jukebox_jax.corpus.sources.find import find_pieces
from jukebox_jax.errors import UserError
from jukebox_jax.files import folder_lock
from jukebox_jax.labels.ids import LabelTable
from jukebox_jax.pipeline.bandwidth import bandwidth_table, save_bandwidth
from jukebox_jax.pipeline.dataset import RECORD_SAMPLES, SPLITS, Dataset, Song, open_dataset
from jukebox_jax.remote import as_path, exists, file_sizes, is_remote

#: stage ("find", "decode", "store"), items done, items in all (0: not known), seconds of music so far.
Progress = Callable[[str, int, int, float], None]


@dataclass(frozen=True)
class PrepareSettings:
    """What is made of the sources; where the work is done does not matter to the bytes."""

    song: SongSettings = SongSettings()
    plan: PlanSettings = PlanSettings()


def prepare(
    sources: Sequence[os.PathLike | str] | os.PathLike | str,
    out: os.PathLike | str,
    settings: PrepareSettings = PrepareSettings(),
    *,
    labels: LabelTable | None = None,
    work: os.PathLike | str | None = None,
    decode_runner: Runner | None = None,
    store_runner: Runner | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Decodes, chooses, labels and stores the music of `sources` in the new folder `out`.

    A piece that cannot be used never ends the run: `report.json` has a verdict for every file. The same input gives
    the same bytes, whoever does the work.

    Args:
      sources: as `corpus.sources.find_pieces` takes them.
      out: a folder here or in a bucket; it must not exist, or be empty.
      labels: a table whose ids stay as they are; new names are added behind.
      work: where work in progress lies, by default beside `out` (in the current folder for an `out` in a bucket);
        it must be reachable by all workers.
      decode_runner, store_runner: who decodes, and who writes shards; by default this machine's cores, and this
        process.
      progress: called as work is done.

    Raises:
      UserError: sources without any usable piece, settings that cannot be, `out` exists or is being written.
      OSError: a full disk; what is done stays done.
    """
    sources = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    check_settings(settings.song)
    _check_apart(sources, out)
    tell = progress or (lambda *_: None)
    with _work_folder(out, work) as folder:
        catalogue = find_pieces(
            [os.fspath(source) for source in sources],
            data_dir=settings.song.data_dir,
            progress=lambda done, total: tell("find", done, total, 0.0),
        )
        tasks = [DecodeTask(piece, settings.song, os.fspath(folder / "parts")) for piece in catalogue.pieces]
        findings = _decode(tasks, decode_runner or local_runner(crashed=crashed), tell)
        plan = make_plan(catalogue.pieces, findings, settings.plan, labels, Fingerprints(tasks))
        _check_plan(plan, catalogue, findings, sources)
        dataset, shards = _plan_dataset(folder, out, plan, tasks, settings.song)
        _store(folder, shards, dataset.sample_rate, store_runner or local_runner(1), tell)
        with _tables_folder(folder, out) as tables:
            dataset = finish_dataset(tables, dataset, shards)
            save_bandwidth(tables, bandwidth_table(dataset))
            report = make_report(catalogue, findings, plan, settings, dataset.sample_rate)
            write_tables(tables, report, plan, dataset.sample_rate)
    return open_dataset(out)


# ---- Stages -----------------------------------------------------------------------------------------------------


def _decode(tasks: Sequence[DecodeTask], run: Runner, tell: Progress) -> list[Finding]:
    """The findings of all pieces, from the work folder where they are there already."""
    findings = {task.key: finding for task in tasks if (finding := read_finding(task)) is not None}
    seconds = sum((finding.samples / tasks[0].settings.sample_rate for finding in findings.values()), 0.0)
    done = sum(task.key in findings for task in tasks)
    tell("decode", done, len(tasks), seconds)
    for task in run(decode_piece, [task for task in tasks if task.key not in findings]):
        finding = read_finding(task)
        if finding is None:
            raise UserError(f"{task.work} lost a piece that was decoded: is the disk shared by all workers?")
        findings[task.key] = finding
        done, seconds = done + 1, seconds + finding.samples / task.settings.sample_rate
        tell("decode", done, len(tasks), seconds)
    return [findings[task.key] for task in tasks]


def _check_apart(sources: Sequence[os.PathLike | str], out: os.PathLike | str) -> None:
    """Raises a UserError if `out` lies in a source: its tables would speak of files that are not there."""
    for source in () if is_remote(out) else sources:
        folder = os.path.realpath(os.path.expanduser(source))
        if os.path.isdir(folder) and Path(os.path.realpath(out)).is_relative_to(folder):
            raise UserError(
                f"{out} lies in the source {source}, of which it would become a part: choose a folder outside."
            )


def _check_plan(plan: Plan, catalogue: Catalogue, findings: Sequence[Finding], sources: Sequence[object]) -> None:
    where = ", ".join(map(str, sources))
    if not plan.kept:
        first, why = catalogue.pieces[0].file_name, findings[0].verdict.rstrip(".")
        raise UserError(f"{where} holds no usable music ({len(findings)} refused; the first: {first} {why}).")
    if not any(kept.piece.split == "train" for kept in plan.kept):
        raise UserError(f'{where} has no piece for training: give some rows of the metadata the split "train".')


def _plan_dataset(
    folder: epath.Path, out: os.PathLike | str, plan: Plan, tasks: Sequence[DecodeTask], settings: SongSettings
) -> tuple[Dataset, list[ShardTask]]:
    """The dataset with its song table, and its shards: in a bucket where they will stay, else in the work folder."""
    header = Dataset(
        folder=as_path(out) if is_remote(out) else folder / "dataset",
        sample_rate=settings.sample_rate,
        channels=settings.channels or max(kept.finding.channels for kept in plan.kept),
        record_samples=RECORD_SAMPLES,
        fields={"audio": 1},
        splits={},
        labels=plan.labels,
        shards={},
        codec={},
    )
    parts = {task.piece.file_name: task for task in tasks}
    stored: dict[str, list[StoredSong]] = {split: [] for split in SPLITS}
    for kept in plan.kept:
        file = os.fspath(parts[kept.piece.file_name].samples_path)
        stored[kept.piece.split].append(StoredSong(_song(kept), {"audio": file}, kept.finding.channels))
    splits, shards = plan_shards(header.folder, header, stored)
    return dataclasses.replace(header, splits=splits), shards


def _store(folder: epath.Path, shards: Sequence[ShardTask], sample_rate: int, run: Runner, tell: Progress) -> None:
    """Writes the shards that are not there yet."""
    staged = as_path(shards[0].path).parent
    plan = hashlib.sha256(json.dumps([dataclasses.asdict(shard) for shard in shards]).encode()).hexdigest()
    note = folder / "plan"
    # Shards of an interrupted run stay only if the very same ones are to be written now.
    if not (note.exists() and note.read_text() == plan):
        for shard in staged.glob("music-*") if staged.exists() else ():
            shard.unlink()
        note.write_text(plan)
    staged.mkdir(parents=True, exist_ok=True)
    seconds = 0.0
    tell("store", 0, len(shards), seconds)
    for number, shard in enumerate(run(write_shard, shards), start=1):
        seconds += shard.records * RECORD_SAMPLES / sample_rate
        tell("store", number, len(shards), seconds)


@contextlib.contextmanager
def _tables_folder(folder: epath.Path, out: os.PathLike | str) -> Iterator[Path]:
    """Yields the folder for everything but shards, and then makes all of it appear as `out`."""
    if not is_remote(out):
        staged = Path(folder / "dataset")
        yield staged
        if Path(out).exists():
            Path(out).rmdir()
        os.replace(staged, out)
        return
    with tempfile.TemporaryDirectory() as tables:
        yield Path(tables)
        upload_dataset(Path(tables), out)


def _song(kept: Kept) -> Song:
    piece = kept.piece
    return Song(
        title=title_of(piece),
        artist=piece.artist,
        genre=piece.genre,
        lyrics=piece.lyrics,
        file_name=piece.file_name,
        samples=kept.finding.samples,
        first_record=0,
    )


# ---- Work folder ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _work_folder(out: os.PathLike | str, work: os.PathLike | str | None) -> Iterator[epath.Path]:
    """Yields the locked work folder. It goes when all is done, and stays where it saves work the next time."""
    target = as_path(out)
    if is_remote(out):
        exists(out)  # raises what is wrong with the bucket
    if work is None:
        work = Path.cwd() if is_remote(out) else Path(out).absolute().parent
    folder = as_path(work) / f".{target.name}.partial"
    if target.exists() and (not target.is_dir() or _holds_foreign_files(target, folder)):
        raise UserError(f"{out} already exists: remove it or choose another folder.")
    # A lock is a matter of one machine; what several of them write is safe to write twice.
    with contextlib.nullcontext() if is_remote(folder) else folder_lock(folder):
        parts = folder / "parts"
        parts.mkdir(parents=True, exist_ok=True)
        # What a killed run was in the middle of writing.
        for leftover in (*parts.glob(".*"), *(folder / "dataset").glob(".*")):
            leftover.unlink()
        try:
            yield folder
        except BaseException:
            if not any(size for name, size in file_sizes(parts).items() if name.endswith(".pcm")):
                folder.rmtree()
            raise
        folder.rmtree()


def _holds_foreign_files(target: epath.Path, work: epath.Path) -> bool:
    """Whether a folder holds anything; shards in a bucket are our own as long as the work folder is there."""
    ours = is_remote(target) and (work / "plan").exists()
    return any(not (ours and path.name.startswith("music-")) for path in target.iterdir())
