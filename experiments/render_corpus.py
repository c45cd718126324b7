"""Renders public-domain scores into labelled recordings: the embedded demo corpus, or hours of music.

    python -m experiments.render_corpus --out DIR                 # the demo's eighteen pieces
    python -m experiments.render_corpus --out DIR --hours 20      # a larger corpus; run again to resume or extend it

Scores come from music21's bundled corpus, the sound from FluidSynth and a General MIDI soundfont (MIT-licensed
FluidR3; Debian: `apt-get install fluidsynth fluid-soundfont-gm`). Using the project needs neither: for this script
`pip install "jukebox-jax[corpus]"`.

DIR receives Ogg Vorbis files (mono, 44.1 kHz) and `metadata.jsonl`, one row a file: file_name, title, artist, genre,
lyrics, split, seconds, source_score and the licences of composition, encoding and recording. The choice of pieces and
every parameter is deterministic; the split is by title, never inside a piece.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import string
import subprocess
import sys
from pathlib import Path

from experiments import demo_pieces
from experiments.catalogue import catalogue, split_of
from experiments.score_to_audio import (
    SAMPLE_RATE,
    excerpt_lyrics,
    finish,
    midi_bytes,
    parse_score,
    part_notes,
    score_tempo,
    synthesize,
    write_vorbis,
)
from experiments.scores import Piece, Voice
from jukebox_jax.errors import UserError
from jukebox_jax.files import atomic_file, atomic_folder, folder_lock

DEFAULT_SOUNDFONT = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
DEMO_COMPRESSION = 0.9  # keeps the band up to 15 kHz, and seven minutes under 3 MB
CORPUS_COMPRESSION = 0.6


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is the same for every piece of a run."""

    out: Path
    soundfont: Path
    compression_level: float


def render(piece: Piece, settings: Settings) -> dict:
    """Renders one piece to `settings.out/NAME.ogg` and returns its metadata row.

    Raises:
      ValueError: the excerpt has no notes or makes no sound. music21 raises various errors for scores it cannot read.
    """
    score = parse_score(piece)
    tempo = score_tempo(score, piece)
    end = piece.end_quarters if piece.end_quarters is not None else float(score.duration.quarterLength)
    end = min(end, piece.start_quarters + piece.max_seconds * tempo / 60)
    voices = piece.voices or tuple(
        Voice(part, piece.programs[part % len(piece.programs)]) for part in range(len(score.parts))
    )
    played = [(voice.program, part_notes(score, piece, voice, tempo, end)) for voice in voices]
    notes = [note for _, voice_notes in played for note in voice_notes]
    if not notes:
        raise ValueError("no notes in the excerpt")
    music_seconds = max(note.start + note.length for note in notes) * 60 / tempo
    audio = finish(synthesize(midi_bytes(played, tempo), settings.soundfont), music_seconds)
    file_name = f"{piece.name}.ogg"
    with atomic_file(settings.out / file_name) as temporary:
        write_vorbis(temporary, audio, settings.compression_level)
    title = piece.title or _score_title(score, piece)
    return {
        "file_name": file_name,
        "title": title,
        "artist": piece.artist or _score_artist(score, piece),
        "genre": piece.genre,
        "lyrics": excerpt_lyrics(score, piece, end),
        "split": piece.split or split_of(title),
        "seconds": round(len(audio) / SAMPLE_RATE, 3),
        "source_score": f"music21 corpus: {piece.source}" + ("" if piece.number is None else f", no. {piece.number}"),
        "composition_licence": piece.composition_licence,
        "encoding_licence": _encoding_licence(score, piece),
        "recording_licence": piece.recording_licence,
    }


def _encoding_licence(score, piece: Piece) -> str:
    notice = " ".join((score.metadata.copyright or "").split())
    # "Copyright (c)" alone, which editors fill in, says nothing.
    if len(notice) < 16 or notice in piece.encoding_licence:
        return piece.encoding_licence
    return f'The score file says: "{notice}"'


def _score_title(score, piece: Piece) -> str:
    for title in (score.metadata.title, score.metadata.movementName):
        if title and not title.endswith((".xml", ".mxl", ".abc")):
            title = " ".join(title.split())
            return string.capwords(title) if title.isupper() else title
    stem = Path(piece.source).stem.replace("_", " ")
    return stem[:1].upper() + stem[1:]


def _score_artist(score, piece: Piece) -> str:
    """The composer's name without what may follow it: opus, dates, editor, a manuscript's shelf mark."""
    composer = (score.metadata.composer or "").split("\n")[0]
    if piece.source.endswith(".abc"):  # for tunes this field names a country or a publisher
        return "Turlough O'Carolan" if "carolan" in composer.lower() else "Traditional"
    name = re.split(r"[(?]| [A-Z]+-| \d", composer)[0].strip()
    return name if name and not name.lower().startswith("anonymous") else "Anonymous"


# ---- The demo corpus ---------------------------------------------------------------------------------------------


def render_demo(settings: Settings) -> None:
    """All of `demo_pieces.PIECES`, or nothing: the folder appears when it is complete."""
    with atomic_folder(settings.out) as folder:
        rows = []
        for piece in _progress(demo_pieces.PIECES):
            rows.append(render(piece, dataclasses.replace(settings, out=folder)))
        _append(folder / "metadata.jsonl", *rows)
    for row in rows:
        print(f"{row['seconds']:5.1f} s  {row['split']:10}  {row['artist']:24}  {row['genre']:14}  {row['title']}")
    _report(rows, settings.out)


