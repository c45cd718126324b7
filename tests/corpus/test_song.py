"""Every kind of file gets its verdict, or its samples: the same whatever its encoding, in bounded memory."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import soxr
from corpus import zoo
from corpus.soundfont import sine_soundfont
from corpus.zoo import melody

from experiments.score_to_audio import Note, midi_bytes
from jukebox_jax import remote
from jukebox_jax.audio import decode
from jukebox_jax.audio.files import read_audio, to_int16
from jukebox_jax.corpus.fingerprint import find_near_duplicates
from jukebox_jax.corpus.piece import Finding, Piece
from jukebox_jax.corpus.song import SongSettings, check_settings, decode_song
from jukebox_jax.errors import UserError

ROOT = Path(__file__).parents[2]


def decoded(path, settings=None):
    """A Finding and the samples; whatever the verdict, nothing is raised."""
    blocks = []
    found = decode_song(Piece(Path(path).name, str(path)), settings or SongSettings(), blocks.append)
    return found, np.concatenate(blocks) if blocks else None


@pytest.fixture(scope="module")
def the_zoo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    expected = zoo.make_zoo(folder)
    return expected, {name: decoded(folder / name) for name in expected}


def test_every_animal_of_the_zoo(the_zoo):
    expected, found = the_zoo
    for name, words in expected.items():
        verdict = found[name][0].verdict
        assert words in verdict, f"{name!r}: {verdict}"
        if words != zoo.OK:
            # One sentence: what is wrong, and what to do.
            assert ": " in verdict
            assert "\n" not in verdict
            assert found[name][0] == replace(
                Finding(verdict), source_rate=found[name][0].source_rate, source_channels=found[name][0].source_channels
            )


def test_findings_tell_what_was_stored(the_zoo):
    for found, samples in the_zoo[1].values():
        if not found.usable:
            continue
        assert samples.dtype == np.int16
        assert samples.shape == (found.samples, found.channels)
        content = f"44100 Hz, {found.channels} channels, int16\n".encode() + samples.tobytes()
        assert found.sha256 == hashlib.sha256(content).hexdigest()
        floats = samples / 32_768
        assert found.rms == pytest.approx(np.sqrt(np.mean(floats**2)), rel=1e-6)
        assert abs(min(found.peak, 1) - np.abs(floats).max()) <= 1 / 32_768
        json.dumps(asdict(found))


def test_duplicates_of_the_zoo(the_zoo):
    _, found = the_zoo
    assert len({found[name][0].sha256 for name in zoo.DUPLICATES}) == 1
    usable = [name for name, (finding, _) in found.items() if finding.usable]
    assert len({found[name][0].sha256 for name in usable}) == len(usable) - len(zoo.DUPLICATES) + 1
    groups = find_near_duplicates([found[name][0].fingerprint for name in usable])
    assert [{usable[index] for index in group} for group in groups] == [{*zoo.DUPLICATES, *zoo.NEAR_DUPLICATES}]


def test_notes(the_zoo):
    _, found = the_zoo
    assert found["six channels 192 kHz.flac"][0].notes == ("6 channels mixed to 2",)
    assert found["mono 8 kHz.wav"][0].notes == ("holds nothing above 4 kHz",)
    assert any(note.startswith("clipped: ") for note in found["float, too loud.wav"][0].notes)


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000, 96_000])
def test_block_sizes_leave_no_trace(tmp_path, monkeypatch, rate):
    stereo = np.stack([melody(3, rate, seed=1), melody(3, rate, seed=2)], 1)
    soundfile.write(tmp_path / "a.flac", stereo, rate)
    usual = decoded(tmp_path / "a.flac")
    monkeypatch.setattr(decode, "BLOCK_FRAMES", 1_009)
    small = decoded(tmp_path / "a.flac")
    assert small[0] == usual[0]
    np.testing.assert_array_equal(small[1], usual[1])
    whole = soundfile.read(tmp_path / "a.flac", dtype="float32")[0]
    if rate != 44_100:
        whole = soxr.resample(whole, rate, 44_100)
    np.testing.assert_array_equal(usual[1], to_int16(whole))
    np.testing.assert_array_equal(usual[1], to_int16(read_audio(tmp_path / "a.flac")))


def test_sixteen_bits_pass_unchanged(tmp_path):
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, (100_000, 2)).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 44_100)
    found, stored = decoded(tmp_path / "a.wav")
    np.testing.assert_array_equal(stored, samples)
    assert found.peak == 1.0
    assert found.notes == ()  # -32768 is full scale, not clipped


def test_full_scale_is_not_clipping_and_beyond_is(tmp_path):
    samples = np.zeros((44_100, 1), np.float32)
    samples[:4, 0] = 1, -1, 1.5, -1.5
    soundfile.write(tmp_path / "a.wav", samples, 44_100, subtype="FLOAT")
    found, stored = decoded(tmp_path / "a.wav")
    assert found.notes == ("clipped: 2 samples",)
    assert found.peak == 1.5
    assert stored[:4, 0].tolist() == [32_767, -32_768, 32_767, -32_768]


@pytest.mark.parametrize("suffix", [".flac", ".ogg"])
@pytest.mark.parametrize("count", [5, 6])
def test_surround_is_mixed_by_its_places(tmp_path, suffix, count):
    """A tone on one channel at a time: left, right, centre, (low,) left and right surround, in the order of FLAC."""
    names = ["L", "R", "C", "LFE", "Ls", "Rs"] if count == 6 else ["L", "R", "C", "Ls", "Rs"]
    vorbis = ["L", "C", "R", "Ls", "Rs", "LFE"][:count]
    tone = 0.5 * np.sin(2 * np.pi * 50 * np.arange(44_100) / 44_100)  # deep enough for the LFE of Vorbis
    scale, half = 1 / (1 + 2**0.5), 0.5**0.5
    gains = {"L": (1, 0), "R": (0, 1), "C": (half, half), "LFE": (0, 0), "Ls": (half, 0), "Rs": (0, half)}
    for name in names:
        samples = np.zeros((44_100, count))
        samples[:, (vorbis if suffix == ".ogg" else names).index(name)] = tone
        path = tmp_path / f"{name}{suffix}"
        soundfile.write(path, samples, 44_100)
        found, stored = decoded(path)
        expected = np.array(gains[name]) * scale * 0.5
        if not any(gains[name]):
            # Nothing is left but what Vorbis made of silence.
            assert not found.usable or found.peak < 0.01
            continue
        np.testing.assert_allclose(np.abs(stored[5_000:-5_000] / 32_768).max(0), expected, atol=0.03)
        mono = decoded(path, SongSettings(channels=1))[0]
        assert mono.channels == 1
        assert mono.peak == pytest.approx(expected.mean(), abs=0.03)


def test_channels(tmp_path):
    left, right = melody(2, 44_100, seed=1), melody(2, 44_100, seed=2)
    soundfile.write(tmp_path / "mono.wav", left, 44_100, subtype="FLOAT")
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, right], 1), 44_100, subtype="FLOAT")
    soundfile.write(tmp_path / "four.wav", np.stack([left, right, left, right], 1), 44_100, subtype="FLOAT")
    for channels in (None, 2):
        settings = SongSettings(channels=channels)
        assert decoded(tmp_path / "mono.wav", settings)[0].channels == 1
        assert decoded(tmp_path / "stereo.wav", settings)[0].channels == 2
        assert "4 channels" in decoded(tmp_path / "four.wav", settings)[0].verdict
    for name in ("stereo.wav", "four.wav"):
        found, stored = decoded(tmp_path / name, SongSettings(channels=1))
        assert found.notes == (f"{found.source_channels} channels mixed to 1",)
        np.testing.assert_allclose(stored[:, 0] / 32_768, (left + right) / 2, atol=1 / 32_768)


def test_an_mp3_with_a_few_frames_lost_is_taken(tmp_path):
    soundfile.write(tmp_path / "a.mp3", melody(20, 44_100), 44_100, bitrate_mode="CONSTANT")
    data = (tmp_path / "a.mp3").read_bytes()
    (tmp_path / "a.mp3").write_bytes(data[: int(0.97 * len(data))])
    assert decoded(tmp_path / "a.mp3")[0].usable
    (tmp_path / "a.mp3").write_bytes(data[: int(0.90 * len(data))])
    assert decoded(tmp_path / "a.mp3")[0].verdict.startswith("ends early (17.8 of 20.0")


def test_an_mp3_behind_a_tag_and_in_stereo_is_measured_too(tmp_path):
    soundfile.write(tmp_path / "a.mp3", np.stack([melody(20, 44_100)] * 2, 1), 44_100)
    data = (tmp_path / "a.mp3").read_bytes()
    tag = b"ID3\4\0\0" + bytes([0, 0, 30, 0]) + bytes(30 * 128)
    (tmp_path / "a.mp3").write_bytes(tag + data)
    assert decoded(tmp_path / "a.mp3")[0].usable
    (tmp_path / "a.mp3").write_bytes(tag + data[: len(data) // 2])
    assert decoded(tmp_path / "a.mp3")[0].verdict.startswith("ends early (")


def test_an_ogg_cut_anywhere_is_found_out(tmp_path):
    soundfile.write(tmp_path / "a.ogg", melody(10, 44_100), 44_100)
    data = (tmp_path / "a.ogg").read_bytes()
    for share in (0.3, 0.6, 0.999):
        (tmp_path / "a.ogg").write_bytes(data[: int(share * len(data))])
        assert "amid an Ogg page" in decoded(tmp_path / "a.ogg")[0].verdict
    (tmp_path / "a.ogg").write_bytes(data + b"TAG" + bytes(125))  # what some players append
    assert decoded(tmp_path / "a.ogg")[0].usable


def test_random_damage_raises_nothing(tmp_path):
    rng = np.random.default_rng(0)
    for suffix in (".wav", ".flac", ".ogg", ".mp3", ".aiff"):
        soundfile.write(tmp_path / f"a{suffix}", melody(2, 44_100), 44_100)
        data = np.frombuffer((tmp_path / f"a{suffix}").read_bytes(), np.uint8)
        for _ in range(15):
            damaged = data.copy()
            where = rng.integers(len(data) if rng.random() < 0.5 else 120, size=rng.integers(1, 10))
            damaged[where] = rng.integers(256, size=len(where))
            (tmp_path / f"b{suffix}").write_bytes(damaged.tobytes())
            found, _ = decoded(tmp_path / f"b{suffix}")
            assert found.usable or ": " in found.verdict


def test_what_write_raises_passes_through(tmp_path):
    soundfile.write(tmp_path / "a.flac", melody(2, 44_100), 44_100)

    def write(samples):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        decode_song(Piece("a.flac", str(tmp_path / "a.flac")), SongSettings(), write)


# Formats of PyAV.


def write_av(path, codec, container, samples, rate=44_100):
    import av

    layout = {1: "mono", 2: "stereo"}[samples.shape[1]]
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.layout = layout
        stream.bit_rate = 192_000
        # The best that a codec offers: of WavPack, the first would be 8 bits.
        formats = {format.name for format in stream.codec_context.codec.audio_formats}
        stream.format = next(name for name in ("fltp", "s32p", "s16p", "s16", "s32") if name in formats)
        resampler = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T, np.float32), format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        size = stream.codec_context.frame_size or 1_024
        fifo = av.AudioFifo()
        for converted in resampler.resample(frame):
            fifo.write(converted)
        while (piece := fifo.read(size) or fifo.read()) is not None:
            file.mux(stream.encode(piece))
        file.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [
        ("a.m4a", "aac", "ipod"),
        ("a.aac", "aac", "adts"),
        ("a.m4a", "alac", "ipod"),
        ("a.wma", "wmav2", "asf"),
        ("a.mka", "flac", "matroska"),
        ("a.wv", "wavpack", "wv"),
    ],
)
def test_formats_of_pyav(tmp_path, name, codec, container):
    music = np.stack([melody(8, 44_100, seed=1), melody(8, 44_100, seed=2)], 1)
    write_av(tmp_path / name, codec, container, music)
    soundfile.write(tmp_path / "a.flac", music, 44_100)
    found, samples = decoded(tmp_path / name)
    original, expected = decoded(tmp_path / "a.flac")
    assert (found.verdict, found.source_rate, found.source_channels, found.channels) == ("ok", 44_100, 2, 2)
    assert found.samples == pytest.approx(8 * 44_100, abs=5_000)
    assert find_near_duplicates([found.fingerprint, original.fingerprint]) == [(0, 1)]
    if codec in ("alac", "flac", "wavpack"):  # lossless, to 16 bits or more
        np.testing.assert_allclose(samples[: len(expected)], expected, atol=1)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    verdict = decoded(tmp_path / name)[0].verdict
    assert verdict.startswith(("ends early", "cannot be read as audio"))


def test_without_pyav_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(1_000))
    assert "jukebox-jax[av]" in decoded(tmp_path / "a.m4a")[0].verdict
    (tmp_path / "a.wav").write_bytes(b"words" * 100)
    assert decoded(tmp_path / "a.wav")[0].verdict.startswith("cannot be read as audio")


# MIDI.

needs_synthesiser = pytest.mark.skipif(
    importlib.util.find_spec("tinysoundfont") is None, reason="tinysoundfont is not installed"
)


@pytest.fixture
def midi(tmp_path):
    (tmp_path / "sine.sf2").write_bytes(sine_soundfont())
    notes = [Note(index, 0.8, 60 + index % 12, 80) for index in range(16)]
    (tmp_path / "a.mid").write_bytes(midi_bytes([(0, notes)], 120.0))
    return SongSettings(soundfont=str(tmp_path / "sine.sf2"))


@needs_synthesiser
def test_midi_is_rendered(tmp_path, midi):
    check_settings(midi)
    found, samples = decoded(tmp_path / "a.mid", midi)
    assert (found.verdict, found.channels, found.source_rate) == ("ok", 2, 44_100)
    assert found.samples == pytest.approx(8 * 44_100, abs=3 * 44_100)
    # The third note, from the first second on, is a D: 293.7 Hz, the soundfont's A being 441.
    spectrum = np.abs(np.fft.rfft(samples[44_100 + 2_000 : 44_100 + 15_000, 0].astype(float), 2**17))
    assert spectrum.argmax() * 44_100 / 2**17 == pytest.approx(293.7 * 441 / 440, rel=0.005)
    assert decoded(tmp_path / "a.mid", midi)[0] == found
    assert decoded(tmp_path / "a.mid", replace(midi, sample_rate=22_050))[0].source_rate == 22_050


@needs_synthesiser
def test_broken_midi(tmp_path, midi):
    data = (tmp_path / "a.mid").read_bytes()
    cases = {
        "cut": (data[: len(data) // 2], "cannot be read as MIDI"),
        "words": (b"hello" * 100, "cannot be read as MIDI"),
        "empty": (b"", "empty"),
        "without notes": (b"MThd\0\0\0\6\0\0\0\1\0\x60MTrk\0\0\0\7\0\xc0\5\0\xff\x2f\0", "holds no notes"),
        "no division": (data[:12] + b"\0\0" + data[14:], "hours by its time stamps"),
        "huge": (data + bytes(5 * 2**20), "larger than MIDI music is"),
    }
    for name, (content, words) in cases.items():
        (tmp_path / f"{name}.mid").write_bytes(content)
        assert words in decoded(tmp_path / f"{name}.mid", midi)[0].verdict
    assert "name a soundfont" in decoded(tmp_path / "a.mid")[0].verdict


def test_without_the_synthesiser_it_is_named(tmp_path, midi, monkeypatch):
    monkeypatch.setitem(sys.modules, "tinysoundfont", None)
    assert "pip install --no-deps tinysoundfont" in decoded(tmp_path / "a.mid", midi)[0].verdict
    with pytest.raises(UserError, match="pip install --no-deps tinysoundfont"):
        check_settings(midi)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (SongSettings(sample_rate=0), "0 Hz"),
        (SongSettings(sample_rate=10**7), "10000000 Hz"),
        (SongSettings(channels=6), "6 channels"),
        (SongSettings(min_seconds=-1.0), "-1"),
        (SongSettings(min_seconds=float("nan")), "nan"),
        (SongSettings(soundfont="nowhere.sf2"), r"nowhere\.sf2 is no file"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        check_settings(settings)


@needs_synthesiser
def test_a_soundfont_that_is_none(tmp_path):
    (tmp_path / "a.sf2").write_bytes(b"words" * 100)
    with pytest.raises(UserError, match="cannot be read as a soundfont"):
        check_settings(SongSettings(soundfont=str(tmp_path / "a.sf2")))


# Elsewhere.


@pytest.fixture
def memory():
    import fsspec

    store = fsspec.filesystem("memory")
    yield store
    store.rm("/", recursive=True)


def test_remote_files_are_copied_and_the_copies_removed(tmp_path, memory, monkeypatch):
    monkeypatch.setattr(remote.tempfile, "tempdir", str(tmp_path))
    soundfile.write(tmp_path / "a.flac", melody(2, 44_100), 44_100)
    local = decoded(tmp_path / "a.flac")[0]
    memory.pipe("/bucket/a b.flac", (tmp_path / "a.flac").read_bytes())
    assert decode_song(Piece("a", "memory://bucket/a b.flac"), SongSettings(), lambda samples: None) == local
    assert "does not exist" in decode_song(Piece("a", "memory://bucket/b"), SongSettings(), print).verdict
    assert [path.name for path in tmp_path.iterdir()] == ["a.flac"]


def test_a_bucket_out_of_reach_is_no_verdict(memory, monkeypatch, tmp_path):
    monkeypatch.setattr(remote, "FIRST_DELAY_SECONDS", 0.0)
    soundfile.write(tmp_path / "a.flac", melody(2, 44_100), 44_100)
    memory.pipe("/bucket/a.flac", (tmp_path / "a.flac").read_bytes())
    failures = [ConnectionResetError("reset"), TimeoutError("slow")]
    usual = type(memory)._open

    def flaky(self, path, *args, **kwargs):
        if failures:
            raise failures.pop()
        return usual(self, path, *args, **kwargs)

    monkeypatch.setattr(type(memory), "_open", flaky)
    piece = Piece("a", "memory://bucket/a.flac")
    assert decode_song(piece, SongSettings(), lambda samples: None).usable
    failures.extend(ConnectionResetError("reset") for _ in range(remote.ATTEMPTS))
    with pytest.raises(UserError, match="ConnectionResetError: reset"):
        decode_song(piece, SongSettings(), lambda samples: None)


# Datasets of TFDS; their reader has tests of its own.


def test_an_item_of_a_dataset(tmp_path, monkeypatch):
    music = np.stack([melody(2, 48_000, seed=1), melody(2, 48_000, seed=2)], 1)
    soundfile.write(tmp_path / "a.wav", music, 48_000, subtype="FLOAT")

    def read_tfds_item(path, data_dir):
        assert (path, data_dir) == ("tfds:songs/train#7", "there")
        return music, 48_000

    sources = SimpleNamespace(read_tfds_item=read_tfds_item)
    monkeypatch.setitem(sys.modules, "jukebox_jax.corpus.sources.tfds_items", sources)
    settings = SongSettings(data_dir="there")
    found, samples = decoded("tfds:songs/train#7", settings)
    assert found == decoded(tmp_path / "a.wav")[0]
    assert samples.shape == (88_200, 2)

    def unreadable(path, data_dir):
        raise UserError(f"{path} is not there: download it.")

    sources.read_tfds_item = unreadable
    assert "tfds:songs/train#7 is not there" in decoded("tfds:songs/train#7", settings)[0].verdict


# Memory.


@pytest.mark.parametrize(
    ("minutes", "rate", "channels"), [(10, 44_100, 2), pytest.param(180, 8_000, 1, marks=pytest.mark.slow)]
)
def test_hours_take_the_memory_of_a_minute(tmp_path, minutes, rate, channels):
    tone = (8_000 * np.sin(2 * np.pi * 110 * np.arange(60 * rate) / rate)).astype(np.int16)
    code = textwrap.dedent("""
        import json, resource, sys
        from jukebox_jax.corpus.piece import Piece
        from jukebox_jax.corpus.song import SongSettings, decode_song
        settings = SongSettings(sample_rate=int(sys.argv[2]))
        found = decode_song(Piece("a", sys.argv[1]), settings, lambda samples: None)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(json.dumps([found.verdict, found.samples, peak]))
    """)
    peaks = []
    for length in (1, minutes):
        path = tmp_path / f"{length} minutes.flac"
        with soundfile.SoundFile(path, "w", rate, channels) as file:
            for _ in range(length):
                file.write(np.repeat(tone[:, None], channels, axis=1))
        command = [sys.executable, "-c", code, str(path), str(rate)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        verdict, samples, peak = json.loads(done.stdout)
        assert (verdict, samples) == ("ok", length * 60 * rate)
        peaks.append(peak)
    # All samples together would be more than 200 MB in float32, and half of that in int16.
    assert peaks[1] - peaks[0] < 20 * 2**20


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_lying_headers_take_no_memory(tmp_path):
    zoo.make_zoo(tmp_path / "zoo")
    code = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from jukebox_jax.corpus.piece import Piece
        from jukebox_jax.corpus.song import SongSettings, decode_song
        def decode(name):
            return decode_song(Piece(name, str(Path(sys.argv[1]) / name)), SongSettings(), lambda samples: None)
        assert decode("duplicate.flac").usable
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for name in ("a trillion frames.w64", "255 channels.wav", "ten megahertz.wav", "one hertz.wav"):
            assert not decode(name).usable
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "zoo")], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert int(done.stdout) * 1024 < 10 * 2**20
