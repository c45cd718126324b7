"""The embedded corpus keeps what the rest of the project counts on: sizes, labels, splits, levels, licences."""

from __future__ import annotations

import json
from collections import Counter, defaultdict

import numpy as np
import pytest
import soundfile

from jukebox_jax.corpus.demo_corpus import demo_folder

FOLDER = demo_folder()
ROWS = [json.loads(line) for line in (FOLDER / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
TRAIN = [row for row in ROWS if row["split"] == "train"]
VALIDATION = [row for row in ROWS if row["split"] == "validation"]


def test_rows_and_files_match_one_to_one():
    names = [row["file_name"] for row in ROWS]
    assert sorted(names) == sorted(path.name for path in FOLDER.glob("*.ogg"))
    assert len(set(names)) == len(names)
    assert 12 <= len(names) <= 20


def test_total_size_and_length():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 3_000_000
    assert sum(row["seconds"] for row in ROWS) >= 360
    assert sum(row["seconds"] for row in TRAIN) >= 300
    assert sum(row["seconds"] for row in VALIDATION) >= 60


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["file_name"])
def test_recording(row):
    audio, rate = soundfile.read(FOLDER / row["file_name"], dtype="float32", always_2d=True)
    assert rate == 44_100
    assert audio.shape[1] == 1
    assert len(audio) / rate == pytest.approx(row["seconds"], abs=0.001)
    assert 15 <= row["seconds"] <= 30
    assert np.isfinite(audio).all()
    assert np.abs(audio).max() < 1.0
    assert 0.05 <= np.sqrt(np.mean(audio**2)) <= 0.12
    # Music starts at once and does not break off: the first tenth of a second sounds, the last sample is silent.
    assert np.sqrt(np.mean(audio[:4410] ** 2)) > 0.005
    assert np.abs(audio[-100:]).max() < 0.01


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["file_name"])
def test_the_band_up_to_ten_kilohertz_survives_compression(row):
    audio, rate = soundfile.read(FOLDER / row["file_name"])
    power = np.abs(np.fft.rfft(audio)) ** 2
    frequency = np.fft.rfftfreq(len(audio), 1 / rate)
    share = power[(frequency > 8_000) & (frequency < 11_000)].sum() / power.sum()
    assert 10 * np.log10(share) > -70  # what the encoder discards measures below -100


def test_labels():
    for row in ROWS:
        assert all(row[key] for key in ("title", "artist", "genre"))
        assert isinstance(row["lyrics"], str)
        assert row["split"] in ("train", "validation")
    assert len({row["artist"] for row in ROWS}) >= 4
    assert len({row["genre"] for row in ROWS}) >= 3
    assert sum(bool(row["lyrics"]) for row in ROWS) >= 3
    assert all(len(row["lyrics"].split()) >= 10 for row in ROWS if row["lyrics"])


def test_no_piece_is_in_both_splits():
    assert not {row["source_score"] for row in TRAIN} & {row["source_score"] for row in VALIDATION}
    assert len({(row["artist"], row["title"]) for row in ROWS}) == len(ROWS)


def test_conditioning_can_be_measured_on_held_out_music():
    seconds = defaultdict(float)
    for row in TRAIN:
        seconds[row["artist"]] += row["seconds"]
    assert all(total >= 20 for total in seconds.values())
    assert {row["artist"] for row in VALIDATION} <= seconds.keys()
    assert {row["genre"] for row in VALIDATION} <= {row["genre"] for row in TRAIN}
    # Shuffling composers must change something: the held-out pieces have several.
    assert len(Counter(row["artist"] for row in VALIDATION)) >= 2


def test_licences_are_named():
    notice = (FOLDER / "LICENSE.md").read_text(encoding="utf-8")
    for row in ROWS:
        assert row["composition_licence"].startswith("Public domain")
        assert all(row[key] for key in ("encoding_licence", "source_score", "recording_licence"))
        assert "noncommercial" not in row["encoding_licence"].lower().replace("-", "")
        assert row["artist"].split()[-1] in notice
    assert "MIT" in notice
    assert "Frank Wen" in notice
