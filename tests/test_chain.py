"""The five verbs one after another, as a user would call them, on two minutes' worth of nothing: tiny and complete."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from cascade import equal

from jukebox_jax import api
from jukebox_jax.checkpoint.models import export_codec, export_prior, load_codec, load_prior
from jukebox_jax.cli.main import main
from jukebox_jax.corpus.encode import encode_song
from jukebox_jax.errors import UserError
from jukebox_jax.pipeline.dataset import RecordReader, open_dataset

CONFIG = """
from jukebox_jax.models.conditioning import ConditionerConfig, LabelConfig
from jukebox_jax.models.losses import CodecLossConfig
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.models.vqvae import VQVAEConfig
from jukebox_jax.training.config import OptimizerConfig, TrainConfig
from jukebox_jax.training.run import CodecData, CodecRun, PriorRun

TRAIN = TrainConfig(batch_size=2, steps=3, log_every=1, optimizer=OptimizerConfig(warmup_steps=1))


def get_config(variant):
    if variant == "codec":
        model = VQVAEConfig(widths=(4, 4, 4), depths=(1, 1, 1), emb_width=4, codes=16)
        loss = CodecLossConfig(multispectral_n_fft=(256,), multispectral_hop=(64,), multispectral_window=(256,))
        return CodecRun(model, loss, CodecData(window_samples=4096), TRAIN)
    level = int(variant)
    labels = LabelConfig(0, 0, time_bins=4, max_duration_seconds=20.0)
    conditioner = None if level == 2 else ConditionerConfig(width=4, depth=1)
    model = PriorConfig(level, 16, 32, 8, 3, 2, 4, labels=labels, conditioner=conditioner, remat="none")
    return PriorRun(model, TRAIN)
