"""What can happen to checkpoints on a disk: bytes change, files go, space runs out, the best one is wanted back."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jukebox_jax import __version__
from jukebox_jax.checkpoint import runs, store
from jukebox_jax.errors import UserError


def parts_at(step: int, size: int = 400):
    rng = np.random.default_rng(step)
    weights = jnp.asarray(rng.standard_normal(size), jnp.float32)
    return {"params": {"w": weights}, "trainer": {"moment": weights + 1, "step": jnp.int32(step)}}


def abstract_of(parts):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), parts)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "run"
    with runs.TrainingCheckpoints(folder, 2, config={"width": 3}) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, parts_at(step))
    store.save_config(folder, {})
    return folder


@pytest.fixture
def run(written, tmp_path) -> Path:
    shutil.copytree(written, tmp_path / "run")
    return tmp_path / "run"


def data_files(checkpoint: Path) -> list[Path]:
    return [path for path in checkpoint.rglob("*") if path.is_file() and path.parent.name == "d"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def empty(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


DAMAGES = {
    "a bit in each file": lambda checkpoint: [flip(path) for path in data_files(checkpoint)],
    "cut short": lambda checkpoint: [os.truncate(path, path.stat().st_size // 2) for path in data_files(checkpoint)],
    "a data file is gone": lambda checkpoint: data_files(checkpoint)[0].unlink(),
    "no metadata": lambda checkpoint: (checkpoint / "params" / "_METADATA").unlink(),
    "garbled metadata": lambda checkpoint: (checkpoint / "_CHECKPOINT_METADATA").write_bytes(b"\0\xff{"),
    "a part is gone": lambda checkpoint: shutil.rmtree(checkpoint / "trainer"),
    "empty": empty,
    "garbled sums": lambda checkpoint: (checkpoint / "SHA256SUMS.0").write_bytes(b"\xff\0 x"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_with_a_line(run, damage, capfd):
    DAMAGES[damage](run / "checkpoints" / "2")
    step, parts = runs.restore_latest(run, abstract_of(parts_at(0)))
    assert step == 1
    np.testing.assert_array_equal(parts["trainer"]["moment"], parts_at(1)["trainer"]["moment"])
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"Checkpoint 2 of {run} cannot be read (")
    assert runs.steps(run) == [1]
    assert (run / "unreadable_checkpoint_2").is_dir()


def test_a_bit_anywhere_in_the_arrays_is_noticed(run):
    checkpoint = run / "checkpoints" / "2"
    for path in data_files(checkpoint):
        before = path.read_bytes()
        flip(path)
        with pytest.raises(UserError, match="has changed since it was written"):
            runs.restore(run, 2, abstract_of(parts_at(0)))
        path.write_bytes(before)
    assert int(runs.restore(run, 2, abstract_of(parts_at(0)))["trainer"]["step"]) == 2


def test_the_sums_are_those_of_sha256sum(run):
    for step in (1, 2):
        folder = run / "checkpoints" / str(step)
        listed = {line[66:] for line in (folder / "SHA256SUMS.0").read_text().splitlines()}
        there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert listed == there - {"SHA256SUMS.0"}
        if shutil.which("sha256sum"):
            subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS.0"], cwd=folder, check=True)


def test_a_checkpoint_without_sums_is_read(run):
    (run / "checkpoints" / "2" / "SHA256SUMS.0").unlink()
    assert runs.restore_latest(run, abstract_of(parts_at(0)))[0] == 2


def test_weights_are_read_without_looking_at_the_optimizer(run):
    shutil.rmtree(run / "checkpoints" / "2" / "trainer" / "d")
    shutil.rmtree(run / "checkpoints" / "2" / "trainer" / "ocdbt.process_0")
    np.testing.assert_array_equal(store.load_model(run)["params"]["w"], parts_at(2)["params"]["w"])
    for path in data_files(run / "checkpoints" / "2" / "params"):
        flip(path)
    with pytest.raises(UserError, match="cannot be read"):
        store.load_model(run)


@pytest.mark.parametrize("damage", ["garbled metadata", "empty"])
def test_a_garbled_older_checkpoint_does_not_disturb_the_next_save(run, damage):
    DAMAGES[damage](run / "checkpoints" / "1")
    with runs.TrainingCheckpoints(run, 2, keep_best=1) as checkpoints:
        checkpoints.save(3, parts_at(3), {"eval_loss": 1.0})
    assert runs.steps(run) == [2, 3]
    assert runs.restore_latest(run, abstract_of(parts_at(0)))[0] == 3


def test_garbled_metrics_do_not_stop_a_run(tmp_path):
    save_measured(tmp_path / "run", {1: 2.0, 2: 1.0, 3: 3.0}, keep=1, keep_best=1)
    assert runs.steps(tmp_path / "run") == [2, 3]
    DAMAGES["garbled metadata"](tmp_path / "run" / "checkpoints" / "2")
    save_measured(tmp_path / "run", {4: 4.0}, keep=1, keep_best=1)
    assert runs.steps(tmp_path / "run") == [3, 4]
    assert runs.best_step(tmp_path / "run") == 3


def test_versions_config_and_metrics_are_stored_with_a_checkpoint(run):
    about = runs.describe(run, 2)
    assert about == {"jukebox_jax": __version__, "jax": jax.__version__, "config": {"width": 3}, "metrics": {}}
    with pytest.raises(UserError, match="no checkpoint of step 7: it has 1, 2"):
        runs.restore(run, 7, abstract_of(parts_at(0)))


def test_another_version_is_named_where_a_checkpoint_does_not_fit(run):
    about = run / "checkpoints" / "2" / "_CHECKPOINT_METADATA"
    about.write_text(about.read_text().replace(f'"jukebox_jax": "{__version__}"', '"jukebox_jax": "0.0.1"'))
    (run / "checkpoints" / "2" / "SHA256SUMS.0").unlink()
    with pytest.raises(UserError, match=rf"\(written by version 0\.0\.1; this is {__version__}\).*params/w has shape"):
        runs.restore(run, 2, abstract_of(parts_at(0, size=3)))


# ---- The best ones ------------------------------------------------------------------------------------------------


def save_measured(folder: Path, values: dict[int, float | None], keep: int, keep_best: int, **options) -> None:
    with runs.TrainingCheckpoints(folder, keep, keep_best=keep_best, **options) as checkpoints:
        for step, value in values.items():
            checkpoints.save(step, parts_at(step), None if value is None else {"eval_loss": value, "eval_more": step})


def test_the_best_stay_beside_the_latest(tmp_path):
    values = {1: 3.0, 2: 1.0, 3: float("nan"), 4: 1.5, 5: None, 6: 9.0, 7: 8.0}
    save_measured(tmp_path / "run", values, keep=2, keep_best=2)
    assert runs.steps(tmp_path / "run") == [2, 4, 6, 7]
    # A resumed run knows what was measured before.
    save_measured(tmp_path / "run", {8: 1.25}, keep=1, keep_best=2)
    assert runs.steps(tmp_path / "run") == [2, 8]
    assert runs.describe(tmp_path / "run", 8)["metrics"] == {"eval_loss": 1.25}
    save_measured(tmp_path / "run", {9: None}, keep=1, keep_best=0)
    assert runs.steps(tmp_path / "run") == [9]


def test_weights_of_the_best_and_of_a_step(tmp_path):
    run = tmp_path / "run"
    save_measured(run, {1: 2.0, 2: 1.0, 3: 4.0}, keep=1, keep_best=2)
    store.save_config(run, {"kind": "toy"})
    for name, step in ((run, 3), (f"{run}@best", 2), (f"{run}@1", 1), (f"{run}@3", 3)):
        np.testing.assert_array_equal(store.load_model(name)["params"]["w"], parts_at(step)["params"]["w"])
        assert store.load_config(name) == {"kind": "toy"}
        assert store.load_metadata(name) == {"step": step}
    with pytest.raises(UserError, match="no checkpoint of step 4: it has 1, 2, 3"):
        store.load_model(f"{run}@4")
    with pytest.raises(UserError, match=r"no checkpoint folder .*@bset"):
        store.load_model(f"{run}@bset")
    for path in data_files(run / "checkpoints" / "2"):
        flip(path)
    (run / "checkpoints" / "2" / "_CHECKPOINT_METADATA").write_bytes(b"{")
    assert runs.best_step(run) == 1  # of those that can be read


def test_the_best_is_the_latest_where_nothing_was_measured(run):
    assert runs.best_step(run) == 2
    store.save_model(run / "model", {"params": {"w": jnp.ones(3)}}, {})
    assert store.load_model(f"{run}/model@best")["params"]["w"].shape == (3,)


def test_a_run_goes_back_and_saves_the_same_steps_again(run):
    with runs.TrainingCheckpoints(run, 5) as checkpoints:
        checkpoints.save(3, parts_at(3))
        checkpoints.save(4, parts_at(4))
        checkpoints.forget_after(2)
        assert runs.steps(run) == [1, 2]
        checkpoints.save(3, parts_at(33))
        checkpoints.wait()
        step, parts = runs.restore_latest(run, abstract_of(parts_at(0)))
    assert step == 3
    np.testing.assert_array_equal(parts["params"]["w"], parts_at(33)["params"]["w"])


# ---- A full disk --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def files_may_not_grow():
    """The system refuses to let files grow, which is what a full disk does to a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save_on_a_full_disk(run: Path, ended_by: BaseException | None = None) -> None:
    with files_may_not_grow(), runs.TrainingCheckpoints(run, 2) as checkpoints:
        checkpoints.save(3, parts_at(3, size=100_000))
        if ended_by is not None:
            raise ended_by


