"""The parts of the corpus renderer that need neither music21 nor FluidSynth."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

from experiments import render_corpus
from experiments.catalogue import catalogue, split_of
from experiments.demo_pieces import PIECES
from experiments.score_to_audio import SAMPLE_RATE, Note, finish, midi_bytes, write_vorbis
from jukebox_jax.corpus.demo_corpus import demo_folder


def parse_midi(data: bytes) -> list[tuple[int, bytes]]:
    """(tick, message) of a type-0 file: an independent reading of the format."""
    assert data[:14] == b"MThd\x00\x00\x00\x06\x00\x00\x00\x01\x01\xe0"
    assert int.from_bytes(data[18:22], "big") == len(data) - 22
    position, tick, events = 22, 0, []
    while position < len(data):
        delta = 0
        while True:
            byte = data[position]
            position += 1
            delta = delta << 7 | byte & 0x7F
            if byte < 0x80:
                break
        tick += delta
        status = data[position]
        size = 3 + data[position + 2] if status == 0xFF else 2 if status & 0xF0 == 0xC0 else 3
        events.append((tick, data[position : position + size]))
        position += size
    return events


def test_midi_has_every_note_at_its_time():
    voices = [(40, [Note(0, 1, 60, 80), Note(100, 2, 64, 90)]), (0, [Note(0.5, 0.5, 48, 70)])]
    events = parse_midi(midi_bytes(voices, tempo=120))
    assert (0, b"\xff\x51\x03" + (500_000).to_bytes(3, "big")) in events
    assert (0, bytes([0xC0, 40])) in events
    assert (0, bytes([0xC1, 0])) in events
    starts = [(tick, message) for tick, message in events if message[0] & 0xF0 == 0x90]
    assert starts == [(0, bytes([0x90, 60, 80])), (240, bytes([0x91, 48, 70])), (48_000, bytes([0x90, 64, 90]))]
    ends = [tick for tick, message in events if message[0] & 0xF0 == 0x80]
    assert ends == [476, 476, 48_956]
    assert events[-1][1] == b"\xff\x2f\x00"


def test_more_than_fifteen_voices_never_use_the_percussion_channel():
    events = parse_midi(midi_bytes([(0, [Note(i, 1, 60, 80)]) for i in range(20)], tempo=60))
    assert all(message[0] & 0x0F != 9 for _, message in events if message[0] < 0xF0)


def test_finish_trims_levels_and_fades():
    time = np.arange(5 * SAMPLE_RATE) / SAMPLE_RATE
    tone = 0.02 * np.sin(2 * np.pi * 440 * time)
    audio = finish(np.concatenate([np.zeros(SAMPLE_RATE), tone]).astype(np.float32), music_seconds=4.0)
    assert 3.7 < len(audio) / SAMPLE_RATE < 3.9  # 4 s of music + 0.8 s of release - 1 s of silence
    assert np.sqrt(np.mean(audio.astype(np.float64) ** 2)) == pytest.approx(0.1, abs=1e-3)
    assert np.abs(audio[: SAMPLE_RATE // 10]).max() > 0.1
    assert abs(audio[-1]) < 1e-3


def test_finish_never_clips():
    clicks = np.zeros(2 * SAMPLE_RATE, np.float32)
    clicks[::5000] = 1
    assert np.abs(finish(clicks, music_seconds=1.0)).max() == pytest.approx(0.85, abs=1e-6)


def test_finish_refuses_silence():
    with pytest.raises(ValueError, match="silent"):
        finish(np.zeros(1000, np.float32), music_seconds=1.0)


def test_vorbis_of_more_than_a_minute(tmp_path):
    time = np.arange(90 * SAMPLE_RATE) / SAMPLE_RATE
    tone = (0.1 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    write_vorbis(tmp_path / "tone.ogg", tone, 0.9)
    decoded, rate = soundfile.read(tmp_path / "tone.ogg", dtype="float32")
    assert (rate, len(decoded)) == (SAMPLE_RATE, len(tone))
    assert np.sqrt(np.mean((decoded - tone) ** 2)) < 0.01


def test_the_embedded_corpus_is_what_the_table_says():
    rows = [json.loads(line) for line in (demo_folder() / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    labels = [
        (f"{p.name}.ogg", p.title, p.artist, p.genre, p.split, p.composition_licence, p.encoding_licence)
        for p in PIECES
    ]
    keys = ("file_name", "title", "artist", "genre", "split", "composition_licence", "encoding_licence")
    assert labels == [tuple(row[key] for key in keys) for row in rows]


@pytest.fixture
def corpus_folder(tmp_path):
    """A folder laid out like music21's corpus, with empty scores."""
    for folder, names in {"bach": ["bwv1.6.mxl", "bwv2.6.mxl"], "palestrina": ["Agnus_00.krn"]}.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    (tmp_path / "oneills1850").mkdir()
    (tmp_path / "oneills1850/0626-0635.abc").write_text("X: 633\nT: A\nK:G\nG\n\nX: 634\nT: B\nK:G\nG\n")
    (tmp_path / "oneills1850/0626-0700.abc").write_text("X: 633\nT: A\nK:G\nG\n\nX: 677\nT: C\nK:G\nG\n")
    return tmp_path


def test_catalogue_takes_each_piece_once_and_leaves_out_reserved_scores(corpus_folder):
    pieces = list(catalogue(corpus_folder, variants=1))
    assert {(p.source.split("/")[0], p.number) for p in pieces} == {
        ("bach", None),
        ("oneills1850", 633),
        ("oneills1850", 634),
        ("oneills1850", 677),
    }
    assert len(pieces) == 5
    assert len({p.name for p in pieces}) == 5


def test_catalogue_keeps_the_demos_held_out_pieces_held_out(corpus_folder):
    splits = {p.number: p.split for p in catalogue(corpus_folder, variants=1)}
    assert splits[633] == splits[677] == "validation"
    assert splits[634] == ""


def test_a_longer_catalogue_begins_with_the_shorter(corpus_folder):
    short, long = list(catalogue(corpus_folder, variants=1)), list(catalogue(corpus_folder, variants=2))
    assert long[: len(short)] == short
    assert len({p.name for p in long}) == len(long) == 2 * len(short)


def test_one_title_is_on_one_side():
    assert split_of("The White Cockade.") == split_of("WHITE COCKADE")
    sides = [split_of(f"Tune {i}") for i in range(2000)]
    assert 60 < sides.count("validation") < 150


def test_a_row_cut_short_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "metadata.jsonl"
    render_corpus._append(path, {"file_name": "a.ogg"}, {"file_name": "b.ogg"})
    with open(path, "a") as file:
        file.write('{"file_na')
    assert [row["file_name"] for row in render_corpus._rows(path)] == ["a.ogg", "b.ogg"]
    render_corpus._append(path, {"file_name": "c.ogg"})
    assert [row["file_name"] for row in render_corpus._rows(path)] == ["a.ogg", "b.ogg", "c.ogg"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hours", "-1"], "--hours is -1.0"),
        (["--compression-level", "2"], "--compression-level is 2.0"),
        (["--hours", "1", "--workers", "0"], "--workers is 0"),
    ],
)
def test_bad_options_are_told_in_one_line(tmp_path, capsys, arguments, message):
    assert render_corpus.main(["--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
