"""Sessions: what is kept of sampling, that any end loses nothing, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cascade import equal, random_model, write_model

from experiments.fault_drill.engine import run_drill
from experiments.fault_drill.verbs import sample_drill
from jukebox_jax.errors import UserError
from jukebox_jax.files import folder_lock

SONGS = {"artist": ["Bach", "Corelli"], "genre": "Song", "n_samples": 2, "seconds": [0.5, 0.4], "batch_size": 2}


def sample(session: Path | None, **changes):
    return random_model().sample(session=session, progress=False, **SONGS | changes)


def test_a_session_goes_on_from_every_window(tmp_path):
    """Windows vanish, whichever and however many: what comes back is the same, and what is whole is not touched."""
    songs, session = sample(None), tmp_path / "session"
    sample(session)
    windows = sorted(session.glob("level_*.npz"))
    assert len(windows) > 20
    whole = {path.name: path.read_bytes() for path in windows}
    rng = np.random.default_rng(0)
    for keep in (0.0, 0.9, 1.0):
        for path in windows:
            if rng.random() > keep:
                path.unlink(missing_ok=True)
        times = {path.name: path.stat().st_mtime_ns for path in windows if path.exists()}
        again = sample(session)
        for a, b in zip(songs, again, strict=True):
            assert all(equal(x, y) for x, y in zip(a.tokens, b.tokens, strict=True))
            assert equal(a.audio, b.audio)
            assert a.provenance == b.provenance
        assert {path.name: path.read_bytes() for path in session.glob("level_*.npz")} == whole
    assert times == {path.name: path.stat().st_mtime_ns for path in windows}


@pytest.mark.parametrize("kills", [4, pytest.param(10, marks=pytest.mark.slow)])
def test_a_killed_run_of_three_levels_ends_in_identical_files(tmp_path, kills):
    model = write_model(tmp_path / "model")
    flags = ("--seconds", 2, "--artist", "Bach", "--genre", "Song", "--batch-size", 2)
    drill = sample_drill(model, *flags, songs=3, windows=540)
    result = run_drill(drill, tmp_path, kills, 0, lambda text: None)
    assert result.problems == []
    assert result.passed
    assert sum(result.kills.values()) == kills
    assert result.resumes > 0


def test_a_session_keeps_its_batch_size(tmp_path, monkeypatch):
    first = sample(tmp_path, batch_size=None)
    sizes = json.loads((tmp_path / "session.json").read_text())["batch_sizes"]
    assert sizes == [2, 2, 2] == first[0].provenance["batch_sizes"]
    next(tmp_path.glob("level_0_song_1*.npz")).unlink()
    # Less memory than there was would suggest another size; the recorded one is kept.
    monkeypatch.setattr("jukebox_jax.sampling.order.choose_batch_size", None)
    again = sample(tmp_path, batch_size=None)
    assert all(equal(a, b) for a, b in zip(first[1].tokens, again[1].tokens, strict=True))
    with pytest.raises(UserError, match=r"batch_sizes\[0\] is 2 there and 1 here"):
        sample(tmp_path, batch_size=1)


def test_the_session_of_something_else_is_refused(tmp_path):
    sample(tmp_path, seconds=0.2)
    before = sorted(tmp_path.iterdir())
    for changes, difference in (
        ({"seed": 7}, r"songs\[0\].seed is 0 there and 7 here"),
        ({"artist": "Corelli"}, r'artist is "Bach" there and "Corelli" here'),
        ({"temperature": {0: 0.99, 1: 0.99, 2: 0.5}}, r"sampling\[2\].temperature is 0.99 there and 0.5 here"),
        ({"precision": "int8"}, 'precision is "float32" there'),
        ({"seconds": 0.3}, r"total_samples is 1536 there and 2304 here"),
    ):
        with pytest.raises(UserError, match=f"session of something else .*{difference}"):
            sample(tmp_path, **{"seconds": 0.2} | changes)
    other = random_model("separate")
    with pytest.raises(UserError, match=r"session of something else \(priors\[2\]"):
        other.sample(session=tmp_path, progress=False, **SONGS | {"seconds": 0.2})
    assert sorted(tmp_path.iterdir()) == before


def test_a_second_process_on_a_session_is_refused(tmp_path):
    with folder_lock(tmp_path), pytest.raises(UserError, match="in use by another process"):
        sample(tmp_path)


def test_damaged_windows_and_sessions_are_refused(tmp_path):
    sample(tmp_path, seconds=0.2)
    path = sorted(tmp_path.glob("level_1_song_1*.npz"))[1]
    whole = path.read_bytes()
    other = sorted(tmp_path.glob("level_1_song_0*.npz"))[0].read_bytes()
    for damage in (whole[:100], b"", whole[:-30] + bytes(30)):
        path.write_bytes(damage)
        with pytest.raises(UserError, match=rf"{path.name} is damaged .*delete it"):
            sample(tmp_path, seconds=0.2)
    path.write_bytes(other)
    with pytest.raises(UserError, match=f"{path.name} belongs to another session"):
        sample(tmp_path, seconds=0.2)
    path.unlink()
    sample(tmp_path, seconds=0.2)
    assert path.read_bytes() == whole
    (tmp_path / "session.json").write_text("{")
    with pytest.raises(UserError, match=r"session\.json is damaged"):
        sample(tmp_path, seconds=0.2)


def test_a_full_disk_is_the_users_to_mend(tmp_path, monkeypatch):
    from jukebox_jax.sampling import session

    written = []

    def savez(path, **arrays):
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device", str(path))
        real(path, **arrays)

    real = np.savez
    monkeypatch.setattr(session.np, "savez", savez)
    with pytest.raises(OSError, match="No space left"):
        sample(tmp_path, seconds=0.2)
    assert len(list(tmp_path.glob("level_*.npz"))) == 2
    assert list(tmp_path.glob(".level*")) == []
    sample(tmp_path, seconds=0.2)
