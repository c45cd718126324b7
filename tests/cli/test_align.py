"""`jukebox-jax align`, from tokens to files, on a tiny cascade with random weights that takes lyrics."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cascade import random_model, write_model
from PIL import Image

from jukebox_jax import api
from jukebox_jax.cli.main import main
from jukebox_jax.corpus.sources.beside import read_lrc

LYRICS = "Größe war\ndie <b>beste</b> Zeit"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two songs as `sample` writes them, models with and without lyrics."""
    folder = tmp_path_factory.mktemp("align")
    write_model(folder / "model", lyrics="separate")
    write_model(folder / "no_lyrics")
    model = api.load(folder / "model")
    for index, lyrics in enumerate((LYRICS, "another one")):
        order = model.order(seconds=1.0, lyrics=lyrics, artist="Bach", total_seconds=2.0)
        rng = np.random.default_rng(index)
        tokens = tuple(rng.integers(0, 24, 8064 // hop).astype(np.int32) for hop in model.codec.config.hops)
        told = {
            "generator": "jukebox_jax",
            "codec": model.codec.hash,
            **order.song_settings(0),
            "hop_fractions": list(order.hop_fractions),
        }
        song = api.Song(tokens, (np.zeros(8064, np.float32),), 8000, told)
        song.save(folder / f"song_{index}.wav")
        song.save_tokens(folder / f"song_{index}.tokens.npz")
    return folder


def align(folder: Path, *arguments: str, songs: int = 1) -> int:
    paths = [str(folder / f"song_{index}.tokens.npz") for index in range(songs)]
    return main(["align", *paths, "--model", str(folder / "model"), *arguments])


def test_a_song_comes_with_its_lyrics(folder, tmp_path, capsys):
    assert align(folder, "--out", str(tmp_path / "out")) == 0
    files = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert sorted(files) == ["song_0.json", "song_0.lrc", "song_0.png"]
    assert capsys.readouterr().out.split() == [str(files[f"song_0.{suffix}"]) for suffix in ("lrc", "json", "png")]
    stored = json.loads(files["song_0.json"].read_text(encoding="utf-8"))
    assert (stored["lyrics"], stored["seconds"], stored["layer"], stored["head"]) == (LYRICS, 1.008, 3, 1)
    words = [word for line in stored["lines"] for word in line["words"]]
    assert " ".join(word["text"] for word in words) in LYRICS.replace("\n", " ")
    assert words
    assert read_lrc(files["song_0.lrc"].read_bytes()).reasons == []
    assert Image.open(files["song_0.png"]).size == (1100, 700)
    # The same by the API, with the very times.
    model = api.load(folder / "model")
    tokens = model.load_tokens(folder / "song_0.tokens.npz")
    found = model.align(tokens, LYRICS, artist="Bach", total_seconds=2.0)
    assert [(word.text, word.start, word.end) for word in found.words] == [
        (word["text"], word["start"], word["end"]) for word in words
    ]
    assert model.align(tokens, LYRICS, artist="Bach").matrix.tolist() != found.matrix.tolist()


def test_what_is_there_stays_unless_forced(folder, tmp_path, capsys):
    (tmp_path / "song_0.lrc").write_text("mine")
    assert align(folder, "--out", str(tmp_path)) == 2
    assert "song_0.lrc is there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["song_0.lrc"]
    assert align(folder, "--out", str(tmp_path), "--force", "--formats", "lrc") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["song_0.lrc"]
    assert (tmp_path / "song_0.lrc").read_text(encoding="utf-8").startswith("[re:jukebox_jax")


def test_the_head_that_a_search_finds_is_used_from_then_on(folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "copy")
    copy, out = tmp_path / "copy", str(tmp_path / "out")
    before = api.load(copy / "model")
    assert align(copy, "--search", "--out", out, "--formats", "json", songs=2) == 0
    printed = capsys.readouterr()
    rows = [row.split() for row in printed.out.splitlines()[1:3]]
    assert sorted(row[:2] for row in rows) == [["3", "0"], ["3", "1"]]
    assert float(rows[0][2]) >= float(rows[1][2])
    best = {"layer": int(rows[0][0]), "head": int(rows[0][1])}
    assert json.loads((copy / "model" / "level_2.alignment.json").read_text()) == best
    assert "level_2.alignment.json" in printed.err
    after = api.load(copy / "model")
    order = after.order(seconds=1.0)
    assert after.session_name(order) == before.session_name(order)  # it is the same model
    for head in ({"head": 0}, {"head": 1}):
        (copy / "model" / "level_2.alignment.json").write_text(json.dumps({"layer": 3, **head}))
        tokens = after.load_tokens(copy / "song_0.tokens.npz")
        assert after.align(tokens, LYRICS).head == head["head"]
        assert after.align(tokens, LYRICS, layer=3, head=1).head == 1
    (copy / "model" / "level_2.alignment.json").write_text("{")
    assert align(copy, "--out", out, "--force") == 2
    assert "alignment.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({}, ["--model", "{folder}/no_lyrics"], "takes no lyrics"),
        ({}, ["--layer", "2"], "layer=2 does not look at the lyrics: give one of 3"),
        ({}, ["--head", "7"], "head=7 is none of layer 3"),
        ({}, ["--search", "--head", "0"], "leave --layer and --head out"),
        ({}, ["--lyrics-file", "{folder}/none.txt"], "none.txt cannot be read"),
        ({}, ["--total-seconds", "0.5"], "shorter than"),
        ({"lyrics": ""}, [], "comes without lyrics"),
        ({"lyrics": " \n"}, [], "comes without lyrics"),
        ({"lyrics": "\u200b\u200b"}, [], "hold no character that the model can spell"),
        ({"surprise": 1}, [], "incomplete or was changed"),
        ({"total_samples": "1"}, [], "incomplete or was changed"),
    ],
)
def test_one_sentence_and_no_files(folder, tmp_path, capsys, change, arguments, message):
    song = api.load(folder / "model").load_song(folder / "song_0.tokens.npz", decode=False)
    song.provenance["request"] |= change
    song.save_tokens(tmp_path / "song_0.tokens.npz")
    out = tmp_path / "out"
    command = ["align", str(tmp_path / "song_0.tokens.npz"), "--model", str(folder / "model"), "--out", str(out)]
    assert main([*command, *(argument.format(folder=folder) for argument in arguments)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert message in errors[0]
    assert not out.exists() or not list(out.iterdir())


def test_songs_that_cannot_be_read(folder, tmp_path, capsys):
    command = ["align", "--model", str(folder / "model"), "--out", str(tmp_path / "out")]
    assert main([*command, str(folder / "missing.tokens.npz")]) == 2
    assert "missing.tokens.npz is no file" in capsys.readouterr().err
    assert main([*command, str(folder / "song_0.wav")]) == 2
    assert "holds no tokens of a song" in capsys.readouterr().err
    assert main([*command, *[str(folder / "song_0.tokens.npz")] * 2]) == 2
    assert "Two songs are called song_0" in capsys.readouterr().err
    assert main([*command[:-1], str(folder / "song_0.wav"), str(folder / "song_0.tokens.npz")]) == 2
    assert "is a file: name a folder" in capsys.readouterr().err


def test_a_new_model_has_to_be_searched_first(folder):
    import dataclasses

    model = random_model("separate")
    prior = model.priors[-1]
    lyrics = dataclasses.replace(prior.config.lyrics, alignment_layer=None, alignment_head=None)
    unknown = dataclasses.replace(prior, config=dataclasses.replace(prior.config, lyrics=lyrics))
    model = dataclasses.replace(model, priors=(*model.priors[:-1], unknown))
    with pytest.raises(api.UserError, match="search for it"):
        model.align([np.zeros(20, np.int32)], "la")
    found = model.search_alignment([[np.arange(20, dtype=np.int32)]], ["la la"])
    assert model.align([np.zeros(20, np.int32)], "la", layer=found[0].layer, head=found[0].head).words
    with pytest.raises(api.UserError, match="2 texts for 1 songs"):
        model.search_alignment([[np.arange(20, dtype=np.int32)]], ["la la", "lo"])
