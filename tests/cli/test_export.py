"""`jukebox-jax export` and `reproduce`: a song to a file to send, and back to the song."""

from __future__ import annotations

import json
import os
import sys

import mutagen
import numpy as np
import pytest
import soundfile
from cascade import equal, random_model

from jukebox_jax import api
from jukebox_jax.cli.main import main
from jukebox_jax.export.loudness import integrated_loudness
from jukebox_jax.export.tags import TAG, read_provenance

SETTINGS = {"artist": ["Bach", "Corelli"], "genre": "Song", "sample_length": 4096, "seed": 1, "n_samples": 2}
SETTINGS |= {"hop_fractions": (0.5, 0.5, 0.5), "batch_size": 2, "progress": False}
PROMPT = 0.2 * np.random.default_rng(0).normal(size=1300).astype(np.float32)


@pytest.fixture(scope="module")
def songs():
    return random_model().sample(**SETTINGS)


@pytest.fixture
def song(songs, tmp_path, monkeypatch):
    """The second song, as `sample` leaves it; its model is in place of the shipped one."""
    monkeypatch.setattr(api, "load", lambda folder: random_model())
    songs[1].save(tmp_path / "song.wav")
    songs[1].save_tokens(tmp_path / "song.tokens.npz")
    return tmp_path / "song.wav"


