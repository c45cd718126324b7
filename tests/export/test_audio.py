"""Songs as files: every format, loudness, peaks as they are played, fades, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jukebox_jax.errors import UserError
from jukebox_jax.export import audio
from jukebox_jax.export.audio import Finish, render, treated, treatments
from jukebox_jax.export.encoding import FORMATS, decode, encode, format_of
from jukebox_jax.export.loudness import integrated_loudness, true_peak

RATE = 44_100


def music(seconds: float = 3.0, rate: int = RATE) -> np.ndarray:
    """Three notes that swell, with a click every half second; peaks at 0.5."""
    t = np.arange(int(seconds * rate)) / rate
    notes = sum(np.sin(2 * np.pi * f * t) * (0.6 + 0.4 * np.sin(2 * np.pi * t)) for f in (220, 277, 440))
    clicks = np.random.default_rng(0).normal(size=len(t)) * np.exp(-(t % 0.5) * 60)
    sound = notes + 0.5 * clicks
    return (0.5 * sound / np.abs(sound).max()).astype(np.float32)


def nasty() -> np.ndarray:
    """Full-scale noise, a square wave, and a tone that peaks 3 dB higher between its samples."""
    t = np.arange(RATE)
    noise = np.sign(np.random.default_rng(1).normal(size=RATE))
    square = np.sign(np.sin(2 * np.pi * 997 * t / RATE + 0.1))
    between = np.sign(np.sin(2 * np.pi * t / 4 + np.pi / 4))
    return np.concatenate([noise, square, between]).astype(np.float32)


def played(rendered: audio.Rendered) -> tuple[np.ndarray, int]:
    return decode(rendered.data)


def lag(a: np.ndarray, b: np.ndarray, most: int = 200) -> int:
    """By how many samples b comes after a."""
    inner = slice(5000, -5000)
    return max(range(-most, most + 1), key=lambda shift: float(np.dot(a[inner], np.roll(b, -shift)[inner])))


# ---- Formats ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_plays_the_same_sound_in_step(name):
    sound = music()
    rendered = render(sound, RATE, FORMATS[name])
    heard, rate = played(rendered)
    if name == "opus":
        assert rate == 48_000
        assert rendered.remarks == ("opus does not take 44100 Hz: resampled to 48000 Hz.",)
        sound, _ = treated(sound, RATE, rendered.treatment)
        sound = sound[:, 0]
    else:
        assert (rate, rendered.remarks) == (RATE, ())
    assert heard.shape == (len(sound), 1)
    assert lag(sound, heard[:, 0]) == 0
    noise = np.mean((heard[:, 0] - sound) ** 2) / np.mean(sound**2)
    assert 10 * math.log10(noise) < (-14 if FORMATS[name].lossy else -75)
    assert rendered.data == render(music(), RATE, FORMATS[name]).data


@pytest.mark.parametrize("name", FORMATS)
def test_two_channels_stay_two(name):
    left = music(1.0)
    heard, rate = played(render(np.stack([left, 0.25 * left], axis=1), RATE, FORMATS[name]))
    assert heard.shape == (rate, 2)
    assert np.std(heard[:, 0]) > 3 * np.std(heard[:, 1])


def test_plain_lossless_files_hold_the_samples_themselves():
    sound = np.round(music(0.2) * 32_768) / np.float32(32_768)
    for name in ("wav", "flac"):
        rendered = render(sound, RATE, FORMATS[name])
        np.testing.assert_array_equal(played(rendered)[0][:, 0], sound)
        assert rendered.treatment.gain_db == 0


def test_an_odd_rate_is_resampled_for_mp3_only():
    sound = music(0.5, 37_800)
    assert played(render(sound, 37_800, FORMATS["mp3"]))[1] == 48_000
    assert played(render(sound, 37_800, FORMATS["ogg"]))[1] == 37_800


def test_the_suffix_is_the_format():
    assert format_of("a/b.MP3") is FORMATS["mp3"]
    with pytest.raises(UserError, match=r"song\.aac: songs are written as \.wav, \.flac, \.ogg, \.opus, \.mp3"):
        format_of("song.aac")


# ---- Loudness and peaks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("target", [-20, -30.0])
def test_loudness_reaches_its_target_as_it_is_played(name, target):
    rendered = render(music(), RATE, FORMATS[name], Finish(loudness_lufs=target))
    heard, rate = played(rendered)
    assert integrated_loudness(heard, rate) == pytest.approx(target, abs=0.5)
    assert true_peak(heard, rate) < -1
    assert not [text for text in rendered.remarks if "peaks" in text]


@pytest.mark.parametrize("name", FORMATS)
def test_peaks_stay_below_the_limit_whatever_the_signal(name):
    for finish, ceiling in (
        (Finish(None, -1), -1),
        (Finish(loudness_lufs=-5), -1),
        (Finish(None, -3.5), -3.5),
    ):
        rendered = render(nasty(), RATE, FORMATS[name], finish)
        heard, rate = played(rendered)
        assert ceiling - 4 < true_peak(heard, rate) < ceiling
        assert any("peaks would pass" in text for text in rendered.remarks)


def test_what_peaks_forbid_is_said_with_what_came_of_it():
    rendered = render(music(), RATE, FORMATS["flac"], Finish(loudness_lufs=-6))
    loudness = integrated_loudness(*played(rendered))
    (text,) = rendered.remarks
    assert text == f"The song's peaks would pass -1 dBTP: it comes to {loudness:.1f} LUFS."
    assert loudness < -7


def test_nothing_clips_without_a_word():
    loud = 3 * music(0.5)
    rendered = render(loud, RATE, FORMATS["wav"])
    heard = played(rendered)[0][:, 0]
    assert rendered.remarks == ("The song's peaks would pass full scale: turned down by 3.5 dB.",)
    assert np.abs(heard).max() <= 32_767 / 32_768
    np.testing.assert_allclose(heard, loud / np.abs(loud).max(), atol=1e-4)
    full = np.tile(np.float32([1.0, -1.0, 0.5]), 100)
    assert render(full, RATE, FORMATS["wav"]).remarks == ()


def test_true_peak_sees_between_samples():
    between = np.sin(2 * np.pi * np.arange(4000) / 4 + np.pi / 4)[:, None].astype(np.float32)
    assert 20 * math.log10(np.abs(between).max()) == pytest.approx(-3.01, abs=0.01)
    assert true_peak(between * audio.factor(-6.0), RATE) == pytest.approx(-6, abs=0.3)
    assert true_peak(np.zeros((100, 1), np.float32), RATE) == -math.inf


def test_silence_has_no_loudness_and_stays():
    silence = np.zeros(RATE, np.float32)
    for name in FORMATS:
        rendered = render(silence, RATE, FORMATS[name], Finish(loudness_lufs=-14))
        assert "The song is silent: it has no loudness to change." in rendered.remarks
        assert np.abs(played(rendered)[0]).max() < 1e-4


# ---- Fades ------------------------------------------------------------------------------------------------------


def test_fades_rise_and_fall_and_leave_the_middle_alone():
    sound = np.full(RATE, 0.5, np.float32)
    heard = played(render(sound, RATE, FORMATS["wav"], Finish(fade_in_seconds=0.25, fade_out_seconds=0.5)))[0][:, 0]
    assert heard[0] == pytest.approx(0, abs=1e-4)
    assert heard[-1] == pytest.approx(0, abs=1e-4)
    assert (np.diff(heard[: RATE // 4]) >= 0).all()
    assert (np.diff(heard[RATE // 2 :]) <= 0).all()
    assert heard[RATE // 8] == pytest.approx(0.25, abs=1e-3)
    assert (heard[RATE // 4 : RATE // 2] == 0.5).all()


# ---- What was done can be done again ----------------------------------------------------------------------------


def test_a_treatment_gives_the_same_bytes_again():
    finish = Finish(-20, -2, 0.1, 0.2)
    for name in FORMATS:
        rendered = render(music(1.0), RATE, FORMATS[name], finish)
        (treatment,) = treatments({"export": [dict(vars(rendered.treatment))]})
        samples, rate = treated(music(1.0), RATE, treatment)
        assert encode(samples, rate, FORMATS[name]) == rendered.data


@pytest.mark.parametrize(
    "steps",
    [5, "wav", [5], [{}], {"format": "wav"}, ["format"]],
)
def test_treatments_that_are_none_are_refused(steps):
    with pytest.raises(UserError, match="how it was exported was changed"):
        treatments({"export": steps})


# ---- Refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loudness_lufs": 3}, "A loudness of 3 LUFS is none"),
        ({"loudness_lufs": float("nan")}, "nan LUFS is none"),
        ({"true_peak_dbtp": 0.1}, "A true peak of 0.1 dBTP is none"),
        ({"fade_in_seconds": -1}, "A fade of -1 s is none"),
        ({"fade_out_seconds": float("inf")}, "A fade of inf s is none"),
    ],
)
def test_settings_that_make_no_sense(values, message):
    with pytest.raises(UserError, match=message):
        Finish(**values)


@pytest.mark.parametrize(
    ("samples", "name", "finish", "message"),
    [
        (np.zeros(0, np.float32), "wav", Finish(), "at least one"),
        (np.full(100, np.nan, np.float32), "wav", Finish(), "finite samples"),
        (np.zeros((100, 3), np.float32), "mp3", Finish(), "mp3 holds 1 to 2 channels, not 3"),
        (music(0.3), "wav", Finish(loudness_lufs=-14), "lasts 0.30 s, and loudness is measured over at least 0.4 s"),
        (np.zeros((RATE, 6), np.float32), "flac", Finish(loudness_lufs=-14), "up to 5 channels, not 6"),
        (music(1.0), "wav", Finish(fade_in_seconds=0.6, fade_out_seconds=0.5), "longer than the song"),
    ],
)
def test_what_cannot_be_written_is_refused(samples, name, finish, message):
    with pytest.raises(UserError, match=message):
        render(samples, RATE, FORMATS[name], finish)
