"""The listening page in a real browser: what sounds, what lights up, what is asked of the network (nothing)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright import sync_api

from jukebox_jax.export import page
from jukebox_jax.labels.timed import TimedWord

pytestmark = pytest.mark.browser

RATE = 44_100
EVIL = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>"
#: In place of the speakers: the browser's own engine renders what the page has connected, sample by sample, as fast or
#: slowly as the machine can, so that what is measured is the page and not what else the machine does.
OFFLINE = """
window.AudioContext = class extends OfflineAudioContext {
  constructor() { super(1, 3 * 44100, 44100); }
  get state() { return "running"; }
};
"""


def tone(hertz: float, seconds: float) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


#: What is heard of each level: so tests know which one it is.
HERTZ = {0: 440.0, 1: 880.0, 2: 1760.0}


def sample(seconds: float, **more) -> page.Sample:
    levels = {level: tone(hertz, seconds) for level, hertz in HERTZ.items()}
    return page.Sample(artist="A", genre="B", seed=1, temperature=0.98, levels=levels, **more)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    words = [TimedWord(f"word{i}", 0.5 * i, 0.5 * i + 0.4, line=i // 2) for i in range(8)]
    path = tmp_path_factory.mktemp("small") / "index.html"
    samples = [
        sample(4.0, words=words, origin={"seed": "1", "lyrics": EVIL}),
        sample(4.0, lyrics=EVIL, note=EVIL),
    ]
    page.write_page(path, page.PageContent(title=f"Songs {EVIL}", sample_rate=RATE, samples=samples))
    return path


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """Eight samples of 20 seconds at three levels, of noise, which compresses worst."""
    rng = np.random.default_rng(0)
    samples = []
    for seed in range(8):
        levels = {level: (0.1 * rng.standard_normal(20 * RATE)).astype(np.float32) for level in range(3)}
        samples.append(page.Sample("A", "B", seed, 0.98, levels))
    path = tmp_path_factory.mktemp("large") / "index.html"
    page.write_page(path, page.PageContent(title="Large", sample_rate=RATE, samples=samples))
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    assert chromium, "these tests need Debian's chromium: apt-get install chromium"
    flags = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--disable-gpu"]
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield started
        started.close()


@pytest.fixture
def show(browser) -> Iterator:
    """Opens a page from disk; in the end nothing may have been asked of the network, and nothing complained of."""
    contexts, asked, complaints = [], [], []

    def opened(path: Path, script: str = "", **settings):
        context = browser.new_context(**settings)
        contexts.append(context)
        shown = context.new_page()
        shown.on("request", lambda request: asked.append(request.url))
        shown.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        shown.on("pageerror", lambda error: complaints.append(str(error)))
        shown.add_init_script(script)
        shown.goto(path.as_uri())
        return shown

    yield opened
    for context in contexts:
        context.close()
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert complaints == []


def position(shown, deck: int = 0) -> float:
    return float(shown.locator(".deck").nth(deck).locator("input").input_value())


def wait_for(shown, seconds: float, deck: int = 0) -> None:
    shown.wait_for_function(
        "([deck, at]) => Number(document.querySelectorAll('.deck')[deck].querySelector('input').value) >= at",
        arg=[deck, seconds],
    )


def rendered(shown, *presses: tuple[float, str]) -> np.ndarray:
    """Three seconds of what the page plays, with keys pressed at seconds of them."""
    shown.keyboard.press("p")
    shown.wait_for_function("() => context !== null && decks[0].sounding()")
    samples = shown.evaluate(
        """async presses => {
          for (const [at, key] of presses) {
            context.suspend(at).then(() => {
              document.dispatchEvent(new KeyboardEvent("keydown", { key }));
              context.resume();
            });
          }
          return Array.from((await context.startRendering()).getChannelData(0));
        }""",
        presses,
    )
    return np.asarray(samples)


def loudest_hertz(samples: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * RATE / len(samples))


def test_it_plays_and_pauses(small, show):
    shown = show(small)
    shown.keyboard.press("p")
    wait_for(shown, 0.4)
    assert shown.evaluate("context.state") == "running"
    assert shown.evaluate("context.currentTime") >= 0.4  # the position is that of the sound
    shown.keyboard.press("p")
    stopped = position(shown)
    shown.wait_for_timeout(200)
    assert position(shown) == stopped
    assert shown.locator(".deck.playing").count() == 0


def test_a_switch_is_heard_within_50_ms_and_leaves_no_gap(small, show):
    """Keys at 1 s and 2 s: what sounds before and after, when it is another, and that there is no silence between."""
    samples = rendered(show(small, script=OFFLINE), (1.0, "2"), (2.0, "1"))

    def between(start: float, end: float) -> np.ndarray:
        return samples[round(start * RATE) : round(end * RATE)]

    assert loudest_hertz(between(0.1, 1.0)) == pytest.approx(HERTZ[0], abs=5)
    assert loudest_hertz(between(1.05, 2.0)) == pytest.approx(HERTZ[2], abs=5)
    assert loudest_hertz(between(2.05, 3.0)) == pytest.approx(HERTZ[1], abs=5)
    for at, level in ((1.0, 2), (2.0, 1)):
        assert abs(loudest_hertz(between(at + 0.01, at + 0.05)) - HERTZ[level]) < 25  # 40 ms resolve 25 Hz
    playing = between(0.1, 3.0)
    levels = np.sqrt(np.mean(playing[: len(playing) // 220 * 220].reshape(-1, 220) ** 2, axis=1))
    assert levels.min() > 0.6 * np.median(levels)  # of 5 ms each; halves of two tones are 0.7 of one
    assert (
        np.abs(np.diff(playing)).max() < 1.2 * 0.3 * 2 * np.pi * HERTZ[2] / RATE
    )  # no steeper than the tones: no click


def test_a_key_is_handled_within_50_ms(small, show):
    """While it plays; half of the times at least, as the machine has other work."""
    shown = show(small)
    shown.keyboard.press("p")
    wait_for(shown, 0.2)
    took = shown.evaluate(
        """() => Array.from("12012", key => {
          const started = performance.now();
          document.dispatchEvent(new KeyboardEvent("keydown", { key }));
          return performance.now() - started;
        })"""
    )
    assert np.median(took) < 50
    assert shown.locator(".versions").first.locator("[aria-pressed=true]").inner_text() == "Level 2"


@pytest.mark.parametrize("rate", [22_050, 32_000, 44_100])
def test_all_versions_sound_at_the_same_instant(tmp_path, show, rate):
    """A click at one second, of all versions: where it comes out."""
    levels = {level: np.zeros(2 * rate, np.float32) for level in range(3)}
    for audio in levels.values():
        audio[rate : rate + rate // 1000] = 0.9
    path = tmp_path / "index.html"
    click = page.Sample("A", "B", 1, 1.0, levels)
    page.write_page(path, page.PageContent(title="Click", sample_rate=rate, samples=[click]))
    shown = show(path)
    shown.keyboard.press("p")
    wait_for(shown, 0.1)
    places = shown.evaluate(
        """() => Promise.all(Array.from(document.querySelectorAll("audio"), async audio => {
          const { buffer, lead } = await decoded(audio, 2);
          return buffer.getChannelData(0).findIndex(x => Math.abs(x) > 0.3) / buffer.sampleRate - lead;
        }))"""
    )
    assert places == pytest.approx([1.0] * 3, abs=0.001)


def test_words_light_up_as_they_are_sung_and_can_be_jumped_to(small, show):
    shown = show(small)
    shown.keyboard.press("p")
    shown.wait_for_function("() => document.querySelector('.word.sung')?.textContent === 'word1'")
    assert 0.5 <= position(shown) < 0.95
    shown.locator(".word").nth(5).click()
    shown.wait_for_function("() => document.querySelector('.word.sung')?.textContent === 'word5'")
    assert 2.5 <= position(shown) < 2.95
    assert shown.locator(".word.sung").count() == 1


def test_the_lyrics_are_one_stop_of_the_tab_key(small, show):
    shown = show(small)
    shown.locator(".word").first.focus()
    for _ in range(3):
        shown.keyboard.press("ArrowRight")
    focused = "document.activeElement.textContent"
    assert shown.evaluate(focused) == "word3"
    shown.keyboard.press("Enter")
    assert position(shown) == pytest.approx(1.5)  # sought, though nothing plays
    assert shown.locator(".word.sung").inner_text() == "word3"
    shown.keyboard.press("Tab")
    assert shown.evaluate("document.activeElement.className") == "play"
    shown.keyboard.press("Shift+Tab")
    assert shown.evaluate(focused) == "word3"


def test_the_keyboard_is_enough(small, show):
    shown = show(small)
    shown.keyboard.press("Tab")
    focused = "document.activeElement.className"
    for _ in range(30):
        if "play" in shown.evaluate(focused):
            break
        shown.keyboard.press("Tab")
    assert "play" in shown.evaluate(focused)
    shown.keyboard.press("Enter")
    wait_for(shown, 0.2)
    shown.keyboard.press("ArrowRight")
    wait_for(shown, 1.2)
    shown.keyboard.press("n")
    assert shown.evaluate("document.activeElement === document.querySelectorAll('.play')[1]")
    shown.keyboard.press("p")
    wait_for(shown, 0.2, deck=1)
    playing = shown.evaluate(
        "Array.from(document.querySelectorAll('.deck'), deck => deck.classList.contains('playing'))"
    )
    assert playing == [False, True]  # one sound at a time


def test_it_ends_and_starts_again(small, show):
    shown = show(small)
    shown.locator(".deck input").first.evaluate(
        "slider => { slider.value = 3.7; slider.dispatchEvent(new Event('input')) }"
    )
    shown.keyboard.press("p")
    shown.wait_for_function("() => Number(document.querySelector('input').value) === 0")
    assert shown.locator(".deck.playing").count() == 0
    shown.keyboard.press("p")
    wait_for(shown, 0.2)


def test_text_of_others_is_text(small, show):
    shown = show(small)
    assert shown.evaluate("window.pwned") is None
    assert EVIL in shown.locator("h1").inner_text()
    assert EVIL in shown.locator(".deck").nth(1).locator(".lyrics").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark(small, show, scheme):
    shown = show(small, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    assert shown.evaluate("document.documentElement.scrollWidth") <= 360
    paper = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = np.mean([int(part) for part in paper.removeprefix("rgb(").removesuffix(")").split(",")])
    assert (brightness > 128) == (scheme == "light")
    assert all(box["height"] >= 40 for box in [shown.locator(".play").nth(i).bounding_box() for i in range(2)])


def test_without_scripts_every_version_has_a_player(small, show):
    shown = show(small, java_script_enabled=False)
    assert shown.locator("audio").first.is_visible()


def test_eight_samples_are_small_and_quickly_there(large, show):
    assert large.stat().st_size <= 15e6
    shown = show(large)
    paints = "performance.getEntriesByName('first-contentful-paint').map(entry => entry.startTime)"
    shown.wait_for_function(f"() => {paints}.length > 0")
    assert shown.evaluate(paints)[0] <= 1000
    shown.keyboard.press("p")
    wait_for(shown, 0.2)
