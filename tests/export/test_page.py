"""The listening page, from synthetic tones: structure, escaping, sound, size, and no request to anywhere."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from jukebox_jax.errors import UserError
from jukebox_jax.export import page
from jukebox_jax.export.plots import CodebookUsage, LossCurve

RATE = 44_100
EVIL = """<script>window.pwned = 1</script><img src=x onerror="window.pwned = 1">'"&amp; $title ${style}"""
VOID = {"meta", "img", "input", "br", "hr", "link"}


def tone(hz: float, seconds: float, harmonics: int = 6) -> np.ndarray:
    t = np.arange(round(seconds * RATE)) / RATE
    return (0.1 * sum(np.sin(2 * np.pi * hz * k * t) / k for k in range(1, harmonics + 1))).astype(np.float32)


def piece(hz: float, seconds: float, **texts) -> page.Piece:
    texts = {"title": "A Piece", "artist": "A Composer", "genre": "hymn"} | texts
    return page.Piece(
        original=tone(hz, seconds),
        reconstructions={level: tone(hz, seconds, 6 - 2 * level) for level in range(3)},
        spectral_convergence_db={0: -19.34, 1: -12.9, 2: -6.2},
        **texts,
    )


def sample(hz: float, seconds: float, **texts) -> page.Sample:
    texts = {"artist": "A Composer", "genre": "hymn"} | texts
    levels = {level: tone(hz, seconds, 6 - 2 * level) for level in range(3)}
    return page.Sample(seed=31, temperature=0.98, levels=levels, **texts)


