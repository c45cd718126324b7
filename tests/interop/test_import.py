"""Importing the original's checkpoints, writing them back, and what is refused."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from interop import synthetic
from recorded import recorded

from jukebox_jax import api
from jukebox_jax.checkpoint import store
from jukebox_jax.checkpoint.models import load_codec, load_prior
from jukebox_jax.cli.main import main
from jukebox_jax.errors import UserError
from jukebox_jax.interop import hparams, layout, openai
from jukebox_jax.interop.openai import export_openai, import_openai
from jukebox_jax.interop.released import RELEASES, Release
from jukebox_jax.interop.torch_file import read_torch, state_dict
from jukebox_jax.labels.lyrics import LyricText
from jukebox_jax.models.conditioning import ConditionerConfig, LabelConfig
from jukebox_jax.models.lyrics import LyricConfig, LyricEncoderConfig
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.models.vqvae import VQVAEConfig

CODEC = VQVAEConfig(sample_rate=8000, widths=(4, 4, 4), depths=(1, 1, 1), emb_width=4, codes=24)
LABELS = LabelConfig(6, 5, max_genres=2, time_bins=8, min_duration_seconds=0.5, max_duration_seconds=20.0)
UPSAMPLER = PriorConfig(
    level=0, codes=24, n_ctx=32, width=16, depth=3, blocks=4, labels=LABELS, conditioner=ConditionerConfig(8, 2)
)
TOP = dataclasses.replace(
    UPSAMPLER,
    level=2,
    depth=4,
    attention_order=6,
    merged_decoder=True,
    conditioner=None,
    lyrics=LyricConfig(
        8, 80, LyricText("v2", "unidecode"), encoder=LyricEncoderConfig(width=8, depth=2, heads=1, blocks=2)
    ),
)
MODELS = {
    "vqvae": Release(CODEC),
    "upsampler_level_0": Release(UPSAMPLER, "v2"),
    "upsampler_level_1": Release(dataclasses.replace(UPSAMPLER, level=1), "v2"),
    "prior_5b_lyrics": Release(TOP, "v2"),
}
FILES = {
    "vqvae": "vqvae.pth.tar",
    "upsampler_level_0": "prior_level_0.pth.tar",
    "upsampler_level_1": "prior_level_1.pth.tar",
    "prior_5b_lyrics": "prior_level_2.pth.tar",
}


def shapes_of(config) -> dict[str, tuple[int, ...]]:
    return layout.codec_shapes(config) if isinstance(config, VQVAEConfig) else layout.prior_shapes(config)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Checkpoints of a small cascade, as if these models had been released."""
    folder, paths = tmp_path_factory.mktemp("files"), {}
    for seed, (name, release) in enumerate(MODELS.items()):
        config, tied = release.config, {}
        half = isinstance(config, PriorConfig) and config.merged_decoder
        if isinstance(config, PriorConfig) and not config.merged_decoder:
            tied = {"prior.x_out.weight": "prior.x_emb.weight"}
        paths[name] = folder / FILES[name]
        synthetic.write(paths[name], shapes_of(config), tied=tied, half=half, seed=seed, step=7)
    return paths


@pytest.fixture(autouse=True)
def _released(monkeypatch):
    monkeypatch.setattr(openai, "RELEASES", RELEASES | MODELS)
    monkeypatch.setattr(openai, "VQVAE", CODEC)


def trees_equal(a, b) -> bool:
    same = jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(np.asarray(x), np.asarray(y)), a, b)
    return all(jax.tree.leaves(same))