def test_a_full_disk_is_told_in_a_line_and_leaves_the_previous_checkpoint(run, capfd):
    with pytest.raises(UserError) as refused:
        save_on_a_full_disk(run)
    text = str(refused.value)
    assert "\n" not in text
    assert f"A checkpoint of {run} could not be written (File too large): make room" in text
    assert "goes on from step 2" in text
    assert capfd.readouterr().err == ""
    assert runs.steps(run) == [1, 2]
    assert runs.restore_latest(run, abstract_of(parts_at(0)))[0] == 2
    with runs.TrainingCheckpoints(run, 2) as checkpoints:
        checkpoints.save(3, parts_at(3, size=100_000))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["2", "3"]


def test_the_next_save_tells_of_a_full_disk(run):
    with files_may_not_grow(), runs.TrainingCheckpoints(run, 2) as checkpoints:
        checkpoints.save(3, parts_at(3, size=100_000))
        with pytest.raises(UserError, match="could not be written"):
            checkpoints.save(4, parts_at(4, size=100_000))
    assert runs.steps(run) == [1, 2]


def test_what_ends_a_run_is_not_hidden_by_a_full_disk(run):
    with pytest.raises(KeyboardInterrupt):
        save_on_a_full_disk(run, KeyboardInterrupt())
    assert runs.steps(run) == [1, 2]


def test_other_mistakes_are_not_taken_for_a_full_disk(run):
    with pytest.raises(KeyError, match="object"), runs.TrainingCheckpoints(run, 2) as checkpoints:
        checkpoints.save(3, {"params": {"w": object()}})
    json.loads((run / "checkpoints" / "2" / "_CHECKPOINT_METADATA").read_text())
