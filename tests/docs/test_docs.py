"""What README and docs/ say can be done is done: their commands run, their Python runs, what they point at exists.

Commands stand in ```sh blocks and run one after another in a folder with a little music and tiny models; those of
training and sampling are made short. Blocks without a language are no commands: output, metadata, what needs a cluster.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from cascade import LABELS, Lyrics, lyric_config, prior_config, write_model
from flax.core import meta

from jukebox_jax.checkpoint import compact
from jukebox_jax.cli.main import VERBS, build_parser, main, split_overrides, verb_name
from jukebox_jax.config import to_dict
from jukebox_jax.models.prior import init_params

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: What makes a command short enough for a test; later flags win.
SHORTER = {
    "train": ["--quiet", "--config.train.seconds=none", "--config.train.steps=2", "--config.train.min_steps=1"],
    "sample": ["--seconds", "0.5"],
    "bench": ["--steps", "1", "--quiet"],
    "plan": ["--quiet", "--mesh", "own"],
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> Iterator[list[str]]:
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A working directory as the pages assume it: the repository's configs, some music, models."""
    root = tmp_path_factory.mktemp("world")
    (root / "configs").symlink_to(ROOT / "configs")
    folder = root / "my-music"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for index, split in enumerate(("train", "train", "validation")):
        time = np.arange(8 * 44_100) / 44_100
        tone = 0.2 * np.sin(2 * np.pi * (220 + 110 * index) * time) + 0.01 * rng.standard_normal(len(time))
        soundfile.write(folder / f"{index}.wav", tone, 44_100)
        rows.append({"file_name": f"{index}.wav", "artist": "Somebody", "genre": "Folk", "split": split})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "words.txt").write_text("la la la\nlo lo lo\n")
    soundfile.write(root / "hum.wav", 0.1 * rng.standard_normal(44_100), 44_100)
    write_large_model(root / "models/5b", None)
    write_large_model(root / "models/5b_lyrics", "separate")
    return root


def write_large_model(folder: Path, lyrics: Lyrics | None) -> None:
    """As narrow as other cascades of the tests, but with the layers that pages name, and songs as long as anybody's."""
    write_model(folder, levels=())  # the codec
    for level in range(3):
        config = lyric_config(lyrics) if lyrics is not None and level == 2 else prior_config(level)
        labels = dataclasses.replace(config.labels, max_duration_seconds=600.0)
        depth = 36 if level == 2 else config.depth
        config = dataclasses.replace(config, labels=labels, depth=depth)
        saved = {"kind": "prior", "model": to_dict(config), "labels": LABELS.to_json(), "codec": ""}
        params = meta.unbox(jax.jit(init_params, static_argnums=0)(config, jax.random.key(level)))
        compact.save(folder / f"level_{level}", {"params": params}, saved)


def workplace(world: Path, page: Path) -> Path:
    """Where a page's commands run: what the page on training made is there, but songs of other pages are not."""
    if page.stem == "train":
        return world
    folder = world / "pages" / page.stem
    if not folder.exists():
        folder.mkdir(parents=True)
        for path in world.iterdir():
            if path.name not in ("pages", "songs"):
                (folder / path.name).symlink_to(path)
        if page.stem == "sample" and (world / "songs").exists():
            shutil.copytree(world / "songs", folder / "songs")
    return folder


def in_order() -> list[Path]:
    """The pages, first the one that makes the data and models which the others use."""
    return sorted(PAGES, key=lambda page: page.stem != "train")


@pytest.mark.parametrize("page", in_order(), ids=lambda page: page.stem)
def test_commands_run(page, world, monkeypatch):
    monkeypatch.chdir(workplace(world, page))
    for words in commands(page):
        while "=" in words[0]:  # a variable: tests have their devices already
            words = words[1:]
        name, *arguments = words
        if name == "make":
            assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
        elif name == "pip":
            check_install(arguments)
        elif name == "python":
            assert importlib.util.find_spec(arguments[arguments.index("-m") + 1]) is not None, words
        else:
            assert name.endswith("jukebox-jax"), words
            run(arguments)


def run(arguments: list[str]) -> None:
    """A command of ours, shortened. What needs more than this machine is parsed only."""
    verb = arguments[0]
    if verb == "demo" or any(out_of_reach(argument) for argument in arguments):
        build_parser().parse_args(split_overrides(arguments)[0])
        return
    more = SHORTER.get(verb, [])
    if "--upsample" in arguments:
        more = []
    elif verb == "sample" and not {"--prompt", "--continue"}.isdisjoint(arguments):
        more = ["--seconds", "1.5"]
    assert main([*arguments, *more]) == 0, arguments


def out_of_reach(argument: str) -> bool:
    """Whether an argument is one of the released files, which nobody may ship, or starts training from one."""
    return argument.endswith(".pth.tar") or argument == "--init-from"


def check_install(arguments: list[str]) -> None:
    """Named extras are there."""
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    for extras in re.findall(r"\.\[([\w,]+)\]", " ".join(arguments)):
        assert all(f'"{extra}": [' in setup for extra in extras.split(",")), arguments


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_python_runs(page, world):
    """In a process of its own, as a reader would run it: without the type checks of the tests."""
    given = "import numpy\na = b = audio = numpy.zeros(8000, 'float32')\ntext, play = 'la la', print\n"
    shorter = re.sub(r"seconds=(\d+|\[[\d, ]+\])", "seconds=0.5", "\n".join(blocks(page, "python")))
    shorter = shorter.replace("fade_out=2", "fade_out=0.1")
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command, variables = [sys.executable, "-c", given + shorter], os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(
        command, cwd=workplace(world, page), env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_is_pointed_at_exists(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in target or (page.parent / target).exists(), target
    for file, name in re.findall(r"`([\w/]+\.py)(?::\s+(\w+))?`", text):
        paths = [path for path in (ROOT / "jukebox_jax" / file, ROOT / file) if path.exists()]
        assert paths, file
        if name:
            tree = ast.parse(paths[0].read_text(encoding="utf-8"))
            assert name in {getattr(node, "name", None) for node in ast.walk(tree)}, f"{file}: {name}"
    for folder in re.findall(r"`((?:experiments|tests|configs|docs|jukebox_jax)/[\w/.]*)`", text):
        assert (ROOT / folder).exists(), folder
    for module in re.findall(r"python -m (experiments\.\w+)", text):
        assert importlib.util.find_spec(module) is not None, module


def test_every_verb_is_shown_somewhere():
    shown = {words[1] for page in PAGES for words in commands(page) if words[0].endswith("jukebox-jax")}
    assert {verb_name(verb) for verb in VERBS} - shown == set()
