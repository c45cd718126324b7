"""Priors trained from audio: the batches are those of `encode`, and training is training."""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_devices import xla_flags

from jukebox_jax.checkpoint.models import load_codec
from jukebox_jax.corpus.encode import encode_dataset
from jukebox_jax.errors import UserError
from jukebox_jax.labels.ids import LabelTable
from jukebox_jax.models.conditioning import ConditionerConfig, LabelConfig
from jukebox_jax.models.prior import PriorConfig, batch_spec
from jukebox_jax.models.vqvae import encode
from jukebox_jax.pipeline.dataset import open_dataset
from jukebox_jax.training.config import OptimizerConfig, TrainConfig
from jukebox_jax.training.on_the_fly import EncodedStream
from jukebox_jax.training.run import PriorRun, prior_stream, train_run
from jukebox_jax.training.telemetry import read_metrics
from tests.corpus.tiny_songs import CODECS, write_codec, write_songs

CODEC = CODECS["cycle"]  # hops 4 and 16
LABELS = LabelConfig(0, 0, time_bins=4, min_duration_seconds=0.01, max_duration_seconds=20.0)
TOP = PriorConfig(1, CODEC.codes, n_ctx=32, width=8, depth=1, heads=2, blocks=4, labels=LABELS, remat="none")
UPSAMPLER = dataclasses.replace(
    TOP, level=0, labels=None, conditioner=ConditionerConfig(width=4, depth=1, downs=1, stride=4)
)
TRAIN = TrainConfig(batch_size=2, steps=4, eval_every=2, log_every=1, optimizer=OptimizerConfig(warmup_steps=1))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("on the fly")
    write_songs(root / "audio", (9_000, 5_000, 7_003), (6_000,))
    write_codec(root / "codec", CODEC)
    encode_dataset(root / "audio", root / "codec", root / "tokens", progress=False)
    return root


@pytest.mark.parametrize("model", [TOP, UPSAMPLER], ids=["top", "upsampler"])
def test_the_batches_are_the_codes_of_the_same_windows(world, model):
    trained, audio = load_codec(world / "codec"), open_dataset(world / "audio")
    table = LabelTable.of(["Bach"], ["Song"])
    stream = prior_stream(model, audio, "train", 2, table, codec=trained, blend=True)
    levels = (1,) if model is TOP else (0, 1)
    encoded = EncodedStream(stream, trained, levels, 2)
    ahead = encoded.batches(5, 6)
    for position in (6, 8, 10):
        window = stream.batch(5, position)
        codes = jax.jit(encode, static_argnums=(0, 3))(CODEC, trained.codec, jnp.asarray(window["audio"]), levels)
        batch = next(ahead)
        for name, expected in zip(("tokens", "upper"), codes, strict=False):
            np.testing.assert_array_equal(batch[name], expected)
            np.testing.assert_array_equal(encoded.batch(5, position)[name], expected)
        assert {name: (array.shape[1:], array.dtype) for name, array in batch.items()} == {
            name: (spec.shape, spec.dtype) for name, spec in batch_spec(model).items() if name in batch
        }
        assert len(np.unique(batch["tokens"])) > 4
        if model is TOP:
            np.testing.assert_array_equal(batch["absolute_bins"], window["absolute_bins"])
    assert batch.keys() == batch_spec(model).keys()


@pytest.mark.parametrize("model", [TOP, UPSAMPLER], ids=["top", "upsampler"])
def test_a_prior_trains_both_ways_and_resumes_to_the_same_bits(world, tmp_path, model):
    train = functools.partial(train_run, codec=world / "codec", progress=False)
    train(PriorRun(model, TRAIN), world / "tokens", tmp_path / "tokens")
    whole = train(PriorRun(model, TRAIN), world / "audio", tmp_path / "audio")
    for name in ("tokens", "audio"):
        rows = read_metrics(tmp_path / name)
        assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
        assert all(3 < row["bits_per_token"] < 9 for row in rows if "loss" in row)
        assert sum("eval_bits_per_token" in row for row in rows) == 2
    train(PriorRun(model, dataclasses.replace(TRAIN, steps=3)), world / "audio", tmp_path / "resumed")
    resumed = train(PriorRun(model, TRAIN), world / "audio", tmp_path / "resumed")
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)


def test_mistakes_are_found_before_anything_is_written(world, tmp_path):
    write_songs(tmp_path / "slow", (9_000,), rate=22_050)
    write_codec(tmp_path / "other", CODECS["one level"])
    run = PriorRun(TOP, TRAIN)
    for data, codec, model, words in (
        (world / "audio", None, TOP, "holds audio and a prior learns tokens: add --codec CODEC"),
        (tmp_path / "slow", world / "codec", TOP, "at 22050 Hz, the codec at 44100 Hz"),
        (world / "audio", tmp_path / "other", TOP, "the codec has no tokens of level 1"),
        (world / "tokens", tmp_path / "other", TOP, "was not encoded by"),
        (world / "audio", world / "codec", dataclasses.replace(TOP, codes=8), "model.codes=8, but these tokens use 32"),
        (world / "audio", world / "codec", dataclasses.replace(TOP, n_ctx=1024), "No song in the train split"),
    ):
        with pytest.raises(UserError, match=words):
            train_run(dataclasses.replace(run, model=model), data, tmp_path / "run", codec, progress=False)
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_rows_lie_over_all_devices_and_give_the_same_codes(world, tmp_path):
    code = (
        "import sys\n"
        "from tests.training.test_on_the_fly import *\n"
        "assert jax.device_count() == 4\n"
        f"encode_dataset({str(world / 'audio')!r}, {str(world / 'codec')!r}, {str(tmp_path / 'tokens')!r})\n"
        "config = PriorRun(TOP, dataclasses.replace(TRAIN, batch_size=4, steps=2, strategy='fsdp'))\n"
        f"train_run(config, {str(world / 'audio')!r}, {str(tmp_path / 'run')!r}, {str(world / 'codec')!r})\n"
    )
    env = os.environ | {"XLA_FLAGS": xla_flags(4)}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    for path in (world / "tokens").iterdir():
        assert path.read_bytes() == (tmp_path / "tokens" / path.name).read_bytes()
    assert len([row for row in read_metrics(tmp_path / "run") if "loss" in row]) == 2
