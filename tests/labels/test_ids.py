from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import recorded

from jukebox_jax.errors import UserError
from jukebox_jax.labels.ids import UNKNOWN, LabelTable, Match, NameTable, normalise, read_id_table

TABLE = LabelTable.of(["  Bach", "Clara Schumann", "bach", "", "Unknown"], ["Baroque", "Romantic"])

# The released tables in small: v2's id 0 has three names; in v3 a name stands twice, and others end in U+200E.
V2 = LabelTable(
    NameTable.from_pairs(
        [("unknown", 0), ("various", 0), ("", 0), ("alan_jackson", 1), ("c_line_dion", 2), ("ac_dc", 3), ("r_e_m", 4)]
    ),
    NameTable.from_pairs([("unknown", 0), ("blues", 1), ("rock", 2), ("hip", 3), ("hop", 4), ("r", 5), ("b", 6)]),
    "v2",
)
V3 = LabelTable(
    NameTable.from_pairs([("unknown", 0), ("alan jackson", 1), ("speaker", 2), ("céline dion", 3), ("Speaker", 4)]),
    NameTable.from_pairs([("unknown", 0), ("blues rock", 1), ("hip hop", 2), ("hip hop\u200e", 3)]),
    "v3",
)


def test_names_are_normalised_sorted_and_start_with_unknown():
    assert TABLE.artists.names == ("unknown", "bach", "clara schumann")
    assert TABLE.genres.names == ("unknown", "baroque", "romantic")
    assert (TABLE.artists.rows, len(TABLE.genres), TABLE.normalisation) == (3, 3, "v3")


@pytest.mark.parametrize(
    ("name", "v2", "v3"),
    [
        ("Alan Jackson", "alan_jackson", "alan jackson"),
        ("ALAN  JACKSON!!", "alan_jackson", "alan  jackson!!"),
        ("Céline Dion", "c_line_dion", "céline dion"),
        ("__hip-hop / R&B\n", "hip_hop_r_b", "__hip-hop / r&b\n"),
        (" 50 Cent ", "50_cent", " 50 cent "),
        ("宇多田ヒカル", "", "宇多田ヒカル"),
        ("", "", ""),
    ],
)
def test_normalisation(name, v2, v3):
    assert (normalise(name, "v2"), normalise(name, "v3")) == (v2, v3)


@given(st.text())
def test_v2_spells_with_letters_digits_and_single_inner_lines(name):
    spelt = normalise(name, "v2")
    assert set(spelt) <= set("abcdefghijklmnopqrstuvwxyz0123456789_")
    assert "__" not in spelt
    assert spelt == spelt.strip("_") == normalise(spelt, "v2")


@pytest.mark.parametrize(
    ("table", "name", "expected"),
    [
        (TABLE, "BACH", Match(1, True)),
        (TABLE, "BACH ", Match(0, False, ("bach",))),
        (TABLE, "clara schumann", Match(2, True)),
        (TABLE, "", Match(0, True)),
        (TABLE, "unknown", Match(0, True)),
        (TABLE, "Clara Shuman", Match(0, False, ("clara schumann",))),
        (TABLE, "xyzzy", Match(0, False)),
        (TABLE, "#2", Match(2, True)),
        (TABLE, "#3", Match(0, False)),
        (V2, "ALAN  JACKSON!!", Match(1, True)),
        (V2, "Céline Dion", Match(2, True)),
        (V2, "Celine Dion", Match(0, False, ("c_line_dion",))),
        (V2, "Various", Match(0, True)),
        (V2, " ", Match(0, True)),
        (V2, "!!!", Match(0, False)),
        (V2, " #3 ", Match(3, True)),
        (V2, "#" + 5000 * "9", Match(0, False)),
        (V3, "ALAN JACKSON", Match(1, True)),
        (V3, "alan_jackson", Match(0, False, ("alan jackson",))),
        (V3, "speaker", Match(4, True)),
    ],
)
def test_artists(table, name, expected):
    assert table.artist(name) == expected
    assert table.artist_id(name) == expected.id


@pytest.mark.parametrize(
    ("table", "name", "ids", "unknown"),
    [
        (V2, "Blues Rock", [1, 2], 0),
        (V2, "hip-hop/rap", [3, 4, 0], 1),
        (V2, "R&B", [5, 6], 0),
        (V2, "", [0], 0),
        (V2, "?", [0], 1),
        (V2, "#6 #2", [6, 2], 0),
        (V2, "#6 rock", [0, 2], 1),  # an ordinary name, whose first word is "6"
        (V3, "Blues Rock", [1], 0),
        (V3, "hip-hop", [0], 1),
        (V3, "HIP HOP\u200e", [3], 0),
        (V3, "", [0], 0),
        (V3, "#1", [1], 0),
        (V3, "#1 #2", [0], 1),
    ],
)
def test_genres(table, name, ids, unknown):
    matches = table.genres_of(name)
    assert [match.id for match in matches] == ids
    assert sum(not match.known for match in matches) == unknown
    assert table.genre_ids(name, 5) == ids + [-1] * (5 - len(ids))
    assert table.genre_ids(name, len(ids)) == ids


