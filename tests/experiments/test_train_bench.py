from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import pytest

from experiments import limits
from experiments.train_bench import __main__ as train_bench
from experiments.train_bench import cases
from jukebox_jax.models.prior import PriorConfig, flops_per_window
from jukebox_jax.models.vqvae import VQVAEConfig
from jukebox_jax.parallel.mesh import make_mesh
from jukebox_jax.planning.work import executed_flops

PRIOR = PriorConfig(level=0, codes=1000, n_ctx=64, width=16, depth=6, blocks=4)
CODEC = VQVAEConfig(downs=(2,), strides=(2,), widths=(8,), depths=(1,), emb_width=8, codes=16)


def test_cases_are_measured_and_shown(tmp_path, monkeypatch, capsys):
    small = (
        cases.Case("step", partial(cases.prior_step, dataclasses.replace(PRIOR, remat="dots", depth=1), 2), 1.5),
        cases.Case("encode", partial(cases.codec_encode, CODEC, 64)),
        cases.Case("decode", partial(cases.codec_decode, CODEC, 64, 0)),
    )
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{train_bench._BEGIN}old\n{train_bench._END}after\n")
    monkeypatch.setattr(train_bench, "cpu_cases", lambda: small)
    monkeypatch.setattr(train_bench, "keep_freed_memory", lambda: True)  # not for all tests that follow
    monkeypatch.setattr(train_bench, "README", readme)
    monkeypatch.setattr(limits, "MATRIX", 64)
    arguments = ["--repeats", "1", "--readme", "--json", f"{tmp_path / 'rows.json'}", "--profile", f"{tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["train_bench", *arguments])
    train_bench.main()
    shown, rows = capsys.readouterr().out, json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["step", "encode", "decode"]
    assert [row["units"] for row in rows] == [128, 64, 64]
    for row in rows:
        assert 0 < row["seconds"] < 60
        assert row["flops"] > 0
        assert row["memory_bytes"] > 1000
        assert f"| {row['name']} |" in shown
        assert f"| {row['name']} |" in readme.read_text()
    assert "| operation | ms | part |" in shown
    assert readme.read_text().startswith("before\n")
    assert readme.read_text().endswith("after\n")
    assert "old" not in readme.read_text()


def flops(remat: str) -> float:
    with jax.set_mesh(make_mesh((1,))):
        work = cases.prior_step(dataclasses.replace(PRIOR, remat=remat), 3)
        return executed_flops(work.step, jax.eval_shape(work.create), work.batch)


def test_flops_are_those_that_are_executed():
    model = 3 * 3 * flops_per_window(PRIOR)
    assert flops("none") == model
    # Attention alone is computed again.
    attention = 3 * PRIOR.n_ctx * 4 * PRIOR.transformer.state * 6 * 12  # mean of 16, 4 and 16 keys
    assert flops("dots") == model + attention
    # And all but the last product of a layer, on which no derivative depends.
    linear = 3 * PRIOR.n_ctx * 2 * PRIOR.depth * (4 * PRIOR.width * PRIOR.transformer.state + PRIOR.width**2)
    assert flops("block") == model + attention + linear


def test_flops_of_convolutions_leave_inserted_zeros_out():
    x, kernel = jax.ShapeDtypeStruct((2, 10, 3), "float32"), jax.ShapeDtypeStruct((4, 3, 5), "float32")

    def convolve(x, kernel, **options):
        return jax.lax.conv_general_dilated(
            x, kernel, padding=[(0, 0)], dimension_numbers=("NWC", "WIO", "NWC"), **options
        )

    assert executed_flops(partial(convolve, window_strides=(1,)), x, kernel) == 2 * (2 * 7 * 5) * (4 * 3)
    dilated = partial(convolve, window_strides=(1,), lhs_dilation=(2,))
    assert executed_flops(dilated, x, kernel) == 2 * (2 * 16 * 5) * (4 * 3) / 2

    def looped(x, kernel):
        return jax.lax.scan(lambda c, _: (c + 1, convolve(x, kernel, window_strides=(1,))), 0, length=3)

    assert executed_flops(looped, x, kernel) == 3 * 2 * (2 * 7 * 5) * (4 * 3)


def test_limits_are_measured(monkeypatch):
    monkeypatch.setattr(limits, "MATRIX", 256)
    assert limits.copy_bytes_per_core_second(1) > 1e8
    assert limits.numpy_matmul_flops_per_second(1) > 1e8
    assert limits.matmul_flops() / limits.seconds(limits.jax_matmul(), time.perf_counter) > 1e8


def test_the_benchmark_needs_no_heavy_library():
    heavy = ["tensorflow", "soundfile", "ml_collections", "orbax", "tensorboardX", "torch"]
    code = f"import sys, experiments.train_bench.__main__; print([name for name in {heavy!r} if name in sys.modules])"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("arguments", [["--only", "nothing"], ["--repeats", "0"]])
def test_what_cannot_be_measured_is_refused(monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["train_bench", *arguments])
    with pytest.raises(SystemExit):
        train_bench.main()