def test_a_cascade_is_imported_and_sings(files, tmp_path, capsys):
    artists, genres = tmp_path / "artists.txt", tmp_path / "genres.txt"
    artists.write_text("unknown;0\nvarious;0\n;0\nella_fitzgerald;1\nmuse;2\n")
    genres.write_text("unknown;0\njazz;1\nsoul;2\n")
    out = tmp_path / "models"
    arguments = ["import-openai", *map(str, files.values()), "--out", str(out)]
    assert main([*arguments, "--artists", str(artists), "--genres", str(genres)]) == 0
    told = capsys.readouterr()
    assert "noncommercial" in told.err
    assert str(out / "level_2") in told.out
    assert "noncommercial" in store.load_metadata(out / "level_2")["licence"]
    assert store.load_metadata(out / "level_2")["step"] == 7
    weights = store.load_model(out / "level_2")["params"]
    assert weights["decoder"]["transformer"]["layers"]["qkv"]["kernel"].dtype == np.float16
    assert weights["decoder"]["tokens"].dtype == np.float32

    model = api.load(out)
    assert model.artists[-1] == "muse"
    song = model.sample(artist="Ella Fitzgerald", genre="Jazz Soul", lyrics="la la", seconds=0.6, progress=False)
    assert np.isfinite(song.audio).all()
    assert len(song.tokens[2]) == int(0.6 * 8000) // 128


def test_every_tensor_arrives_where_it_belongs(files, tmp_path):
    import_openai([files["prior_5b_lyrics"], files["vqvae"]], tmp_path / "out")
    state = state_dict(read_torch(files["prior_5b_lyrics"]))
    params = load_prior(tmp_path / "out/level_2").params
    layers = params["decoder"]["transformer"]["layers"]
    names = "prior.transformer._attn_mods.3.attn."  # looks at the lyrics: queries apart from keys and values
    both = np.concatenate([state[f"{names}c_attn.w"], state[f"{names}c_enc_kv.w"]], axis=1)
    kernel = layers["qkv"]["kernel"][3]
    np.testing.assert_array_equal(kernel.reshape(len(kernel), -1), both.astype(np.float32))
    np.testing.assert_array_equal(params["decoder"]["output"], state["prior.x_out.weight"])
    np.testing.assert_array_equal(params["lyrics"]["output"], state["prime_x_out.weight"])
    codec, theirs = load_codec(tmp_path / "out/vqvae").codec, state_dict(read_torch(files["vqvae"]))
    np.testing.assert_array_equal(codec.codebooks[1], theirs["bottleneck.level_blocks.1.k"])
    up = codec.params["decoders_0"]["block_0_stage_1_up"]["kernel"]
    np.testing.assert_array_equal(up, theirs["decoders.0.level_blocks.0.model.2.1.weight"].transpose(2, 0, 1))


def test_a_prior_joins_the_codec_imported_before(files, tmp_path):
    out = tmp_path / "out"
    import_openai([files["vqvae"]], out)
    import_openai([files["upsampler_level_1"]], out)
    assert load_prior(out / "level_1").codec_hash == load_codec(out / "vqvae").hash
    with pytest.raises(UserError, match="level_1 is there already"):
        import_openai([files["upsampler_level_1"]], out)


@pytest.mark.parametrize("legacy", [True, False])
def test_export_and_import_again_give_the_same_bits(files, tmp_path, legacy):
    pytest.importorskip("torch")
    first, second = tmp_path / "first", tmp_path / "second"
    import_openai(list(files.values()), first)
    folders = {"vqvae": "vqvae", "upsampler_level_0": "level_0", "upsampler_level_1": "level_1"}
    folders["prior_5b_lyrics"] = "level_2"
    written = []
    for name, folder in folders.items():
        written.append(tmp_path / FILES[name])
        export_openai(first / folder, written[-1], legacy=legacy)
        before, after = state_dict(read_torch(files[name])), state_dict(read_torch(written[-1]))
        assert list(before) == list(after)
        assert all(before[k].dtype == after[k].dtype and np.array_equal(before[k], after[k]) for k in before)
    import_openai(written, second)  # the exported files say of themselves what they are
    for folder in folders.values():
        assert trees_equal(store.load_model(first / folder), store.load_model(second / folder))
        assert store.load_config(first / folder) == store.load_config(second / folder)