def test_new_names_come_behind_the_old_ones():
    more = V2.extended(["Céline Dion", "Björk", "宇多田ヒカル", "BJÖRK"], ["Hip Soul", "rock"], (7, 0))
    assert more.artists.by_id == (*V2.artists.by_id, (), (), ("bj_rk",))
    assert more.genres.by_id == (*V2.genres.by_id, ("soul",))
    assert (more.artist_id("Björk"), more.genre_ids("Hip Soul", 2)) == (7, [3, 7])
    assert V3.extended(["Céline Dion"], ["Hip Soul"]).genres.by_id[4:] == (("hip soul",),)
    assert V3.extended(["Céline Dion"], ["hip hop"], (9, 9)) == V3


def test_more_genre_words_than_slots():
    assert V2.genre_ids("blues rock hip", 3) == [1, 2, 3]
    with pytest.raises(UserError, match='"blues rock hip hop" is 4 words, the model takes 3'):
        V2.genre_ids("blues rock hip hop", 3)


def test_names_of_ids():
    assert [V2.artists.name_of(i) for i in range(3)] == ["_unknown_various", "alan_jackson", "c_line_dion"]
    assert V2.artists.names[:3] == ("unknown", "various", "alan_jackson")
    assert [V3.artists.name_of(i) for i in (2, 4)] == ["#2", "speaker"]
    assert V3.artists.names == ("unknown", "alan jackson", "céline dion", "speaker")
    assert V3.artists.rows == 5


def test_a_table_without_names_takes_numbers():
    table = NameTable.from_pairs([(UNKNOWN, 0)], rows=4111)
    assert (table.rows, table.names) == (4111, (UNKNOWN,))
    assert table.lookup("#4110") == Match(4110, True)
    assert table.lookup("#4111") == table.lookup("Alan Jackson") == Match(0, False)
    assert table.name_of(145) == "#145"


def test_a_name_spelt_as_a_number_goes_before_the_number():
    assert NameTable.from_pairs([("unknown", 0), ("bach", 1), ("#1", 2)]).lookup("#1").id == 2


@pytest.mark.parametrize("pairs", [[], [("bach", 0)], [("unknown", 0), ("unknown", 1)]])
def test_a_table_has_unknown_as_its_first(pairs):
    with pytest.raises(ValueError, match="unknown"):
        NameTable.from_pairs(pairs)


NAMELESS = LabelTable(NameTable.from_pairs([(UNKNOWN, 0)], 9), NameTable.from_pairs([(UNKNOWN, 0)], 3))


@pytest.mark.parametrize(("table", "number"), [(TABLE, 1), (V2, 2), (V3, 2), (NAMELESS, 2)])
def test_json_round_trip(tmp_path, table, number):
    assert table.to_json()["format"] == number
    table.save(tmp_path / "labels.json")
    assert LabelTable.load(tmp_path / "labels.json") == table


def test_tables_of_earlier_versions_are_read():
    tree = {"format": 1, "normalisation": "v3", "artists": ["unknown", "bach", "x", "bach"], "genres": ["unknown"]}
    table = LabelTable.from_json(tree)
    assert [table.artist(name).id for name in ("Bach", "x", "nobody")] == [3, 2, 0]
    assert (table.artists.rows, table.normalisation) == (4, "v3")
    assert TABLE.to_json() == {
        "format": 1,
        "normalisation": "v3",
        "artists": ["unknown", "bach", "clara schumann"],
        "genres": ["unknown", "baroque", "romantic"],
    }


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"format": 1}',
        json.dumps(TABLE.to_json() | {"format": 3}),
        json.dumps(TABLE.to_json() | {"normalisation": "v9"}),
        json.dumps(TABLE.to_json() | {"normalisation": "v2"}),
        json.dumps(TABLE.to_json() | {"normalisation": []}),
        json.dumps(TABLE.to_json() | {"artists": ["bach"]}),
        json.dumps(TABLE.to_json() | {"artists": []}),
        json.dumps(TABLE.to_json() | {"artists": {"unknown": 0}}),
        json.dumps(TABLE.to_json() | {"genres": ["unknown", 3]}),
        json.dumps(V2.to_json() | {"genres": ["unknown", [3]]}),
        json.dumps(TABLE.to_json() | {"genres": None}),
    ],
)
def test_bad_tables_are_named(tmp_path, text):
    path = tmp_path / "labels.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"labels\.json"):
        LabelTable.load(path)


def test_missing_table(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        LabelTable.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    "text",
    [
        "unknown;0\nvarious;0\n;0\nAlan_Jackson;1\nac;dc;2\n",
        "\ufeffac;dc;2\r\nalan_jackson;1\r\nunknown;0\r\nvarious;0\r\n;0\r\n\r\n",
    ],
)
def test_reading_a_released_table(tmp_path, text):
    path = tmp_path / "ids.txt"
    path.write_bytes(text.encode())
    table = read_id_table(path)
    assert table == NameTable.from_pairs([("unknown", 0), ("various", 0), ("", 0), ("alan_jackson", 1), ("ac;dc", 2)])
    assert table.rows == 3


