"""Codes of chunks are those of whole songs; the token store is the same bytes by every way that leads to it."""

from __future__ import annotations

import functools
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from buckets import FaultyFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from jukebox_jax.audio.files import to_float32
from jukebox_jax.checkpoint import compact
from jukebox_jax.checkpoint.models import load_codec
from jukebox_jax.cli.main import main
from jukebox_jax.corpus import tokens
from jukebox_jax.corpus.encode import encode_dataset, encode_song
from jukebox_jax.errors import UserError
from jukebox_jax.files import folder_lock
from jukebox_jax.models.vqvae import VQVAE, Codec, VQVAEConfig, encode, encoder_reach
from jukebox_jax.pipeline.dataset import RecordReader, open_dataset

from .tiny_songs import CODECS, RECORD_SAMPLES, content, noise, random_codec, write_codec, write_songs

CONFIG = CODECS["released shape"]
#: Long enough for three chunks of the codec, shorter than a hop, exactly one record, one hop more, …
TRAIN, VALIDATION = (9_000, 100, 4096, 128, 5_121, 4_224, 3_000), (6_007, 1_000)

_plain = jax.jit(encode, static_argnums=(0, 3))


@functools.partial(jax.jit, static_argnums=0)
def _margins(config: VQVAEConfig, codec: Codec, audio, valid) -> list:
    """For every code the gap between the two best squared distances."""
    gaps = []
    for level, codes in enumerate(codec.codebooks):
        x = VQVAE(config).apply({"params": codec.params}, audio, level, valid, method="encode_latents")
        distance = jnp.sum(jnp.square(x[:, :, None] - codes), axis=-1)
        best = -jax.lax.top_k(-distance, 2)[0]
        gaps.append(best[..., 1] - best[..., 0])
    return gaps


