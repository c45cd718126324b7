from __future__ import annotations

import numpy as np
import pytest
import scipy.signal

from jukebox_jax.pipeline.bandwidth import FLOOR, bandwidth, bandwidth_of
from jukebox_jax.pipeline.dataset import RecordReader

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
