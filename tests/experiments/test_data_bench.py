from __future__ import annotations

import json
import sys

import pytest

from experiments.data_bench import __main__ as data_bench
from experiments.data_bench import music, stream


def test_every_row_is_measured(tmp_path, monkeypatch, capsys):
    # As it runs, but with songs of 30 s and little of everything.
    monkeypatch.setattr(music, "SONG_SECONDS", 30)
    monkeypatch.setattr(stream, "AUDIO_SECONDS", 10.0)
    monkeypatch.setattr(stream, "BATCH", 2)
    arguments = ["data_bench", "--hours", "0.02", "--repeats", "1", "--json", str(tmp_path / "rows.json")]
    monkeypatch.setattr(sys, "argv", arguments)
    data_bench.main()
    shown = capsys.readouterr().out
    result = json.loads((tmp_path / "rows.json").read_text())
    assert len(result["rows"]) == 7
    for row in result["rows"]:
        assert row["per_core_second"] > 0
        assert row["what"] in shown
    assert result["limits"]["copy_bytes_per_core_second"] > 1e8


def test_an_unknown_part_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["data_bench", "--part", "nothing"])
    with pytest.raises(SystemExit):
        data_bench.main()