def test_the_recorded_checkpoints(tmp_path):
    pytest.importorskip("torch")
    folder, names = recorded("checkpoints"), ("vqvae", "prior_level_0", "prior_level_1_ddp", "prior_level_2_zip")
    import_openai([folder / f"{name}.pth.tar" for name in names], tmp_path / "first")
    assert api.load(tmp_path / "first").priors[2].config.lyrics.encoder is not None
    export_openai(tmp_path / "first/level_2", tmp_path / "again.pth.tar")
    import_openai([tmp_path / "again.pth.tar", folder / "vqvae.pth.tar"], tmp_path / "second")
    for model in ("vqvae", "level_2"):
        first, second = (store.load_model(tmp_path / time / model) for time in ("first", "second"))
        assert trees_equal(first, second)


class _Attack:
    def __reduce__(self):
        return os.mkdir, ("attacked",)


def bad_files(files: dict[str, Path], folder: Path) -> dict[str, tuple[list[Path], str]]:
    """What may go wrong: files, and a part of what is said."""
    import pickle

    good = files["vqvae"].read_bytes()
    bad = {name: folder / f"{name}.pth.tar" for name in KINDS[:9]}
    bad["empty"].write_bytes(b"")
    bad["half"].write_bytes(good[: len(good) // 2])
    bad["page"].write_bytes(b"<!DOCTYPE html><html>404 not found</html>")
    parts = (synthetic.MAGIC, synthetic.PROTOCOL, {"little_endian": True}, {"model": _Attack()})
    attack = b"".join(pickle.dumps(x, 2) for x in parts)
    bad["attack"].write_bytes(attack)
    shapes = shapes_of(CODEC)
    claimed = 2**40
    count = int(np.prod(shapes["bottleneck.level_blocks.2.k"]))
    bad["huge"].write_bytes(good.replace(count.to_bytes(8, "little"), claimed.to_bytes(8, "little")))
    synthetic.write(bad["shape"], shapes | {"decoders.1.out.bias": (2,)}, tied={}, half=False)
    other = {"stranger" if key == "encoders.0.level_blocks.0.model.1.0.bias" else key: s for key, s in shapes.items()}
    synthetic.write(bad["keys"], other, tied={}, half=False)
    upsampler = layout.prior_shapes(UPSAMPLER)
    wide = {"prior.x_out.weight": (24, 17), "prior.x_emb.weight": (24, 17)}
    synthetic.write(bad["prior shape"], upsampler | wide, hps=hparams.prior_hparams(UPSAMPLER, "v2", "blocks"))
    synthetic.write(bad["half zip"], shapes, legacy=False)
    bad["half zip"].write_bytes(bad["half zip"].read_bytes()[: len(good) // 2])
    return {
        "empty": ([bad["empty"]], "is empty"),
        "half": ([bad["half"]], "download it again"),
        "half zip": ([bad["half zip"]], "download it again"),
        "page": ([bad["page"]], "is a web page"),
        "attack": ([bad["attack"]], "mkdir, which no Jukebox checkpoint needs and which was not run"),
        "huge": ([bad["huge"]], "cut short or damaged"),
        "prior shape": ([files["vqvae"], bad["prior shape"]], "prior.x_emb.weight has shape (24, 17), where (24, 16)"),
        "shape": ([bad["shape"]], "decoders.1.out.bias has shape (2,), where (1,) was expected"),
        "keys": ([bad["keys"]], "1 missing (encoders.0.level_blocks.0.model.1.0.bias) and 1 unexpected (stranger)"),
        "among good ones": ([files["vqvae"], files["upsampler_level_0"], bad["half"]], "half.pth.tar"),
        "twice": ([files["vqvae"], files["vqvae"]], "are both vqvae"),
        "absent": ([folder / "absent.pth.tar"], "absent.pth.tar"),
    }


KINDS = ("empty", "half", "half zip", "page", "attack", "huge", "shape", "prior shape", "keys")
KINDS += ("among good ones", "twice", "absent")


@pytest.mark.parametrize("kind", KINDS)
def test_bad_files_are_refused_in_a_line_and_nothing_is_written(kind, files, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths, words = bad_files(files, tmp_path)[kind]
    assert main(["import-openai", *map(str, paths), "--out", str(tmp_path / "out")]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert str(paths[-1]) in told
    assert words in told
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--config", "prior_6b"], "did you mean 'prior_5b'?"),
        (["--config", "prior_5b"], "is a VQ-VAE"),
        (["--config", "vqvae", "--config", "vqvae"], "2 configs for 1 files"),
        (["--artists", "duplicate.txt"], 'duplicate.txt, line 3 gives "queen" the id 1 of "muse" (line 2)'),
        (["--genres", "duplicate.txt"], "duplicate.txt, line 3"),
        (["--artists", "missing.txt"], "missing.txt has ids up to 2, but none is 1"),
        (["--genres", "missing.txt"], "missing.txt has ids up to 2, but none is 1"),
        (["--out", "file"], "is a file"),
    ],
)
def test_bad_arguments(files, extra, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("duplicate.txt").write_text("unknown;0\nmuse;1\nqueen;1\n")
    Path("missing.txt").write_text("unknown;0\nmuse;2\n")
    assert main(["import-openai", str(files["vqvae"]), "--out", "out", *extra]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert words in told
    assert not Path("out").exists()


def test_a_table_of_another_model_is_refused(files, tmp_path):
    artists = tmp_path / "artists.txt"
    artists.write_text("".join(f"name {i};{i}\n" if i else "unknown;0\n" for i in range(9)))
    with pytest.raises(UserError, match="ids up to 8, but level 0 knows 6 of them"):
        import_openai([files["upsampler_level_0"]], tmp_path / "out", artists=artists)
    assert not (tmp_path / "out").exists()


def test_a_file_of_another_model_leaves_what_was_imported_as_it_was(files, tmp_path, capsys):
    out = tmp_path / "out"
    import_openai([files["vqvae"]], out)
    before = sorted(out.rglob("*"))
    arguments = ["import-openai", str(files["upsampler_level_0"]), str(files["prior_5b_lyrics"]), "--out", str(out)]
    assert main([*arguments, "--config", "upsampler_level_0", "--config", "upsampler_level_1"]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert f"{files['prior_5b_lyrics']} is the checkpoint of another model: keys " in told
    assert "missing (conditioner_blocks.0.x_emb.weight" in told
    assert " unexpected (" in told
    assert sorted(out.rglob("*")) == before


@pytest.mark.slow
def test_the_1b_model_at_full_size(tmp_path):
    """Imported with little more memory than its file has bytes, and then run over a whole sequence."""
    free = shutil.disk_usage(tmp_path).free
    if free < 12e9:
        pytest.skip(f"{free / 1e9:.0f} GB of disk are free, 12 are needed")
    path, out, program = tmp_path / "1b.pth.tar", tmp_path / "out", Path(synthetic.__file__)
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, program, path, "prior_1b_lyrics"], check=True, cwd=root)
    size = path.stat().st_size
    command = [sys.executable, "-m", "jukebox_jax", "import-openai", path, "--config", "prior_1b_lyrics", "--out", out]
    process, peak = subprocess.Popen(command, cwd=root), 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        anonymous = [int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")]
        peak = max([peak, *(1024 * kilobytes for kilobytes in anonymous)])
        time.sleep(0.05)
    assert process.returncode == 0
    print(f"{size / 1e9:.2f} GB imported with at most {peak / 1e9:.2f} GB of anonymous memory")
    assert 0.5 * size < peak <= 1.5 * size
    path.unlink()
    code = (
        "import jax, numpy as np\n"
        "from jukebox_jax.checkpoint.models import load_prior\n"
        "from jukebox_jax.models.prior import Prior, batch_spec\n"
        f"prior = load_prior({str(out / 'level_2')!r})\n"
        "rng = np.random.default_rng(0)\n"
        "spec = batch_spec(prior.config)\n"
        "batch = {k: rng.integers(0, 60, (1, *v.shape)).astype(np.int32) for k, v in spec.items()}\n"
        "logits = jax.jit(Prior(prior.config).apply)({'params': prior.params}, batch)\n"
        "assert logits.shape == (1, 6528, 2127), logits.shape\n"
        "assert bool(jax.numpy.isfinite(logits).all()) and float(logits.std()) > 0.01\n"
        "print('ok')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert done.stdout == "ok\n", done.stderr[-2000:]
