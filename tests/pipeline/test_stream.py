from __future__ import annotations

import dataclasses
import itertools
import re
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from buckets import FaultyFileSystem

from jukebox_jax.errors import UserError
from jukebox_jax.labels.ids import LabelTable, NameTable
from jukebox_jax.labels.lyrics import LyricText, lyric_window
from jukebox_jax.labels.timing import timing_bins
from jukebox_jax.pipeline import stream as module
from jukebox_jax.pipeline.dataset import RecordReader, open_dataset
from jukebox_jax.pipeline.stream import READ_AHEAD_BATCHES, LabelSpec, LyricSpec, Stream, TimingSpec
from jukebox_jax.remote import upload

from .conftest import write_audio_dataset

WINDOW = 8192
LYRICS = LyricSpec(LyricText("v3", "anyascii"), 64)


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype
        np.testing.assert_array_equal(a[key], b[key])


@pytest.fixture(scope="session")
def label_spec(token_dataset):
    return LabelSpec(token_dataset.labels, max_genres=3, timing=TimingSpec(16, 0.5, 60.0), lyrics=LYRICS)


@pytest.fixture(scope="session")
def labelled(token_dataset, label_spec):
    return Stream(token_dataset, "train", WINDOW, batch_size=4, fields=("level_0", "level_1"), labels=label_spec)


def test_an_epoch_visits_every_window_once(audio_dataset):
    stream = Stream(audio_dataset, "train", WINDOW, batch_size=6, shift=False)
    # The song of 3,000 samples is shorter than a window.
    assert stream.skipped_songs == ("train 3",)
    assert stream.n_windows == (50_000 + 65_536 + 140_001 + 90_100) // WINDOW == 42
    seen = [pair for p in range(0, 42, 6) for pair in zip(*stream.windows(1, p), strict=True)]
    assert len(set(seen)) == 42
    again = [pair for p in range(42, 84, 6) for pair in zip(*stream.windows(1, p), strict=True)]
    assert set(again) == set(seen)
    assert again != seen
    other = [pair for p in range(0, 42, 6) for pair in zip(*stream.windows(2, p), strict=True)]
    assert set(other) == set(seen)
    assert other != seen


def test_audio_batches_hold_the_samples_of_their_windows(audio_dataset):
    stream = Stream(audio_dataset, "train", WINDOW, batch_size=8)
    reader = RecordReader(audio_dataset, "train")
    batch = stream.batch(3, 100)
    assert batch["audio"].shape == (8, WINDOW, 1)
    assert batch["audio"].dtype == np.float32
    for row, song, offset in zip(batch["audio"], *stream.windows(3, 100), strict=True):
        stereo = reader.read_song(int(song), "audio")[offset : offset + WINDOW].astype(np.float64) / 2**15
        np.testing.assert_allclose(row[:, 0], stereo.mean(axis=1), atol=1e-7)


def test_shifts_spread_over_half_a_window_either_way(audio_dataset):
    shifted = Stream(audio_dataset, "train", WINDOW, batch_size=400, shuffle=False)
    still = Stream(audio_dataset, "train", WINDOW, batch_size=400, shuffle=False, shift=False)
    (songs_a, a), (songs_b, b) = shifted.windows(0, 0), still.windows(0, 0)
    moved = (a - b)[songs_a == songs_b]
    assert moved.min() < -0.4 * WINDOW
    assert moved.max() > 0.4 * WINDOW
    assert len(np.unique(moved)) > 300
    lengths = np.array([song.samples for song in audio_dataset.splits["train"]])
    assert (a >= 0).all()
    assert (a + WINDOW <= lengths[songs_a]).all()