"""


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Path:
    """A folder with music, audio, tokens, and runs/{vqvae,level_0,level_1,level_2}."""
    root = tmp_path_factory.mktemp("chain")
    (root / "config.py").write_text(CONFIG)
    (root / "music").mkdir()
    time = np.arange(3 * 44_100) / 44_100
    rows = []
    for index, (artist, hertz) in enumerate([("Bach", 220), ("Corelli", 330), ("Bach", 440)]):
        tone = 0.3 * np.sin(2 * np.pi * hertz * time) * np.exp(-time)
        soundfile.write(root / "music" / f"{index}.wav", tone, 44_100)
        split = "validation" if index == 2 else "train"
        rows.append({"file_name": f"{index}.wav", "title": f"No. {index}", "artist": artist, "split": split})
    (root / "music" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))

    run("prepare", root / "music", "--out", root / "audio")
    train(root, "codec", "audio", "vqvae")
    run("encode", root / "audio", "--checkpoint", root / "runs/vqvae", "--out", root / "tokens")
    for level in (2, 1, 0):
        train(root, str(level), "tokens", f"level_{level}", "--codec", root / "runs/vqvae")
    return root


def run(*argv) -> None:
    assert main([str(argument) for argument in argv]) == 0


def train(root, variant, data, name, *more) -> None:
    run(
        "train",
        "--quiet",
        "--config",
        f"{root / 'config.py'}:{variant}",
        "--data",
        root / data,
        "--out",
        root / "runs" / name,
        *more,
    )


def refused(capsys, *argv) -> str:
    """The one line of a refusal."""
    capsys.readouterr()
    assert main([str(argument) for argument in argv]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_every_stage_left_what_the_next_one_needs(chain):
    rows = [json.loads(line) for line in (chain / "runs/vqvae/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]
    assert any("eval_spectral_convergence" in row for row in rows)
    assert any("eval_bits_per_token" in json.loads(line) for line in (chain / "runs/level_0/metrics.jsonl").open())
    config = json.loads((chain / "runs/level_2/config.json").read_text())
    assert config["labels"]["artists"] == ["unknown", "bach", "corelli"]
    assert config["model"]["labels"]["artists"] == 3  # filled in from the dataset


def test_the_sampled_song_is_saved_with_what_made_it(chain, tmp_path):
    settings = ("--model", chain / "runs", "--artist", "Bach", "--seconds", "0.5", "--seed", "4", "--top-k", "5")
    run("sample", *settings, "--out", tmp_path / "a")
    run("sample", *settings, "--out", tmp_path / "b")
    audio, rate = soundfile.read(tmp_path / "a" / "seed_4_song_0.wav")
    assert rate == 44_100
    assert len(audio) == 22_050 // 128 * 128
    assert (tmp_path / "a/seed_4_song_0.wav").read_bytes() == (tmp_path / "b/seed_4_song_0.wav").read_bytes()
    made_by = json.loads((tmp_path / "a" / "seed_4_song_0.wav.json").read_text())
    assert made_by["ai_generated"] is True
    assert (made_by["seed"], made_by["request"]["artist"], made_by["sampling"][0]["top_k"]) == (4, "Bach", 5)
    assert "<figcaption>prior, level 2</figcaption>" in (tmp_path / "a/index.html").read_text()  # its loss curves


def test_long_songs_are_encoded_in_chunks_as_in_one_piece(chain):
    codec = load_codec(chain / "runs/vqvae")
    dataset = open_dataset(chain / "audio")
    audio = RecordReader(dataset, "train").read_song(0, "audio")[:, 0] / np.float32(2**15)
    whole = encode_song(codec.config, codec.codec, audio)  # 3 s are one chunk
    chunked = encode_song(codec.config, codec.codec, audio, chunk_samples=2**14)
    assert all(map(equal, chunked, whole))
    stored = RecordReader(open_dataset(chain / "tokens"), "train").read_song(0, "level_0")
    assert equal(stored[: len(whole[0])], whole[0].astype(np.uint16))


def test_a_rounded_copy_is_the_model_to_eight_bits(chain, tmp_path):
    export_codec(chain / "runs/vqvae", tmp_path / "vqvae")
    assert load_codec(tmp_path / "vqvae").hash != load_codec(chain / "runs/vqvae").hash
    export_prior(chain / "runs/level_2", tmp_path / "level_2")
    exact, rounded = (load_prior(folder).params for folder in (chain / "runs/level_2", tmp_path / "level_2"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), rounded, exact)
    assert len(list((tmp_path / "level_2").iterdir())) == 2
    weights = tmp_path / "level_2/weights.npz"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"weights\.npz is damaged"):
        load_prior(tmp_path / "level_2")


def test_models_of_different_trainings_are_not_mixed(chain, tmp_path, capsys):
    shutil.copytree(chain / "runs", tmp_path / "mixed")
    shutil.rmtree(tmp_path / "mixed/vqvae")
    export_codec(chain / "runs/vqvae", tmp_path / "mixed/vqvae")
    assert "tokens of another codec" in refused(
        capsys, "sample", "--model", tmp_path / "mixed", "--out", tmp_path / "x"
    )
    config = f"{chain / 'config.py'}:2"
    line = refused(
        capsys,
        "train",
        "--config",
        config,
        "--data",
        chain / "tokens",
        "--out",
        tmp_path / "run",
        "--codec",
        tmp_path / "mixed/vqvae",
    )
    assert "was not encoded by" in line
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("encode", "audio", "--checkpoint", "runs/level_2", "--out", "new"), "checkpoint of a prior, not of a codec"),
        (("encode", "audio", "--checkpoint", "nowhere", "--out", "new"), "no checkpoint folder"),
        (("encode", "music", "--checkpoint", "runs/vqvae", "--out", "new"), "not a prepared dataset"),
        (("encode", "tokens", "--checkpoint", "runs/vqvae", "--out", "new"), "holds tokens, not audio"),
        (("encode", "audio", "--checkpoint", "runs/vqvae", "--out", "tokens"), "already exists"),
        (
            ("train", "--config", "config.py:2", "--data", "audio", "--out", "new"),
            "holds audio and a prior learns tokens: add --codec",
        ),
        (
            (
                *("train", "--config", "config.py:2", "--config.model.level=3"),
                *("--data", "audio", "--codec", "runs/vqvae", "--out", "new"),
            ),
            "the codec has no tokens of level 3",
        ),
        (
            ("train", "--config", "config.py:2", "--config.model.codes=8", "--data", "tokens", "--out", "new"),
            "model.codes=8, but these tokens use 16: set --config.model.codes=16",
        ),
        (
            (
                "train",
                "--config",
                "config.py:2",
                "--config.model.labels.max_duration_seconds=2",
                "--data",
                "tokens",
                "--out",
                "new",
            ),
            "train with --config.model.labels.max_duration_seconds=5.",
        ),
        (
            ("train", "--config", "config.py:2", "--config.model.remat=blok", "--data", "tokens", "--out", "new"),
            "model.remat",
        ),
        (
            ("train", "--config", "config.py:codec", "--config.model.widths=(4,4)", "--data", "audio", "--out", "new"),
            "model.widths=(4, 4) has 2 entries",
        ),
        (("train", "--config", "config.py:codec", "--data", "tokens", "--out", "new"), "has no audio"),
        (
            (
                "train",
                "--config",
                "config.py:codec",
                "--config.data.window_samples=1000",
                "--data",
                "audio",
                "--out",
                "new",
            ),
            "not a multiple of the top hop 128: use 1024",
        ),
        (
            (
                "train",
                "--config",
                "config.py:1",
                "--config.model.conditioner.downs=1",
                "--data",
                "tokens",
                "--out",
                "new",
            ),
            "upsamples 2-fold",
        ),
        (
            ("train", "--config", "config.py:2", "--config.model.labels.artists=2", "--data", "tokens", "--out", "new"),
            "too small",
        ),
        (
            (
                "train",
                "--config",
                "config.py:2",
                "--config.model.attention_order=13",
                "--data",
                "tokens",
                "--out",
                "new",
            ),
            "attention_order=13 is unknown: choose one of 0 to 12",
        ),
        (
            ("train", "--config", "config.py:2", "--config.model.blocks=5", "--data", "tokens", "--out", "new"),
            "blocks",
        ),
        (
            (
                "train",
                "--config",
                "config.py:codec",
                "--config.model.emb_width=8",
                "--data",
                "audio",
                "--out",
                "runs/vqvae",
            ),
            "model.emb_width",
        ),
        (("sample", "--model", "runs", "--sample-length", "1000", "--out", "new"), "use 1024"),
        (("sample", "--model", "music", "--out", "new"), "no checkpoint folder"),
    ],
)
def test_mistakes_are_told_in_one_line_and_leave_nothing_behind(chain, capsys, monkeypatch, argv, words):
    monkeypatch.chdir(chain)
    before = sorted(path for path in chain.rglob("*"))
    assert words in refused(capsys, *argv)
    assert sorted(path for path in chain.rglob("*")) == before


def test_a_corrupt_or_missing_file_is_told_and_does_not_stop_prepare(chain, tmp_path, capsys):
    shutil.copytree(chain / "music", tmp_path / "music")
    (tmp_path / "music/1.wav").write_bytes(b"not music")
    assert main(["prepare", str(tmp_path / "music"), "--out", str(tmp_path / "corrupt")]) == 0
    assert "1.wav: refused: cannot be read as audio" in capsys.readouterr().out
    (tmp_path / "music/1.wav").unlink()
    assert main(["prepare", str(tmp_path / "music"), "--out", str(tmp_path / "missing")]) == 0
    assert "1.wav does not exist" in capsys.readouterr().out


def test_a_cascade_with_a_part_missing_swapped_or_changed_is_refused(chain, tmp_path):
    with pytest.raises(UserError, match="no model folder"):
        api.load("nowhere")
    runs = tmp_path / "runs"
    shutil.copytree(chain / "runs", runs)
    (runs / "level_0").rename(runs / "kept")
    with pytest.raises(UserError, match="level_0"):
        api.load(runs)
    (runs / "level_1").rename(runs / "level_0")
    (runs / "kept").rename(runs / "level_1")
    with pytest.raises(UserError, match="level_0 is a prior of level 1"):
        api.load(runs)
    config = json.loads((chain / "runs/level_2/config.json").read_text())
    config["model"]["width"] = 16
    (runs / "level_2/config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"level_2: .* has shape .* but config.json asks for"):
        load_prior(runs / "level_2")
