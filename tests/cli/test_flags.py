"""Config files and the values changed on the command line."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from jukebox_jax.cli.flags import load_config
from jukebox_jax.cli.main import main, split_overrides
from jukebox_jax.errors import UserError

CONFIG = """
from __future__ import annotations

from dataclasses import dataclass, replace

from jukebox_jax.errors import UserError


@dataclass(frozen=True)
class Level:
    width: int = 32
    growth: float = 3


@dataclass(frozen=True)
class Optimizer:
    learning_rate: float = 1
    clip: float | None = None
    warmup_steps: int | None = 100


@dataclass(frozen=True)
class Run:
    name: str = "toy"
    masked: bool = True
    strides: tuple[int, ...] = (2, 2)
    scales: tuple[float, ...] = (0.5, 1.0)
    pairs: tuple[tuple[int, int], ...] = ((1, 2), (3, 4))
    levels: tuple[Level, ...] = (Level(), Level(64))
    optimizer: Optimizer = Optimizer()
    teacher: Optimizer | None = Optimizer()


def get_config(variant: str = "small"):
    if variant == "small":
        return Run()
    if variant == "named":
        return replace(Run(), name="named")
    raise UserError(f"no variant {variant!r}: choose small or named.")
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "toy.py"
    path.write_text(CONFIG)
    return path


def test_without_overrides_the_config_comes_back_as_it_was(config_file):
    config = load_config(f"{config_file}")
    assert type(config).__name__ == "Run"
    assert (config.name, config.strides, config.levels[1].width) == ("toy", (2, 2), 64)
    assert load_config(f"{config_file}:named").name == "named"


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("name=other words", lambda c: c.name, "other words"),
        ("name=a=b", lambda c: c.name, "a=b"),
        ("name=12", lambda c: c.name, "12"),
        ("masked=false", lambda c: c.masked, False),
        ("strides=(4,2,2)", lambda c: c.strides, (4, 2, 2)),
        ("strides=(4,)", lambda c: c.strides, (4,)),
        ("scales=(1,2)", lambda c: c.scales, (1.0, 2.0)),
        ("pairs=((5,6),)", lambda c: c.pairs, ((5, 6),)),
        ("levels[1].width=7", lambda c: [level.width for level in c.levels], [32, 7]),
        ("levels[0].growth=2.5", lambda c: c.levels[0].growth, 2.5),
        ("optimizer.learning_rate=1e-4", lambda c: c.optimizer.learning_rate, 1e-4),  # the default is the int 1
        ("optimizer.learning_rate=2", lambda c: c.optimizer.learning_rate, 2.0),
        ("optimizer.clip=1", lambda c: c.optimizer.clip, 1.0),
        ("optimizer.clip=0.5", lambda c: c.optimizer.clip, 0.5),
        ("optimizer.warmup_steps=none", lambda c: c.optimizer.warmup_steps, None),
        ("optimizer.warmup_steps=7", lambda c: c.optimizer.warmup_steps, 7),
        ("teacher=none", lambda c: c.teacher, None),
    ],
)
def test_an_override_changes_one_value_and_keeps_its_type(config_file, override, read, expected):
    value = read(load_config(f"{config_file}", [f"--config.{override}"]))
    assert value == expected
    assert type(value) is type(expected)


def test_the_last_of_two_overrides_holds(config_file):
    overrides = ["--config.optimizer.clip=1", "--config.name=x", "--config.optimizer.clip=2"]
    config = load_config(f"{config_file}", overrides)
    assert (config.optimizer.clip, config.name) == (2.0, "x")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.learning_rte=1", "did you mean --config.optimizer.learning_rate?"),
        ("learning_rate=1", ".learning_rate?"),
        ("lr=1", "has no such value"),
        ("level[0].width=1", "did you mean --config.levels[0].width?"),
        ("levels[2].width=1", "did you mean --config.levels["),
        ("optimizer=fast", "did you mean --config.optimizer.learning_rate?"),
        ("strides[0]=1", "did you mean --config.strides?"),
        ("optimizer.learning_rate=fast", "--config.optimizer.learning_rate=fast"),
        ("optimizer.warmup_steps=1.5", "--config.optimizer.warmup_steps=1.5"),
        ("optimizer.clip=hard", "optimizer.clip"),
        ("masked=perhaps", "--config.masked=perhaps"),
        ("strides=(2,two)", "strides"),
        ("strides=(2,0.5)", "strides"),
        ("strides=(2", "strides"),
        ("name=none", "name"),
        ("optimizer=none", "optimizer"),
    ],
)
def test_a_mistaken_override_is_one_sentence(config_file, override, words):
    with pytest.raises(UserError) as caught:
        load_config(f"{config_file}", [f"--config.{override}"])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def get_config(:", "line 1: SyntaxError"),
        ("import nothing_of_this_name", "line 1: ModuleNotFoundError"),
        ("\ndef get_config():\n    return 1 / 0", "line 3: ZeroDivisionError"),
        ("def get_config():\n    return {'width': 3}", "Expected an instance of a dataclass"),
        ("width = 3", "get_config"),
    ],
)
def test_a_config_file_that_fails_is_named_with_its_line(tmp_path, source, words):
    path = tmp_path / "broken.py"
    path.write_text(source)
    with pytest.raises(UserError, match=r"broken\.py") as caught:
        load_config(f"{path}")
    assert words in str(caught.value)


def test_missing_files_and_unknown_variants(config_file):
    with pytest.raises(UserError, match="there is no file"):
        load_config("absent.py:small")
    with pytest.raises(UserError, match=r"FILE\.py:VARIANT"):
        load_config("small")
    with pytest.raises(UserError, match="choose small or named"):
        load_config(f"{config_file}:large")


def test_overrides_are_parted_from_the_rest():
    argv = ["train", "--config.a.b", "3", "--out", "run", "--config.switch", "--config.c=x y", "--config.d", "-1"]
    plain, overrides = split_overrides(argv)
    assert plain == ["train", "--out", "run"]
    assert overrides == ["--config.a.b=3", "--config.switch=true", "--config.c=x y", "--config.d=-1"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config={file}:large"],
        ["--config={file}", "--config.optimizer.learning_rte=1"],
        ["--config={file}", "--config.optimizer.learning_rate=fast"],
        ["--config=absent.py"],
    ],
)
def test_train_answers_mistakes_with_one_line_and_writes_nothing(config_file, tmp_path, capsys, arguments):
    arguments = [argument.format(file=config_file) for argument in arguments]
    run = tmp_path / "run"
    status = main(["train", *arguments, "--data", str(tmp_path / "data"), "--out", str(run)])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith("jukebox-jax: error: ")
    assert err.count("\n") == 1
    assert not run.exists()


@pytest.mark.parametrize("seed", ["-1", "4294967296"])
def test_a_seed_that_no_random_key_takes_is_refused(seed):
    vqvae = Path(__file__).parents[2] / "configs" / "vqvae.py"
    with pytest.raises(UserError, match=rf"train\.seed cannot be {seed}: it must be from 0 to 4294967295"):
        load_config(f"{vqvae}", [f"--config.train.seed={seed}"])
    assert load_config(f"{vqvae}", ["--config.train.seed=4294967295"]).train.seed == 2**32 - 1


def test_every_shipped_config_loads():
    files = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
    for path in files:
        source = textwrap.shorten(path.read_text(), 200)
        assert source.startswith('"""'), f"{path.name}: the docstring holds the command and what to expect"
        load_config(str(path))
