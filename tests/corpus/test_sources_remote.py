"""Sources in a bucket: the same rules, with fsspec's memory as the store behind gs://."""

from __future__ import annotations

import io
from typing import ClassVar

import mutagen.oggvorbis
import numpy as np
import pytest
import soundfile
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from jukebox_jax import remote
from jukebox_jax.corpus.sources.find import find_pieces
from jukebox_jax.errors import UserError


class Bucket(MemoryFileSystem):
    """The memory file system under the name of Google's; `closed` names may not be read or listed."""

    protocol = ("gs", "gcs")
    store: ClassVar[dict] = {}  # of this class, not of "memory://"
    pseudo_dirs: ClassVar[list] = [""]
    closed: ClassVar[set] = set()

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("gs://").removeprefix("gcs://"))

    def ls(self, path, detail=True, **kwargs):
        if self._strip_protocol(path) in self.closed:
            raise PermissionError("Forbidden")
        return super().ls(path, detail=detail, **kwargs)

    def _open(self, path, mode="rb", **kwargs):
        if self._strip_protocol(path) in self.closed:
            raise PermissionError("Forbidden")
        return super()._open(path, mode=mode, **kwargs)


@pytest.fixture
def bucket(monkeypatch):
    """gs:// through fsspec into memory, as without TensorFlow; nothing of it outlives the test."""
    monkeypatch.setattr(Bucket, "store", {})
    monkeypatch.setattr(Bucket, "pseudo_dirs", [""])
    monkeypatch.setattr(Bucket, "closed", set())
    monkeypatch.setitem(_registry, "gs", Bucket)
    remote._filesystem_of.cache_clear()
    yield Bucket()
    remote._filesystem_of.cache_clear()


def put(bucket, name, **tags):
    data = io.BytesIO()
    soundfile.write(data, np.sin(np.arange(800) / 9) / 2, 8_000, format=name.rpartition(".")[2].upper())
    if tags:
        data.seek(0)
        file = mutagen.oggvorbis.OggVorbis(data)
        file.update(tags)
        data.seek(0)
        file.save(data)
    bucket.pipe(f"gs://music/{name}", data.getvalue())
    return len(data.getvalue())


def test_a_bucket(bucket):
    size = put(bucket, "set/Artist/01 - One.wav")
    put(bucket, "set/two.ogg", title="Tagged", artist="Tagger")
    put(bucket, "set/three.wav")
    put(bucket, "set/.hidden.wav")
    put(bucket, "other.wav")
    bucket.pipe("gs://music/set/three.txt", b"words")
    bucket.pipe("gs://music/set/score.mid", b"")
    bucket.pipe(
        "gs://music/set/metadata.csv",
        b"file_name,title\n"
        b"gs://music/set/three.wav,Three\n../other.wav,x\n/other.wav,x\ngs://else/x.wav,x\nnone.wav,x\nArtist/../two.ogg,Two",
    )
    catalogue = find_pieces(["gs://music/set/"])
    pieces = {piece.file_name: piece for piece in catalogue.pieces}
    assert list(pieces) == ["Artist/01 - One.wav", "score.mid", "three.wav", "two.ogg"]
    one, three, two = (pieces[name] for name in ("Artist/01 - One.wav", "three.wav", "two.ogg"))
    assert (one.path, one.size, one.title, one.artist) == (
        *("gs://music/set/Artist/01 - One.wav", size, "One", "Artist"),
    )
    assert (three.title, three.lyrics) == ("Three", "words")
    assert (two.title, two.artist) == ("Two", "Tagger")
    assert [problem.where for problem in catalogue.problems] == [f"metadata.csv, line {line}" for line in (3, 4, 5, 6)]
    assert [("outside" in p.reason, "does not exist" in p.reason) for p in catalogue.problems] == [
        *[(True, False)] * 3,
        (False, True),
    ]
    assert find_pieces(["gs://music/set"]) == catalogue


def test_globs_and_files_in_a_bucket(bucket, tmp_path):
    for name in ("a/x.wav", "a/y.ogg", "b/x.wav"):
        put(bucket, name)
    names = [piece.file_name for piece in find_pieces(["gs://music/*/x.wav"]).pieces]
    assert names == ["a/x.wav", "b/x.wav"]
    assert [piece.file_name for piece in find_pieces(["gs://music/**/*.ogg"]).pieces] == ["a/y.ogg"]
    assert [piece.path for piece in find_pieces(["gs://music/a/y.ogg"]).pieces] == ["gs://music/a/y.ogg"]
    soundfile.write(tmp_path / "x.wav", np.zeros(10), 8_000)
    both = [piece.file_name for piece in find_pieces(["gs://music/a", str(tmp_path), "gs://music"]).pieces]
    assert both == ["a/x.wav", "a/y.ogg", "b/x.wav", f"{tmp_path.name}/x.wav"]


def test_what_a_bucket_refuses(bucket):
    for name in ("a/x.wav", "locked/y.wav", "z.wav"):
        put(bucket, name)
    bucket.closed |= {"/music/locked", "/music/z.wav"}
    catalogue = find_pieces(["gs://music"])
    assert [piece.file_name for piece in catalogue.pieces] == ["a/x.wav"]
    assert [(p.where, "Forbidden" in p.reason, p.left_out) for p in catalogue.problems] == [
        *(("locked", True, True), ("z.wav", True, True))
    ]
    bucket.closed |= {"/music"}
    with pytest.raises(UserError, match=r"Listing gs://music was refused \(PermissionError: Forbidden\)"):
        find_pieces(["gs://music"])
    with pytest.raises(UserError, match="gs://none/ does not exist"):
        find_pieces(["gs://none/"])
