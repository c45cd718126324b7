"""The main job with next to no training: every file and figure is there, and the same command goes on."""

from __future__ import annotations

import json

import pytest

from jukebox_jax.cli.main import main
from jukebox_jax.demo import run_demo
from jukebox_jax.errors import UserError
from jukebox_jax.files import folder_lock
from jukebox_jax.recipe import Effort

TINY = Effort(None, (1, 12), None, (1, 6))


@pytest.mark.slow
def test_a_demo_leaves_all_that_it_promises_and_goes_on_where_it_stopped(tmp_path, capsys):
    out = tmp_path / "demo"
    report = run_demo(out, effort=TINY, progress=False)
    assert "Codec level 0: spectral convergence" in capsys.readouterr().out
    assert json.loads((out / "report.json").read_text()) == report
    for level in range(3):
        for name in ("vqvae.level_{}.spectral_convergence_db", "vqvae.level_{}.codebook_used"):
            assert name.format(level) in report
        for name in ("bits_per_token", "unigram_bits", "bigram_bits", "bits_wrong_composer"):
            assert report[f"prior.level_{level}.{name}"] > 0
    assert report["vqvae.steps"] == 12
    assert report["level_1.steps"] == 6
    assert len(report["audio"]) == 4 * 4 + 4 * 3
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "Clara Schumann" in page
    assert 'src="http' not in page

    weights = sorted((out / "runs").rglob("*"))
    stamps = [path.stat().st_mtime_ns for path in weights if "checkpoints" in path.parts]
    (out / "report.json").unlink()
    again = run_demo(out, effort=TINY, progress=False)
    assert stamps == [path.stat().st_mtime_ns for path in weights if "checkpoints" in path.parts]
    assert again["seconds"] > report["seconds"]  # the time of both
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in report.items() if k != "seconds"}

    with pytest.raises(UserError, match="seed"):
        run_demo(out, seed=1, effort=TINY, progress=False)


def test_two_demos_in_one_folder(tmp_path, capsys):
    with folder_lock(tmp_path / "demo"):
        assert main(["demo", "--out", str(tmp_path / "demo")]) == 2
    assert "is in use by another process" in capsys.readouterr().err
