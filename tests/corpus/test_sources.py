from __future__ import annotations

import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import mutagen.flac
import mutagen.id3
import mutagen.oggvorbis
import mutagen.wave
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile

from jukebox_jax.corpus.piece import FIELDS
from jukebox_jax.corpus.sources.fields import PRECEDENCE, precedence_table
from jukebox_jax.corpus.sources.find import MAX_BESIDE_BYTES, find_pieces
from jukebox_jax.errors import UserError

DEMO = Path(__file__).parents[2] / "jukebox_jax" / "corpus" / "demo_data"


def sound(path: Path, **tags) -> Path:
    """A tenth of a second in the format of the suffix, with Vorbis tags where it has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.sin(np.arange(800) / 9) / 2, 8_000)
    if tags:
        file = mutagen.flac.FLAC(path) if path.suffix == ".flac" else mutagen.oggvorbis.OggVorbis(path)
        file.update({key: [value] if isinstance(value, str) else value for key, value in tags.items()})
        file.save()
    return path


def rows(path: Path, *lines) -> Path:
    """JSON lines; text is written as it is."""
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), "utf-8")
    return path


def found(*sources, **options):
    """file name → piece, and (where, reason, left out) of the problems."""
    catalogue = find_pieces([str(source) for source in sources], **options)
    names = [piece.file_name for piece in catalogue.pieces]
    assert names == sorted(set(names))
    for piece in catalogue.pieces:
        assert set(piece.origins) == {field for field in FIELDS if getattr(piece, field)}
    return {p.file_name: p for p in catalogue.pieces}, [(p.where, p.reason, p.left_out) for p in catalogue.problems]


def test_the_demo_corpus():
    pieces, problems = found(DEMO)
    assert len(pieces) == 18
    assert problems == []
    assert {piece.split for piece in pieces.values()} == {"train", "validation"}
    for line in (DEMO / "metadata.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        piece = pieces[row["file_name"]]
        assert {key: getattr(piece, key) for key in FIELDS if key != "album"} == {
            key: row.get(key, "") for key in FIELDS if key != "album"
        }
        assert piece.origins["title"] == "metadata.jsonl"
        assert Path(piece.path) == DEMO / row["file_name"]
        status = os.stat(piece.path)
        assert (piece.size, piece.modified) == (status.st_size, status.st_mtime_ns)


def test_each_convention_is_believed_before_the_next(tmp_path):
    """All speak at once; then the strongest is silenced, one after the other."""
    path = sound(
        tmp_path / "music" / "Folder Artist" / "Folder Album" / "01 - File Title.flac",
        title="Tag Title",
        artist="Tag Artist",
        album="Tag Album",
        genre=["Tag", "Genre"],
        lyrics="tag lyrics",
    )
    table = rows(
        tmp_path / "music" / "metadata.jsonl",
        {
            "file_name": "Folder Artist/Folder Album/01 - File Title.flac",
            **{field: f"row {field}" for field in FIELDS if field != "split"},
            "split": "TEST",
        },
    )
    sidecar = path.with_suffix(".json")
    sidecar.write_text(json.dumps({field: f"json {field}" for field in FIELDS if field != "split"} | {"split": "dev"}))
    lrc = path.with_suffix(".lrc")
    lrc.write_text("[ti:lrc title]\n[ar:lrc artist]\n[al:lrc album]\n[00:01.00]lrc lyrics")
    txt = path.with_suffix(".txt")
    txt.write_text("txt lyrics")

    def said():
        (piece,), problems = found(tmp_path / "music")[0].values(), found(tmp_path / "music")[1]
        assert problems == []
        return {field: (getattr(piece, field), piece.origins.get(field)) for field in FIELDS}

    everything = said()
    assert everything == {field: ("test" if field == "split" else f"row {field}", "metadata.jsonl") for field in FIELDS}
    table.unlink()
    everything = said()
    assert everything == {
        field: ("validation" if field == "split" else f"json {field}", sidecar.name) for field in FIELDS
    }
    sidecar.unlink()
    everything = said()
    assert everything["title"] == ("lrc title", lrc.name)
    assert everything["artist"] == ("lrc artist", lrc.name)
    assert everything["album"] == ("lrc album", lrc.name)
    assert everything["lyrics"] == ("lrc lyrics", lrc.name)
    assert everything["genre"] == ("Tag; Genre", "tags")
    assert everything["split"] == ("", None)
    lrc.unlink()
    assert said()["lyrics"] == ("txt lyrics", txt.name)
    txt.unlink()
    everything = said()
    assert everything["title"] == ("Tag Title", "tags")
    assert everything["artist"] == ("Tag Artist", "tags")
    assert everything["album"] == ("Tag Album", "tags")
    assert everything["lyrics"] == ("tag lyrics", "tags")
    mutagen.flac.FLAC(path).delete()
    everything = said()
    assert everything["artist"] == ("Folder Artist", "folder")
    assert everything["album"] == ("Folder Album", "folder")
    assert everything["title"] == ("File Title", "file name")
    assert everything["genre"] == everything["lyrics"] == ("", None)


def test_the_precedence_stands_in_the_readme():
    table = precedence_table()
    assert table in (Path(__file__).parents[2] / "docs/train.md").read_text(encoding="utf-8")
    lines = table.splitlines()
    assert len(lines) == len(PRECEDENCE) + 2
    assert "metadata.csv" in lines[2]
    assert lines[-1] == "| the file's name, without a leading track number | title |"


def test_what_one_place_leaves_out_the_next_gives(tmp_path):
    sound(tmp_path / "a.ogg", artist="Tagged", title="Tagged title")
    rows(tmp_path / "metadata.jsonl", {"file_name": "a.ogg", "title": "Row title", "artist": None, "genre": ""})
    piece = found(tmp_path)[0]["a.ogg"]
    assert (piece.title, piece.artist, piece.genre) == ("Row title", "Tagged", "")
    assert piece.origins == {"title": "metadata.jsonl", "artist": "tags"}


def test_tags_of_each_family(tmp_path):
    for name in ("a.wav", "b.mp3", "c.aiff"):
        path = sound(tmp_path / name)
        file = mutagen.File(path)
        if file.tags is None:
            file.add_tags()
        file.tags.add(mutagen.id3.TIT2(3, ["Τίτλος"]))
        file.tags.add(mutagen.id3.TPE2(3, ["Album artist"]))
        file.tags.add(mutagen.id3.TALB(3, ["Album"]))
        file.tags.add(mutagen.id3.TCON(3, ["(17)", "Folk"]))
        file.tags.add(mutagen.id3.USLT(3, lang="eng", desc="", text="one\r\ntwo"))
        file.save()
    sound(tmp_path / "d.ogg", title="Τίτλος", albumartist="Album artist", album="Album", genre=["Rock", "Folk"])
    sound(tmp_path / "e.flac", title="Τίτλος", artist="Album artist", album="Album", genre=["Rock", "Folk"])
    for name in ("d.ogg", "e.flac"):
        file = mutagen.File(tmp_path / name)
        file["unsyncedlyrics"] = "one\ntwo"
        file.save()
    pieces, problems = found(tmp_path)
    assert problems == []
    for piece in pieces.values():
        assert (piece.title, piece.artist, piece.album) == ("Τίτλος", "Album artist", "Album")
        assert (piece.genre, piece.lyrics) == ("Rock; Folk", "one\ntwo")
        assert set(piece.origins.values()) == {"tags"}


def test_tags_of_ape_mp4_and_asf(tmp_path):
    """Formats that cannot be encoded here: the smallest files that mutagen takes for them."""
    from mutagen.apev2 import APEv2

    texts = ["T", "A", "B", "G", "la"]
    # The start of a Monkey's Audio header; its tags are APEv2.
    (tmp_path / "a.ape").write_bytes(b"MAC \x96\x0f" + bytes(70))
    tags = APEv2()
    tags.update(dict(zip(("Title", "Album Artist", "Album", "Genre", "Lyrics"), texts, strict=True)))
    tags.save(tmp_path / "a.ape")

    def atom(kind: bytes, data: bytes) -> bytes:
        return (len(data) + 8).to_bytes(4, "big") + kind + data

    keys = (b"\xa9nam", b"aART", b"\xa9alb", b"\xa9gen", b"\xa9lyr")
    items = b"".join(
        atom(key, atom(b"data", (1).to_bytes(4, "big") + bytes(4) + text.encode()))
        for key, text in zip(keys, texts, strict=True)
    )
    meta = atom(b"udta", atom(b"meta", bytes(4) + atom(b"ilst", items)))
    header = atom(b"mdhd", bytes(12) + (8000).to_bytes(4, "big") + (800).to_bytes(4, "big") + bytes(4))
    track = atom(b"trak", atom(b"mdia", header + atom(b"hdlr", bytes(8) + b"soun" + bytes(13))))
    (tmp_path / "b.m4a").write_bytes(atom(b"ftyp", b"M4A " + bytes(4)) + atom(b"moov", track + meta))

    def asf_object(kind: str, data: bytes) -> bytes:
        return uuid.UUID(kind).bytes_le + (len(data) + 24).to_bytes(8, "little") + data

    def wide(text: str) -> bytes:
        return text.encode("utf-16-le") + b"\0\0"

    attributes = b""
    for key, text in zip(("WM/AlbumArtist", "WM/AlbumTitle", "WM/Genre", "WM/Lyrics"), texts[1:], strict=True):
        for part, kind in ((key, b""), (text, b"\0\0")):
            attributes += kind + len(wide(part)).to_bytes(2, "little") + wide(part)
    description = asf_object(
        "75B22633-668E-11CF-A6D9-00AA0062CE6C",
        len(wide("T")).to_bytes(2, "little") + bytes(8) + wide("T"),
    )
    extended = asf_object("D2D0A440-E307-11D2-97F0-00A0C95EA850", (4).to_bytes(2, "little") + attributes)
    head = (2).to_bytes(4, "little") + b"\1\2" + description + extended
    (tmp_path / "c.wma").write_bytes(asf_object("75B22630-668E-11CF-A6D9-00AA0062CE6C", head))

    pieces, problems = found(tmp_path)
    assert problems == []
    for piece in pieces.values():
        assert [piece.title, piece.artist, piece.album, piece.genre, piece.lyrics] == texts, piece.file_name


def test_without_mutagen_one_note_says_so(tmp_path, monkeypatch):
    sound(tmp_path / "a.ogg", title="Tagged")
    sound(tmp_path / "b.ogg", title="Tagged")
    monkeypatch.setitem(sys.modules, "mutagen", None)
    pieces, problems = found(tmp_path)
    assert [piece.title for piece in pieces.values()] == ["a", "b"]
    ((where, reason, left_out),) = problems
    assert where == "tags"
    assert 'pip install "jukebox-jax[tags]"' in reason
    assert not left_out


def test_folders_say_artist_and_album_only_at_their_depth(tmp_path):
    for name in (
        "song.wav",
        "Artist/02. Two.wav",
        "Artist/Album/1-03 Three.wav",
        "Artist/Album/CD 2/04_Four.wav",
        "music/Other/05 - Five.wav",
        "Unknown Artist/Unknown Album/six.wav",
        "a/b/c/seven.wav",
        "Artist/99 Luftballons.wav",
    ):
        sound(tmp_path / name)
    said = {name: (p.artist, p.album, p.title) for name, p in found(tmp_path)[0].items()}
    assert said == {
        "song.wav": ("", "", "song"),
        "Artist/02. Two.wav": ("Artist", "", "Two"),
        "Artist/Album/1-03 Three.wav": ("Artist", "Album", "Three"),
        "Artist/Album/CD 2/04_Four.wav": ("Artist", "Album", "Four"),
        "music/Other/05 - Five.wav": ("Other", "", "Five"),
        "Unknown Artist/Unknown Album/six.wav": ("", "", "six"),
        "a/b/c/seven.wav": ("", "", "seven"),
        "Artist/99 Luftballons.wav": ("Artist", "", "99 Luftballons"),
    }


def test_split_folders(tmp_path):
    for name in ("Train/A/one.wav", "dev/A/two.wav", "TEST/three.wav"):
        sound(tmp_path / name)
    pieces, _ = found(tmp_path)
    assert {name: (p.split, p.artist) for name, p in pieces.items()} == {
        "Train/A/one.wav": ("train", "A"),
        "dev/A/two.wav": ("validation", "A"),
        "TEST/three.wav": ("test", ""),
    }
    assert pieces["TEST/three.wav"].origins["split"] == "folder"
    # Another folder beside them: "Train" may be an artist.
    sound(tmp_path / "Other" / "four.wav")
    pieces, _ = found(tmp_path)
    assert {piece.split for piece in pieces.values()} == {""}
    assert pieces["Train/A/one.wav"].artist == "Train"
    # Metadata makes it an AudioFolder, and the row's own word counts more.
    rows(tmp_path / "Train" / "metadata.jsonl", {"file_name": "A/one.wav", "split": "eval"})
    pieces, _ = found(tmp_path)
    assert {name: piece.split for name, piece in pieces.items()} == {
        "Train/A/one.wav": "validation",
        "dev/A/two.wav": "validation",
        "TEST/three.wav": "test",
        "Other/four.wav": "",
    }


def test_the_nearer_table_is_believed(tmp_path):
    sound(tmp_path / "sub" / "a.wav")
    rows(tmp_path / "metadata.jsonl", {"file_name": "sub/a.wav", "title": "far", "artist": "far"})
    (tmp_path / "sub" / "metadata.csv").write_text("file_name,title\na.wav,near\n")
    piece = found(tmp_path)[0]["sub/a.wav"]
    assert (piece.title, piece.artist) == ("near", "far")
    assert piece.origins == {"title": "sub/metadata.csv", "artist": "metadata.jsonl"}


@pytest.mark.parametrize("kind", ["csv", "semicolon.csv", "jsonl", "jsonl.gz", "parquet"])
def test_tables_of_each_kind(tmp_path, kind):
    table = [
        {"file_name": "a.wav", "title": "É", "genre": "Folk", "text": "one\ntwo", "split": "valid", "mood": "7"},
        {"file_name": "sub/b.wav", "title": "  B  b ", "genre": "", "text": "", "split": "", "mood": "8"},
    ]
    for name in ("a.wav", "sub/b.wav", "c.wav"):
        sound(tmp_path / name)
    lines = "".join(json.dumps(row) + "\n" for row in table)
    name = f"metadata.{kind.removeprefix('semicolon.')}"
    if kind == "jsonl":
        (tmp_path / name).write_text("\ufeff" + lines, "utf-8")
    elif kind == "jsonl.gz":
        (tmp_path / name).write_bytes(gzip.compress(lines.encode()))
    elif kind == "parquet":
        audio = [{"bytes": b"x" * 1000, "path": "x"}] * 2
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table).append_column("audio", [audio]), tmp_path / name)
    else:
        comma = ";" if "semicolon" in kind else ","
        cells = [[f'"{value}"' for value in row.values()] for row in table]
        head = [key.upper() if key == "title" else key for key in table[0]]
        (tmp_path / name).write_bytes("\r\n".join(comma.join(row) for row in [head, *cells]).encode("utf-8-sig"))
    pieces, problems = found(tmp_path)
    assert problems == []
    a, b, c = (pieces[key] for key in ("a.wav", "sub/b.wav", "c.wav"))
    assert (a.title, a.genre, a.lyrics, a.split) == ("É", "Folk", "one\ntwo", "validation")
    assert (b.title, b.genre, b.lyrics, b.split) == ("B b", "", "", "")
    assert a.origins == dict.fromkeys(("title", "genre", "lyrics", "split"), name)
    assert c.origins == {"title": "file name"}


def test_lists_become_text(tmp_path):
    sound(tmp_path / "a.wav")
    rows(tmp_path / "metadata.jsonl", {"file_name": "a.wav", "genres": ["Rock", "Pop"], "lyrics": ["one", "two"]})
    piece = found(tmp_path)[0]["a.wav"]
    assert (piece.genre, piece.lyrics) == ("Rock; Pop", "one\ntwo")


@pytest.mark.parametrize(
    ("line", "where", "message", "left_out"),
    [
        ("{", "metadata.jsonl, line 2", "is not JSON", False),
        ("[1]", "metadata.jsonl, line 2", "no object", False),
        ("[" * 100_000, "metadata.jsonl, line 2", "is not JSON", False),
        ('{"title": "x"}', "metadata.jsonl, line 2", 'has no "file_name"', False),
        ('{"file_name": 5}', "metadata.jsonl, line 2", 'has no "file_name"', False),
        ('{"file_name": "one.wav"}', "metadata.jsonl, line 2", "names one.wav again (first in line 1)", False),
        ('{"file_name": "./sub/../one.wav"}', "metadata.jsonl, line 2", "again (first in line 1)", False),
        ('{"file_name": "../secret.wav"}', "metadata.jsonl, line 2", "lies outside", True),
        ('{"file_name": "sub/../../secret.wav"}', "metadata.jsonl, line 2", "lies outside", True),
        ('{"file_name": "/etc/passwd"}', "metadata.jsonl, line 2", "lies outside", True),
        ('{"file_name": "link.wav"}', "metadata.jsonl, line 2", "lies outside", True),
        ('{"file_name": "away/secret.wav"}', "metadata.jsonl, line 2", "lies outside", True),
        ('{"file_name": "none.wav"}', "metadata.jsonl, line 2", "none.wav does not exist", True),
        ('{"file_name": "' + "x" * 5000 + '"}', "metadata.jsonl, line 2", "does not exist", True),
        ('{"file_name": "sub"}', "metadata.jsonl, line 2", "is not a file", True),
        ('{"file_name": "."}', "metadata.jsonl, line 2", "is not a file", True),
        ('{"file_name": "a\\u0000b"}', "metadata.jsonl, line 2", "not text", False),
        ('{"file_name": "two.wav", "artist": 5}', "metadata.jsonl, line 2", '"artist" is 5, not text', False),
        ('{"file_name": "two.wav", "genre": [1]}', "metadata.jsonl, line 2", '"genre" is [1], not text', False),
        ('{"file_name": "two.wav", "split": "all"}', "metadata.jsonl, line 2", "\"split\" is 'all'", False),
        ('{"file_name": "two.wav", "title": "\\ud800"}', "metadata.jsonl, line 2", "not text", False),
    ],
)
def test_a_bad_row_is_named_and_the_run_goes_on(tmp_path, line, where, message, left_out):
    folder = tmp_path / "music"
    for name in ("one.wav", "two.wav", "three.wav", "sub/four.wav"):
        sound(folder / name)
    sound(tmp_path / "secret.wav")
    (folder / "link.wav").symlink_to(tmp_path / "secret.wav")
    (folder / "away").symlink_to(tmp_path)
    rows(
        folder / "metadata.jsonl",
        {"file_name": "one.wav", "artist": "One"},
        line,
        {"file_name": "three.wav", "artist": "Three"},
    )
    pieces, problems = found(folder)
    assert list(pieces) == ["one.wav", "sub/four.wav", "three.wav", "two.wav"]
    assert [pieces[name].artist for name in ("one.wav", "three.wav")] == ["One", "Three"]
    of_rows = [problem for problem in problems if problem[0] not in ("link.wav", "away")]
    assert [(problem[0], problem[2]) for problem in of_rows] == [(where, left_out)]
    assert message in of_rows[0][1]
    # The links out of the folder are told of by themselves, too.
    assert len(problems) == 3


def test_tables_that_are_no_use(tmp_path):
    folder = tmp_path / "music"
    for name in ("a/1.wav", "b/1.wav", "c/1.wav", "d/1.wav", "e/1.wav", "f/1.wav"):
        sound(folder / name)
    (folder / "a/metadata.csv").write_text("name,title\n1.wav,x\n")
    (folder / "b/metadata.csv").write_bytes("file_name,title\n1.wav,x\n".encode("utf-16"))
    (folder / "c/metadata.parquet").write_bytes(b"PAR1 no")
    pyarrow.parquet.write_table(pyarrow.table({"title": ["x"]}), folder / "d/metadata.parquet")
    (folder / "e/metadata.jsonl.gz").write_bytes(gzip.compress(b'{"file_name": "1.wav"}\n' * 100)[:-20])
    (folder / "f/metadata.csv").touch()
    pieces, problems = found(folder)
    assert len(pieces) == 6
    reasons = {where: reason for where, reason, left_out in problems if not left_out}
    for name in ("a/metadata.csv", "b/metadata.csv", "d/metadata.parquet", "f/metadata.csv"):
        assert 'no column "file_name"' in reasons[name]
    assert "cannot be read" in reasons["c/metadata.parquet"]
    assert any(
        name.startswith("e/metadata.jsonl.gz, line") and "rest of the table" in reasons[name] for name in reasons
    )


def test_latin_1_in_a_table_spoils_its_own_cells_only(tmp_path):
    for name in ("a.wav", "b.wav"):
        sound(tmp_path / name)
    (tmp_path / "metadata.csv").write_bytes("file_name,title,artist\na.wav,Été,Plain\nb.wav,B,B\n".encode("latin-1"))
    pieces, problems = found(tmp_path)
    assert (pieces["a.wav"].title, pieces["a.wav"].artist, pieces["b.wav"].title) == ("a", "Plain", "B")
    assert [(where, left_out) for where, _, left_out in problems] == [("metadata.csv, line 2", False)]


def test_accents_may_be_composed_or_not(tmp_path):
    sound(tmp_path / "e\u0301tude.wav")  # as macOS spells it
    rows(tmp_path / "metadata.jsonl", {"file_name": "\u00e9tude.wav", "title": "Étude"})
    pieces, problems = found(tmp_path)
    assert [piece.title for piece in pieces.values()] == ["Étude"]
    assert problems == []


def test_a_row_may_name_a_file_that_looks_like_no_music_or_is_hidden(tmp_path):
    shutil.copy(sound(tmp_path / "a.wav"), tmp_path / "b")
    shutil.copy(tmp_path / "a.wav", tmp_path / ".c.wav")
    rows(tmp_path / "metadata.jsonl", {"file_name": "b"}, {"file_name": ".c.wav"})
    assert list(found(tmp_path)[0]) == [".c.wav", "a.wav", "b"]


def test_manifests(tmp_path):
    data = tmp_path / "data"
    for name in ("x/a.wav", "x/b.wav", "x/c.wav"):
        sound(data / name)
    common = {"duration": 0.1, "sample_rate": 8000, "amplitude": None, "weight": None}
    manifest = tmp_path / "lists" / "train.jsonl.gz"
    manifest.parent.mkdir()
    lines = [
        {"path": str(data / "x/a.wav"), **common, "title": "A"},
        {"path": "../data/x/b.wav", **common},
        {"path": "/etc/passwd", **common},
        {"path": "none.wav", **common},
    ]
    manifest.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    # Beside its music, a manifest speaks of it, and files without a row are pieces as well.
    inside = rows(data / "all.jsonl", {"path": "x/a.wav", **common, "artist": "Inside"}, "{")
    rows(data / "notes.jsonl", {"path": "x/a.wav"}, "no JSON")  # no manifest: nothing is said of it
    pieces, problems = found(data)
    assert list(pieces) == ["x/a.wav", "x/b.wav", "x/c.wav"]
    assert pieces["x/a.wav"].artist == "Inside"
    assert [(where, left_out) for where, _, left_out in problems] == [("all.jsonl, line 2", False)]
    # As a source, it means its rows and nothing else; they may lie in other sources, and it is believed first.
    pieces, problems = found(inside)
    assert list(pieces) == ["x/a.wav"]
    assert [(where, left_out) for where, _, left_out in problems] == [("all.jsonl, line 2", True)]
    pieces, problems = found(data, manifest)
    assert list(pieces) == ["x/a.wav", "x/b.wav", "x/c.wav"]
    assert (pieces["x/a.wav"].title, pieces["x/a.wav"].artist) == ("A", "Inside")
    assert [where for where, _, left_out in problems if left_out] == [
        "train.jsonl.gz, line 3",
        "train.jsonl.gz, line 4",
    ]
    with pytest.raises(UserError, match=r"train\.jsonl\.gz holds no music \(train\.jsonl\.gz, line 1 .*lies outside"):
        found(manifest)


def test_a_manifest_of_paths_from_the_working_folder(tmp_path, monkeypatch):
    sound(tmp_path / "data" / "a.wav")
    (tmp_path / "lists").mkdir()
    rows(tmp_path / "lists" / "m.jsonl", {"path": "data/a.wav", "duration": 1, "title": "A"})
    monkeypatch.chdir(tmp_path)
    pieces, problems = found("data", "lists/m.jsonl")
    assert pieces["a.wav"].title == "A"
    assert problems == []


def test_lyrics_and_sidecars(tmp_path):
    for name in ("a.wav", "b.wav", "c.wav", "d.wav", "e.wav", "f.wav", "g.wav"):
        sound(tmp_path / name)
    (tmp_path / "a.txt").write_bytes("\ufeffone \r\ntwo\r\n\r\n".encode())
    (tmp_path / "b.txt").write_bytes("Καλημέρα".encode("iso-8859-7"))
    (tmp_path / "c.LRC").write_text("[00:02.00]two\n[99:99.99]bad\n[00:01.00]one\n[0:0:0:0]also")
    (tmp_path / "d.json").write_text('{"description": "x", "artist": "D", "genre": 7}')
    (tmp_path / "e.json").write_text("[]")
    (tmp_path / "f.json").write_text("{")
    (tmp_path / "g.txt").write_text("x" * (MAX_BESIDE_BYTES + 1))
    pieces, problems = found(tmp_path)
    assert [pieces[name].lyrics for name in ("a.wav", "b.wav", "g.wav")] == ["one\ntwo", "", ""]
    assert pieces["c.wav"].lyrics == "one\nalso\ntwo\nbad"
    assert pieces["c.wav"].origins["lyrics"] == "c.LRC"
    assert (pieces["d.wav"].artist, pieces["d.wav"].genre) == ("D", "")
    assert not any(left_out for _, _, left_out in problems)
    assert [where for where, _, _ in problems] == [
        *("b.txt, line 1", "c.LRC, line 2", "d.json", "e.json", "f.json", "g.txt")
    ]


def test_what_looks_like_music_is_a_piece_whatever_is_in_it(tmp_path):
    """Whether it can be decoded shows when it is; what is the system's is ignored."""
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.mp3").write_text("not music")
    (tmp_path / "song.mid").write_bytes(b"MThd\0\0\0\6\0\0\0\1\0\x60MTrk\0\0\0\4\0\xff\x2f\0")
    (tmp_path / "score.MIDI").touch()
    for name in ("video.m4a", "old.wma"):
        (tmp_path / name).write_bytes(b"\1" * 100)
    for name in (".DS_Store", "._song.mp3", "Thumbs.db", "cover.jpg", ".hidden/a.wav", "__MACOSX/b.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    pieces, problems = found(tmp_path)
    assert list(pieces) == ["empty.wav", "old.wma", "score.MIDI", "song.mid", "text.mp3", "video.m4a"]
    assert not any(left_out for _, _, left_out in problems)
    assert all("tags cannot be read" in reason for _, reason, _ in problems)


def test_names_of_every_kind(tmp_path):
    names = [
        "-rf.wav",
        "...And Justice.wav",
        "a b.wav",
        "new\nline.wav",
        "quo'te\".wav",
        "é.wav",
        "e\u0301.wav",
        "[x]*?.wav",
        "日本.flac",
    ]
    for name in names:
        sound(tmp_path / name)
    rows(tmp_path / "metadata.jsonl", *({"file_name": name, "artist": name} for name in names))
    pieces, problems = found(tmp_path)
    assert problems == []
    assert sorted(pieces) == sorted(names)
    assert all(os.path.isfile(piece.path) for piece in pieces.values())
    assert pieces["new\nline.wav"].artist == "new line.wav"
    assert list(found(tmp_path / "[x]*?.wav")[0]) == ["[x]*?.wav"]  # an existing name is no glob


def test_a_name_that_is_not_utf8(tmp_path):
    sound(tmp_path / "a.wav")
    os.rename(sound(tmp_path / "b.wav"), os.fsencode(tmp_path) + b"/\xff.wav")
    pieces, problems = found(tmp_path)
    assert list(pieces) == ["a.wav"]
    assert problems == [("\\udcff.wav", "has a name that is not UTF-8: rename it.", True)]


def test_links(tmp_path):
    music = tmp_path / "music"
    for name in ("a/x.wav", "a/y.wav", ".store/z.wav"):
        sound(music / name)
    sound(tmp_path / "elsewhere" / "w.wav")
    (music / "a" / "loop").symlink_to(music)
    (music / "round.wav").symlink_to(music / "round.wav")
    (music / "gone.wav").symlink_to(music / "none.wav")
    (music / "again.wav").symlink_to("a/x.wav")
    (music / "0").symlink_to("a")  # comes before "a" in order, yet the files keep their own names
    (music / "kept.wav").symlink_to(".store/z.wav")
    (music / "out").symlink_to(tmp_path / "elsewhere")
    (music / "out.wav").symlink_to(tmp_path / "elsewhere" / "w.wav")
    (music / "out.jpg").symlink_to(tmp_path / "elsewhere" / "w.wav")
    pieces, problems = found(music)
    assert list(pieces) == ["a/x.wav", "a/y.wav", "kept.wav"]
    assert [where for where, _, left_out in problems if left_out] == ["gone.wav", "out", "out.wav", "round.wav"]
    reasons = {where: reason for where, reason, _ in problems}
    assert "give the folder that it leads to as a source" in reasons["out"]
    assert "cannot be reached" in reasons["round.wav"]
    # What the problem advises works, and a link that is itself the source is followed.
    assert list(found(music, tmp_path / "elsewhere")[0]) == ["a/x.wav", "a/y.wav", "kept.wav", "w.wav"]
    assert list(found(music / "out")[0]) == ["w.wav"]
    assert list(found(music / "out.wav")[0]) == ["out.wav"]


def test_pipes_and_sockets_are_not_opened(tmp_path):
    sound(tmp_path / "a.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    with socket.socket(socket.AF_UNIX) as server, tempfile.TemporaryDirectory() as short:
        server.bind(f"{short}/s")  # the name of a socket may not be long
        os.rename(f"{short}/s", tmp_path / "socket.mp3")
        pieces, problems = found(tmp_path)
    assert list(pieces) == ["a.wav"]
    assert [(where, left_out) for where, _, left_out in problems] == [("pipe.wav", True), ("socket.mp3", True)]


def test_what_may_not_be_read_is_a_problem():
    """As another user where the tests run as root, who may read everything."""
    root = Path(tempfile.mkdtemp())
    try:
        music = root / "music"
        for name in ("a.wav", "b.wav", "locked/c.wav"):
            sound(music / name)
        (music / "a.txt").write_text("words")
        rows(music / "metadata.jsonl", {"file_name": "a.wav", "artist": "A"})
        for name in ("b.wav", "locked", "a.txt", "metadata.jsonl"):
            (music / name).chmod(0)
        root.chmod(0o755)
        if os.geteuid() == 0:
            os.seteuid(65534)
        try:
            pieces, problems = found(music)
            with pytest.raises(UserError, match=r"b\.wav.* cannot be read"):
                found(music / "b.wav")
            with pytest.raises(UserError, match="locked cannot be listed"):
                found(music / "locked")
        finally:
            if os.getuid() == 0:
                os.seteuid(0)
        assert list(pieces) == ["a.wav"]
        assert [(where, left_out) for where, _, left_out in problems] == [
            *(("a.txt", False), ("b.wav", True), ("locked", True), ("metadata.jsonl", False))
        ]
    finally:
        for path in (root / "music").iterdir():
            path.chmod(0o755)
        shutil.rmtree(root)


def test_a_file_reached_twice_is_taken_once(tmp_path, monkeypatch):
    for name in ("a.wav", "sub/b.wav"):
        sound(tmp_path / name)
    rows(tmp_path / "metadata.jsonl", {"file_name": "sub/b.wav", "title": "B"}, "{")
    pieces, problems = found(tmp_path, tmp_path / "sub", f"{tmp_path}/*.wav", tmp_path, tmp_path / "a.wav")
    assert list(pieces) == ["a.wav", "sub/b.wav"]
    assert len(problems) == 1
    # The first source that reaches a file names it; all tables speak of it.
    pieces, _ = found(tmp_path / "sub", tmp_path)
    assert {name: piece.title for name, piece in pieces.items()} == {"a.wav": "a", "b.wav": "B"}
    monkeypatch.chdir(tmp_path)
    assert list(found(".", tmp_path)[0]) == ["a.wav", "sub/b.wav"]


def test_names_are_unique_over_sources(tmp_path):
    for name in ("p/music/a.wav", "q/music/a.wav", "q/music/b.wav", "other/c.wav", "music/q/music/a.wav"):
        sound(tmp_path / name)
    rows(tmp_path / "q/music/metadata.jsonl", "{")
    one, two, other = tmp_path / "p/music", tmp_path / "q/music", tmp_path / "other"
    pieces, problems = found(one, two, other)
    assert list(pieces) == ["c.wav", "p/music/a.wav", "q/music/a.wav", "q/music/b.wav"]
    assert Path(pieces["q/music/a.wav"].path) == two / "a.wav"
    assert [where for where, _, _ in problems] == ["q/music/metadata.jsonl, line 1"]
    assert found(other, two, one) == (pieces, problems)
    # A prefix may itself collide with what another source holds.
    pieces, _ = found(one, two, tmp_path / "music")
    assert len(pieces) == 4
    assert len({piece.path for piece in pieces.values()}) == 4


def test_the_same_words_about_two_tables_are_two_problems(tmp_path):
    for folder in ("first", "second"):
        sound(tmp_path / folder / f"{folder}.ogg")
        rows(tmp_path / folder / "metadata.jsonl", "{oops")
    pieces, problems = found(tmp_path / "first", tmp_path / "second")
    assert [where for where, _, _ in problems] == [f"{folder}/metadata.jsonl, line 1" for folder in ("first", "second")]
    assert list(pieces) == ["first/first.ogg", "second/second.ogg"]


def test_globs(tmp_path, monkeypatch):
    for name in ("a.wav", "b.flac", "x/c.wav", "x/y/d.wav", "x/y/e.flac", "z/f.wav"):
        sound(tmp_path / name)
    (tmp_path / "cover.jpg").touch()
    (tmp_path / "x/c.txt").write_text("words")
    rows(
        tmp_path / "metadata.jsonl",
        {"file_name": "a.wav", "title": "A"},
        {"file_name": "none.wav"},
        {"file_name": "x/y/d.wav", "artist": "D"},
    )

    def names(pattern):
        return list(found(pattern)[0])

    assert names(f"{tmp_path}/*.wav") == ["a.wav"]
    assert names(f"{tmp_path}/*") == ["a.wav", "b.flac", "x/c.wav", "x/y/d.wav", "x/y/e.flac", "z/f.wav"]
    assert names(f"{tmp_path}/**/*.wav") == ["a.wav", "x/c.wav", "x/y/d.wav", "z/f.wav"]
    assert names(f"{tmp_path}/?/*.[wx]av") == ["x/c.wav", "z/f.wav"]
    assert names(f"{tmp_path}/**/y/**") == ["x/y/d.wav", "x/y/e.flac"]
    monkeypatch.chdir(tmp_path)
    assert names("*/y") == ["x/y/d.wav", "x/y/e.flac"]
    # Tables from where the pattern starts speak of what it matches, and of nothing else; so do files beside a match.
    pieces, problems = found(f"{tmp_path}/**/[acd].wav")
    assert (pieces["a.wav"].title, pieces["x/y/d.wav"].artist, pieces["x/c.wav"].lyrics) == ("A", "D", "words")
    assert problems == []


def test_single_files(tmp_path, monkeypatch):
    sound(tmp_path / "a.wav")
    sound(tmp_path / "b.wav")
    (tmp_path / "a.txt").write_text("words")
    rows(tmp_path / "metadata.jsonl", {"file_name": "a.wav", "title": "A"}, {"file_name": "none.wav"})
    monkeypatch.chdir(tmp_path)
    for source in (tmp_path / "a.wav", "a.wav", "./a.wav"):
        pieces, problems = found(source)
        assert list(pieces) == ["a.wav"]
        assert (pieces["a.wav"].title, pieces["a.wav"].lyrics) == ("A", "words")
        assert problems == []
        assert os.path.isfile(pieces["a.wav"].path)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], "no source is given"),
        ([""], "is no path"),
        (["\0"], "is no path"),
        (["none"], "none does not exist"),
        (["full", "none"], "none does not exist"),
        (["empty"], "empty holds no music: put"),
        (["full", "empty"], "empty holds no music"),
        (["full/*.mp3"], r"full/\*\.mp3 matches no music"),
        (["none/*.mp3"], r"none/\*\.mp3 matches no music"),
        (["dangling"], "dangling cannot be used: No such file"),
        (["pipe.wav"], "pipe.wav cannot be used: it is not a file"),
        (["bad"], r"bad holds no music \(metadata\.jsonl, line 1 .*does not exist"),
        (["ftp://x/y"], "ftp://x/y cannot be reached"),
    ],
)
def test_sources_of_no_use_are_the_users_mistakes(tmp_path, monkeypatch, sources, message):
    sound(tmp_path / "full" / "a.wav")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "cover.jpg").touch()
    (tmp_path / "bad").mkdir()
    rows(tmp_path / "bad" / "metadata.jsonl", {"file_name": "a.wav"})
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.wav")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as raised:
        find_pieces(sources)
    assert str(raised.value).endswith(".")


def test_progress_and_the_same_answer_twice(tmp_path):
    for index in range(30):
        sound(tmp_path / f"{index % 3}" / f"{index}.wav")
    steps = []
    first = find_pieces([str(tmp_path)], progress=lambda done, total: steps.append((done, total)))
    assert steps == [(done, 30) for done in range(1, 31)]
    assert first == find_pieces([str(tmp_path)])


def test_finding_loads_nothing_heavy(tmp_path):
    sound(tmp_path / "a.wav")
    code = (
        "import sys; from jukebox_jax.corpus.sources.find import find_pieces\n"
        f"assert len(find_pieces([{str(tmp_path)!r}]).pieces) == 1\n"
        "print([n for n in ('tensorflow', 'tensorflow_datasets', 'pyarrow', 'soundfile', 'jax') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
