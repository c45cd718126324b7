"""Music to dataset: what is stored, in the same bytes whoever works and whatever interrupts it."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from buckets import FaultyFileSystem
from corpus import zoo

from experiments.fault_drill.engine import run_drill
from experiments.fault_drill.verbs import prepare_drill, tree
from jukebox_jax.corpus.parts import crashed, decode_piece
from jukebox_jax.corpus.plan import PlanSettings
from jukebox_jax.corpus.prepare import PrepareSettings, prepare
from jukebox_jax.corpus.runners import beam_runner, local_runner
from jukebox_jax.corpus.song import SongSettings
from jukebox_jax.errors import UserError
from jukebox_jax.files import folder_lock
from jukebox_jax.pipeline.dataset import RecordReader, open_dataset

RATE = 44_100
LENGTHS = {"one.wav": 70_000, "sub/two.flac": 140_000, "three.wav": 50_000}
ROWS = [
    {"file_name": "one.wav", "title": "Air", "artist": "Bach", "genre": "Baroque", "licence": "CC0"},
    {"file_name": "sub/two.flac", "artist": "  Clara Schumann ", "lyrics": "La\nla", "split": "train"},
    {"file_name": "three.wav", "title": "Étude", "artist": None, "split": "validation"},
]


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "music"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, length in LENGTHS.items():
        channels = 2 if name.endswith("flac") else 1
        soundfile.write(folder / name, rng.integers(-(2**15), 2**15, (length, channels), dtype=np.int16), RATE)
    write_rows(folder, ROWS)
    return folder


def write_rows(folder, rows):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run_verb(*arguments: object, check: bool = True, **options) -> subprocess.CompletedProcess:
    """`jukebox-jax ARGUMENTS` in a process of its own."""
    command = [sys.executable, "-m", "jukebox_jax", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert not check or done.returncode == 0, done.stderr
    return done


def report_of(folder):
    return json.loads((Path(folder) / "report.json").read_text(encoding="utf-8"))


# ---- What is stored ---------------------------------------------------------------------------------------------


def test_songs_records_and_labels(source, tmp_path):
    steps = []
    dataset = prepare(source, tmp_path / "out", progress=lambda *step: steps.append(step[:3]))
    assert [step for step in steps if step[0] != "find"] == [
        *(("decode", done, 3) for done in range(4)),
        *(("store", done, 2) for done in range(3)),
    ]
    assert dataset == open_dataset(tmp_path / "out")
    assert (dataset.sample_rate, dataset.channels, dict(dataset.fields)) == (RATE, 2, {"audio": 1})
    air, two = dataset.splits["train"]
    (etude,) = dataset.splits["validation"]
    assert (air.title, air.artist, air.genre, air.samples, air.first_record) == ("Air", "Bach", "Baroque", 70_000, 0)
    assert (two.title, two.artist, two.genre, two.lyrics) == ("two", "Clara Schumann", "unknown", "La\nla")
    assert (two.samples, two.first_record) == (140_000, 2)
    assert (etude.artist, etude.first_record) == ("unknown", 0)
    assert dataset.labels.artists.names == ("unknown", "bach", "clara schumann")
    assert dataset.labels.genres.names == ("unknown", "baroque")
    for split, index, name in (("train", 0, "one.wav"), ("train", 1, "sub/two.flac"), ("validation", 0, "three.wav")):
        original, _ = soundfile.read(source / name, dtype="int16", always_2d=True)
        stored = RecordReader(dataset, split).read_song(index, "audio")
        np.testing.assert_array_equal(stored, np.broadcast_to(original, (len(original), 2)))
    rows = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == sorted(LENGTHS)
    assert rows[0]["origins"]["artist"] == "metadata.jsonl"
    assert rows[0]["seconds"] == pytest.approx(70_000 / RATE, abs=1e-3)
    assert sorted(os.listdir(tmp_path)) == ["music", "out"]


def test_mono_and_resampling(source, tmp_path):
    settings = PrepareSettings(SongSettings(sample_rate=22_050, channels=1))
    dataset = prepare(source, tmp_path / "out", settings)
    assert (dataset.channels, dataset.sample_rate) == (1, 22_050)
    assert dataset.splits["train"][1].samples == 70_000
    assert RecordReader(dataset, "train").read_song(1, "audio").shape == (70_000, 1)


def test_tfds_reads_the_folder(source, tmp_path):
    import tensorflow_datasets as tfds

    dataset = prepare(source, tmp_path / "out")
    builder = tfds.builder_from_directory(tmp_path / "out")
    assert builder.info.splits["train"].num_examples == 5
    assert builder.info.splits["validation"].num_examples == 1
    data = builder.as_data_source(split="train")
    for index, song in enumerate(dataset.splits["train"]):
        joined = np.concatenate([data[song.first_record + r]["audio"] for r in range(song.records(65_536))])
        whole = RecordReader(dataset, "train").read_song(index, "audio")
        np.testing.assert_array_equal(joined[: song.samples], whole)
        assert not joined[song.samples :].any()


def test_several_shards(source, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    whole = prepare(source, tmp_path / "whole")
    monkeypatch.setattr("jukebox_jax.corpus.records.SHARD_RECORDS", 2)
    dataset = prepare(source, tmp_path / "out")
    assert [shard.name[-5:] for shard in dataset.shards["train"]] == ["00003"] * 3
    for index in (0, 1):
        a, b = (RecordReader(d, "train").read_song(index, "audio") for d in (whole, dataset))
        np.testing.assert_array_equal(a, b)
    assert len(tfds.builder_from_directory(tmp_path / "out").as_data_source(split="train")) == 5


def test_the_zoo(tmp_path):
    """Every file has a verdict; good ones are stored, copies once."""
    expected = zoo.make_zoo(tmp_path / "zoo")
    (tmp_path / "zoo" / "metadata.jsonl").write_text(
        '{"file_name": "duplicate.wav", "artist": "X"}\n{"file_name": "absent.wav"}\n{"file_name": \n', encoding="utf-8"
    )
    (tmp_path / "zoo" / "duplicate.txt").write_text("Τραγούδι\nτης λύρας\n", encoding="utf-8")
    (tmp_path / "zoo" / "whole.lrc").write_text("[00:01.00]One\n[99:99:99]Two\n[ar:Nobody]\n", encoding="utf-8")
    dataset = prepare(tmp_path / "zoo", tmp_path / "out")
    report = report_of(tmp_path / "out")
    verdicts = {entry["file_name"]: entry["verdict"] for entry in report["files"]}
    problems = {problem["where"]: problem["reason"] for problem in report["problems"]}
    unlisted = {"folder.wav", "no suffix"}  # a folder, and a file that does not look like music
    assert report["other_files"] == {"no suffix": 1}
    no_files = {name.encode("utf-8", "backslashreplace").decode() for name in expected.keys() - verdicts.keys()}
    assert no_files - problems.keys() == unlisted
    for name, words in expected.items():
        if name in verdicts:
            stored = verdicts[name].startswith(("stored in", "left out"))
            assert stored == (words == zoo.OK), f"{name!r}: {verdicts[name]}"
            assert stored or words in verdicts[name]
    assert verdicts["duplicate.flac"] == "left out: exact duplicate of duplicate.wav"
    assert verdicts["near duplicate.mp3"] == "left out: near duplicate of duplicate.wav"
    assert verdicts["near duplicate.ogg"] == "left out: near duplicate of duplicate.wav"
    for where in ("metadata.jsonl, line 2", "metadata.jsonl, line 3", "whole.lrc, line 2"):
        assert where in problems
    songs = {song.file_name: song for table in dataset.splits.values() for song in table}
    assert songs["duplicate.wav"].lyrics == "Τραγούδι\nτης λύρας"
    assert report["songs_stored"] == len(songs)
    assert report["duplicates"] == sum("duplicate of" in verdict for verdict in verdicts.values())


# ---- The same bytes ---------------------------------------------------------------------------------------------


def test_the_same_input_gives_the_same_bytes_whoever_works(source, tmp_path):
    prepare(source, tmp_path / "a")
    prepare(source, tmp_path / "b", decode_runner=local_runner(2), store_runner=local_runner(2))
    beam = beam_runner()
    prepare(source, tmp_path / "c", decode_runner=beam, store_runner=beam, work=tmp_path / "elsewhere")
    assert tree(tmp_path / "a") == tree(tmp_path / "b") == tree(tmp_path / "c")
    assert not any((tmp_path / "elsewhere").iterdir())


def test_what_is_decoded_is_not_decoded_again(source, tmp_path, monkeypatch):
    prepare(source, tmp_path / "whole")
    decoded = []

    def counted(work, items):
        for item in items:
            decoded.append(item.piece.file_name)
            work(item)
            yield item
            if len(decoded) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "out", decode_runner=counted)
    assert not (tmp_path / "out").exists()
    # A file that changes in between, a part that lost its samples, and settings that change what is stored.
    os.utime(source / "one.wav", ns=(1, 1))
    for part in (tmp_path / ".out.partial" / "parts").glob("*.pcm"):
        if part.stat().st_size == 2 * 2 * LENGTHS["sub/two.flac"]:
            part.write_bytes(b"")
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "out", decode_runner=counted, progress=stop_at("store"))
    assert decoded == ["one.wav", "sub/two.flac", "one.wav", "sub/two.flac", "three.wav"][: len(decoded)]
    prepare(source, tmp_path / "out", decode_runner=counted)
    assert sorted(decoded[2:]) == sorted(set(decoded[2:]))
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["music", "out", "whole"]


def stop_at(stage):
    def progress(at, done, *_):
        if at == stage and done:
            raise KeyboardInterrupt

    return progress


def test_shards_of_another_plan_are_written_again(source, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "out", progress=stop_at("store"))
    assert list((tmp_path / ".out.partial" / "dataset").glob("music-*"))
    settings = PrepareSettings(plan=PlanSettings(validation_share=0.0))
    (source / "metadata.jsonl").unlink()
    prepare(source, tmp_path / "out", settings)
    prepare(source, tmp_path / "whole", settings)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_piece_that_takes_down_the_process(source, tmp_path):
    def fragile(work, items):
        for item in items:
            (crashed if item.piece.file_name == "three.wav" else work)(item)
            yield item

    prepare(source, tmp_path / "out", decode_runner=fragile)
    (verdict,) = (e["verdict"] for e in report_of(tmp_path / "out")["files"] if e["file_name"] == "three.wav")
    assert verdict.startswith("refused: decoding it crashes")


@pytest.fixture
def longer(tmp_path):
    """Two minutes of noise in eight files."""
    folder = tmp_path / "longer"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for index in range(8):
        samples = rng.integers(-(2**14), 2**14, (15 * RATE, 2), dtype=np.int16)
        soundfile.write(folder / f"{index}.flac", samples, RATE)
    return folder


@pytest.mark.parametrize(
    ("kills", "flags"), [(3, ()), pytest.param(8, ("--sample-rate", 22_050), marks=pytest.mark.slow)]
)
def test_killed_and_resumed(longer, tmp_path, kills, flags):
    result = run_drill(prepare_drill(longer, "--workers", 2, *flags), tmp_path, kills, seed=0)
    assert result.passed, result.problems
    assert result.met > 1


@pytest.mark.parametrize(("limit", "stage"), [(50_000, "decode"), (8_000_000, "store")])
def test_a_full_disk_is_one_line_and_nothing_is_lost(longer, tmp_path, limit, stage):
    """A limit on the size of files stands for a disk that is full, at a part or at a shard."""

    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    flags = ("prepare", longer, "--out", tmp_path / "out", "--workers", 1)
    done = run_verb(*flags, check=False, preexec_fn=small_disk)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("jukebox-jax: error")]
    assert len(lines) == 1
    assert str(tmp_path / ".out.partial") in lines[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    if stage == "store":
        assert list((tmp_path / ".out.partial" / "parts").glob("*.json"))
    run_verb(*flags)
    prepare(longer, tmp_path / "whole")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_two_processes_on_one_output(source, tmp_path):
    with folder_lock(tmp_path / ".out.partial"), pytest.raises(UserError, match="in use by another process"):
        prepare(source, tmp_path / "out")
    prepare(source, tmp_path / "out")


# ---- Buckets ----------------------------------------------------------------------------------------------------


def test_from_bucket_to_bucket(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    FaultyFileSystem.reset()
    fs = FaultyFileSystem()
    fs.put(str(source), "faulty://music", recursive=True)
    prepare(source, tmp_path / "local")
    fs.faults["put_file"] = [ConnectionError("reset"), ConnectionError("reset")]
    monkeypatch.setattr("jukebox_jax.remote.FIRST_DELAY_SECONDS", 0.01)
    here = {"decode_runner": local_runner(1)}  # only this process knows that file system
    with pytest.raises(KeyboardInterrupt):
        prepare("faulty://music", "faulty://data/audio", progress=stop_at("store"), **here)
    dataset = prepare("faulty://music", "faulty://data/audio", **here)
    assert dataset.splits == open_dataset(tmp_path / "local").splits
    stored = {name.rsplit("/", 1)[1]: fs.cat_file(name) for name in fs.ls("faulty://data/audio", detail=False)}
    ours = tree(tmp_path / "local")
    assert stored.keys() == ours.keys()
    assert {name for name in ours if stored[name] != ours[name]} == set()
    assert sorted(os.listdir(tmp_path)) == ["local", "music"]
    with pytest.raises(UserError, match="already exists"):
        prepare("faulty://music", "faulty://data/audio", **here)


# ---- Refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder.rename(folder.parent / "moved"), "music"),
        (
            lambda folder: [(folder / name).write_bytes(b"") for name in LENGTHS],
            "no usable music .3 refused; the first: one.wav is empty",
        ),
        (lambda folder: write_rows(folder, [row | {"split": "test"} for row in ROWS]), "no piece for training"),
    ],
)
def test_bad_folders(source, tmp_path, make, message):
    make(source)
    with pytest.raises(UserError, match=message):
        prepare(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_mistake_leaves_nothing_but_what_saves_work(source, tmp_path):
    write_rows(source, [row | {"split": "test"} for row in ROWS])
    with pytest.raises(UserError):
        prepare(source, tmp_path / "out")
    assert list((tmp_path / ".out.partial" / "parts").glob("*.pcm"))
    with pytest.raises(UserError):
        prepare(tmp_path / "absent", tmp_path / "other")
    assert not (tmp_path / ".other.partial").exists()
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "other", progress=stop_at("find"))
    assert not (tmp_path / ".other.partial").exists()
    with pytest.raises(UserError, match="soundfont"):
        prepare(source, tmp_path / "other", PrepareSettings(SongSettings(soundfont="absent.sf2")))
    assert sorted(os.listdir(tmp_path)) == [".out.partial", "music"]


def test_nothing_is_overwritten(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="already exists"):
        prepare(source, tmp_path / "out")
    assert tree(tmp_path / "out") == {"mine.txt": b"keep"}


def test_work_elsewhere_touches_nothing_that_is_there(source, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "mine.txt").write_text("keep")
    prepare(source, tmp_path / "out", work=tmp_path / "work")
    assert tree(tmp_path / "work") == {"mine.txt": b"keep"}


# ---- The command ------------------------------------------------------------------------------------------------


def test_the_command_prints_what_became_of_the_music(source, tmp_path):
    (source / "broken.wav").write_bytes(b"RIFF")
    done = run_verb("prepare", source, "--out", tmp_path / "out", "--workers", 1, "--min-label-songs", 2)
    assert "songs stored         3" in done.stdout
    assert "broken.wav: refused: " in done.stdout
    assert "2 rarer names became unknown (2 songs)" in done.stdout
    assert done.stdout.endswith(f"dataset: {tmp_path / 'out'}\n")
    again = run_verb("prepare", source, "--out", tmp_path / "more", "--labels", tmp_path / "out", "--workers", 1)
    assert "dataset: " in again.stdout
    inspected = run_verb("inspect", source)
    assert "prepare would store   3 songs" in inspected.stdout
    assert "1 × broken.wav: " in inspected.stdout
    assert json.loads(run_verb("inspect", source, "--json").stdout)["files"] == 4


def test_decoders_do_not_write_on_the_screen(source, tmp_path):
    (source / "noise.mp3").write_bytes(np.random.default_rng(3).bytes(20_000))  # of which libmpg123 has much to say
    for verb in (["inspect", source], ["prepare", source, "--out", tmp_path / "out", "--workers", 1]):
        done = run_verb(*verb)
        assert "noise.mp3: " in done.stdout
        assert "resync" not in done.stderr, done.stderr


def test_interrupted_from_the_keyboard(longer, tmp_path):
    command = [sys.executable, "-m", "jukebox_jax", "prepare", str(longer), "--out", str(tmp_path / "out")]
    start = (
        "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv = sys.argv[1:]; "
    )
    command[1:3] = ["-c", start + "runpy.run_module('jukebox_jax', run_name='__main__')", "jukebox-jax"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    parts = tmp_path / ".out.partial" / "parts"
    end = time.monotonic() + 60
    while not list(parts.glob("*.json")):
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "The same command goes on" in err
    assert "Traceback" not in err
    run_verb("prepare", longer, "--out", tmp_path / "out")


def test_parts_are_keyed_by_all_that_decides_them(source, tmp_path):
    keys = set()
    tasks = []

    def note(work, items):
        for item in items:
            tasks.append(item)
            work(item)
            yield item

    for song in (SongSettings(), SongSettings(sample_rate=8_000), SongSettings(channels=1)):
        prepare(source, tmp_path / f"out{len(tasks)}", PrepareSettings(song), decode_runner=note)
    keys = {task.key for task in tasks}
    assert len(keys) == 9
    task = dataclasses.replace(tasks[0], work=str(tmp_path / "again"))
    (tmp_path / "again").mkdir()
    decode_piece(task)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "again").iterdir()}
    decode_piece(task)
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "again").iterdir()}