@pytest.mark.parametrize("config", CODECS.values(), ids=CODECS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_codes_of_chunks_are_those_of_the_whole_song(config, data):
    codec, hop = random_codec(config), config.hops[-1]
    reach = -(-encoder_reach(config) // hop) * hop
    samples = 2 * reach + 4 * hop
    edges = [samples + n * 4 * hop for n in range(3)] + [hop, reach, 2 * reach]
    length = data.draw(st.sampled_from(edges), "edge") + data.draw(st.integers(-hop, hop), "beside it")
    audio = noise(length, seed=length)
    chunked = encode_song(config, codec, audio, chunk_samples=samples)

    whole = length // hop * hop
    longest = samples + 13 * hop  # one shape for all lengths; that ends are exact is tested with the model
    padded, valid = np.zeros((1, longest, 1), np.float32), np.array([whole], np.int32)
    padded[0, :whole, 0] = audio[:whole]
    expected = _plain(config, codec, padded, None, valid)
    for level, gap in enumerate(_margins(config, codec, padded, valid)):
        count = whole // config.hops[level]
        assert chunked[level].shape == (count,)
        differ = chunked[level] != np.asarray(expected[level])[0, :count]
        assert not differ[np.asarray(gap)[0, :count] > 1e-4].any()
        assert not differ.any()


@pytest.mark.parametrize("config", CODECS.values(), ids=CODECS)
def test_they_are_bit_equal_to_the_plain_encoder(config):
    codec, hop = random_codec(config), config.hops[-1]
    for length in (37 * hop + 5, 2 * encoder_reach(config) // hop * hop + 61 * hop):
        audio = noise(length)
        whole = _plain(config, codec, audio[None, : length // hop * hop, None])
        for ours, theirs in zip(encode_song(config, codec, audio, chunk_samples=1), whole, strict=True):
            np.testing.assert_array_equal(ours, theirs[0])
            assert len(np.unique(ours)) > 4  # or any mistake would go unseen


def test_a_song_shorter_than_a_hop_has_no_codes():
    assert [len(level) for level in encode_song(CONFIG, random_codec(CONFIG), noise(127))] == [0, 0, 0]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a dataset, a codec, and the dataset's tokens in one go."""
    root = tmp_path_factory.mktemp("encode")
    write_songs(root / "audio", TRAIN, VALIDATION)
    write_codec(root / "codec", CONFIG)
    encode_dataset(root / "audio", root / "codec", root / "tokens", chunk_samples=4096, batch_size=3, progress=False)
    return root


def encode_again(world, out, **more):
    settings = {"chunk_samples": 4096, "batch_size": 3, "progress": False} | more
    return encode_dataset(world / "audio", world / "codec", out, **settings)


def test_the_store_holds_the_codes_of_the_whole_songs(world):
    audio, stored = open_dataset(world / "audio"), open_dataset(world / "tokens")
    trained = load_codec(world / "codec")
    assert stored.splits == audio.splits
    assert stored.labels == audio.labels
    assert dict(stored.codec) == {"hash": trained.hash, "codes": 32}
    assert dict(stored.fields) == {"level_0": 8, "level_1": 32, "level_2": 128}
    for split, songs in audio.splits.items():
        for index, song in enumerate(songs):
            whole = song.samples // 128 * 128
            if not whole:
                continue
            samples = np.zeros((1, 9_088, 1), np.float32)
            samples[0, :whole, 0] = to_float32(RecordReader(audio, split).read(index, 0, whole, ("audio",))[0]).mean(1)
            expected = _plain(CONFIG, trained.codec, samples, None, np.array([whole], np.int32))
            for level, hop in enumerate(CONFIG.hops):
                codes = RecordReader(stored, split).read_song(index, f"level_{level}")
                assert codes.dtype == np.uint16
                np.testing.assert_array_equal(codes[: whole // hop], expected[level][0, : whole // hop])
                assert len(codes) == -(-song.samples // RECORD_SAMPLES) * RECORD_SAMPLES // hop
                assert not codes[whole // hop :].any()
    assert not (world / ".tokens.encoding").exists()


@pytest.mark.parametrize("count", [2, 4])
def test_processes_that_share_the_work_make_the_same_bytes(world, tmp_path, count):
    for index in reversed(range(count)):
        assert (encode_again(world, tmp_path / "t", process_index=index, process_count=count) is None) == (index > 0)
    assert content(tmp_path / "t") == content(world / "tokens")
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_other_processes_that_stopped_are_named(world, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(tokens, "STALL_SECONDS", 0.05)
    encode_again(world, tmp_path / "t", process_index=1, process_count=4)
    with pytest.raises(UserError, match="Of 4 processes, 2, 3 stopped with 4 songs not done: start them again"):
        encode_again(world, tmp_path / "t", process_index=0, process_count=4)
    # Fewer processes may do the rest.
    encode_again(world, tmp_path / "t")
    assert content(tmp_path / "t") == content(world / "tokens")


def test_a_run_that_was_killed_while_clearing_up_is_done(world, tmp_path):
    shutil.copytree(world / "tokens", tmp_path / "t")
    with pytest.raises(UserError, match="already exists"):
        encode_again(world, tmp_path / "t")
    audio = open_dataset(world / "audio")
    header = tokens.token_header(audio, open_dataset(world / "tokens").fields, load_codec(world / "codec").hash, 32)
    with tokens.open_work(audio, header, tmp_path / "u", {"chunk_samples": 4096, "batch_size": 3}):
        pass
    (tmp_path / ".u.encoding").rename(tmp_path / ".t.encoding")
    assert encode_again(world, tmp_path / "t").splits == audio.splits
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_tokens_go_to_a_bucket_whole_or_not_at_all(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jukebox_jax.remote.FIRST_DELAY_SECONDS", 0.0)
    monkeypatch.setattr("jukebox_jax.remote.ATTEMPTS", 2)
    FaultyFileSystem.reset()
    FaultyFileSystem.faults["put_file"] = [ConnectionError("reset")] * 2
    with pytest.raises(UserError, match="ConnectionError: reset"):
        encode_again(world, "faulty://data/tokens")
    with pytest.raises(UserError, match="not a prepared dataset"):
        open_dataset("faulty://data/tokens")
    assert [path.name for path in tmp_path.iterdir()] == [".tokens.encoded"]
    monkeypatch.setattr("jukebox_jax.corpus.encode.batch_encoder", None)  # what is encoded is not encoded again
    done = encode_again(world, "faulty://data/tokens")
    assert done.splits == open_dataset(world / "tokens").splits
    assert not list(tmp_path.iterdir())
    fs = FaultyFileSystem()
    stored = {name.rsplit("/", 1)[1]: fs.cat_file(name) for name in fs.ls("faulty://data/tokens", detail=False)}
    assert stored == content(world / "tokens")
    with pytest.raises(UserError, match="already exists"):
        encode_again(world, "faulty://data/tokens")


def command(world, out, *more):
    argv = ["encode", world / "audio", "--checkpoint", world / "codec", "--out", out, *more]
    return main([str(argument) for argument in argv])


def refusal(capsys, world, out, *more) -> str:
    capsys.readouterr()
    assert command(world, out, *more) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_a_full_disk_is_told_in_one_line_and_the_same_command_goes_on(world, tmp_path, capsys):
    assert command(world, tmp_path / "whole") == 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500, limits[1]))
    try:
        assert "File too large" in refusal(capsys, world, tmp_path / "t")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "t").exists()
    assert command(world, tmp_path / "t") == 0
    assert content(tmp_path / "t") == content(tmp_path / "whole")


def test_too_little_space_is_told_before_anything_is_written(world, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1_000))
    assert "has 0 MiB of free space" in refusal(capsys, world, tmp_path / "t")
    assert not list(tmp_path.iterdir())


def test_what_was_begun_otherwise_is_not_mixed(world, tmp_path, capsys):
    encode_again(world, tmp_path / "t", process_index=1, process_count=2)
    assert "begun with chunk_samples=4096: use the same, or remove" in refusal(capsys, world, tmp_path / "t")
    other = world / "another codec"
    if not other.exists():
        codec = random_codec(CONFIG)
        books = {str(level): {"codes": 2 * codes} for level, codes in enumerate(codec.codebooks)}
        config = compact.config_lib.load_json(world / "codec/config.json")
        compact.save(other, {"params": codec.params, "model_state": books}, config)
    with pytest.raises(UserError, match="begun with another codec"):
        encode_dataset(world / "audio", other, tmp_path / "t", chunk_samples=4096, batch_size=3)
    write_songs(tmp_path / "audio", TRAIN[1:], VALIDATION)
    with pytest.raises(UserError, match="begun with another dataset"):
        encode_dataset(tmp_path / "audio", world / "codec", tmp_path / "t", chunk_samples=4096, batch_size=3)


def test_only_one_process_does_each_part(world, tmp_path, capsys):
    with folder_lock(tmp_path / ".t.encoding/process-0"):
        assert "in use by another process" in refusal(capsys, world, tmp_path / "t")


def test_mistakes_are_told_in_one_line_before_anything_is_written(world, tmp_path, capsys):
    write_songs(tmp_path / "slow", (5_000,), rate=22_050)
    before = sorted(tmp_path.rglob("*"))
    for argv, words in (
        ((tmp_path / "slow", "--checkpoint", world / "codec"), "at 22050 Hz, the codec at 44100 Hz"),
        ((world / "tokens", "--checkpoint", world / "codec"), "holds tokens, not audio"),
        ((world / "audio", "--checkpoint", world / "codec", "--process-index", "2"), "Process 2 of None: give both"),
        (
            (world / "audio", "--checkpoint", world / "codec", "--process-index", "2", "--process-count", "2"),
            "Process 2 of 2",
        ),
    ):
        assert main(["encode", *map(str, argv), "--out", str(tmp_path / "t")]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert words in line
    assert sorted(tmp_path.rglob("*")) == before


def test_more_codes_than_can_be_stored(world, tmp_path):
    config = VQVAEConfig(downs=(1,), strides=(2,), widths=(1,), depths=(1,), emb_width=1, codes=65_537)
    write_codec(tmp_path / "codec", config)
    with pytest.raises(UserError, match="65537 codes, but only 65536 can be stored"):
        encode_dataset(world / "audio", tmp_path / "codec", tmp_path / "t")
    assert not (tmp_path / "t").exists()
