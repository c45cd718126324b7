"""Speech with known word times, guesses that do not listen, and the whole experiment at a small size."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from experiments.lyric_alignment import __main__ as program
from experiments.lyric_alignment import measure, models, speech
from jukebox_jax.api import Song
from jukebox_jax.errors import UserError
from jukebox_jax.labels.timed import TimedWord
from jukebox_jax.models.attention import Pattern

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


def voices() -> speech.Voices:
    """Words as constants, each of its own height and length, the same in every style."""
    words = {
        word: np.full(1200 + 10 * number, (1 + number) / 100, np.float32) for number, word in enumerate(speech.WORDS)
    }
    return dict.fromkeys(speech.STYLES, words)


def test_words_are_where_the_times_say():
    rng, made = np.random.default_rng(0), voices()
    clips = [speech.make_clip(made, models.CLIP_SAMPLES, models.HOP, rng) for _ in range(50)]
    for clip in clips:
        silent, total = clip.audio.copy(), 0
        for word in clip.words:
            start, end = round(word.start * speech.SAMPLE_RATE), round(word.end * speech.SAMPLE_RATE)
            assert start % models.HOP == 0
            np.testing.assert_array_equal(clip.audio[start:end], made[clip.style][word.text])
            silent[start:end] = 0
            total += end - start
        assert not silent.any()
        assert 0.3 < total / models.CLIP_SAMPLES < 0.75
        assert len(clip.lyrics) < models.LYRIC_TOKENS
        assert [word.start for word in clip.words] == sorted(word.start for word in clip.words)
        assert len({word.text for word in clip.words}) == len(clip.words)
    assert len({clip.words[0].text for clip in clips}) > 10
    assert len({clip.style for clip in clips}) == len(speech.STYLES)


def test_without_espeak_it_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt-get install espeak-ng"):
        speech.speak()
    assert program.main(["--work", str(tmp_path / "work")]) == 2
    assert "espeak-ng" in capsys.readouterr().err
    assert not (tmp_path / "work").exists() or not any((tmp_path / "work").iterdir())


@needs_espeak
def test_espeak_says_every_word():
    spoken = speech.speak()
    for style in spoken.values():
        assert tuple(style) == speech.WORDS
        for audio in style.values():
            assert 0.05 < len(audio) / speech.SAMPLE_RATE < 0.8
            assert np.abs(audio[[0, -1]]).min() > 0
            assert 0.05 < np.abs(audio).max() <= 1


def heard(*words: tuple[str, float]) -> measure.Heard:
    return measure.Heard(Song((), (), 1), tuple(TimedWord(text, start, start + 0.1) for text, start in words))


def test_guesses_that_do_not_listen():
    clip = heard(("ab", 1.0), ("c", 2.0), ("defg", 3.5))
    assert measure.linear_guess(clip) == pytest.approx([0, 3 / 9 * measure.SECONDS, 5 / 9 * measure.SECONDS])
    guess = measure.fitted_guess([heard(("x", 0.5), ("y", 1.0)), heard(("x", 1.5), ("y", 1.2)), clip])
    assert guess(heard(("p", 0.0), ("q", 0.0))) == [1.0, 1.1]
    assert guess(heard(("p", 0.0))) == [0.0]  # no such clip is known
    assert measure.start_errors([[1.5, 2.0, 3.0]], [clip]).tolist() == [0.5, 0.0, 0.5]


def test_the_prior_looks_at_the_lyrics():
    run = models.prior_run(models.Effort())
    assert Pattern.ENCODER in run.model.transformer.patterns
    assert run.model.n_ctx * models.HOP == models.CLIP_SAMPLES
    assert 3 <= measure.SECONDS <= 6


@pytest.mark.slow
@needs_espeak
def test_the_whole_experiment(tmp_path):
    sizes = ("--codec-steps", "30", "--prior-steps", "40", "--train-clips", "40", "--test-clips", "3")
    command = ["--work", str(tmp_path), *sizes]
    assert program.main(command) == 0
    figures = json.loads((tmp_path / "results.json").read_text())
    assert figures["clips"] == 3
    assert len(figures["heads"]) == 4
    scores = [head["score"] for head in figures["heads"]]
    assert scores == sorted(scores, reverse=True)
    assert figures["found"] == figures["heads"][0]
    assert 0.05 < figures["linear"]["median_seconds"] < 1
    assert (tmp_path / "alignment.png").stat().st_size > 1000
    losses = [json.loads(row) for row in (tmp_path / "model" / "level_0" / "metrics.jsonl").read_text().splitlines()]
    bits = [row["bits_per_token"] for row in losses if "bits_per_token" in row]
    assert bits[-1] < bits[0] - 1
    # What is done is not done again: the same command measures the same.
    assert program.main(command) == 0
    assert json.loads((tmp_path / "results.json").read_text()) == figures
