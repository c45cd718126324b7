"""`jukebox-jax sample`: what songs start from, and mistakes that are seen before anything is loaded."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
from cascade import equal, random_model

from jukebox_jax import api
from jukebox_jax.audio.files import write_audio
from jukebox_jax.cli.main import main

START = ["sample", "--demo", "--artist", "Bach", "--genre", "song"]


@pytest.fixture
def load(monkeypatch):
    """Puts a small model in place of the shipped one; with `None`, loading is an error."""

    def put(model):
        def instead(folder):
            assert model is not None, "a model was loaded"
            return model

        monkeypatch.setattr(api, "load", instead)

    return put


def run(*options, out):
    assert main([*START, *options, "--out", str(out)]) == 0
    return sorted(out.glob("*.tokens.npz"))


def test_a_song_goes_on_and_is_upsampled_anew(tmp_path, load, capsys, monkeypatch):
    load(random_model())
    short, other = (run("--seconds", "0.2", "--seed", seed, out=tmp_path / seed)[0] for seed in ("1", "2"))
    assert {path.name for path in (tmp_path / "1").iterdir()} == {
        *(f"seed_1_song_0.{suffix}" for suffix in ("wav", "wav.json", "tokens.npz")),
        *("index.html", "sessions"),
    }
    out, err = capsys.readouterr()
    assert "level 2: weights" in err
    assert f"Open {tmp_path / '1' / 'index.html'} to listen." in err
    assert out.split() == [str(tmp_path / seed / f"seed_{seed}_song_0.wav") for seed in ("1", "2")]

    files = ["--continue", str(short), "--continue", str(other)]
    longer = run(*files, "--seconds", "0.3", "--n-samples", "2", out=tmp_path / "longer")
    for before, after in zip((short, other), longer, strict=True):
        begun, whole = random_model().load_tokens(before), random_model().load_tokens(after)
        assert all(equal(a, b[: len(a)]) for a, b in zip(begun, whole, strict=True))
        assert [len(codes) for codes in whole] == [288, 72, 18]

    monkeypatch.setattr(soundfile, "available_formats", lambda: {"WAV": "as libsndfile before 1.1"})
    (anew,) = run("--upsample", str(short), "--prompt-seconds", "0.15", "--seed", "5", out=tmp_path / "anew")
    tokens = random_model().load_tokens(anew)
    assert [len(codes) for codes in tokens] == [144, 36, 9]
    assert equal(tokens[2], random_model().load_tokens(short)[2][:9])
    assert not (tmp_path / "anew" / "index.html").exists()
    assert "the songs are written, but no page: A page needs MP3" in capsys.readouterr().err

    files = ["--continue", str(short), "--continue", str(longer[0])]
    mixed = run(*files, "--seconds", "0.4", "--n-samples", "2", out=tmp_path / "mixed")
    for before, after in zip((short, longer[0]), mixed, strict=True):
        begun, whole = random_model().load_tokens(before), random_model().load_tokens(after)
        assert all(equal(a, b[: len(a)]) for a, b in zip(begun, whole, strict=True))
        assert len(whole[2]) == 25


def test_what_a_song_was_told_holds_when_it_goes_on_unless_told_otherwise(tmp_path, load, capsys):
    load(random_model("separate"))
    told = ["--lyrics", "la la", "--total-seconds", "3", "--offset-seconds", "0.5"]
    (first,) = run(*told, "--seconds", "0.2", out=tmp_path / "first")
    before = json.loads((tmp_path / "first" / "seed_0_song_0.wav.json").read_text())["request"]

    def goes_on(name, *options):
        assert main(["sample", "--demo", "--continue", str(first), *options, "--out", str(tmp_path / name)]) == 0
        return json.loads((tmp_path / name / "seed_0_song_0.wav.json").read_text())["request"]

    assert goes_on("on", "--seconds", "0.4") == before
    says = "seed_0_song_0.tokens.npz was sampled with, and goes on with, artist Bach, genre song, lyrics la la."
    assert says in capsys.readouterr().err
    assert goes_on("over", "--seconds", "2.9") == before | {"total_samples": 4000 + 23_200}
    other = goes_on("other", "--seconds", "0.4", "--artist", "Corelli", "--lyrics", "lo", "--total-seconds", "2")
    assert other == before | {"artist": "Corelli", "lyrics": "lo", "total_samples": 16_000, "offset_samples": 0}


def test_another_song_is_not_written_over_without_force(tmp_path, load, capsys):
    load(random_model())
    (path,) = run("--seconds", "0.2", out=tmp_path)
    first = path.read_bytes()
    run("--seconds", "0.2", out=tmp_path)  # the same again
    capsys.readouterr()
    for options in (
        ["--seconds", "0.3"],
        ["--seconds", "0.2", "--precision", "int8"],
        ["--seconds", "0.2", "--top-k", "3"],
    ):
        assert main([*START, *options, "--out", str(tmp_path)]) == 2
        assert "seed_0_song_0.wav is another song: choose another --out or --seed" in capsys.readouterr().err
    assert path.read_bytes() == first
    run("--seconds", "0.3", "--force", out=tmp_path)
    assert path.read_bytes() != first
    (tmp_path / "seed_3_song_0.wav").write_bytes(b"mine")
    assert main([*START, "--seed", "3", "--seconds", "0.2", "--out", str(tmp_path)]) == 2
    assert (tmp_path / "seed_3_song_0.wav").read_bytes() == b"mine"


def test_a_song_starts_from_a_file_of_any_rate_and_channels(tmp_path, load, capsys):
    load(random_model())
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(3200) / 16_000).astype(np.float32)
    write_audio(tmp_path / "stereo.wav", np.stack([tone, 0 * tone], axis=1), 16_000)
    write_audio(tmp_path / "mono.wav", tone[::2] / 2, 8000)
    options = ["--prompt", str(tmp_path / "stereo.wav"), "--prompt", str(tmp_path / "mono.wav"), "--n-samples", "2"]
    options += ["--seconds", "0.3", "--total-seconds", "2", "--offset-seconds", "0"]
    stereo, mono = run(*options, out=tmp_path / "songs")
    told = capsys.readouterr().err
    assert f"{tmp_path / 'stereo.wav'} is resampled from 16000 to 8000 Hz." in told
    assert "mono.wav is resampled" not in told
    # A rate of 16 kHz and two channels make the same prompt but for the resampler's edges.
    top = [random_model().load_tokens(path)[2] for path in (stereo, mono)]
    assert np.mean(top[0][:12] == top[1][:12]) > 0.6
    told = json.loads((tmp_path / "songs" / "seed_0_song_0.wav.json").read_text())
    assert (told["mode"], told["given"]["tokens"]) == ("primed", [192, 48, 12])
    assert told["request"]["total_samples"] == 16_000


def test_lyrics_from_the_command_line_and_from_files(tmp_path, load):
    load(random_model("separate"))
    first, second = tmp_path / "1.txt", tmp_path / "2.txt"
    first.write_text("la la la\nlo lo", encoding="utf-8")
    second.write_bytes("\ufeffdo ré mi".encode())
    common = ["--seconds", "0.3", "--n-samples", "2", "--genre", "dance"]
    from_files = run("--lyrics-file", str(first), "--lyrics-file", str(second), *common, out=tmp_path / "files")
    typed = run("--lyrics", "la la la\nlo lo", "--lyrics", "do ré mi", *common, out=tmp_path / "typed")
    for a, b in zip(from_files, typed, strict=True):
        assert equal(random_model().load_tokens(a)[2], random_model().load_tokens(b)[2])
    told = json.loads((tmp_path / "files" / "seed_0_song_1.wav.json").read_text())
    assert told["request"]["lyrics"] == "do ré mi"
    assert (tmp_path / "files" / "index.html").read_text().count('class="word"') == 5 + 3


def test_blends_levels_segments_and_a_preview(tmp_path, load, capsys):
    load(random_model())
    options = ["--artist", '{"0": "Bach", "0.2": {"Bach": 1, "Corelli": 3}}', "--temperature", "2=0.9,1=1,0=1.1"]
    options += ["--seconds", "0.4", "--parallel", "3", "--precision", "int8", "--preview"]
    assert main(["sample", "--demo", "--genre", "song", *options, "--out", str(tmp_path)]) == 0
    told = json.loads((tmp_path / "seed_0_song_0.wav.json").read_text())
    assert told["request"]["artist"] == {"0": "Bach", "0.2": {"Bach": 1, "Corelli": 3}}
    assert [one["temperature"] for one in told["sampling"]] == [1.1, 1, 0.9]
    assert (told["approximate"], told["n_segments"], told["precision"]) == (True, [3, 3, 1], "int8")
    assert [seam["level"] for seam in told["seams"]] == [0, 1]
    assert len(told["seams"][0]["seconds"]) == 2
    for level in range(3):
        preview, _ = soundfile.read(tmp_path / "preview" / f"song_0_level_{level}.wav")
        assert len(preview) == 3200 // 128 * 128
    final, _ = soundfile.read(tmp_path / "seed_0_song_0.wav")
    np.testing.assert_allclose(soundfile.read(tmp_path / "preview" / "song_0_level_0.wav")[0], final, atol=1e-4)
    capsys.readouterr()


def test_strict_labels_end_it(tmp_path, load, capsys):
    load(random_model())
    out = ["--out", str(tmp_path / "songs")]
    assert main(["sample", "--demo", "--artist", "Bahc", "--strict-labels", *out]) == 2
    err = capsys.readouterr().err
    assert err.startswith('jukebox-jax: error: The model does not know the artist "Bahc"')
    assert err.count("\n") == 1
    assert not (tmp_path / "songs").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lyrics", "la", "--lyrics-file", "x"], "not allowed with"),
        (["--prompt", "x.wav", "--upsample", "x.npz"], "not allowed with"),
        (["--lyrics-file", "absent.txt"], "absent.txt cannot be read"),
        (["--lyrics-file", "latin.txt"], "latin.txt is not UTF-8"),
        (["--prompt", "absent.wav"], "absent.wav is no file"),
        (["--prompt", "latin.txt"], "latin.txt cannot be read as audio"),
        (["--continue", "absent.npz"], "absent.npz is no file"),
        (["--upsample", "."], ". is no file"),
        (["--prompt-seconds", "3"], "give --prompt, --continue or --upsample"),
        (["--prompt-seconds", "-3", "--prompt", "latin.txt"], "finite number above 0"),
        (["--continue", "latin.txt", "--continue", "latin.txt"], "more than --n-samples 1"),
        (["--offset-seconds", "-1"], "0 or more"),
        (["--offset-seconds", "nan"], "finite"),
        (["--artist", '{"Bach": 1'], '--artist {"Bach": 1 is no JSON'),
        (["--temperature", "2=x"], "no number for each level"),
        (["--parallel", "0"], "at least 1"),
        (["--precision", "int4"], "invalid choice"),
    ],
)
def test_a_mistake_is_seen_before_the_model_is_loaded(options, words, tmp_path, monkeypatch, load, capsys):
    load(None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.txt").write_bytes("Gr\xfc\xdfe".encode("latin-1"))
    assert main([*START, *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert words in err
    assert [path.name for path in tmp_path.iterdir()] == ["latin.txt"]