class Document(HTMLParser):
    """Collects tags and text, and fails on an element that is closed out of order or never."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.text = [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert (self.open or [None]).pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.text.setdefault(self.open[-1] if self.open else "", []).append(data)

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


def written(tmp_path, content: page.PageContent, **limits) -> str:
    page.write_page(tmp_path / "page.html", content, **limits)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def sounds(document: Document) -> list[np.ndarray]:
    import soundfile

    heard = []
    for attrs in document.all("audio"):
        media_type, data = attrs["src"].split(";base64,")
        assert media_type == "data:audio/mpeg"
        audio, rate = soundfile.read(io.BytesIO(base64.b64decode(data, validate=True)), dtype="float32")
        assert rate == RATE
        heard.append(audio)
    return heard


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> str:
    content = page.PageContent(
        title="A title",
        sample_rate=RATE,
        pieces=[piece(220, 1.5), piece(330, 2.5)],
        samples=[sample(440, 1.25, lyrics="first line\nsecond line")],
        curves=[LossCurve("prior, level 2", "bits per token", [(1, 9.0), (2, 8.0)], [(2, 8.5)])],
        codebooks=[CodebookUsage(0, np.array([5, 3, 0, 1]))],
        figures=[page.KeyFigure("Time", "541 s", "two cores")],
    )
    return written(tmp_path_factory.mktemp("page"), content, piece_seconds=2.0)


def test_page_holds_every_part(full):
    document = Document(full)
    assert len(document.all("audio")) == len(document.all("img")) == 2 * 4 + 3
    assert full.count('class="deck"') == 3
    # A loss curve, a codebook's chart, and the icon of each deck's play button.
    assert len(document.all("svg")) == 2 + 3
    for shown in ("−19.3 dB", "seed 31", "temperature 0.98", "first line\nsecond line", "541 s", "3 of 4 used"):
        assert shown in full, shown
    assert "first 2 s of 2.5 s" in full
    assert full.count("first 2 s of") == 1


def test_sounds_decode_to_the_same_length_within_a_deck(full):
    lengths = [len(audio) for audio in sounds(Document(full))]
    assert lengths == [round(1.5 * RATE)] * 4 + [2 * RATE] * 4 + [round(1.25 * RATE)] * 3


def test_sound_is_the_given_one_and_in_time(full):
    """The encoder scales by 0.95 (headroom), the same for every version: what counts is shape and instant."""
    expected = tone(220, 1.5)[2000:-2000]
    heard = sounds(Document(full))[0]

    def correlation(lag: int) -> float:
        return float(np.corrcoef(expected, heard[2000 + lag : lag - 2000])[0, 1])

    assert correlation(0) > 0.9999
    assert correlation(0) > max(correlation(-1), correlation(1))


def test_page_asks_the_network_for_nothing(full):
    document = Document(full)
    assert document.all("link") == []
    assert document.all("a") == []
    for _, attrs in document.tags:
        for name in ("src", "href", "srcset", "poster", "action", "data"):
            assert attrs.get(name, "data:").startswith("data:")
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttpRequest", full)
    policy = next(attrs["content"] for attrs in document.all("meta") if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'")
    [script] = document.text["script"]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy


def test_text_from_users_stays_text(tmp_path):
    content = page.PageContent(
        title=EVIL,
        sample_rate=RATE,
        pieces=[piece(220, 0.3, title=EVIL, artist=EVIL, genre=EVIL, note=EVIL)],
        samples=[sample(220, 0.3, artist=EVIL, genre=EVIL, lyrics=EVIL, note=EVIL)],
        curves=[LossCurve(EVIL, EVIL, [(1, 2.0)])],
        figures=[page.KeyFigure(EVIL, EVIL, EVIL)],
        explanation=[EVIL],
        generated_by=EVIL,
    )
    document = Document(written(tmp_path, content))
    assert len(document.all("script")) == 1
    assert all("onerror" not in attrs for _, attrs in document.tags)
    assert len(document.all("img")) == 7
    assert document.text["title"] == document.text["h1"] == document.text["h3"][:1] == [EVIL]
    assert document.text["li"].count(EVIL) == 6
    assert document.text["td"] == [EVIL, EVIL]


def test_versions_of_different_length_share_one_time_axis(tmp_path):
    short = page.Piece("t", "a", "g", tone(220, 0.5), {0: tone(220, 0.4)}, {})
    heard = sounds(Document(written(tmp_path, page.PageContent("t", RATE, pieces=[short]))))
    assert [len(audio) for audio in heard] == [RATE // 2] * 2
    assert np.abs(heard[1][int(0.45 * RATE) :]).max() < 1e-3


def test_empty_sections_are_left_out(tmp_path):
    document = Document(written(tmp_path, page.PageContent("nothing yet", RATE)))
    assert document.all("section") == []
    assert document.all("audio") == []


def test_size_stays_within_the_promise(tmp_path):
    """16 kB a second of audio and 25 kB a picture bring 28 players and 312 s to under 6 MB; noise is the worst case."""
    rng = np.random.default_rng(0)
    noise = (0.1 * rng.standard_normal(RATE * 8)).astype(np.float32)
    bare = len(written(tmp_path, page.PageContent("t", RATE)))
    content = page.PageContent("t", RATE, pieces=[page.Piece("t", "a", "g", noise, {}, {})])
    grown = len(written(tmp_path, content)) - bare
    assert grown < 8 * 16_200 + 60_000
    assert bare < 25_000
    tonal = page.PageContent("t", RATE, pieces=[page.Piece("t", "a", "g", tone(220, 8.0), {}, {})])
    assert len(written(tmp_path, tonal)) - bare < 8 * 16_200 + 25_000


@pytest.mark.parametrize("audio", [np.zeros(0), np.zeros((10, 1)), np.array([0.0, np.nan])])
def test_unplayable_audio_is_refused_before_anything_is_written(tmp_path, audio):
    bad = page.Piece("A Piece", "a", "g", audio.astype(np.float32), {}, {})
    with pytest.raises(ValueError, match="A Piece, Original"):
        page.write_page(tmp_path / "page.html", page.PageContent("t", RATE, pieces=[bad]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rate", [8000, 10_000, 22_050, 96_000])
def test_any_rate_is_heard_in_time_and_at_its_length(tmp_path, rate):
    """Neither delayed nor refused, though MP3 knows few rates, and at low ones has no room to note the delay."""
    audio = np.zeros(2 * rate, np.float32)
    audio[rate : rate + max(1, rate // 2000)] = 0.9
    content = page.PageContent("t", rate, pieces=[page.Piece("t", "a", "g", audio, {}, {})])
    [heard] = sounds(Document(written(tmp_path, content)))
    assert len(heard) == 2 * RATE
    assert np.argmax(np.abs(heard) > 0.3) / RATE == pytest.approx(1, abs=0.001)


def test_without_soundfile_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)  # what an import finds where it is not installed
    content = page.PageContent("t", RATE, pieces=[piece(220, 0.3)])
    with pytest.raises(UserError, match="pip install soundfile"):
        page.write_page(tmp_path / "page.html", content)
    assert list(tmp_path.iterdir()) == []
