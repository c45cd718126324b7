"""Drills of the verbs that turn files into datasets: they end with the same bytes, and leave nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.fault_drill.engine import Comparison, Drill
from experiments.fault_drill.hosts import verb
from jukebox_jax.pipeline.dataset import open_dataset

#: How both refuse to do again what is done.
_FINISHED = "already exists"


def prepare_drill(source: Path, *flags: object) -> Drill:
    """`jukebox-jax prepare` on a folder of music. Units are pieces, decoded or at least judged."""
    pieces = _music_files(source)
    command = ("prepare", source, "--out")

    def seen(folder: Path) -> int:
        if (folder / "out").exists():
            return pieces
        parts = files_in(folder / ".out.partial" / "parts")
        return sum(part.suffix == ".json" and not part.name.startswith(".") for part in parts)  # half-written ones do

    return Drill(
        name="prepare",
        what="the same bytes",
        starts=(lambda folder: [verb(*command, folder / "out", *flags)],),
        total=pieces,
        seen=seen,
        compare=compare_bytes,
        finished=_FINISHED,
        most_kills=pieces,
    )


def encode_drill(audio: Path, codec: Path) -> Drill:
    """`jukebox-jax encode` on a prepared dataset. Units are songs."""
    songs = sum(map(len, open_dataset(audio).splits.values()))
    command = ("encode", audio, "--checkpoint", codec, "--out")

    def seen(folder: Path) -> int:
        return songs if (folder / "out").exists() else len(files_in(folder / ".out.encoding" / "songs"))

    return Drill(
        name="encode",
        what="the same bytes",
        starts=(lambda folder: [verb(*command, folder / "out")],),
        total=songs,
        seen=seen,
        compare=compare_bytes,
        finished=_FINISHED,
        most_kills=songs,
    )


def embed_drill(music: Path, model: Path) -> Drill:
    """`jukebox-jax embed` on a folder of nothing but usable music. Units are files with an embedding."""
    files = _music_files(music)
    command = ("embed", music, "--model", model, "--out")

    def seen(folder: Path) -> int:
        return sum(not path.name.startswith(".") for path in (folder / "out").rglob("*.npz"))

    return Drill(
        name="embed",
        what="the same bytes",
        starts=(lambda folder: [verb(*command, folder / "out")],),
        total=files,
        seen=seen,
        compare=compare_bytes,
        most_kills=files,
    )


def sample_drill(model: Path | None, *flags: object, songs: int, windows: int) -> Drill:
    """`jukebox-jax sample` of three levels, of a model folder or the shipped model. Units are windows of songs.

    Args:
      windows: how many the command samples in all.
    """
    which = ("--demo",) if model is None else ("--model", model)
    command = ("sample", *which, "--n-samples", songs, *flags, "--out")

    def seen(folder: Path) -> int:
        return sum(not path.name.startswith(".") for path in (folder / "out").glob("sessions/*/level_*.npz"))

    return Drill(
        name="sample",
        what="the same bytes",
        starts=(lambda folder: [verb(*command, folder / "out")],),
        total=windows,
        seen=seen,
        compare=compare_bytes,
        most_kills=windows,
    )


def _music_files(folder: Path) -> int:
    return sum(path.is_file() and path.suffix in (".flac", ".ogg", ".mp3", ".wav") for path in folder.rglob("*"))


def files_in(folder: Path) -> Sequence[Path]:
    """What lies in a folder, which may vanish meanwhile."""
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def compare_bytes(whole: Path, killed: Path) -> Comparison:
    """The same files with the same bytes; the difference is the number of files that differ."""
    a, b = tree(whole), tree(killed)
    different = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
    problem = f"{different[0]} differs" if different else None
    return Comparison(len(different), "files", problem)
