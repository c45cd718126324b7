"""Dataclass trees to JSON and back."""

from __future__ import annotations

import dataclasses
from typing import Literal

import pytest

from jukebox_jax import config
from jukebox_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[int, str] = (3, "x")
    mode: Literal["a", "b"] = "a"


@dataclasses.dataclass(frozen=True)
class Outer:
    width: int
    inner: Inner = Inner()
    other: Inner | None = None
    levels: tuple[Inner, ...] = (Inner(rate=1.0), Inner(rate=2.0))
    name: str = "n"
    flag: bool = False
    seconds: float | None = None
    steps_or_name: int | str = 3


def test_round_trip_through_a_file_gives_an_equal_tree(tmp_path):
    outer = Outer(width=4, other=Inner(sizes=(), mode="b"), seconds=2.5, steps_or_name="full")
    config.save_json(tmp_path / "config.json", outer)
    assert config.from_dict(Outer, config.load_json(tmp_path / "config.json")) == outer


def test_absent_keys_take_their_defaults():
    assert config.from_dict(Outer, {"width": 2}) == Outer(width=2)


def test_a_whole_number_serves_as_a_float_and_becomes_one():
    built = config.from_dict(Outer, {"width": 2, "inner": {"rate": 3}})
    assert isinstance(built.inner.rate, float)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"width": 1, "inner": {"raet": 1.0}}, ["'inner.raet'", "'rate'"]),
        ({"widht": 1}, ["'widht'", "'width'"]),
        ({}, ["Missing", "'width'"]),
        ({"width": 1.5}, ["'width'", "a whole number", "1.5"]),
        ({"width": True}, ["'width'", "True"]),
        ({"width": 1, "flag": 1}, ["'flag'", "true or false"]),
        ({"width": 1, "inner": 3}, ["'inner'", "3"]),
        ({"width": 1, "inner": {"sizes": [1, "2"]}}, ["'inner.sizes.1'", "'2'"]),
        ({"width": 1, "inner": {"pair": [1]}}, ["'inner.pair'", "2 values"]),
        ({"width": 1, "inner": {"mode": "c"}}, ["'inner.mode'", "'c'"]),
        ({"width": 1, "levels": [{"rates": 1.0}]}, ["'levels.0.rates'", "'rate'"]),
        ({"width": 1, "seconds": "2"}, ["'seconds'", "a number"]),
        ({"width": 1, "steps_or_name": 2.5}, ["'steps_or_name'", "a whole number or a text"]),
    ],
)
def test_a_wrong_dict_is_told_by_its_dotted_key(values, words):
    with pytest.raises(UserError) as raised:
        config.from_dict(Outer, values)
    assert all(word in str(raised.value) for word in words), str(raised.value)


def test_differences_names_changed_and_one_sided_keys():
    a, b = Outer(width=1), Outer(width=2, inner=Inner(rate=0.1), other=Inner())
    assert config.differences(a, a) == []
    assert config.differences(a, b) == sorted(
        ["inner.rate", "other", "other.mode", "other.pair", "other.rate", "other.sizes", "width"]
    )
    assert config.differences(a, config.to_dict(a)) == []
    assert config.differences({"a": (1, 2)}, {"a": [1, 2], "b": 1}) == ["b"]


def test_broken_and_missing_files_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        config.load_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="not readable JSON"):
        config.load_json(tmp_path / "bad.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UserError, match="no JSON object"):
        config.load_json(tmp_path / "list.json")


def test_what_json_cannot_carry_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError):
        config.save_json(tmp_path / "config.json", {"rate": float("nan")})
    with pytest.raises(TypeError):
        config.save_json(tmp_path / "config.json", {"rate": object()})
    assert list(tmp_path.iterdir()) == []