# ---- Hours of music ----------------------------------------------------------------------------------------------


def render_hours(settings: Settings, hours: float, workers: int) -> None:
    """Renders the catalogue in its order until `hours` are there; what an earlier run finished is kept.

    A piece counts once its row stands in `metadata.jsonl`; scores that cannot be read go to `skipped.jsonl`, so that
    no run tries them again. Workers render ahead; what they made beyond the goal is removed.
    """
    from music21 import common

    with folder_lock(settings.out):
        rows = _rows(settings.out / "metadata.jsonl")
        skipped = _rows(settings.out / "skipped.jsonl")
        done = {row["file_name"] for row in rows} | {row["file_name"] for row in skipped}
        seconds = sum(row["seconds"] for row in rows)
        pieces = catalogue(common.getCorpusFilePath())
        todo = [(piece, settings) for piece in pieces if f"{piece.name}.ogg" not in done]
        goal = hours * 3600
        # spawn: music21 starts threads, and a forked child of a threaded process may hang.
        with (
            _progress(total=round(goal), initial=min(round(seconds), round(goal)), unit=" s") as bar,
            multiprocessing.get_context("spawn").Pool(workers) as pool,
        ):
            for row in pool.imap(_render_or_reason, todo) if seconds < goal else ():
                if "reason" in row:
                    _append(settings.out / "skipped.jsonl", row)
                    continue
                _append(settings.out / "metadata.jsonl", row)
                rows.append(row)
                seconds += row["seconds"]
                bar.update(min(round(row["seconds"]), bar.total - bar.n))
                if seconds >= goal:
                    break
            pool.terminate()
            pool.join()
        named = {row["file_name"] for row in rows}
        for path in settings.out.glob("*.ogg"):
            if path.name not in named:
                path.unlink()
    _report(rows, settings.out)
    if seconds < goal:
        raise UserError(f"the catalogue ends after {seconds / 3600:.1f} hours: ask for no more, or add collections.")


def _render_or_reason(task: tuple[Piece, Settings]) -> dict:
    """A metadata row, or {"file_name", "reason"}. Runs in a worker."""
    from music21.exceptions21 import Music21Exception

    piece, settings = task
    try:
        return render(piece, settings)
    # What music21's readers raise on a score that they cannot read, besides their own errors.
    except (Music21Exception, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        return {"file_name": f"{piece.name}.ogg", "reason": f"{type(error).__name__}: {error}"[:200]}


def _rows(path: Path) -> list[dict]:
    """The rows of a JSON-lines file; a last line cut short by a kill is removed from the file."""
    if not path.exists():
        return []
    whole, _, torn = path.read_bytes().rpartition(b"\n")
    if torn:
        os.truncate(path, len(whole) + 1 if whole else 0)
    return [json.loads(line) for line in whole.decode("utf-8").splitlines()]


def _append(path: Path, *rows: dict) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        file.flush()
        os.fsync(file.fileno())


def _progress(items=None, **options):
    from tqdm import tqdm

    return tqdm(items, desc="rendering", **options)


def _report(rows: list[dict], out: Path) -> None:
    for split in ("train", "validation"):
        chosen = [row for row in rows if row["split"] == split]
        print(f"{split}: {len(chosen)} pieces, {sum(row['seconds'] for row in chosen) / 60:.1f} minutes")
    size = sum((out / row["file_name"]).stat().st_size for row in rows)
    print(f"{out}: {size / 1e6:.2f} MB, {len({row['artist'] for row in rows})} artists")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.render_corpus",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--hours", type=float, help="render at least this much music; without it, the demo's pieces")
    parser.add_argument("--soundfont", type=Path, default=DEFAULT_SOUNDFONT, help="a General MIDI .sf2 file")
    parser.add_argument("--compression-level", type=float, help="Vorbis: 0 (largest) to 1 (default: 0.9 demo, 0.6)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes, with --hours")
    options = parser.parse_args(arguments)
    compression = options.compression_level
    if compression is None:
        compression = DEMO_COMPRESSION if options.hours is None else CORPUS_COMPRESSION
    try:
        if options.hours is not None and options.hours <= 0:
            raise UserError(f"--hours is {options.hours}: give a positive number.")
        if not 0 <= compression <= 1:
            raise UserError(f"--compression-level is {compression}: give a number from 0 to 1.")
        if options.workers < 1:
            raise UserError(f"--workers is {options.workers}: give at least 1.")
        if shutil.which("fluidsynth") is None:
            raise UserError("the program fluidsynth is not installed: apt-get install fluidsynth.")
        if not options.soundfont.is_file():
            raise UserError(f"no soundfont {options.soundfont}: apt-get install fluid-soundfont-gm, or --soundfont.")
        try:
            import music21  # noqa: F401
        except ModuleNotFoundError:
            raise UserError('music21 is not installed: pip install "jukebox-jax[corpus]".') from None
        settings = Settings(options.out, options.soundfont, compression)
        if options.hours is None:
            render_demo(settings)
        else:
            render_hours(settings, options.hours, options.workers)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"error: fluidsynth failed: {error.stderr.decode(errors='replace').strip()}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