def refused(capsys, *argv) -> str:
    assert main([str(each) for each in argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("jukebox-jax: error: ")
    assert err.count("\n") == 1
    return err


# ---- Export -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wav", "flac", "ogg", "opus", "mp3"])
def test_a_sound_file_is_exported_without_a_model(song, name, monkeypatch, capsys):
    monkeypatch.setattr(api, "load", None)
    out = song.parent / "out"
    argv = ["export", str(song), "--format", name, "--loudness=-24", "--fade-out", "0.05", "--out", str(out)]
    assert main(argv) == 0
    told, err = capsys.readouterr()
    assert told == f"{out / f'song.{name}'}\n"
    assert err == ("jukebox-jax: song.opus: opus does not take 8000 Hz: resampled to 48000 Hz.\n" * (name == "opus"))
    heard, rate = soundfile.read(out / f"song.{name}", dtype="float32", always_2d=True)
    assert len(heard) == 4096 * rate / 8000
    assert integrated_loudness(heard, rate) == pytest.approx(-24, abs=0.5)
    said = read_provenance(out / f"song.{name}")
    assert said == json.loads((out / f"song.{name}.json").read_text())
    assert [step["format"] for step in said["export"]] == ["wav", name]
    assert (said["seed"], said["level"], said["song"]) == (1, 0, 1)


def test_every_level_is_exported_from_tokens(song, songs, capsys):
    tokens = song.with_suffix(".tokens.npz")
    assert main(["export", str(tokens), "--demo", "--level", "2", "--format", "wav"]) == 0
    path = song.parent / "song.level_2.wav"
    assert capsys.readouterr().out == f"{path}\n"
    heard, _ = soundfile.read(path)
    np.testing.assert_allclose(heard, songs[1].levels[2], atol=1e-4)
    assert read_provenance(path)["level"] == 2
    assert main(["export", str(tokens), "--demo", "--out", str(song.parent / "x" / "a.flac")]) == 0
    assert read_provenance(song.parent / "x" / "a.flac")["level"] == 0


def test_what_exists_is_kept_unless_forced(song, capsys):
    argv = ["export", song, "--format", "mp3"]
    assert main([str(each) for each in argv]) == 0
    capsys.readouterr()
    path = song.with_suffix(".mp3")
    before = path.read_bytes()
    assert "song.mp3 exists: choose another --out, or write over it with --force" in refused(
        capsys, *argv, "--fade-in", "0.1"
    )
    assert path.read_bytes() == before
    path.unlink()
    assert "song.mp3.json exists" in refused(capsys, *argv)
    assert main(["export", str(song), "--format", "mp3", "--fade-in", "0.1", "--force"]) == 0
    assert path.read_bytes() != before


def test_mistakes_are_seen_before_anything_is_written(song, capsys, monkeypatch):
    folder, tokens = song.parent, song.with_suffix(".tokens.npz")
    plain = folder / "plain.wav"
    soundfile.write(plain, np.zeros(8000), 8000)
    old = folder / "old.tokens.npz"
    np.savez(old, codec="tiny", **{f"level_{level}": np.zeros(4, int) for level in range(3)})
    changed = folder / "changed.tokens.npz"
    with np.load(tokens) as stored:
        np.savez(changed, **{**stored, "level_1": stored["level_1"][::-1]})
    there = sorted(folder.iterdir())
    for argv, words in (
        ((song,), "The format is not given: add --format"),
        ((song, "--out", "x.mp4"), "x.mp4: songs are written as wav, flac, ogg, opus, mp3: choose"),
        ((song, "--format", "mp3", "--out", "x.ogg"), "--out x.ogg is not --format mp3"),
        ((song, plain, "--out", folder / "x.ogg"), "is one file for 2 songs"),
        ((song, "--format", "wav"), "is the song itself: choose another --out"),
        ((song, song, "--format", "mp3"), "Two songs would become"),
        ((song, "--format", "mp3", "--out", plain), "is not --format mp3"),
        ((song, "--format", "mp3", "--out", old), "is a file of another kind"),
        ((song, "--format", "mp3", "--out", plain / "x"), "Not a directory: choose another folder"),
        ((song, "--format", "mp3", "--demo"), "are for tokens"),
        ((song, "--format", "mp3", "--level", "1"), "is the sound of level 0, not 1: give the song's .tokens.npz"),
        ((folder / "absent.wav", "--format", "mp3"), "absent.wav is no file"),
        ((plain, "--format", "mp3"), "plain.wav has no tags of jukebox_jax, and there is no plain.wav.json"),
        ((tokens, "--format", "mp3"), "holds tokens: name the --model"),
        ((tokens, "--demo", "--format", "mp3", "--level", "3"), "has no level 3: choose --level from 0 to 2"),
        ((old, "--demo", "--format", "mp3"), "does not say where its tokens come from"),
        ((changed, "--demo", "--format", "mp3"), "holds other tokens than it says"),
        ((song, "--format", "mp3", "--loudness", "14"), "A loudness of 14.0 LUFS is none"),
        ((song, "--format", "mp3", "--fade-in", "9"), "longer than the song"),
        ((song, "--format", "mp3", "--c2pa-key", plain), "give both"),
        ((song, "--format", "ogg", "--c2pa-key", plain, "--c2pa-certificate", plain), "no place in ogg files"),
        ((song, "--format", "mp3", "--c2pa-key", plain, "--c2pa-certificate", plain), "holds no certificate in PEM"),
    ):
        assert words in refused(capsys, "export", *argv)
    monkeypatch.setitem(sys.modules, "mutagen", None)
    assert 'mutagen, which is missing: pip install "jukebox-jax[export]"' in refused(
        capsys, "export", song, "--format", "mp3"
    )
    assert sorted(folder.iterdir()) == there


def test_too_short_for_a_loudness_is_said(song, capsys):
    short = song.parent / "short.wav"
    soundfile.write(short, soundfile.read(song)[0][:3000], 8000)
    (song.parent / "short.wav.json").write_bytes((song.parent / "song.wav.json").read_bytes())
    assert "lasts 0.38 s, and loudness is measured over at least 0.4 s: leave it as it is" in refused(
        capsys, "export", short, "--format", "mp3", "--loudness=-14"
    )
    assert main(["export", str(short), "--format", "mp3"]) == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written(song, capsys):
    locked = song.parent / "locked"
    locked.mkdir(mode=0o500)
    assert "Permission denied" in refused(capsys, "export", song, "--format", "mp3", "--out", locked)


# ---- Reproduce --------------------------------------------------------------------------------------------------


def test_an_exported_song_is_reproduced(song, capsys):
    for name in ("mp3", "flac"):
        argv = [str(song), "--format", name, "--loudness=-24", "--fade-in", "0.1"]
        assert main(["export", *argv]) == 0
        assert main(["reproduce", str(song.with_suffix(f".{name}")), "--demo"]) == 0
        assert f"song.{name} is the same song" in capsys.readouterr().out
    song.with_suffix(".mp3.json").unlink(missing_ok=True)
    assert main(["reproduce", str(song.with_suffix(".mp3")), "--demo"]) == 0
    assert not list(song.parent.glob("*.session"))


def test_another_song_under_the_same_tags_is_told(song, songs, capsys):
    songs[0].save(song.parent / "other.wav")
    (song.parent / "other.wav.json").write_bytes((song.parent / "song.wav.json").read_bytes())
    other = mutagen.File(song.parent / "other.wav")
    other.tags.getall(f"TXXX:{TAG}")[0].text = [(song.parent / "song.wav.json").read_text()]
    other.save()
    assert main(["reproduce", str(song.parent / "other.wav"), "--demo"]) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[0].endswith("other.wav is another song than its tags make of this model.")
    assert len(told) == 2
    assert told[1].startswith("The sound differs: by ")


def test_changed_tags_make_another_song_and_say_why_it_may_be(song, capsys):
    said = json.loads((song.parent / "song.wav.json").read_text())
    said["seed"], said["environment"]["jax"] = 2, "0.1.0"
    tags = mutagen.File(song)
    tags.delete()
    (song.parent / "song.wav.json").write_text(json.dumps(said))
    assert main(["reproduce", str(song), "--demo"]) == 1
    told = capsys.readouterr().out
    for level in range(3):
        assert f"The tokens of level {level} differ." in told
    assert "The sound differs" in told
    assert "Not the same here, and perhaps the reason: jax 0.1.0 there, 0." in told


def test_a_song_that_was_cut_is_not_sampled(song, monkeypatch, capsys):
    monkeypatch.setattr(api, "sample_order", None)
    soundfile.write(song, soundfile.read(song)[0][:3000], 8000)
    assert main(["reproduce", str(song), "--demo"]) == 1
    assert "The file lasts 0.38 s, the song 0.51 s: it was cut or changed" in capsys.readouterr().out


def test_a_song_with_a_prompt_needs_it_again(song, tmp_path, capsys):
    primed = random_model().sample(**SETTINGS | {"n_samples": 1, "artist": "Bach"}, prompt=PROMPT)[0]
    path = tmp_path / "primed.flac"
    primed.save(path)
    primed.save_tokens(tmp_path / "primed.tokens.npz")
    soundfile.write(tmp_path / "prompt.wav", PROMPT, 8000, subtype="FLOAT")
    assert "did not start from nothing: give what it started from" in refused(capsys, "reproduce", path, "--demo")
    assert "not what the song started from" in refused(capsys, "reproduce", path, "--demo", "--prompt", song)
    assert "absent is no file" in refused(capsys, "reproduce", path, "--demo", "--prompt", tmp_path / "absent")
    for start in ("prompt.wav", "primed.tokens.npz"):
        assert main(["reproduce", str(path), "--demo", "--prompt", str(tmp_path / start)]) == 0


def test_an_interrupted_reproduction_goes_on(song, monkeypatch, capsys):
    real, calls = api.sample_order, []

    def interrupted(*args):
        for event in real(*args):
            calls.append(event)
            if len(calls) == 4:
                raise KeyboardInterrupt
            yield event

    monkeypatch.setattr(api, "sample_order", interrupted)
    assert main(["reproduce", str(song), "--demo"]) == 130
    assert "goes on from the windows" in capsys.readouterr().err
    session = song.with_name("song.wav.session")
    assert list(session.glob("level_*_song_0_*.npz"))
    monkeypatch.setattr(api, "sample_order", real)
    assert main(["reproduce", str(song), "--demo"]) == 0
    assert not session.exists()


def test_what_cannot_be_reproduced(song, capsys, tmp_path, monkeypatch):
    plain = tmp_path / "plain.wav"
    soundfile.write(plain, np.zeros(8000), 8000)
    assert "plain.wav has no tags of jukebox_jax" in refused(capsys, "reproduce", plain, "--demo")
    monkeypatch.undo()
    assert "There is no model folder" in refused(capsys, "reproduce", song, "--model", tmp_path / "absent")
    assert "sampled with another codec" in refused(capsys, "reproduce", song, "--demo")


# ---- In Python --------------------------------------------------------------------------------------------------


def test_songs_are_saved_in_every_format_and_over_what_is_there(songs, tmp_path):
    song = songs[0]
    song.save(tmp_path / "a.wav")
    before = (tmp_path / "a.wav").read_bytes()
    song.save(tmp_path / "a.wav")
    assert (tmp_path / "a.wav").read_bytes() == before
    heard = soundfile.read(tmp_path / "a.wav", dtype="float32")[0]
    assert equal(heard, np.float32(np.rint(song.audio * 32_768) / 32_768))
    with pytest.warns(UserWarning, match="opus does not take 8000 Hz"):
        song.save(tmp_path / "a.opus", loudness=-30, fade_in=0.1)
    with pytest.raises(api.UserError, match="The song has no level 3: choose from 0 to 2"):
        song.save(tmp_path / "a.mp3", level=3)
    with pytest.raises(api.UserError, match=r"songs are written as \.wav"):
        song.save(tmp_path / "a.m4a")
    assert {path.name for path in tmp_path.iterdir()} == {f"a.{s}" for s in ("wav", "wav.json", "opus", "opus.json")}
