from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import scipy.signal

from jukebox_jax.errors import UserError
from jukebox_jax.pipeline.bandwidth import (
    FILE,
    FLOOR,
    bandwidth,
    bandwidth_of,
    bandwidth_table,
    save_bandwidth,
    stored_bandwidth,
)
from jukebox_jax.pipeline.dataset import RecordReader, open_dataset

from .conftest import write_audio_dataset


def test_constants_by_hand(audio_dataset):
    got = bandwidth(audio_dataset, 8192, seconds=1.0)
    # 44,100 values, both channels of windows 0, 16, 32: the windows' starts are multiples of 8192 on the joined axis,
    # where songs end at 50,000, 115,536, 255,537 (the song of 3,000 samples is left out).
    reader = RecordReader(audio_dataset, "train")
    places = [(0, 0), (2, 16 * 8192 - 115_536), (3 + 1, 32 * 8192 - 255_537)]
    x = [reader.read(song, at, at + 8192, ("audio",))[0] / 2**15 for song, at in places]
    values = np.concatenate(x).ravel()
    assert got["l1"] == pytest.approx(np.abs(values).mean(), rel=1e-12)
    assert got["l2"] == pytest.approx(values.var(), rel=1e-12)
    window = np.pad(scipy.signal.get_window("hann", 1536), 256)
    norms = []
    for item in x:
        padded = np.pad(item.mean(axis=1), 1024, mode="reflect")
        frames = [padded[s : s + 2048] * window for s in range(0, 8193, 256)]
        norms.append(np.sqrt(sum(np.square(np.abs(np.fft.rfft(frame))).sum() for frame in frames)))
    assert got["spec"] == pytest.approx(np.mean(norms), rel=1e-6)


def test_a_small_corpus_is_read_once_and_no_more(audio_dataset):
    # More is asked than there is: each of the 42 windows counts once, whatever is asked.
    assert bandwidth(audio_dataset, 8192, seconds=60.0) == bandwidth(audio_dataset, 8192, seconds=6000.0)


def test_silence_has_a_floor(tmp_path):
    dataset = write_audio_dataset(tmp_path / "one", train=(20_000,), validation=(), channels=1)
    loud = bandwidth(dataset, 4096)
    silent = bandwidth_of([np.zeros((4096, 1), np.float32)] * 3, 10**6)
    assert silent["l1"] == FLOOR["l1"]
    assert silent["l2"] == FLOOR["l2"]
    # The floor is white noise at -60 dB; the dataset is noise with the rms 1/sqrt(3).
    assert silent["spec"] == pytest.approx(loud["spec"] * 1e-3 * np.sqrt(3), rel=0.05)


def test_what_is_stored_is_what_would_be_computed(audio_dataset, tmp_path):
    folder = shutil.copytree(audio_dataset.folder, tmp_path / "copy")
    dataset = open_dataset(folder)
    assert stored_bandwidth(dataset, 8192) is None
    table = bandwidth_table(dataset, (4096, 8192, 393_216))
    # No song has 393,216 samples: the longest has 140,001.
    assert list(table) == [4096, 8192, 140_001 // 128 * 128]
    save_bandwidth(folder, table)
    first = (folder / FILE).read_bytes()
    save_bandwidth(folder, bandwidth_table(dataset, (393_216, 8192, 4096)))
    assert (folder / FILE).read_bytes() == first
    for window in table:
        assert stored_bandwidth(dataset, window) == table[window] == bandwidth(dataset, window)
    assert stored_bandwidth(dataset, 4095) is None


def test_tables_of_nothing_and_of_silence(audio_dataset, tmp_path):
    assert bandwidth_table(dataclasses.replace(audio_dataset, splits={"train": ()})) == {}
    short = write_audio_dataset(tmp_path / "short", train=(100, 127), validation=(), channels=1)
    assert bandwidth_table(short) == {}
    tiny = write_audio_dataset(tmp_path / "tiny", train=(300,), validation=(), channels=2)
    (window, constants), *rest = bandwidth_table(tiny).items()
    assert (window, rest) == (256, [])
    assert all(np.isfinite(value) and value > 0 for value in constants.values())


@pytest.mark.parametrize(
    "text", ["{", '{"8192": {"l1": 1.0, "l2": 1.0}}', '{"8192": {"l1": 0.0, "l2": 1.0, "spec": NaN}}']
)
def test_a_damaged_table_is_told(audio_dataset, tmp_path, text):
    folder = shutil.copytree(audio_dataset.folder, tmp_path / "copy")
    (folder / FILE).write_text(text)
    dataset = open_dataset(folder)
    with pytest.raises(UserError, match=r"bandwidth\.json is damaged"):
        stored_bandwidth(dataset, 8192)
