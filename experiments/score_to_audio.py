"""From a score of music21's corpus to sound: notes, MIDI, FluidSynth, level, Ogg Vorbis.

music21 only reads the scores. Notes, tempo and instruments go to a MIDI file written here, because music21's own
export refuses some of these scores (odd repeats, tuplets finer than its tick) and this way every choice is visible.
"""

from __future__ import annotations

import bisect
import dataclasses
import struct
import subprocess
import tempfile
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Float

from experiments.scores import CHORDS, NO_LYRICS, Piece, Voice

SAMPLE_RATE = 44_100
TARGET_RMS = 0.1
PEAK_LIMIT = 0.85  # Vorbis overshoots a little: this keeps the decoded peak under 1
RELEASE_SECONDS = 0.8  # kept after the last note: its release and some reverb
FADE_SECONDS = 0.5
GRACE_SECONDS = 0.08
BLOCK_FRAMES = 65_536  # libsndfile's Vorbis writer crashes on long single writes
TICKS_PER_QUARTER = 480


@dataclasses.dataclass(frozen=True)
class Note:
    """A sounding note; start and length in quarter notes from the excerpt's start."""

    start: float
    length: float
    pitch: int
    velocity: int


# ---- Scores to notes ---------------------------------------------------------------------------------------------


def parse_score(piece: Piece):
    """The music21 score of `piece`, at sounding pitch."""
    from music21 import corpus

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        score = corpus.parse(piece.source, number=piece.number)
        return score.toSoundingPitch()


def measure_shifts(score) -> list[tuple[list[float], list[float]]]:
    """Per part: its measures' offsets, and what to add to a note's offset there so that all parts keep together.

    Some files have a measure that is longer in one part than in the others, after which that part would lag for the
    rest of the piece. A measure lasts as long as its shortest part says.
    """
    offsets = [[float(m.offset) for m in part.getElementsByClass("Measure")] for part in score.parts]
    if not offsets or len({len(part) for part in offsets}) != 1 or not offsets[0]:
        return [([0.0], [0.0]) for _ in offsets]
    grid = [0.0]
    for index in range(1, len(offsets[0])):
        grid.append(grid[-1] + min(part[index] - part[index - 1] for part in offsets))
    return [(part, [common - own for common, own in zip(grid, part, strict=True)]) for part in offsets]


def part_notes(score, piece: Piece, voice: Voice, tempo: float, end: float) -> list[Note]:
    """The notes of one voice inside the excerpt [piece.start_quarters, end), cut at its end."""
    from music21 import dynamics, harmony

    if voice.part == CHORDS:
        harmony.realizeChordSymbolDurations(score)
        elements = list(score.flatten().getElementsByClass(harmony.ChordSymbol))
        marks, measures, shifts = [], [0.0], [0.0]
    else:
        part = score.parts[voice.part].stripTies().flatten()
        # ABC tunes may carry chord symbols among the notes.
        elements = [n for n in part.notes if not isinstance(n, harmony.ChordSymbol)]
        marks = [(float(d.offset), d.volumeScalar) for d in part.getElementsByClass(dynamics.Dynamic)]
        measures, shifts = measure_shifts(score)[voice.part]
    notes = []
    graces: list = []
    grace_length = GRACE_SECONDS * tempo / 60
    for element in elements:
        if element.duration.isGrace:
            graces.append(element)
            continue
        offset, length = float(element.offset), float(element.quarterLength)
        start = offset + shifts[max(bisect.bisect_right(measures, offset) - 1, 0)]
        loudness = next((scalar for marked, scalar in reversed(marks) if marked <= offset), None)
        accent = 8 * float(element.beatStrength if voice.part != CHORDS else 0.5)
        velocity = int(np.clip((60 + 40 * (0.6 if loudness is None else loudness) + accent) * voice.level, 1, 127))
        sounding = [(start, length, element)]
        # Grace notes sound just before the note they decorate.
        sounding += [(start - (len(graces) - i) * grace_length, grace_length, g) for i, g in enumerate(graces)]
        graces = []
        if not piece.start_quarters <= start < end:
            continue
        for begin, duration, source in sounding:
            begin = max(begin, piece.start_quarters)
            duration = min(duration, end - begin)
            for pitch in source.pitches:
                number = pitch.midi + voice.transpose + piece.transpose
                if duration > 0 and 0 <= number <= 127:
                    notes.append(Note(begin - piece.start_quarters, duration, number, velocity))
    return notes


def excerpt_lyrics(score, piece: Piece, end: float) -> str:
    """The whole words sung in the excerpt: one verse of one part, its syllables joined; "" if there are none."""
    parts = list(score.parts)
    if piece.lyric_part == NO_LYRICS:
        return ""
    chosen = parts if piece.lyric_part is None else [parts[piece.lyric_part]]
    for part in chosen:
        words, word, whole = [], "", True
        for note in part.flatten().notes:
            if not piece.start_quarters <= note.offset < end:
                continue
            for lyric in (lyric for lyric in note.lyrics if lyric.number == piece.verse and lyric.text):
                if lyric.syllabic in ("begin", "single", None):
                    word, whole = "", True
                elif not word:
                    whole = False  # the excerpt starts inside this word
                word += lyric.text.strip()
                if lyric.syllabic in ("end", "single", None):
                    words += [word] if whole else []
                    word = ""
        # U+035C joins two vowels on one note; typographic apostrophes are outside the lyric vocabulary.
        text = " ".join(" ".join(words).replace("\u035c", " ").replace("\u2019", "'").split())
        if text:
            return text
    return ""


