"""Decisions over decoded pieces: duplicates, splits, labels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jukebox_jax.corpus.piece import Finding, Piece
from jukebox_jax.corpus.plan import PlanSettings, assign_splits, make_plan
from jukebox_jax.errors import UserError
from jukebox_jax.labels.ids import LabelTable, NameTable


def pieces(count, **fields):
    return [Piece(f"{i:04d}.wav", f"/music/{i}.wav", title=f"Piece {i}", **fields) for i in range(count)]


def findings(count, **fields):
    return [Finding("ok", 44_100, 1, 1, 44_100, f"{i:064x}", **fields) for i in range(count)]


def test_hashed_splits_are_about_a_tenth_and_do_not_depend_on_the_others():
    split = {piece.title: piece.split for piece in assign_splits(pieces(1000))}
    assert 70 < sum(value == "validation" for value in split.values()) < 130
    fewer = {piece.title: piece.split for piece in assign_splits(pieces(1000)[::-1][:600])}
    assert fewer == {title: split[title] for title in fewer}
    half = assign_splits(pieces(1000), share=0.5)
    assert 430 < sum(piece.split == "validation" for piece in half) < 570
    assert {piece.split for piece in assign_splits(pieces(50), share=0.0)} == {"train"}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_pieces_have_both_splits(count):
    for seed in range(30):
        some = [Piece(f"{i}", f"{i}", title=f"{seed} {i}") for i in range(count)]
        splits = [piece.split for piece in assign_splits(some)]
        assert "train" in splits
        assert ("validation" in splits) == (count > 1)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["", "x", "y"]), st.sampled_from(["", "test"]))))
def test_no_song_is_in_two_splits_and_official_splits_stay(rows):
    some = [Piece(f"{i}", f"{i}", title, artist, split=split) for i, (title, artist, split) in enumerate(rows)]
    for split_by, key in (("song", lambda p: (p.title, p.artist)), ("artist", lambda p: p.artist or p.title)):
        done = assign_splits(some, split_by)
        assert all(after.split == before.split for before, after in zip(some, done, strict=True) if before.split)
        assert all(piece.split for piece in done)
        for _, group in itertools.groupby(sorted(done, key=key), key=key):
            assert len({piece.split for piece in group}) == 1


def test_versions_follow_the_official_one():
    some = [Piece("a", "a", "Song", "X"), Piece("b", "b", "song", "x", split="test"), *pieces(3)]
    done = assign_splits(some)
    assert [piece.split for piece in done[:2]] == ["test", "test"]


def test_exact_duplicates_keep_the_held_out_then_the_best_described():
    some = [
        Piece("a", "a", "A"),
        Piece("b", "b", "A", origins={"title": "tags"}),
        Piece("c", "c", "C", split="train", origins={"title": "tags", "artist": "tags"}),
        Piece("d", "d", "C", split="test"),
        Piece("e", "e", "E"),
    ]
    found = findings(5)
    found[1] = found[0]
    found[3] = found[2]
    plan = make_plan(some, found)
    assert [kept.piece.file_name for kept in plan.kept] == ["b", "d", "e"]
    assert [(d.file_name, d.kept, d.kind) for d in plan.duplicates] == [("a", "b", "exact"), ("c", "d", "exact")]


def test_near_duplicates_can_be_kept():
    rng = np.random.default_rng(0)
    print_of = tuple(int(x) for x in rng.integers(0, 2**32, 400))
    found = findings(2, fingerprint=print_of)
    some = pieces(2)
    assert [d.kind for d in make_plan(some, found).duplicates] == ["near"]
    assert make_plan(some, found, PlanSettings(near_duplicates=False)).duplicates == ()


def test_refused_pieces_are_left_out():
    found = [*findings(2), Finding("is empty: remove it.")]
    assert [kept.piece.file_name for kept in make_plan(pieces(3), found).kept] == ["0000.wav", "0001.wav"]


def test_rare_labels_become_unknown_and_coverage_says_so():
    artists = ["Bach"] * 3 + ["bach", "Clara", "", "Unknown"]
    some = [Piece(f"{i}", f"{i}", f"{i}", artist) for i, artist in enumerate(artists)]
    plan = make_plan(some, findings(7), PlanSettings(min_label_songs=2))
    assert plan.labels.artists.names == ("unknown", "bach")
    assert (dict(plan.artists.songs), dict(plan.artists.rare), plan.artists.unlabelled) == (
        {"Bach": 4},
        {"Clara": 1},
        2,
    )
    assert plan.artists.share == pytest.approx(4 / 7)
    assert [kept.piece.artist for kept in plan.kept] == ["Bach"] * 3 + ["bach"] + ["unknown"] * 3
    assert plan.genres.share == 0


def test_ids_of_an_earlier_table_stay():
    earlier = LabelTable.of(["Zappa", "Bach"], ["rock"])
    some = [Piece("a", "a", "A", "Abba", genre="Rock"), Piece("b", "b", "B", "bach", genre="Pop")]
    labels = make_plan(some, findings(2), labels=earlier).labels
    assert labels.artists.names == ("unknown", "bach", "zappa", "abba")
    assert labels.genres.names == ("unknown", "rock", "pop")
    released = LabelTable(NameTable.from_pairs([("unknown", 0)], 2), NameTable.from_pairs([("unknown", 0)]), "v2")
    labels = make_plan([Piece("a", "a", "A", "Céline", genre="Hard Rock")], findings(1), labels=released).labels
    assert labels.artists.by_id == (("unknown",), (), ("c_line",))
    assert labels.genres.names == ("unknown", "hard", "rock")


@pytest.mark.parametrize("settings", [{"validation_share": 1.0}, {"validation_share": -0.1}, {"min_label_songs": 0}])
def test_settings_that_cannot_be(settings):
    with pytest.raises(UserError, match="choose"):
        PlanSettings(**settings)
