"""`jukebox-jax page`: songs of folders on one page."""

from __future__ import annotations

import pytest
from cascade import write_model

from jukebox_jax import api
from jukebox_jax.cli.main import main

EVIL = "</script><script>window.pwned = 1</script>"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, and two folders with a song each."""
    root = tmp_path_factory.mktemp("page")
    model = api.load(write_model(root / "model"))
    for name, seed in (("one", 1), ("two", 2)):
        (root / name).mkdir()
        song = model.sample(seconds=0.5, seed=seed, artist="Bach", lyrics=EVIL, progress=False)
        song.save_tokens(root / name / "song.tokens.npz")
    return root


def page(world, *folders, flags=(), **options) -> int:
    more = [*flags] + [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return main(
        ["page", *(str(world / folder) for folder in folders), "--model", str(world / "model"), *more, "--quiet"]
    )


@pytest.mark.filterwarnings("ignore:The model takes no lyrics")
def test_songs_of_several_folders_stand_on_one_page(world, tmp_path, capsys):
    assert page(world, "one", "two", flags=["--surprise"], out=tmp_path / "all.html") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'all.html'}\n"
    text = (tmp_path / "all.html").read_text()
    assert text.count('class="deck"') == 2
    assert "one/song" in text
    assert "two/song" in text
    assert text.count("Surprise, level 2</figcaption>") == 2
    assert EVIL not in text
    assert page(world, "one") == 0
    assert (world / "one/index.html").exists()


@pytest.mark.parametrize(
    ("folders", "options", "words"),
    [
        (["model"], {}, "holds no songs"),
        (["none"], {}, "holds no songs"),
        (["one"], {"out": "model"}, "is a folder: give a file in it"),
    ],
)
def test_mistakes_are_one_line(world, capsys, folders, options, words):
    assert page(world, *folders, **{name: world / value for name, value in options.items()}) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_damaged_tokens_are_named_and_nothing_is_written(world, tmp_path, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "song.tokens.npz").write_bytes(b"PK\x03\x04 no")
    assert main(["page", str(broken), "--model", str(world / "model"), "--quiet"]) == 2
    assert "song.tokens.npz" in capsys.readouterr().err
    assert not (broken / "index.html").exists()
