from __future__ import annotations

import json

import pytest

from jukebox_jax.errors import UserError
from jukebox_jax.labels.ids import LabelTable, Match, NameTable

TABLE = LabelTable.of(["  Bach", "Clara Schumann", "bach", "", "Unknown"], ["Baroque", "Romantic"])


def test_names_are_normalised_sorted_and_start_with_unknown():
    assert TABLE.artists.names == ("unknown", "bach", "clara schumann")
    assert TABLE.genres.names == ("unknown", "baroque", "romantic")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("BACH ", Match(1, True)),
        ("clara schumann", Match(2, True)),
        ("", Match(0, True)),
        ("unknown", Match(0, True)),
        ("Clara Shuman", Match(0, False, ("clara schumann",))),
        ("xyzzy", Match(0, False)),
    ],
)
def test_lookup(name, expected):
    assert TABLE.artists.lookup(name) == expected


def test_of_a_name_listed_twice_the_later_id_counts():
    # As in the released v3 table, where "speaker" stands twice.
    assert NameTable(("unknown", "speaker", "other", "speaker")).lookup("Speaker").id == 3


def test_a_table_starts_with_unknown():
    with pytest.raises(ValueError, match="unknown"):
        NameTable(("bach",))


def test_json_round_trip(tmp_path):
    TABLE.save(tmp_path / "labels.json")
    assert LabelTable.load(tmp_path / "labels.json") == TABLE


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"format": 1}',
        json.dumps(TABLE.to_json() | {"format": 2}),
        json.dumps(TABLE.to_json() | {"normalisation": "v9"}),
        json.dumps(TABLE.to_json() | {"artists": ["bach"]}),
        json.dumps(TABLE.to_json() | {"genres": ["unknown", 3]}),
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
