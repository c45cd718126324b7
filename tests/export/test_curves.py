"""Curves of training runs, and what is normal for them."""

from __future__ import annotations

import json

from jukebox_jax.export.curves import normal_bands, training_curves


def test_runs_become_curves_and_those_that_are_missing_none(tmp_path):
    (tmp_path / "vqvae").mkdir()
    rows = [
        {"step": 10, "loss": 3.0, "usage_l1": 400.0, "usage_l2": 300.0},
        {"step": 20, "loss": 2.0, "usage_l1": 500.0},
    ]
    rows.append({"step": 20, "eval_loss": 2.5})
    (tmp_path / "vqvae/metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "level_2").mkdir()
    (tmp_path / "level_2/metrics.jsonl").write_text(json.dumps({"step": 5, "bits_per_token": 8.0}))
    loss, first, second, top = training_curves(tmp_path, bands=True)
    assert (loss.model, loss.train, loss.held_out) == ("VQ-VAE", [(10, 3.0), (20, 2.0)], [(20, 2.5)])
    assert (first.unit, first.train) == ("codes in use", [(10, 400.0), (20, 500.0)])
    assert second.train == [(10, 300.0)]
    assert (top.model, top.unit) == ("prior, level 2", "bits per token")
    assert loss.band
    assert not training_curves(tmp_path)[0].band


def test_bands_are_bands():
    bands = normal_bands()
    assert set(bands) == {"VQ-VAE", *(f"prior, level {level}" for level in range(3))}
    for band in bands.values():
        assert len(band) > 4
        assert all(0 < low < high for _, low, high in band)
        assert [step for step, *_ in band] == sorted({step for step, *_ in band})