def test_blend_draws_one_weight_per_example(audio_dataset):
    stream = Stream(audio_dataset, "train", WINDOW, batch_size=64, blend=True)
    reader = RecordReader(audio_dataset, "train")
    weights = []
    for row, song, offset in zip(stream.batch(0, 0)["audio"], *stream.windows(0, 0), strict=True):
        left, right = reader.read(int(song), int(offset), int(offset) + WINDOW, ("audio",))[0].T / 2**15
        weight = np.dot(row[:, 0] - right, left - right) / np.dot(left - right, left - right)
        np.testing.assert_allclose(row[:, 0], weight * left + (1 - weight) * right, atol=1e-6)
        weights.append(weight)
    assert min(weights) < 0.1
    assert max(weights) > 0.9


@pytest.mark.parametrize("position", [0, 3, 40, 10**12])
def test_the_iterator_gives_the_same_batches(audio_dataset, labelled, position):
    for stream in (Stream(audio_dataset, "train", WINDOW, batch_size=4, blend=True), labelled):
        for k, batch in enumerate(itertools.islice(stream.batches(7, position), 5)):
            assert_equal(batch, stream.batch(7, position + 4 * k))


def test_resuming_equals_never_having_stopped(labelled):
    run = list(itertools.islice(labelled.batches(5), 8))
    for stop in (1, 4, 7):
        for a, b in zip(run[stop:], labelled.batches(5, 4 * stop), strict=False):
            assert_equal(a, b)


@pytest.mark.parametrize("count", [2, 4])
def test_hosts_concatenate_to_one(audio_dataset, token_dataset, label_spec, labelled, count):
    tokens = {"dataset": token_dataset, "fields": ("level_0", "level_1"), "labels": label_spec}
    for options in (tokens, {"dataset": audio_dataset, "blend": True}):
        options = {"split": "train", "window_samples": WINDOW, "batch_size": 4} | options
        one = Stream(**options)
        hosts = [Stream(**options, process_index=i, process_count=count) for i in range(count)]
        assert sum(len(host.batch(0, 0)[one.keys[0]]) for host in hosts) == 4
        for position in (0, 36, 38):  # the last two run over the end of the epoch
            parts = [host.batch(11, position) for host in hosts]
            together = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
            assert_equal(together, one.batch(11, position))
        for parts, position in zip(zip(*(h.batches(5) for h in hosts), strict=True), (0, 4, 8), strict=False):
            together = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
            assert_equal(together, one.batch(5, position))


def test_the_batch_size_changes_no_example(audio_dataset):
    small, large = (Stream(audio_dataset, "train", WINDOW, batch_size=b) for b in (2, 6))
    together = np.concatenate([small.batch(0, p)["audio"] for p in (10, 12, 14)])
    np.testing.assert_array_equal(together, large.batch(0, 10)["audio"])


def test_a_run_that_changes_its_batch_size_neither_repeats_nor_skips(audio_dataset):
    places, position = [], 0
    for batch_size, batches in ((6, 3), (4, 2), (2, 3), (5, 2)):  # 42 examples: an epoch
        stream = Stream(audio_dataset, "train", WINDOW, batch_size=batch_size, shift=False)
        for _ in range(batches):
            places += zip(*stream.windows(7, position), strict=True)
            position += batch_size
    assert position == stream.n_windows
    assert len(set(places)) == stream.n_windows
    whole = Stream(audio_dataset, "train", WINDOW, batch_size=42, shift=False)
    assert places == list(zip(*whole.windows(7, 0), strict=True))


def test_resuming_anywhere_costs_the_same_and_little_is_read_ahead(audio_dataset):
    FaultyFileSystem.reset()
    for path in audio_dataset.folder.iterdir():
        upload(path, f"faulty://bucket/{path.name}")
    stream = Stream(open_dataset("faulty://bucket"), "train", WINDOW, batch_size=4, blend=True)
    windows = FaultyFileSystem.calls  # a window lies in one shard here, so it is one request
    for position in (0, 10**9, 10**15):
        windows.clear()
        stream.batch(3, position)
        assert windows == {"cat_file": 4}
        windows.clear()
        batches = stream.batches(3, position)
        for taken in (1, 2, 3):
            next(batches)
            time.sleep(0.1)  # time enough to run away
            assert windows["cat_file"] == 4 * (taken + READ_AHEAD_BATCHES)
    FaultyFileSystem.reset()


