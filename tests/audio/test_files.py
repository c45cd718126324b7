from __future__ import annotations

import numpy as np
import pytest
import soundfile

from jukebox_jax.audio.files import AudioInfo, audio_info, read_audio, to_float32, to_int16, write_audio
from jukebox_jax.errors import UserError


def tone(seconds=1.0, rate=44_100, channels=1):
    t = np.arange(int(seconds * rate)) / rate
    left = 0.5 * np.sin(2 * np.pi * 440 * t)
    return np.stack([left, -left][:channels], axis=1).astype(np.float32)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_sixteen_bits_survive_unchanged(tmp_path, suffix):
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, (5000, 2)).astype(np.int16)
    path = tmp_path / f"a{suffix}"
    write_audio(path, to_float32(samples), 22_050)
    assert audio_info(path) == AudioInfo(5000, 22_050, 2)
    np.testing.assert_array_equal(to_int16(read_audio(path, 22_050)), samples)
    write_audio(path, read_audio(path, 22_050), 22_050)  # replaces the file
    np.testing.assert_array_equal(to_int16(read_audio(path, 22_050)), samples)


def test_clipping_and_rounding():
    assert to_int16(np.array([-2, -1, 0, 0.6 / 32_768, 1, 2], np.float32)).tolist() == [
        -32_768, -32_768, 0, 1, 32_767, 32_767,
    ]  # fmt: skip


def test_a_minute_of_vorbis(tmp_path):
    # In one call this crashes libsndfile.
    path = tmp_path / "long.ogg"
    write_audio(path, tone(61)[:, 0], 44_100)
    samples = read_audio(path)
    assert samples.shape == (61 * 44_100, 1)
    assert np.sqrt(np.mean((samples - tone(61)) ** 2)) < 0.02


def test_resampling_keeps_the_tone(tmp_path):
    path = tmp_path / "a.wav"
    write_audio(path, tone(rate=48_000, channels=2), 48_000)
    samples = read_audio(path, 22_050)
    assert samples.dtype == np.float32
    assert samples.shape == (22_050, 2)
    np.testing.assert_allclose(samples[500:-500], tone(rate=22_050, channels=2)[500:-500], atol=2e-3)


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"\.flac, \.ogg, \.wav"):
        write_audio(tmp_path / "a.mp3", tone(), 44_100)
    assert not list(tmp_path.iterdir())


def test_not_a_number_is_refused(tmp_path):
    with pytest.raises(ValueError, match="finite"):
        write_audio(tmp_path / "a.wav", np.full(10, np.nan, np.float32), 44_100)
    assert not list(tmp_path.iterdir())


def test_missing(tmp_path):
    with pytest.raises(UserError, match=r"none\.wav does not exist"):
        read_audio(tmp_path / "none.wav")


def test_folder(tmp_path):
    with pytest.raises(UserError, match="is not a file"):
        read_audio(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.wav", b"", "empty"),
        ("a.wav", b"hello" * 1000, "cannot be read as audio"),
        ("a.mp3", b"\x00" * 5000, "cannot be read as audio"),
        ("a.txt", b"words", "cannot be read as audio"),
    ],
)
def test_not_audio(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        read_audio(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_cut_short(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 44_100), 44_100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"ends early|cannot be read"):
        read_audio(path)


def test_mp3_of_variable_bit_rate_without_its_header(tmp_path):
    # The length in the header is optional; without it libsndfile promises twice as many samples as there are.
    noise = 0.1 * np.random.default_rng(0).standard_normal((5 * 44_100, 2))
    noise[44_100 : 4 * 44_100] *= 0.01
    path = tmp_path / "a.mp3"
    soundfile.write(path, noise, 44_100, compression_level=0.0, bitrate_mode="VARIABLE")
    data = path.read_bytes()
    assert b"Xing" in data
    path.write_bytes(data.replace(b"Xing", bytes(4)))
    assert audio_info(path).frames > 1.5 * len(noise)
    assert 0.9 * len(noise) < len(read_audio(path)) < 1.1 * len(noise)


def test_no_samples(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros((0, 1)), 44_100)
    with pytest.raises(UserError, match="no samples"):
        audio_info(path)


def test_samples_that_are_not_numbers(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.array([0.0, np.inf, 0.0]), 44_100, subtype="FLOAT")
    with pytest.raises(UserError, match="not finite"):
        read_audio(path)
