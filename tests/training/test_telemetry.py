"""What a run writes: speeds, a profile, audio, Weights & Biases; and what watches over a codec's codebooks."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jukebox_jax.audio.files import read_audio
from jukebox_jax.errors import UserError
from jukebox_jax.models.losses import Bandwidth, CodecLossConfig
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.models.vqvae import VQVAEConfig
from jukebox_jax.training.codec_task import codec_task
from jukebox_jax.training.prior_task import prior_task
from jukebox_jax.training.profile import PROFILE_FOLDER
from jukebox_jax.training.telemetry import AUDIO_FOLDER, read_metrics
from tests.training import toy

LISTENING_SECONDS = 0.05


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Ten steps with everything on."""
    run_dir = tmp_path_factory.mktemp("telemetry") / "run"
    task = dataclasses.replace(toy.make_task(), unit="tokens", units_per_example=32.0)
    config = toy.make_config(log_every=4, peak_flops=1e9, profile=(3, 2), audio_every=4)
    state = toy.run(run_dir, config, task=task, listen=listen)
    return run_dir, state


def listen(params, model_state):
    """A tone whose pitch is a weight."""
    time.sleep(LISTENING_SECONDS)
    pitch = 400 + 100 * float(params["Dense_0"]["kernel"][0, 0])
    return {"tone": (np.sin(2 * np.pi * pitch * np.arange(800) / 8000).astype(np.float32), 8000)}


def test_a_row_tells_the_speed(run):
    rows = read_metrics(run[0])
    assert [row["step"] for row in rows] == [1, 4, 8, 10]
    for row in rows:
        assert row["examples_per_second"] == pytest.approx(8 * row["steps_per_second"])
        assert row["tokens_per_second_per_device"] == pytest.approx(32 * row["examples_per_second"])
        assert row["flops_per_second"] == pytest.approx(6 * 2 * 16 * 24 * row["examples_per_second"])
        assert row["mfu"] == pytest.approx(row["flops_per_second"] / 1e9)
        assert row["step_seconds"] > 0
        assert 0 < row["goodput"] < 1
        assert "device_memory_peak_bytes" not in row  # a CPU does not tell
    # The mean and the median are of the same steps.
    assert 0.1 < rows[-1]["step_seconds"] * rows[-1]["steps_per_second"] < 10
    # What is heard in between takes no part in them.
    steps = sum(count / row["steps_per_second"] for row, count in zip(rows, (1, 3, 4, 2), strict=True))
    assert 0 < steps <= rows[-1]["seconds"] - 2 * LISTENING_SECONDS


def test_what_is_not_known_is_absent(tmp_path):
    toy.run(tmp_path / "run", toy.make_config(steps=1))
    (row,) = read_metrics(tmp_path / "run")
    assert not {"mfu", "tokens_per_second_per_device"} & row.keys()
    assert "flops_per_second" in row


def test_tasks_say_what_their_speed_is_told_in():
    prior = prior_task(PriorConfig(2, codes=16, n_ctx=32, width=8, depth=1, heads=2, blocks=4))
    assert (prior.unit, prior.units_per_example) == ("tokens", 32)
    (alarm,) = prior.alarms
    assert (alarm.metric, alarm.above) == ("loss", 12)  # spec training 4
    assert alarm.text.format(value=13.25, step=7) == (
        "The loss is 13.25 at step 7, above 12: training may be diverging."
    )
    codec = codec_task(VQVAEConfig(sample_rate=8000), CodecLossConfig(), Bandwidth(), 4096)
    assert (codec.unit, codec.units_per_example) == ("audio_seconds", 0.512)


def test_every_codebook_is_watched():
    model = VQVAEConfig(widths=(4, 4, 4), depths=(1, 1, 1), emb_width=4, codes=40)
    task = codec_task(model, CodecLossConfig(), Bandwidth(), 4096)
    state = jax.eval_shape(task.init, jax.random.key(0))
    batch = {"audio": jax.ShapeDtypeStruct((2, 4096, 1), jnp.float32)}
    _, _, metrics = jax.eval_shape(task.loss, *meta.unbox(state), batch, jax.random.key(0))
    assert [alarm.metric for alarm in task.alarms] == ["usage_l1", "usage_l2", "usage_l3"]
    for level, alarm in enumerate(task.alarms):
        assert alarm.metric in metrics
        assert [alarm.outside(codes) for codes in (0.0, 3.0, 4.0, 40.0)] == [True, True, False, False]
        assert alarm.patience > 1
        text = alarm.text.format(value=3.0, step=500)
        assert text.startswith(f"Level {level} uses 3 of 40 codes at step 500")
        for advice in ("learning_rate", "batch_size", "revival_threshold", "silent"):
            assert advice in text


def test_a_profile_has_the_names_of_the_phases(run, tmp_path):
    (trace,) = (run[0] / PROFILE_FOLDER).rglob("*.xplane.pb")
    for name in (b"loss_and_gradients", b"update"):
        assert name in trace.read_bytes()
    # The run may end inside the window, and a resumed one behind it has nothing to profile.
    toy.run(tmp_path / "run", toy.make_config(steps=3, profile=(2, 100)))
    assert len(list((tmp_path / "run").rglob("*.xplane.pb"))) == 1
    toy.run(tmp_path / "run", toy.make_config(steps=5, profile=(1, 2)))
    assert len(list((tmp_path / "run").rglob("*.xplane.pb"))) == 1
    with pytest.raises(UserError, match=r"train\.profile cannot be \(3,\)"):
        toy.make_config(profile=(3,))


def test_audio_is_written_at_its_steps_and_again_by_a_resumed_run(run, tmp_path):
    run_dir, state = run
    clips = {path.relative_to(run_dir / AUDIO_FOLDER).as_posix(): path for path in run_dir.rglob("*.wav")}
    assert sorted(clips) == ["00000004/tone.wav", "00000008/tone.wav"]
    assert any(b"tone" in path.read_bytes() for path in run_dir.glob("events.out.tfevents.*"))
    assert read_audio(clips["00000008/tone.wav"], 8000).shape == (800, 1)

    config = toy.make_config(log_every=4, audio_every=4)
    stop = lambda position: os.kill(os.getpid(), signal.SIGTERM) if position == 8 * 5 else None  # noqa: E731
    with pytest.raises(SystemExit):
        toy.run(tmp_path / "run", config, stop, listen=listen)
    (first,) = (tmp_path / "run").rglob("*.wav")
    assert first.read_bytes() == clips["00000004/tone.wav"].read_bytes()
    toy.run(tmp_path / "run", config, listen=listen)
    again = (tmp_path / "run" / AUDIO_FOLDER / "00000008/tone.wav").read_bytes()
    assert again == clips["00000008/tone.wav"].read_bytes()
    # It is the average that is heard.
    pitch = 400 + 100 * float(state.ema["Dense_0"]["kernel"][0, 0])
    assert pitch != 400 + 100 * float(state.params["Dense_0"]["kernel"][0, 0])


def test_weights_and_biases_is_asked_for_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"pip install \"jukebox-jax\[wandb\]\""):
        toy.run(tmp_path / "run", toy.make_config(wandb_project="mine"))
    assert not (tmp_path / "run").exists()


def test_weights_and_biases_gets_the_rows_and_goes_on(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = []
    for steps in (2, 4):
        toy.run(tmp_path / "run", toy.make_config(steps=steps, wandb_project="mine"))
        ids.append((tmp_path / "run" / "wandb_id").read_text())
    logs = list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(logs) == 2
    assert ids[0] == ids[1]
    for log in logs:
        assert ids[0] in log.name
        assert b"grad_norm" in log.read_bytes()
