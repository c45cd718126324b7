"""Songs as samples of a page: what of their provenance is shown, and how much of it may be missing."""

from __future__ import annotations

import numpy as np
import pytest
from cascade import random_model

from jukebox_jax import api
from jukebox_jax.export.page import write_page
from jukebox_jax.export.song_page import flat, song_sample, songs_page

RATE = 8000
LEVELS = [np.sin(np.arange(RATE) / (8 + level)).astype(np.float32) for level in range(3)]
TOKENS = [np.arange(RATE // hop) % 24 for hop in (8, 32, 128)]
PROVENANCE = {
    "seed": 7,
    "mode": "continue",
    "precision": "int8",
    "approximate": True,
    "request": {"artist": {"Bach": 0.5, "Corelli": 0.5}, "genre": "Dance", "lyrics": "<b>la</b>"},
    "sampling": [{"temperature": 0.9}, {"temperature": 0.95}, {"temperature": 0.99}],
}


def test_what_is_known_of_a_song_is_shown(tmp_path):
    sample = song_sample(LEVELS, TOKENS, 24, PROVENANCE, title="A/song")
    assert (sample.seed, sample.temperature, sample.genre) == (7, 0.99, "Dance")
    assert sample.note == "int8, continue, approximate"
    assert [int(usage.counts.sum()) for usage in sample.codebooks] == [1000, 250, 62]
    write_page(tmp_path / "index.html", songs_page([sample], RATE))
    page = (tmp_path / "index.html").read_text()
    for text in ("A/song", "seed 7", "Bach", "&lt;b&gt;la&lt;/b&gt;", "sampling", "How it was made"):
        assert text in page, text
    assert "<b>la" not in page


@pytest.mark.parametrize("provenance", [{}, {"request": {}, "sampling": []}, {"request": None, "seed": None}])
def test_a_song_that_says_nothing_is_shown_all_the_same(tmp_path, provenance):
    write_page(tmp_path / "index.html", songs_page([song_sample(LEVELS, TOKENS, 24, provenance)], RATE))
    assert "Sample 1" in (tmp_path / "index.html").read_text()


def test_nested_settings_have_dotted_names():
    assert dict(flat({"a": {"b": 1, "c": {"d": "x"}}, "e": [1, 2]})) == {"a.b": "1", "a.c.d": "x", "e": "[1, 2]"}


def test_aligned_lyrics_light_up_and_show_their_attention(tmp_path):
    model = random_model("separate")
    song = model.sample(seconds=1.0, seed=1, lyrics="la lo\nli", artist="Bach", progress=False)
    model.page(song, tmp_path / "index.html", alignments=[model.align(song, progress=False)], surprise=True)
    page = (tmp_path / "index.html").read_text()
    assert page.count('class="word"') == 3
    assert "<figcaption>Attention</figcaption>" in page
    assert "Surprise, level 2" in page


def test_the_prior_hears_songs_only_if_it_is_asked_and_progress_is_shown(tmp_path, monkeypatch, capsys):
    model = random_model()
    monkeypatch.setattr(api, "token_bits", None)
    song = api.Song(tuple(TOKENS), tuple(LEVELS), RATE, {})
    model.page([song, song], tmp_path / "index.html")
    assert "page: 100%" in capsys.readouterr().err
    model.page(song, tmp_path / "index.html", progress=False)
    assert capsys.readouterr().err == ""