def score_tempo(score, piece: Piece) -> float:
    """Quarter notes per minute: the piece's, else the score's first metronome mark, else the piece's default."""
    from music21 import tempo

    chosen = piece.tempo
    for mark in score.recurse().getElementsByClass(tempo.MetronomeMark):
        if chosen is None and mark.number:
            chosen = mark.getQuarterBPM()
    return float(np.clip((chosen or piece.default_tempo) * piece.tempo_factor, 30, 260))


# ---- Notes to sound ----------------------------------------------------------------------------------------------


def _variable_length(value: int) -> bytes:
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F | 0x80)
    return bytes(reversed(groups))


def midi_bytes(voices: list[tuple[int, list[Note]]], tempo: float) -> bytes:
    """A type-0 MIDI file: one channel a voice (program, notes), one tempo (quarter notes per minute)."""
    channels = [c for c in range(16) if c != 9]  # channel 9 is percussion
    events: list[tuple[int, int, bytes]] = [(0, 0, b"\xff\x51\x03" + int(60e6 / tempo).to_bytes(3, "big"))]
    for index, (program, notes) in enumerate(voices):
        channel = channels[index % len(channels)]
        events.append((0, 1, bytes([0xC0 | channel, program])))
        for note in notes:
            on = round(note.start * TICKS_PER_QUARTER)
            off = max(on + 1, round((note.start + note.length) * TICKS_PER_QUARTER) - 4)
            events.append((on, 3, bytes([0x90 | channel, note.pitch, note.velocity])))
            events.append((off, 2, bytes([0x80 | channel, note.pitch, 0])))
    events.sort(key=lambda event: event[:2])
    track, now = bytearray(), 0
    for tick, _, message in events:
        track += _variable_length(tick - now) + message
        now = tick
    track += b"\x00\xff\x2f\x00"
    return struct.pack(">4sIHHH4sI", b"MThd", 6, 0, 1, TICKS_PER_QUARTER, b"MTrk", len(track)) + bytes(track)


def synthesize(midi: bytes, soundfont: Path) -> Float[np.ndarray, " t"]:
    """float32 (t,) mono at 44.1 kHz, by the `fluidsynth` program with its reverb and without chorus."""
    import soundfile

    with tempfile.TemporaryDirectory() as folder:
        score, wav = Path(folder, "score.mid"), Path(folder, "score.wav")
        score.write_bytes(midi)
        command = ["fluidsynth", "-n", "-i", "-q", "-C", "0", "-g", "0.3", "-r", str(SAMPLE_RATE), "-T", "wav"]
        command += ["-O", "float", "-F", str(wav), str(soundfont), str(score)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        stereo, rate = soundfile.read(wav, dtype="float32", always_2d=True)
    if rate != SAMPLE_RATE:
        raise RuntimeError(f"fluidsynth wrote {rate} Hz")
    return stereo.mean(axis=1)


def finish(audio: Float[np.ndarray, " t"], music_seconds: float) -> Float[np.ndarray, " t"]:
    """Trims leading silence, fades out after the last note's release, and sets the level (RMS 0.1, no clipping)."""
    peak = np.abs(audio).max()
    if peak == 0:
        raise ValueError("the rendering is silent")
    first = int(np.argmax(np.abs(audio) > 0.003 * peak))
    audio = audio[first : round((music_seconds + RELEASE_SECONDS) * SAMPLE_RATE)].astype(np.float64)
    audio -= audio.mean()
    fade_in, fade_out = round(0.002 * SAMPLE_RATE), min(round(FADE_SECONDS * SAMPLE_RATE), len(audio))
    audio[:fade_in] *= np.linspace(0, 1, fade_in)
    audio[-fade_out:] *= np.cos(np.linspace(0, np.pi / 2, fade_out)) ** 2
    gain = min(TARGET_RMS / np.sqrt(np.mean(audio**2)), PEAK_LIMIT / np.abs(audio).max())
    return (audio * gain).astype(np.float32)


def write_vorbis(path: Path, audio: Float[np.ndarray, " t"], compression_level: float) -> None:
    """Ogg Vorbis, mono, in blocks; `compression_level` from 0 (largest, best) to 1."""
    import soundfile

    with soundfile.SoundFile(
        path, "w", SAMPLE_RATE, 1, format="OGG", subtype="VORBIS", compression_level=compression_level
    ) as file:
        for start in range(0, len(audio), BLOCK_FRAMES):
            file.write(audio[start : start + BLOCK_FRAMES])