def test_an_iterator_that_is_dropped_reads_no_more(audio_dataset, monkeypatch):
    monkeypatch.setattr(module, "REMOTE_READERS", 1)
    FaultyFileSystem.reset()
    for path in audio_dataset.folder.iterdir():
        upload(path, f"faulty://bucket/{path.name}")
    stream = Stream(open_dataset("faulty://bucket"), "train", WINDOW, batch_size=4)
    FaultyFileSystem.calls.clear()
    FaultyFileSystem.faults["cat_file"] = [0.0] * 4 + [0.2] * 8
    threads = threading.active_count()
    batches = stream.batches(0)
    next(batches)
    started = time.monotonic()
    del batches
    assert time.monotonic() - started < 0.15
    time.sleep(0.5)
    assert FaultyFileSystem.calls["cat_file"] <= 6  # a batch, and what was being read
    assert threading.active_count() == threads
    FaultyFileSystem.reset()


MEMORY = """
import itertools, sys
from jukebox_jax.pipeline.dataset import open_dataset
from jukebox_jax.pipeline.stream import Stream

def megabytes():
    (line,) = [line for line in open("/proc/self/status") if line.startswith("RssAnon")]
    return int(line.split()[1]) / 1024

stream = Stream(open_dataset(sys.argv[1]), "train", 65_536, batch_size=8, blend=True)
batches = stream.batches(0)
for count in (40, 260):
    for _ in itertools.islice(batches, count):
        pass
    print(megabytes())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_grows_neither_with_time_nor_with_the_collection(tmp_path):
    after = {}
    for songs in (1, 40):  # of 20 s in stereo: 3.5 MB and 141 MB; 300 batches read 630 MB
        dataset = write_audio_dataset(tmp_path / str(songs), train=(20 * 44_100,) * songs, validation=())
        command = [sys.executable, "-c", MEMORY, str(dataset.folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        after[songs] = [float(line) for line in done.stdout.split()]
        shutil.rmtree(tmp_path / str(songs))
    (small_early, small_late), (large_early, large_late) = after[1], after[40]
    assert small_late < small_early + 20
    assert large_late < large_early + 20
    assert large_late < small_late + 30


def test_timing_of_audio_that_is_encoded_on_the_way(audio_dataset, token_dataset):
    def labels(hop: int) -> LabelSpec:
        return LabelSpec(token_dataset.labels, timing=TimingSpec(16, 0.5, 60.0, hop))

    options = {"split": "train", "window_samples": WINDOW, "batch_size": 4}
    audio = Stream(audio_dataset, **options, labels=labels(128), shift=False)
    tokens = Stream(token_dataset, **options, labels=labels(128), fields=("level_2",), shift=False)
    heard, read = audio.batch(0, 0), tokens.batch(0, 0)
    assert heard["absolute_bins"].shape == (4, WINDOW // 128)
    assert read["absolute_bins"].shape == heard["absolute_bins"].shape
    with pytest.raises(UserError, match="8192 samples is not a multiple of 100"):
        Stream(audio_dataset, **options, labels=labels(100))


def test_evaluation_reads_in_order(audio_dataset):
    stream = Stream(audio_dataset, "validation", WINDOW, batch_size=1, shuffle=False, shift=False)
    # 110,000 samples hold 13 windows. The eighth's midpoint lies past 65,536 but inside the first song (70,000).
    places = [tuple(int(x[0]) for x in stream.windows(0, p)) for p in range(stream.n_windows)]
    assert places[:8] == [(0, k * WINDOW) for k in range(8)]
    assert places[8] == (0, 8 * WINDOW - WINDOW // 2)  # [65,536, 73,728) sticks out: half a window back
    assert places[9] == (1, 9 * WINDOW - 70_000)
    assert len(places) == 13


def test_tokens_lie_where_the_window_does_and_under_their_upper_level(token_dataset):
    stream = Stream(token_dataset, "train", WINDOW, batch_size=32, fields=("level_1", "level_2"))
    batch = stream.batch(2, 0)
    assert batch["tokens"].shape == (32, WINDOW // 32)
    assert batch["upper"].shape == (32, WINDOW // 128)
    assert batch["tokens"].dtype == batch["upper"].dtype == np.int32
    _, offsets = stream.windows(2, 0)
    assert (offsets % 128 == 0).all()
    np.testing.assert_array_equal(batch["tokens"], offsets[:, None] // 32 + np.arange(WINDOW // 32))
    np.testing.assert_array_equal(batch["tokens"][:, ::4] // 4, batch["upper"])
    assert len(set(offsets // 128 % 4)) > 1  # shifted by single hops, not whole windows


def test_no_window_reaches_past_the_last_code(token_dataset):
    # Codes stop at the last whole hop of the coarsest level, padding is 0: no window may show padding after a code.
    stream = Stream(token_dataset, "train", 4096, batch_size=300, fields=("level_0",))
    tokens = stream.batch(0, 0)["tokens"]
    np.testing.assert_array_equal(np.diff(tokens, axis=1), 1)


def test_a_damaged_record_is_told_by_its_shard(audio_dataset, tmp_path):
    folder = shutil.copytree(audio_dataset.folder, tmp_path / "copy")
    (shard,) = folder.glob("music-train*")
    data = bytearray(shard.read_bytes())
    # A sample in the middle of the last song's last record.
    last = RecordReader(audio_dataset, "train").read(4, 80_000, 80_100, ("audio",))[0].tobytes()
    data[data.index(last)] ^= 1
    shard.write_bytes(data)
    stream = Stream(open_dataset(folder), "train", WINDOW, batch_size=1, shuffle=False, shift=False)
    damaged = stream.n_windows - 2
    message = re.escape(f"{shard} is damaged (") + ".*copy the folder again"
    with pytest.raises(UserError, match=message):
        stream.batch(0, damaged)
    with pytest.raises(UserError, match=message):
        RecordReader(stream.dataset, "train").read_song(4, "audio")
    # What comes before the damage is given out, in its order.
    seen = []
    with pytest.raises(UserError, match=message) as refusal:
        seen.extend(batch["audio"][0, 0, 0] for batch in stream.batches(0, damaged - 14))
    assert "\n" not in str(refusal.value)
    assert seen == [
        stream.batch(0, position)["audio"][0, 0, 0] for position in range(damaged - 14, damaged - 14 + len(seen))
    ]
    assert seen


def test_labels_follow_the_song(token_dataset, label_spec, labelled):
    batch = labelled.batch(0, 8)
    songs, offsets = labelled.windows(0, 8)
    names = token_dataset.labels
    for i, (song, offset) in enumerate(zip(songs, offsets, strict=True)):
        entry = token_dataset.splits["train"][song]
        assert names.artists.names[batch["artist"][i]] == entry.artist.lower()
        assert [names.genres.names[batch["genres"][i, 0]], *batch["genres"][i, 1:]] == [entry.genre.lower(), -1, -1]
        bins = timing_bins(entry.samples, int(offset), WINDOW, WINDOW // 8, 16, 0.5, 60.0, 44_100)
        assert batch["total_bins"][i] == bins.total
        np.testing.assert_array_equal(batch["absolute_bins"][i], bins.absolute)
        np.testing.assert_array_equal(batch["relative_bins"][i], bins.relative)


def test_lyrics_follow_the_window(token_dataset, labelled):
    seen = set()
    for position in range(0, 40, 4):
        batch = labelled.batch(0, position)
        assert batch["lyrics"].shape == (4, 64)
        assert batch["lyrics"].dtype == np.int32
        for row, song, offset in zip(batch["lyrics"], *labelled.windows(0, position), strict=True):
            entry = token_dataset.splits["train"][song]
            tokens = LYRICS.text.tokens(entry.lyrics)
            window = lyric_window(tokens, 64, entry.samples, int(offset), WINDOW)
            np.testing.assert_array_equal(row, window.tokens)
            assert row.all() == bool(entry.lyrics)
            assert row.any() == bool(entry.lyrics)  # without lyrics there is nothing but padding
            seen.add((int(song), int(window.indices[0])))
    assert len({song for song, _ in seen}) == 4
    assert len(seen) > 12


def test_lyrics_are_spelt_once(token_dataset, label_spec, monkeypatch):
    stream = Stream(token_dataset, "train", WINDOW, batch_size=4, fields=("level_2",), labels=label_spec)
    monkeypatch.setattr(LyricText, "tokens", None)
    assert stream.batch(0, 0)["lyrics"].any()


def test_genres_in_a_bag_of_words(audio_dataset):
    table = LabelTable(
        NameTable.from_pairs([("unknown", 0), ("clara_schumann", 1)]),
        NameTable.from_pairs([("unknown", 0), ("late", 1), ("romantic", 2)]),
        "v2",
    )
    songs = audio_dataset.splits["train"]
    renamed = tuple(dataclasses.replace(song, genre=song.genre.replace("R", "late-r")) for song in songs)
    dataset = dataclasses.replace(audio_dataset, splits={"train": renamed})
    stream = Stream(dataset, "train", WINDOW, batch_size=42, labels=LabelSpec(table, max_genres=3))
    batch = stream.batch(0, 0)
    assert set(batch) == {"audio", "artist", "genres"}
    for song, artist, genres in zip(stream.windows(0, 0)[0], batch["artist"], batch["genres"].tolist(), strict=True):
        assert (artist, genres) == ((1, [1, 2, -1]) if song % 2 else (0, [0, -1, -1]))
    with pytest.raises(UserError, match=r'"train 1" \(1\.wav\): The genre "late-romantic" is 2 words'):
        Stream(dataset, "train", WINDOW, batch_size=1, labels=LabelSpec(table, max_genres=1))


@pytest.mark.parametrize("n_tokens", [0, -2, 63])
def test_a_window_of_lyrics_has_a_middle(token_dataset, n_tokens):
    labels = LabelSpec(token_dataset.labels, lyrics=LyricSpec(LYRICS.text, n_tokens))
    with pytest.raises(UserError, match=f"{n_tokens} lyric tokens: choose an even number"):
        Stream(token_dataset, "train", WINDOW, batch_size=1, fields=("level_2",), labels=labels)


def test_a_model_keeps_its_own_names(token_dataset):
    table = LabelTable.of(["Aaron", "Bach"], ["polka"])
    stream = Stream(token_dataset, "train", WINDOW, batch_size=64, fields=("level_2",), labels=LabelSpec(table))
    batch = stream.batch(0, 0)
    assert set(batch) == {"tokens", "artist", "genres"}
    assert set(batch["artist"]) == {0, 2}  # Clara Schumann is unknown to it
    assert set(batch["genres"].ravel()) == {0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fields": ("audio",)}, "no audio, only level_0"),
        ({"window_samples": 8000, "fields": ("level_0", "level_2")}, "hop of level_2, 128"),
        ({"window_samples": 0}, "not a multiple"),
        ({"window_samples": 2**20}, "the longest has 140001"),
        ({"batch_size": 3, "process_count": 2}, "shared by 2"),
        ({"max_duration": 2.0}, r'"train 2" .* with --config\.model\.labels\.max_duration_seconds=5\.'),
        ({"min_duration": 1.2}, r'"train 0" .* with --config\.model\.labels\.min_duration_seconds=1\.'),
    ],
)
def test_mistakes_are_named_before_anything_is_read(token_dataset, options, message):
    shortest, longest = options.get("min_duration", 0.5), options.get("max_duration", 600.0)
    options = {name: value for name, value in options.items() if not name.endswith("duration")}
    labels = LabelSpec(token_dataset.labels, timing=TimingSpec(16, shortest, longest))
    options = {"window_samples": WINDOW, "batch_size": 2, "fields": ("level_2",), "labels": labels} | options
    with pytest.raises(UserError, match=message):
        Stream(token_dataset, "train", **options)
