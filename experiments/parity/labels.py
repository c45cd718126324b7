"""Set d: names to ids, lyrics to tokens, and the label vectors the original builds of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from experiments.parity.fixture import Reader
from experiments.parity.report import Check
from jukebox_jax.errors import UserError
from jukebox_jax.labels.ids import UNKNOWN, LabelTable, NameTable, normalise
from jukebox_jax.labels.lyrics import LyricText, LyricWindow, Precision, lyric_window


def checks(recorded: Reader) -> Iterator[Check]:
    tables = {v3: _table(recorded.fixture.tree, v3) for v3 in (False, True)}
    texts = {v3: LyricText("v3" if v3 else "v2", "unidecode") for v3 in (False, True)}
    yield from _texts(recorded, texts)
    yield from _names(recorded, tables)
    yield from _windows(recorded)
    for index in range(_count(recorded, "labels")):
        yield from _labels(recorded, f"labels/{index}", tables, texts)
    for index in range(_count(recorded, "batch")):
        yield from _batch(recorded, f"batch/{index}", tables, texts)
    yield Check("n_vocab", {"v2": texts[False].size, "v3": texts[True].size})
    songs = recorded["empty_labeller_y_shape"][0]
    yield Check("empty_labeller_y_shape", list(np.zeros((songs, len(_vector(None, {}, 0, [])))).shape))


def _table(tree: dict[str, Any], v3: bool) -> LabelTable:
    """The names and ids that occur in the fixture: it does not bring the tables."""
    artists: dict[str, int] = {}
    genres: dict[str, int] = {}

    def add_genres(name: str, ids: Sequence[int]) -> None:
        names = [name] if v3 else name.split("_")
        genres.update((word, index) for word, index in zip(names, ids, strict=True) if index)

    for entry in tree["artists"]:
        if entry["v3"] == v3 and entry["id"]:
            artists[entry["name_of_id"]] = entry["id"]
    for entry in tree["genres"]:
        if entry["v3"] == v3:
            add_genres(entry["name_of_ids"], entry["ids"])
    for entry in tree["describe"]:
        if entry["v3"] == v3:
            artists |= {entry["artist"]: entry["artist_id"]} if entry["artist_id"] else {}
            add_genres(entry["genre"], [entry["genre_id"]])
    for entry in tree["labels"]:
        if entry["v3"] == v3 and "y" in entry:
            artist, *ids = entry["y"][3 : 4 + entry["max_genre_words"]]
            artists |= {entry["describe"]["artist"]: artist} if artist else {}
            add_genres(entry["describe"]["genre"], [index for index in ids if index >= 0])
    numbers = [batch["get_y_from_ids"] for batch in tree["batch"] if batch["v3"] == v3]
    artist_rows = 1 + max([*artists.values(), *(entry["artist_id"] for entry in numbers)], default=0)
    genre_rows = 1 + max([*genres.values(), *(i for entry in numbers for i in entry["genre_ids"])], default=0)
    unknown = (UNKNOWN,) if v3 else ("", UNKNOWN, "various")
    return LabelTable(
        NameTable.from_pairs([*((name, 0) for name in unknown), *artists.items()], artist_rows),
        NameTable.from_pairs([(UNKNOWN, 0), *genres.items()], genre_rows),
        "v3" if v3 else "v2",
    )


def _texts(recorded: Reader, texts: dict[bool, LyricText]) -> Iterator[Check]:
    for index in range(_count(recorded, "text")):
        spelling, text = texts[recorded[f"text/{index}/v3"]], recorded[f"text/{index}/text"]
        tokens = spelling.tokens(text)
        yield Check(f"text/{index}/clean", spelling.clean(text))
        yield Check(f"text/{index}/tokens", tokens.tolist())
        yield Check(f"text/{index}/textise", spelling.text(tokens))


def _names(recorded: Reader, tables: dict[bool, LabelTable]) -> Iterator[Check]:
    for index in range(_count(recorded, "artists")):
        table = tables[recorded[f"artists/{index}/v3"]]
        artist = table.artist_id(recorded[f"artists/{index}/artist"])
        yield Check(f"artists/{index}/id", artist)
        yield Check(f"artists/{index}/name_of_id", table.artists.name_of(artist))
    for index in range(_count(recorded, "genres")):
        table = tables[recorded[f"genres/{index}/v3"]]
        ids = [match.id for match in table.genres_of(recorded[f"genres/{index}/genre"])]
        yield Check(f"genres/{index}/ids", ids)
        yield Check(f"genres/{index}/name_of_ids", _genre_names(table, ids))
    for index in range(_count(recorded, "norm")):
        yield Check(f"norm/{index}/norm", normalise(recorded[f"norm/{index}/text"], "v2"))
    for index in range(_count(recorded, "describe")):
        table = tables[recorded[f"describe/{index}/v3"]]
        yield Check(f"describe/{index}/artist", table.artists.name_of(recorded[f"describe/{index}/artist_id"]))
        yield Check(f"describe/{index}/genre", table.genres.name_of(recorded[f"describe/{index}/genre_id"]))


def _windows(recorded: Reader) -> Iterator[Check]:
    inputs = ("n_tokens", "total_length", "offset", "duration")
    for index in range(_count(recorded, "windows")):
        tokens = _tokens(recorded[f"windows/{index}/full_tokens"])
        try:
            window = lyric_window(tokens, *(recorded[f"windows/{index}/{name}"] for name in inputs))
        except UserError:
            yield Check(f"windows/{index}/error", "AssertionError")
            continue
        yield Check(f"windows/{index}/tokens", window.tokens.tolist())
        yield Check(f"windows/{index}/indices", window.indices.tolist())


def _labels(
    recorded: Reader, name: str, tables: dict[bool, LabelTable], texts: dict[bool, LyricText]
) -> Iterator[Check]:
    inputs = ("v3", "max_genre_words", "n_tokens", "sample_length", "artist", "genre", "lyrics", "total_length")
    facts = {key: recorded[f"{name}/{key}"] for key in (*inputs, "offset")}
    table, spelling = tables[facts["v3"]], texts[facts["v3"]]
    tokens = spelling.tokens(facts["lyrics"])
    try:
        window = _window(facts, facts, tokens, facts["offset"], "float64")
        vector = _vector(table, facts | {"max_genres": facts["max_genre_words"]}, facts["offset"], window.tokens)
    except UserError:
        yield Check(f"{name}/error", "AssertionError")
        return
    yield Check(f"{name}/y", vector)
    yield Check(f"{name}/full_tokens", tokens.tolist())
    yield Check(f"{name}/clean_lyrics", spelling.clean(facts["lyrics"]))
    genres = [index for index in vector[4 : 4 + facts["max_genre_words"]] if index >= 0]
    described = {"artist": table.artists.name_of(vector[3]), "genre": _genre_names(table, genres)}
    yield Check(f"{name}/describe", described | {"lyrics": spelling.text(window.tokens)})


def _batch(
    recorded: Reader, name: str, tables: dict[bool, LabelTable], texts: dict[bool, LyricText]
) -> Iterator[Check]:
    facts = {key: recorded[f"{name}/{key}"] for key in ("v3", "max_genre_words", "n_tokens", "sample_length")}
    table, spelling = tables[facts["v3"]], texts[facts["v3"]]
    songs = []
    for index in range(_count(recorded, f"{name}/metas")):
        keys = ("artist", "genre", "lyrics", "total_length", "offset")
        songs.append({key: recorded[f"{name}/metas/{index}/{key}"] for key in keys})

    def label(song: dict[str, Any], moved: int, precision: Precision) -> tuple[list[int], list[int]]:
        offset = song["offset"] + moved
        window = _window(facts, song, spelling.tokens(song["lyrics"]), offset, precision)
        own = song | {"max_genres": facts["max_genre_words"], "sample_length": facts["sample_length"]}
        return _vector(table, own, offset, window.tokens), window.indices.tolist()

    yield Check(f"{name}/y", [label(song, 0, "float64")[0] for song in songs])
    for index in range(_count(recorded, f"{name}/get_y")):
        call = f"{name}/get_y/{index}"
        moved = recorded[f"{call}/start"] * recorded[f"{call}/raw_to_tokens"]
        # While sampling, the original computes with tensors of float32.
        labels = [label(song, moved, "float32") for song in songs]
        yield Check(f"{call}/y", [vector for vector, _ in labels])
        yield Check(f"{call}/indices", [indices for _, indices in labels] if facts["n_tokens"] else None)

    by_number = {key: recorded[f"{name}/get_y_from_ids/{key}"] for key in ("artist_id", "genre_ids", "total_length")}
    song = {
        "artist": f"#{by_number['artist_id']}",
        "genre": " ".join(f"#{index}" for index in by_number["genre_ids"]),
        "total_length": by_number["total_length"],
        "sample_length": facts["sample_length"],
        "max_genres": facts["max_genre_words"],
    }
    lyrics = recorded[f"{name}/get_y_from_ids/lyric_tokens"]
    lyrics = list(range(facts["n_tokens"])) if isinstance(lyrics, str) else lyrics
    yield Check(f"{name}/get_y_from_ids/y", _vector(table, song, recorded[f"{name}/get_y_from_ids/offset"], lyrics))


def _window(
    model: dict[str, Any], song: dict[str, Any], tokens: np.ndarray, offset: int, precision: Precision
) -> LyricWindow:
    return lyric_window(tokens, model["n_tokens"], song["total_length"], offset, model["sample_length"], precision)


def _vector(table: LabelTable | None, song: dict[str, Any], offset: int, lyrics: Sequence[int]) -> list[int]:
    """What the original calls y; empty for a model without labels."""
    if table is None:
        return []
    ids = [table.artist_id(song["artist"]), *table.genre_ids(song["genre"], song["max_genres"])]
    return [song["total_length"], offset, song["sample_length"], *ids, *(int(token) for token in lyrics)]


def _genre_names(table: LabelTable, ids: Sequence[int]) -> str:
    return "_".join(table.genres.name_of(index) for index in ids)


def _tokens(tokens: Sequence[int]) -> np.ndarray:
    return np.asarray(tokens, np.int64)


def _count(recorded: Reader, name: str) -> int:
    """Length of a list of the tree."""
    node: Any = recorded.fixture.tree
    for part in name.split("/"):
        node = node[int(part)] if isinstance(node, list) else node[part]
    return len(node)