def test_a_name_that_stands_twice_leaves_its_first_id_without_a_name(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text("unknown;0\nspeaker;1\nodd\u2028name;2\nSpeaker;3\n", encoding="utf-8")
    table = read_id_table(path)
    assert (table.rows, table.lookup("speaker").id, table.name_of(1)) == (4, 3, "#1")
    assert table.lookup("odd\u2028name").id == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", 'no line "unknown;0"'),
        (b"unknown;0\nbach\n", 'line 2 is not "name;id"'),
        (b'{"unknown": 0}', 'line 1 is not "name;id"'),
        (b"unknown;0\nbach;one\n", 'line 2: the id "one" is not a number'),
        (b"unknown;0\nbach;\n", "line 2: the id"),
        (b"unknown;0\nbach;-1\n", "line 2: the id"),
        ("unknown;0\nbach;\N{SUPERSCRIPT ONE}\n".encode(), "line 2: the id"),
        (b"unknown;0\nbach;" + 5000 * b"9", "line 2: the id"),
        (b"unknown;0\nbach;1\nhaydn;3\nmozart;4\n", "up to 4, but none is 2"),
        (b"unknown;0\nbach;999999999\n", "up to 999999999, but none is 1"),
        (b"unknown;0\nbach;1\n\nhaydn;1\n", r'line 4 gives "haydn" the id 1 of "bach" \(line 2\)'),
        (b"bach;0\nhaydn;1\n", 'no line "unknown;0"'),
        (b"unknown;0\nbach;1\nunknown;2\n", 'no line "unknown;0"'),
        (b"\xff\xfe", "not UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_table_of_ids(tmp_path, text, message):
    path = tmp_path / "ids.txt"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(UserError, match=message) as refusal:
        read_id_table(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def recorded_labels() -> dict:
    return json.loads(recorded("d_labels.json").read_text(encoding="utf-8"))


def recorded_tables(numbers: dict) -> dict[bool, LabelTable]:
    """The tables as far as the recorded answers show them (the tables themselves are not recorded)."""
    tables = {}
    for v3 in (False, True):
        artists = [("unknown", 0)] if v3 else [("", 0), ("unknown", 0), ("various", 0)]
        genres = [("unknown", 0)]

        def learn(name, ids, to=genres, whole=v3):
            pairs = zip([name] if whole else name.split("_"), ids, strict=True)
            to += [(word, index) for word, index in pairs if index]

        for entry in (entry for entry in numbers["artists"] if entry["v3"] == v3 and entry["id"]):
            artists.append((entry["name_of_id"], entry["id"]))
        for entry in (entry for entry in numbers["describe"] if entry["v3"] == v3):
            artists += [(entry["artist"], entry["artist_id"])] if entry["artist_id"] else []
            learn(entry["genre"], [entry["genre_id"]])
        for entry in (entry for entry in numbers["genres"] if entry["v3"] == v3):
            learn(entry["name_of_ids"], entry["ids"])
        for entry in (entry for entry in numbers["labels"] if entry["v3"] == v3):
            ids = [i for i in entry["y"][4 : 4 + entry["max_genre_words"]] if i >= 0]
            learn(entry["describe"]["genre"], ids)
            artists += [(entry["describe"]["artist"], entry["y"][3])] if entry["y"][3] else []
        tables[v3] = LabelTable(NameTable.from_pairs(artists), NameTable.from_pairs(genres), "v3" if v3 else "v2")
    return tables


def test_the_original_normalises_so():
    for case in recorded_labels()["norm"]:
        assert normalise(case["text"], "v2") == case["norm"], case


def test_the_original_finds_these_ids_and_names():
    numbers = recorded_labels()
    tables = recorded_tables(numbers)
    for case in numbers["artists"]:
        artists = tables[case["v3"]].artists
        assert tables[case["v3"]].artist(case["artist"]).id == case["id"], case
        assert artists.name_of(case["id"]) == case["name_of_id"], case
    for case in numbers["genres"]:
        genres = tables[case["v3"]].genres
        assert [match.id for match in tables[case["v3"]].genres_of(case["genre"])] == case["ids"], case
        assert "_".join(genres.name_of(index) for index in case["ids"]) == case["name_of_ids"], case
    for case in numbers["describe"]:
        table = tables[case["v3"]]
        assert table.artists.name_of(case["artist_id"]) == case["artist"]
        assert table.genres.name_of(case["genre_id"]) == case["genre"]


def test_the_original_makes_these_label_vectors():
    numbers = recorded_labels()
    tables = recorded_tables(numbers)
    songs = [(case, case, case["y"]) for case in numbers["labels"]]
    for batch in numbers["batch"]:
        songs += [(batch, song, y) for song, y in zip(batch["metas"], batch["y"], strict=True)]
    assert len(songs) > len(numbers["labels"])
    for setting, song, y in songs:
        table, slots = tables[setting["v3"]], setting["max_genre_words"]
        ids = [table.artist_id(song["artist"]), *table.genre_ids(song["genre"], slots)]
        assert y[: 4 + slots] == [song["total_length"], song["offset"], setting["sample_length"], *ids], song
