from __future__ import annotations

import json
import sys

import pytest

from experiments.data_bench import __main__ as data_bench
from experiments.data_bench import encode, memory, music, prepare, stream
from jukebox_jax.models.vqvae import VQVAEConfig


def run(tmp_path, monkeypatch, *arguments: str) -> dict:
    # As it runs, but with songs of 30 s and little of everything.
    monkeypatch.setattr(music, "SONG_SECONDS", 30)
    monkeypatch.setattr(prepare, "RATES", (48_000,))  # every run starts processes
    monkeypatch.setattr(prepare, "PIECE_SECONDS", 5.0)
    monkeypatch.setattr(stream, "AUDIO_SECONDS", 10.0)
    monkeypatch.setattr(stream, "BATCH", 2)
    monkeypatch.setattr(encode, "CONFIG", VQVAEConfig(widths=(8,) * 3, depths=(1,) * 3, emb_width=8, codes=32))
    monkeypatch.setattr(encode, "SONG_SECONDS", 15.0)
    monkeypatch.setattr(memory, "SMALL_HOURS", 0.016)
    monkeypatch.setattr(memory, "LARGE_HOURS", 0.032)
    monkeypatch.setattr(memory, "BATCHES", 3)
    arguments = (*arguments, "--hours", "0.02", "--repeats", "1", "--json", str(tmp_path / "rows.json"))
    monkeypatch.setattr(sys, "argv", ["data_bench", *arguments])
    data_bench.main()
    return json.loads((tmp_path / "rows.json").read_text())


def test_every_speed_is_measured(tmp_path, monkeypatch, capsys):
    result = run(tmp_path, monkeypatch, "--part", "prepare", "--part", "stream", "--part", "encode")
    shown = capsys.readouterr().out
    assert [row["part"] for row in result["rows"]] == ["prepare"] * 5 + ["stream"] * 7 + ["encode"]
    for row in result["rows"]:
        assert row["per_core_second"] > 0
        assert row["what"] in shown
    assert result["limits"]["copy_bytes_per_core_second"] > 1e8


@pytest.mark.slow  # four processes that each load TensorFlow
def test_memory_is_measured(tmp_path, monkeypatch, capsys):
    result = run(tmp_path, monkeypatch, "--part", "memory")
    shown = capsys.readouterr().out
    assert [row["part"] for row in result["rows"]] == ["prepare"] * 3 + ["stream"]
    worker, decided, stored, streamed = result["rows"]
    for row in result["rows"]:
        assert 0.01 < row["small_hours"] < 0.02 < row["large_hours"]
        assert row["small_bytes"] > 2e7  # what an interpreter with numpy takes
        assert row["what"] in shown
    # What does not load TensorFlow must not be counted with it, or a growth of hundreds of megabytes would not show.
    for size in ("small_bytes", "large_bytes"):
        assert max(worker[size], decided[size]) < min(stored[size], streamed[size]) / 2


def test_an_hour_of_recordings_is_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(music, "SONG_SECONDS", 2)
    monkeypatch.setattr(memory, "RECORDED_HOURS", 5 / 3600)
    memory._write_recordings(tmp_path / "music", 20 / 3600)
    memory._copy_recordings(tmp_path / "music", tmp_path / "hour")
    assert sorted(path.name for path in (tmp_path / "hour").iterdir()) == ["song 0.flac", "song 1.flac", "song 2.flac"]


@pytest.mark.parametrize("arguments", [["--part", "nothing"], ["--music", "nowhere"]])
def test_what_is_not_there_is_refused(monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["data_bench", *arguments])
    with pytest.raises(SystemExit):
        data_bench.main()
