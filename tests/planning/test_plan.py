"""Plans by the model alone: against counts by hand, against what the compiler was seen to do, and as commands."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from jukebox_jax.cli.flags import load_config
from jukebox_jax.cli.main import main
from jukebox_jax.cli.plan import next_to_compile
from jukebox_jax.models.prior import PriorConfig, flops_per_window
from jukebox_jax.models.transformer import TransformerConfig
from jukebox_jax.parallel.mesh import AXES
from jukebox_jax.parallel.topology import parse_topology
from jukebox_jax.planning.costs import train_costs
from jukebox_jax.planning.layouts import Combination, accumulations, meshes_of
from jukebox_jax.planning.plan import Question, count, modelled, recommended, rows
from jukebox_jax.planning.traffic import activation_messages
from jukebox_jax.training.config import TrainConfig
from jukebox_jax.training.run import PriorRun
from tests.training.models_on_eight_devices import BATCH, CONFIG, PRIORS

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "tests/parallel/collectives.json").read_text())
COMPILED = json.loads((ROOT / "experiments/sharding_lab/compiled.json").read_text())
TINY = PriorConfig(level=2, codes=64, n_ctx=256, width=64, depth=6, heads=4, blocks=16, dtype="bfloat16")
RUN = PriorRun(TINY, TrainConfig(batch_size=16))
FAMILIES = {"top": "lyric_encoder", "upsampler": "upsampler"}


def mesh(**sizes: int) -> dict[str, int]:
    return {axis: sizes.get(axis, 1) for axis in AXES}


def test_what_sequence_parallel_layers_send_is_counted_by_hand():
    t: TransformerConfig = TINY.transformer  # two layers each of rows, columns, previous rows; state 16, 2 bytes
    found = {m.kind: m for m in activation_messages(TINY, 2.0, mesh(sequence=4))}
    assert set(found) == {"all-to-all", "collective-permute"}
    # Two examples of 64 tokens a chip; q, k, v there and what was attended back; forwards, again, backwards.
    assert found["all-to-all"].bytes_sent == 2 * 3 * 4 * (3 / 4) * (2 * 64) * t.state * 2
    # Keys and values of one row of 16 tokens of two examples.
    assert found["collective-permute"].bytes_sent == 2 * 3 * 2 * (2 * 16) * t.state * 2


def test_what_tensor_parallel_layers_send_is_counted_by_hand():
    (found,) = activation_messages(TINY, 2.0, mesh(tensor=2))
    # Five sums in each of six layers, in bfloat16, and one of the states in float32; a sum sends twice half.
    assert (found.kind, found.axes) == ("all-reduce", ("tensor",))
    assert found.bytes_sent == (6 * 5 * 2 + 4) * (2 * 1 / 2) * 2 * 256 * 64


def test_parameters_are_gathered_twice_and_their_gradients_scattered():
    costs = train_costs(RUN, Combination("fsdp", (1, 8, 1, 1), 16, remat="block"))
    gathered, scattered = (
        next(m for m in costs.messages if m.kind == kind) for kind in ("all-gather", "reduce-scatter")
    )
    layers = 6 * (4 * 64 * 16 + 2 * 64 * 64)  # matrices, in bfloat16
    small = 6 * (4 * 64 + 2 * 64)  # norms, and the biases of what is added to the residual stream, in float32
    tables = 64 * 64 + 256 * 64 + 64  # of codes and positions, and the start: gathered once
    assert gathered.bytes_sent == pytest.approx(7 / 8 * (2 * 2 * layers + 4 * (2 * small + tables)))
    assert scattered.bytes_sent == pytest.approx(7 / 8 * (2 * layers + 4 * (small + tables)))


@pytest.mark.parametrize("strategy", ["dp", "fsdp", "hsdp", "fsdp_tp"])
@pytest.mark.parametrize("model", FAMILIES)
def test_the_model_sends_what_the_partitioned_program_does(model, strategy):
    (sizes, *_) = meshes_of(strategy, 8, 1, "own")
    costs = train_costs(PriorRun(PRIORS[FAMILIES[model]], CONFIG), Combination(strategy, sizes, BATCH))
    # Before the backend, a sum into shards is an all-reduce.
    ours = sum(m.bytes_sent * (2 if m.kind == "reduce-scatter" else 1) for m in costs.messages)
    assert ours == pytest.approx(sum(GOLDEN[model][strategy].values()), rel=0.2)


@pytest.mark.parametrize("row", COMPILED, ids=lambda row: f"{row['model']} {row['topology']} {row['strategy']}")
def test_the_modelled_memory_is_that_of_the_tpu_compiler(row):
    run = load_config(f"{ROOT / 'configs' / row['model']}")
    combination = Combination(row["strategy"], tuple(row["mesh"]), row["global_batch"], row["accumulate"], row["remat"])
    ours = modelled(row["model"], run, combination, parse_topology(row["topology"]))
    if row["peak_bytes"] is None:
        assert row["reason"]
        assert not ours.fits
    elif ours.fits:
        assert ours.memory.total == pytest.approx(row["peak_bytes"], rel=0.1)
    else:  # where memory is short, the compiler holds less at once, and the step may fit in the end
        assert row["peak_bytes"] < 1.1 * ours.memory.total


def test_model_flops_are_those_of_the_task_and_remat_adds_a_forward_pass():
    kept, again = (train_costs(RUN, Combination("dp", (8, 1, 1, 1), 16, remat=r)) for r in ("none", "block"))
    assert kept.model_flops == again.model_flops == 3 * flops_per_window(TINY) * 16 / 8
    assert kept.executed_flops == pytest.approx(kept.model_flops, rel=0.01)
    logits = 2 * 256 * 64 * 64 * 2
    assert again.executed_flops - kept.executed_flops < flops_per_window(TINY) * 2 - logits
    assert again.executed_flops > 1.2 * kept.executed_flops
    assert again.memory.activations < kept.memory.activations


def test_a_chip_of_two_that_divide_heads_computes_half():
    one, two = (train_costs(RUN, Combination("fsdp_tp", sizes, 16)) for sizes in ((1, 4, 1, 1), (1, 4, 1, 2)))
    assert two.executed_flops == pytest.approx(one.executed_flops / 2, rel=0.02)


def test_microbatches_are_the_fewest_that_fit():
    topology = parse_topology("v5e:2x2")
    small = dataclasses.replace(topology, chip=dataclasses.replace(topology.chip, memory_bytes=2_500_000))
    question = Question("tiny", RUN, ("fsdp",), batch_size=64)
    (much,), (little,) = list(rows(question, topology)), list(rows(question, small))
    assert much.combination.accumulate == 1
    assert little.combination.accumulate > 1
    assert little.fits
    before = dataclasses.replace(little.combination, accumulate=little.combination.accumulate // 2)
    assert not modelled("tiny", RUN, before, small).fits
    assert list(accumulations(64, (1, 4, 1, 1))) == [1, 2, 4, 8, 16]


def test_meshes_of_powers_of_two_keep_slices_apart():
    found = list(meshes_of("fsdp_sp", 32, 2, "all"))
    assert len(found) == len(set(found)) > 5
    assert all(replica * fsdp * sequence * tensor == 32 for replica, fsdp, sequence, tensor in found)
    assert all(replica % 2 == 0 for replica, *_ in found[1:])
    assert all(sequence > 1 for _, _, sequence, _ in found)


def test_the_recommended_row_is_the_fastest_that_fits():
    found = list(rows(Question("tiny", RUN, ("dp", "fsdp", "fsdp_sp")), parse_topology("v5e:2x4")))
    best = recommended(found)
    assert best.fits
    assert best.times.worst == min(row.times.worst for row in found if row.fits)
    for row in found:
        assert row.times.best <= row.times.worst
        assert row.mfu_worst <= row.mfu_best <= 1


KEYS = {
    *("model", "topology", "chips", "strategy", "mesh", "global_batch", "compiled", "fits", "hbm_bytes_per_chip"),
    *("executed_flops_per_chip", "collective_bytes", "step_seconds_best", "step_seconds_worst", "mfu_best"),
    *("mfu_worst", "compile_seconds"),
}


def test_the_command_prints_a_table_and_writes_files(tmp_path, capsys):
    config = f"{ROOT / 'configs/prior.py'}:5b"
    arguments = ["plan", "--config", config, "--topology", "v5p:4x4x4", "gpu:8xh200", "--batch", "64", "--no-compile"]
    files = ["--json", f"{tmp_path / 'a.json'}", "--csv", f"{tmp_path / 'a.csv'}", "--report", f"{tmp_path / 'a.html'}"]
    assert main([*arguments, *files, "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "v5p:4x4x4: hsdp" in out
    assert "all times are modelled" in out
    found = json.loads((tmp_path / "a.json").read_text())
    assert {row["topology"] for row in found} == {"v5p:4x4x4", "gpu:8xh200"}
    assert all(set(row) >= KEYS for row in found)
    assert not any(row["compiled"] for row in found)
    assert len(list(csv.DictReader((tmp_path / "a.csv").open()))) == len(found)
    page = (tmp_path / "a.html").read_text()
    assert "<script" not in page
    assert "http" not in page
    assert page.count("<rect") == 4 * sum(row["modelled_memory"] is not None for row in found)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology", "v5e:9x9"], "There is no topology 'v5e:9x9': choose v5e:2x2"),
        (["--topology", "v5e:4x4", "--mesh", "2x2"], "'2x2' is no mesh"),
        (["--topology", "v5e:4x4", "--strategy", "fspd"], "did you mean 'fsdp'|fsdp"),
        (["--topology", "v5e:4x4", "--remat", "blocks"], "There is no remat 'blocks'"),
        (["--topology", "v5e:4x4", "--json", f"{ROOT}"], "is a folder: give a file in it"),
        (["--topology", "v5e:4x4", "--csv", "/proc/none/a.csv"], "/proc/none"),
        (["--topology", "gpu:8xh100", "--assumptions", "missing.toml"], "missing.toml"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, words):
    assert main(["plan", "--config", f"{ROOT / 'configs/prior.py'}:demo_top", "--quiet", *arguments]) == 2
    err = capsys.readouterr().err
    assert any(word in err for word in words.split("|"))
    assert err.count("\n") == 1


def test_what_cannot_be_is_a_row_that_says_why(capsys):
    config = f"{ROOT / 'configs/prior.py'}:demo_top"
    arguments = ["--topology", "v5e:4x4", "--batch", "16", "--mesh", "1x1x4x4", "--strategy", "fsdp_tp,dp", "--quiet"]
    assert main(["plan", "--config", config, *arguments, "--no-compile"]) == 0
    assert "not divisible by mesh axis tensor" in capsys.readouterr().out


def test_a_mesh_that_does_not_fit_is_a_row_that_says_why(capsys):
    config = f"{ROOT / 'configs/prior.py'}:demo_top"
    assert (
        main(["plan", "--config", config, "--topology", "v5e:4x4", "--mesh", "3x3x1x1", "--no-compile", "--quiet"]) == 0
    )
    assert "is for 9 devices and there are 16" in capsys.readouterr().out


def plan(tmp_path: Path, *arguments: str) -> list[dict]:
    assert main(["plan", *arguments, "--json", f"{tmp_path / 'rows.json'}", "--quiet"]) == 0
    return json.loads((tmp_path / "rows.json").read_text())


def test_decoding_is_bound_by_reading_the_weights(tmp_path, capsys):
    arguments = ["--config", f"{ROOT / 'configs/prior.py'}:5b", "--step", "decode", "--topology", "v5p:2x2x1"]
    found = {precision: plan(tmp_path, *arguments, "--precision", precision) for precision in ("bfloat16", "int8")}
    best = {precision: next(r for r in some if r["strategy"] == "dp") for precision, some in found.items()}
    # 10.0 and 5.1 GB of weights and caches at 2765 GB/s.
    assert best["bfloat16"]["step_seconds_best"] == pytest.approx(10.03e9 / 2765e9, rel=0.01)
    assert best["int8"]["step_seconds_best"] == pytest.approx(5.06e9 / 2765e9, rel=0.01)
    divided = [row for row in found["bfloat16"] if row["strategy"] == "fsdp_tp"]
    assert {tuple(row["mesh"]) for row in divided} == {(1, 1, 1, 4)}  # the fastest for one song at a time
    assert all(set(row["collective_bytes"]) == {"all-reduce"} for row in divided)
    assert "$/10⁹ tokens" in capsys.readouterr().out


def test_known_tokens_are_cheaper_than_new_ones(tmp_path):
    arguments = ["--config", f"{ROOT / 'configs/prior.py'}:small", "--topology", "v5e:2x2", "--strategy", "dp"]
    (known,), (new,) = (plan(tmp_path, *arguments, "--step", step) for step in ("prefill", "decode"))
    assert known["tokens_per_second_per_chip"] > 20 * new["tokens_per_second_per_chip"]
    assert known["model_flops_per_chip"] == pytest.approx(flops_per_window(load_config(arguments[1]).model), rel=0.15)


def test_audio_is_encoded_side_by_side(tmp_path):
    arguments = ["--config", f"{ROOT / 'configs/vqvae.py'}:small", "--step", "encode", "--topology", "v5e:2x2"]
    (one, divided) = plan(tmp_path, *arguments)
    assert one["fits"]
    assert one["audio_hours_per_day"] > 0
    assert "songs lie side by side" in divided["reason"]


@pytest.mark.parametrize(
    ("config", "step", "words"),
    [("vqvae.py:small", "decode", "--step decode is for priors"), ("prior.py:small", "encode", "is for the codec")],
)
def test_a_step_of_another_model_is_refused(capsys, config, step, words):
    arguments = ["--config", f"{ROOT / 'configs' / config}", "--step", step, "--topology", "v5e:2x2"]
    assert main(["plan", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_what_the_compiler_finds_not_to_fit_is_not_recommended_and_the_next_is_compiled():
    found = list(rows(Question("tiny", RUN, ("dp", "fsdp")), parse_topology("v5e:2x4")))
    first = recommended(found)
    assert next_to_compile(found, set(), every=False) is first
    after = [dataclasses.replace(row, compiled=True, fits=False) if row is first else row for row in found]
    second = next_to_compile(after, {first.combination}, every=False)
    assert second is not None
    assert second.combination.strategy != first.combination.strategy
    assert next_to_compile(found, {first.combination}, every=False) is None  # it fits: done
    assert next_to_compile(found, {first.combination}, every=True) is not None


def test_rows_are_counted_for_the_progress_bar():
    question = Question("tiny", RUN, ("dp", "fsdp", "single"), remats=("block", "dots"), meshes="all")
    topology = parse_topology("v5e:2x2")
    assert len(list(rows(question, topology))) == count(question, topology)
