"""Copies of a recording are found, other music is not; the rates are printed (pytest -s)."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from corpus.zoo import melody

import jukebox_jax.corpus
from jukebox_jax.corpus.fingerprint import MOST_DISTANCE, Fingerprinter, distance, find_near_duplicates

DEMO = sorted((Path(jukebox_jax.corpus.__file__).parent / "demo_data").glob("*.ogg"))
RATE = 44_100


def fingerprint(samples, rate=RATE, block=65_536):
    samples = samples.reshape(len(samples), -1).astype(np.float32)
    fingerprinter = Fingerprinter(rate)
    for start in range(0, len(samples), block):
        fingerprinter.add(np.ascontiguousarray(samples[start : start + block]))
    return fingerprinter.finish()


def through(samples, rate=RATE, **format):
    """Encoded and decoded."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, 1, **format) as encoder:
        for start in range(0, len(samples), 65_536):
            encoder.write(samples[start : start + 65_536])
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0]


def mp3_128(samples):
    return through(samples, format="MP3", subtype="MPEG_LAYER_III", bitrate_mode="CONSTANT", compression_level=2 / 3)


def vorbis(samples):
    return through(samples, format="OGG", subtype="VORBIS")


def late(samples, silence):
    return np.concatenate([np.zeros(silence, np.float32), samples])


COPIES = {
    "MP3 at 128 kbit/s": mp3_128,
    "Vorbis, 1105 samples late, -6 dB": lambda samples: vorbis(late(samples / 2, 1_105)),
    "at 22,050 Hz": lambda samples: soxr.resample(soxr.resample(samples, RATE, 22_050), 22_050, RATE),
    "half a hop late": lambda samples: late(samples, 4_096),
}


@pytest.fixture(scope="module")
def pieces():
    return [soundfile.read(path, dtype="float32")[0] for path in DEMO]


@pytest.fixture(scope="module")
def originals(pieces):
    return [fingerprint(piece) for piece in pieces]


def test_copies_of_the_demo_pieces_are_found_and_no_others(pieces, originals):
    assert len(pieces) == 18
    copies = {name: [fingerprint(copy(piece)) for piece in pieces] for name, copy in COPIES.items()}
    for name, prints in copies.items():
        farthest = max(
            min(distance(a, b, offset) for offset in range(-2, 3)) for a, b in zip(originals, prints, strict=True)
        )
        missed = sum(not find_near_duplicates([a, b]) for a, b in zip(originals, prints, strict=True))
        print(f"{name}: farthest {farthest:.3f}, false negatives {missed} of {len(prints)}")
        assert missed == 0
    others = [
        min(distance(a, b, offset) for offset in range(-20, 21))
        for index, a in enumerate(originals)
        for b in originals[:index]
    ]
    print(f"different pieces: nearest {min(others):.3f} of {len(others)} pairs at the best of 41 offsets")
    assert min(others) > 2 * MOST_DISTANCE
    count, kinds = len(originals), 1 + len(copies)
    groups = find_near_duplicates([*originals, *(print_ for prints in copies.values() for print_ in prints)])
    assert groups == [tuple(range(piece, kinds * count, count)) for piece in range(count)]  # no false positive


def test_the_mp3s_are_of_128_kbits(pieces, tmp_path):
    soundfile.write(tmp_path / "a.mp3", pieces[0], RATE, bitrate_mode="CONSTANT", compression_level=2 / 3)
    assert 8 * (tmp_path / "a.mp3").stat().st_size / (len(pieces[0]) / RATE) == pytest.approx(128_000, rel=0.02)


def test_the_order_of_songs_does_not_matter(originals, pieces):
    songs = [*originals, *(fingerprint(piece / 2) for piece in pieces[:5]), (), (), (1, 2, 3)]
    groups = {frozenset(group) for group in find_near_duplicates(songs)}
    assert groups == {frozenset((i, 18 + i)) for i in range(5)}
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(songs))
        shuffled = find_near_duplicates([songs[index] for index in order])
        assert shuffled == sorted(shuffled)
        assert {frozenset(order[list(group)].tolist()) for group in shuffled} == groups


def test_block_sizes_do_not_matter(pieces):
    assert fingerprint(pieces[0], block=65_536) == fingerprint(pieces[0], block=1_001)


def test_stereo_is_heard_as_its_mean(pieces):
    left, right = pieces[0][:400_000], pieces[1][:400_000]
    assert fingerprint(np.stack([left, right], 1)) == fingerprint((left + right) / 2)


@pytest.mark.parametrize("tempo", [0.97, 1.01, 1.03])
def test_another_tempo_is_another_recording(tempo):
    # 40 seconds: at 1 % the tunes part by 0.4 s, two hops.
    songs = [fingerprint(melody(40 / factor, seed=1, tempo=factor, rate=RATE)) for factor in (1, tempo)]
    assert find_near_duplicates(songs) == []


@pytest.mark.parametrize("length", [2, 5, 8])
def test_loops_differ_by_what_they_loop(length):
    """Every second word of a loop occurs many times, at many offsets."""

    def loop(seed):
        bar = melody(length / 5, seed=seed, rate=RATE)
        return np.tile(bar, round(20 * RATE / len(bar)))

    prints = [fingerprint(loop(seed)) for seed in (1, 2, 3)]
    assert find_near_duplicates([*prints, fingerprint(mp3_128(loop(1)))]) == [(0, 3)]


def test_metronomes():
    def clicks(beats_per_minute, pitch=1_000.0):
        since = np.arange(20 * RATE) / RATE % (60 / beats_per_minute)
        return (0.5 * np.sin(2 * np.pi * pitch * since) * np.exp(-60 * since)).astype(np.float32)

    songs = [clicks(120), clicks(123), clicks(140), clicks(120, 700.0), mp3_128(clicks(120))]
    assert find_near_duplicates([fingerprint(song) for song in songs]) == [(0, 4)]


def test_quiet_beginnings_say_nothing(pieces):
    """Ten seconds of noise at -90 dB are alike in all songs, and count for none."""
    noise = np.random.default_rng(0).normal(0, 3e-5, 10 * RATE).astype(np.float32)
    songs = [np.concatenate([noise, piece]) for piece in pieces[:6]]
    prints = [fingerprint(song) for song in songs]
    assert set(prints[0][:40]) == {0}
    assert find_near_duplicates([*prints, fingerprint(mp3_128(songs[0]))]) == [(0, 6)]


def test_silence_and_steady_tones_are_like_nothing():
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(20 * RATE) / RATE)
    silence = np.zeros(20 * RATE)
    assert find_near_duplicates([fingerprint(silence), fingerprint(silence), fingerprint(tone)]) == []


def test_an_excerpt_is_no_duplicate(pieces):
    album = np.concatenate(pieces[:3])
    longer = np.concatenate([pieces[0], pieces[1][: len(pieces[0]) // 5]])
    assert find_near_duplicates([fingerprint(song) for song in (pieces[0], album, longer)]) == []


def test_many_copies_are_one_group(originals):
    """More than the songs that a song is compared with for one key."""
    songs = [originals[0]] * 200 + [originals[1]] * 2
    assert find_near_duplicates(songs) == [tuple(range(200)), (200, 201)]


def test_nothing_to_compare():
    assert find_near_duplicates([]) == []
    assert find_near_duplicates([()]) == []
