from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from cascade import CODEC, lyric_config, lyric_prior, prior_config

from experiments import limits
from experiments.decode_bench import __main__ as decode_bench
from experiments.decode_bench import cases, work
from jukebox_jax.models.attention import Layout, Pattern
from jukebox_jax.models.prior import flops_per_window
from jukebox_jax.planning import decode_counts
from jukebox_jax.sampling.weights import decoding_config, pack


def small_cases() -> tuple[cases.Case, ...]:
    priors = {f"level_{level}": prior_config(level) for level in range(3)}
    return tuple(
        cases.Case(name, config, "int8", 1, name == "level_2", 0.04, 211.0) for name, config in reversed(priors.items())
    )


def test_cases_are_measured_and_shown(tmp_path, monkeypatch, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{decode_bench._BEGIN}old\n{decode_bench._END}after\n")
    monkeypatch.setattr(decode_bench, "cpu_cases", small_cases)
    monkeypatch.setattr(
        decode_bench, "CPU_CASCADES", (cases.Cascade("tiny", CODEC, ("level_2", "level_1", "level_0")),)
    )
    monkeypatch.setattr(decode_bench, "keep_freed_memory", lambda: True)  # not for all tests that follow
    monkeypatch.setattr(decode_bench, "README", readme)
    monkeypatch.setattr(limits, "MATRIX", 64)
    monkeypatch.setattr(limits, "READ_BYTES", 2**20)
    arguments = ["--repeats", "1", "--readme", "--json", f"{tmp_path / 'rows.json'}"]
    monkeypatch.setattr(sys, "argv", ["decode_bench", *arguments])
    decode_bench.main()
    shown, rows = capsys.readouterr().out, json.loads((tmp_path / "rows.json").read_text())
    assert [row["name"] for row in rows["decode"]] == ["level_2/int8/1", "level_1/int8/1", "level_0/int8/1"]
    for row in rows["decode"]:
        assert 0 < row["least_seconds"] <= row["step_seconds"] < row["compile_seconds"] < 60
        assert row["bytes_per_step"] == row["weight_bytes"] + row["cache_bytes"]
        assert row["tokens_per_second"] == pytest.approx(1 / row["step_seconds"])
        assert row["of_memory"] > 0
        assert f"| {row['model']} | int8 | 1 |" in shown
        assert f"| {row['model']} | int8 | 1 |" in readme.read_text()
    (prefill,) = rows["prefill"]
    assert prefill["tokens"] == 16
    assert prefill["tokens_per_second"] == pytest.approx(16 / prefill["seconds"])
    (first,) = rows["first_second"]
    assert first["tokens"] == [8, 8, 1000]
    steps = [
        row["begin_seconds"] + n * row["step_seconds"] for row, n in zip(rows["decode"], (8, 8, 1000), strict=True)
    ]
    assert first["seconds"] == pytest.approx(sum(steps) + first["codec_seconds"])
    assert readme.read_text().startswith("before\n")
    assert readme.read_text().endswith("after\n")
    assert "old" not in readme.read_text()


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("batch", [1, 2])
def test_random_weights_are_arranged_as_packed_ones(precision, batch):
    prior = lyric_prior("separate")
    packed = pack(prior.open_params(), prior.config, precision, batch)
    drawn = work.random_weights(prior.config, precision, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), drawn) == jax.tree.map(lambda x: (x.shape, x.dtype), packed)


def test_bytes_that_a_step_reads():
    layout = Layout(32, 4, spread=2, prime=8, encoded=8)
    read = {pattern: decode_counts.slots_read(pattern, layout) for pattern in Pattern}
    assert read == {0: 32, 1: 8, 2: 4, 3: 8, 4: 3, 5: 6, 6: 8, 7: 12}

    config = dataclasses.replace(prior_config(2), dtype="bfloat16")  # patterns ROW, COLUMN, ROW of 2 × 2 features
    assert decode_counts.cache_bytes_read(config, 3) == 3 * (8 + 4 + 8) * 2 * 4 * 2
    shapes = decode_counts.packed_shapes(config, "bfloat16", 3)
    layer = 2 * (16 * 12 + 4 * 16 + 16 * 16 + 16 * 16) + 4 * (12 + 16 + 16 + 16 + 4 * 16)
    assert decode_counts.weight_bytes_read(config, shapes, 3) == 3 * layer + 4 * (24 * 16 + 2 * 3 * 16)

    # Of the layer that looks at the lyrics, only the queries' weights; the output has a table of its own.
    config = lyric_config("separate")
    shapes = decode_counts.packed_shapes(config, "float32", 1)
    layer = 4 * (16 * 12 + 4 * 16 + 16 * 16 + 16 * 16 + 12 + 16 + 16 + 16 + 4 * 16)
    lyrics = 4 * (16 * 8 + 8)
    assert decode_counts.weight_bytes_read(config, shapes, 1) == 4 * layer - lyrics + 4 * (24 * 16 + 2 * 16)


def test_prefill_computes_what_a_whole_window_does_but_the_logits():
    config = dataclasses.replace(prior_config(2), labels=None)
    shapes = decode_counts.packed_shapes(config, "float32", 2)
    logits = 2 * config.n_ctx * config.width * config.codes
    # A window of 32 tokens is one chunk.
    assert decode_counts.prefill_flops(config, shapes, 1) == flops_per_window(config) - logits
    assert decode_counts.prefill_flops(config, shapes, 32) == flops_per_window(config) - logits
    assert decode_counts.prefill_flops(config, shapes, 33) == 2 * (flops_per_window(config) - logits)


def test_int8_reads_a_quarter():
    config = cases.cpu_cases()[0].config
    read = {
        precision: decode_counts.weight_bytes_read(config, decode_counts.packed_shapes(config, precision, 1), 1)
        for precision in ("float32", "bfloat16", "int8")
    }
    assert 0.25 < read["int8"] / read["float32"] < 0.27
    assert 0.5 < read["bfloat16"] / read["float32"] < 0.52
    assert decode_counts.cache_bytes_read(decoding_config(config, "float32"), 1) == 16 * (128 + 64 + 128) * 2 * 256 * 4


def test_the_benchmark_needs_no_heavy_library():
    heavy = ["tensorflow", "soundfile", "ml_collections", "orbax", "tensorboardX", "torch"]
    code = f"import sys, experiments.decode_bench.__main__; print([name for name in {heavy!r} if name in sys.modules])"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("arguments", [["--only", "nothing"], ["--repeats", "0"]])
def test_what_cannot_be_measured_is_refused(monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["decode_bench", *arguments])
    with pytest.raises(SystemExit):
        decode_bench.main()
