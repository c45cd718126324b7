"""Speech whose word times are known exactly: single words by espeak-ng, put one after another with random silences."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from jukebox_jax.audio.files import read_audio, write_audio
from jukebox_jax.errors import UserError
from jukebox_jax.files import atomic_folder
from jukebox_jax.labels.timed import TimedWord

SAMPLE_RATE = 6000
WORDS = (
    *("stone", "blue", "dance", "moon", "kiss", "fire", "queen", "cloud", "jump", "snow"),
    *("apple", "tree", "red", "night", "go", "happy", "light", "bird", "under", "shoe"),
    *("yes", "heart", "rain", "bell", "wave", "dog", "echo", "path", "voice", "gold"),
)
#: How a clip is spoken: a voice of espeak-ng and words a minute.
STYLES = {"low": ("en-us+m3", 260), "high": ("en-us+f3", 320)}
METADATA, TIMES = "metadata.jsonl", "times.json"
_SILENCE = 0.01  # of a word's largest amplitude

Voices = dict[str, dict[str, Float32[np.ndarray, " _"]]]


@dataclass(frozen=True)
class Clip:
    """A clip, and when each of its words is spoken."""

    style: str
    audio: Float32[np.ndarray, " t"]
    words: tuple[TimedWord, ...]

    @property
    def lyrics(self) -> str:
        return " ".join(word.text for word in self.words)


def speak() -> Voices:
    """Every word in every style, without the silence around it.

    Raises:
      UserError: there is no espeak-ng.
    """
    if shutil.which("espeak-ng") is None:
        raise UserError("espeak-ng, which speaks the words, is missing: install it by `apt-get install espeak-ng`.")
    with tempfile.TemporaryDirectory() as folder:
        return {
            style: {word: _speak(word, voice, speed, Path(folder) / "word.wav") for word in WORDS}
            for style, (voice, speed) in STYLES.items()
        }


def _speak(word: str, voice: str, words_per_minute: int, path: Path) -> Float32[np.ndarray, " t"]:
    subprocess.run(["espeak-ng", "-v", voice, "-s", str(words_per_minute), "-w", path, word], check=True)
    audio = read_audio(path, SAMPLE_RATE).mean(axis=1)
    loud = np.flatnonzero(np.abs(audio) > _SILENCE * np.abs(audio).max())
    return audio[loud[0] : loud[-1] + 1].astype(np.float32)


def make_clip(voices: Voices, samples: int, hop_samples: int, rng: np.random.Generator) -> Clip:
    """A few different words in random order, the silence divided among them by a stick broken at random places.

    Words begin at multiples of `hop_samples`, so that a word sounds the same to the codec wherever it stands: what is
    to be learnt here is which word comes when, not how a word sounds.
    """
    style = str(rng.choice(list(voices)))
    words, used = [], 0
    most = rng.uniform(0.45, 0.7) * samples
    for word in rng.permutation(WORDS).tolist():
        length = -(-len(voices[style][word]) // hop_samples) * hop_samples
        if used + length > most:
            break
        words.append(word)
        used += length
    # Shares far below one: words in phrases, with a few long silences between.
    silences = rng.dirichlet(np.full(len(words) + 1, 0.12)) * (samples - used) // hop_samples
    audio, start, timed = np.zeros(samples, np.float32), 0, []
    for word, silence in zip(words, silences[:-1].astype(int).tolist(), strict=True):
        spoken = voices[style][word]
        start += silence * hop_samples
        audio[start : start + len(spoken)] = spoken
        timed.append(TimedWord(word, start / SAMPLE_RATE, (start + len(spoken)) / SAMPLE_RATE))
        start += -(-len(spoken) // hop_samples) * hop_samples
    return Clip(style, audio, tuple(timed))


def write_clips(folder: Path, clips: dict[str, int], samples: int, hop_samples: int, seed: int) -> None:
    """Writes so many clips of each split as a new folder that `prepare` reads, with their word times beside."""
    voices, rng = speak(), np.random.default_rng(seed)
    with atomic_folder(folder) as unfinished:
        rows, times = [], {}
        for split, count in clips.items():
            for number in range(count):
                clip, name = make_clip(voices, samples, hop_samples, rng), f"{split}-{number:05d}.wav"
                write_audio(unfinished / name, clip.audio, SAMPLE_RATE)
                fields = {"title": name, "artist": clip.style, "genre": "speech", "lyrics": clip.lyrics, "split": split}
                rows.append({"file_name": name, **fields})
                times[name] = [asdict(word) for word in clip.words]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (unfinished / METADATA).write_text(lines, encoding="utf-8")
        (unfinished / TIMES).write_text(json.dumps(times), encoding="utf-8")


def read_times(folder: Path) -> dict[str, tuple[TimedWord, ...]]:
    """The word times of every clip by its title."""
    stored = json.loads((folder / TIMES).read_text(encoding="utf-8"))
    return {name: tuple(TimedWord(**word) for word in words) for name, words in stored.items()}
