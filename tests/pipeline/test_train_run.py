"""What `train_run` makes of a dataset: which songs it trains on, what it evaluates, which part of a batch is whose."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest

from jukebox_jax.corpus.tokens import write_token_dataset
from jukebox_jax.errors import UserError
from jukebox_jax.models.losses import CodecLossConfig
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.models.vqvae import VQVAEConfig
from jukebox_jax.parallel.hosts import Part
from jukebox_jax.pipeline.bandwidth import bandwidth_table, save_bandwidth
from jukebox_jax.training import run
from jukebox_jax.training.config import OptimizerConfig, TrainConfig
from jukebox_jax.training.telemetry import read_metrics

from .conftest import HOPS, write_audio_dataset

CODES = 16
TRAIN = TrainConfig(batch_size=2, steps=2, eval_every=1, log_every=1, optimizer=OptimizerConfig(warmup_steps=1))
CODEC = run.CodecRun(
    VQVAEConfig(widths=(4, 4, 4), depths=(1, 1, 1), emb_width=4, codes=CODES),
    CodecLossConfig(multispectral_n_fft=(256,), multispectral_hop=(64,), multispectral_window=(256,)),
    run.CodecData(window_samples=4096),
    TRAIN,
)
PRIOR = run.PriorRun(PriorConfig(2, CODES, n_ctx=32, width=8, depth=1, heads=2, blocks=4, remat="none"), TRAIN)


def write_tokens(audio, codes=CODES):
    def encode(split, song, samples):
        return {
            level: (np.arange(len(samples) // 128 * 128 // hop) % CODES).astype(np.uint16)
            for level, hop in HOPS.items()
        }

    return write_token_dataset(audio, audio.folder.parent / "tokens", HOPS, encode, "abc", codes=codes)


@pytest.mark.parametrize("validation", [(), (3_000, 4_095)])
def test_without_held_out_windows_training_says_so_and_goes_on(tmp_path, capsys, validation):
    audio = write_audio_dataset(tmp_path / "audio", train=(50_000,), validation=validation, channels=1)
    tokens = write_tokens(audio)
    for config, data, name in ((CODEC, audio, "codec"), (PRIOR, tokens, "prior")):
        run.train_run(config, data.folder, tmp_path / name, progress=False)
        line, *others = capsys.readouterr().err.splitlines()
        assert f"{data.folder}: nothing is held out" in line
        assert others == []
        rows = read_metrics(tmp_path / name)
        assert [row["step"] for row in rows] == [1, 2]
        assert not any(key.startswith("eval_") for row in rows for key in row)


def test_stored_constants_are_used_and_others_computed(tmp_path):
    audio = write_audio_dataset(tmp_path / "audio", train=(50_000,), channels=1)
    run.train_run(CODEC, audio.folder, tmp_path / "computed", progress=False)
    save_bandwidth(audio.folder, bandwidth_table(audio, (4096,)))
    run.train_run(CODEC, audio.folder, tmp_path / "stored", progress=False)
    computed, stored = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("computed", "stored"))
    assert computed["bandwidth"] == stored["bandwidth"]
    save_bandwidth(audio.folder, {4096: {"l1": 1.0, "l2": 2.0, "spec": 3.0}})
    run.train_run(CODEC, audio.folder, tmp_path / "other", progress=False)
    assert json.loads((tmp_path / "other/config.json").read_text())["bandwidth"] == {"l1": 1.0, "l2": 2.0, "spec": 3.0}


def test_songs_left_out_are_counted(tmp_path, capsys):
    audio = write_audio_dataset(tmp_path / "audio", train=(3_000, 50_000, 4_000), validation=(5_000,), channels=1)
    run.train_run(PRIOR, write_tokens(audio).folder, tmp_path / "prior", progress=False)
    (line,) = capsys.readouterr().err.splitlines()
    assert "2 of 3 training songs are shorter than a window (0.09 s) and are left out" in line
    assert "eval_bits_per_token" in read_metrics(tmp_path / "prior")[-1]


def test_a_damaged_record_ends_training_in_one_sentence(tmp_path):
    audio = write_audio_dataset(tmp_path / "audio", train=(50_000,), channels=1)
    tokens = write_tokens(audio)
    (shard,) = tokens.folder.glob("music-train*")
    data = bytearray(shard.read_bytes())
    data[data.index(np.arange(CODES, dtype=np.uint16).tobytes())] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"music-train\S* is damaged"):
        run.train_run(PRIOR, tokens.folder, tmp_path / "prior", progress=False)


def test_the_number_of_codes_must_be_that_of_the_tokens(tmp_path):
    tokens = write_tokens(write_audio_dataset(tmp_path / "audio", train=(50_000,), channels=1))
    other = dataclasses.replace(PRIOR, model=dataclasses.replace(PRIOR.model, codes=32))
    with pytest.raises(UserError, match=r"model\.codes=32, but these tokens use 16: set --config\.model\.codes=16"):
        run.train_run(other, tokens.folder, tmp_path / "prior", progress=False)
    assert not (tmp_path / "prior").exists()

    # A folder written before the number was stored is taken at the config's word.
    table = json.loads((tokens.folder / "songs.json").read_text())
    del table["codec"]["codes"]
    older = shutil.copytree(tokens.folder, tmp_path / "older")
    (older / "songs.json").write_text(json.dumps(table))
    run.train_run(other, older, tmp_path / "prior", progress=False)


class Reached(Exception):
    """The trainer was called; holds the first batch it would train on."""


@pytest.mark.parametrize("config", [CODEC, PRIOR])
def test_each_process_reads_its_part_of_the_batch(tmp_path, monkeypatch, config):
    audio = write_audio_dataset(tmp_path / "audio", train=(50_000, 40_000), channels=1)
    data = audio if config is CODEC else write_tokens(audio)

    def first_batch(index: int, count: int) -> np.ndarray:
        # One machine's devices cannot be shared out to processes here, so the run stops where the data reach the
        # trainer.
        def train(task, config, batches, *_, **__):
            raise Reached(next(batches(0)))

        monkeypatch.setattr(run, "part_of_this_host", lambda _: Part(index, count))
        monkeypatch.setattr(run, "train", train)
        with pytest.raises(Reached) as reached:
            run.train_run(config, data.folder, tmp_path / "run", progress=False)
        (batch,) = reached.value.args
        return batch["audio" if config is CODEC else "tokens"]

    whole = first_batch(0, 1)
    assert len(whole) == 2
    np.testing.assert_array_equal(np.concatenate([first_batch(i, 2) for i in (0, 1)]), whole)
    assert not np.array_equal(whole[0], whole[1])


def test_a_codec_and_a_prior_are_heard_while_they_train(tmp_path, capsys):
    audio = write_audio_dataset(tmp_path / "audio", train=(50_000,), validation=(20_000, 9_000), channels=1)
    train = dataclasses.replace(TRAIN, audio_every=2, eval_every=0)

    def heard(name: str) -> list[str]:
        folder = tmp_path / name / "audio"
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.wav"))

    run.train_run(dataclasses.replace(CODEC, train=train), audio.folder, tmp_path / "codec", progress=False)
    names = ("input", "level_0", "level_1", "level_2")
    assert heard("codec") == [f"00000002/item_{item}_{name}.wav" for item in range(3) for name in names]

    prior = dataclasses.replace(PRIOR, train=train)
    run.train_run(prior, audio.folder, tmp_path / "prior", tmp_path / "codec", progress=False)
    assert heard("prior") == [f"00000002/item_{item}_{name}.wav" for item in range(3) for name in ("input", "sample")]
    assert capsys.readouterr().err == ""

    run.train_run(prior, write_tokens(audio).folder, tmp_path / "deaf", progress=False)
    assert heard("deaf") == []
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "Nothing will be heard while training: tokens become audio with --codec CODEC."


def test_songs_that_are_all_shorter_than_a_window_are_refused(tmp_path):
    audio = write_audio_dataset(tmp_path / "audio", train=(3_000, 4_000), validation=(5_000,), channels=1)
    for config, data, name in ((CODEC, audio, "codec"), (PRIOR, write_tokens(audio), "prior")):
        with pytest.raises(UserError, match=r"No song in the train split .* is as long as a window of 4096 samples"):
            run.train_run(config, data.folder, tmp_path / name, progress=False)
        assert not (tmp_path / name).exists()
