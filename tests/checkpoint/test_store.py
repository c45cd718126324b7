"""Model folders and training checkpoints on disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jukebox_jax.checkpoint import runs, store
from jukebox_jax.errors import UserError


def toy_tree(dtype=jnp.float32, leaves: int = 4, per_leaf: int = 60):
    rng = np.random.default_rng(0)
    params = {f"layer_{i}": {"kernel": jnp.asarray(rng.standard_normal(per_leaf), dtype)} for i in range(leaves)}
    return {"params": params, "model_state": {"codes": jnp.ones((5, 3), dtype), "count": jnp.int32(7)}}


def sharded_abstract(tree):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), tree)


def parts_at(step: int, ema: bool = True):
    params = {"w": jnp.full((6, 4), float(step)), "b": jnp.arange(3.0)}
    optimizer = optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(0.1))
    return {
        "params": params,
        "ema": {"w": jnp.full((6, 4), step + 0.5), "b": jnp.arange(3.0) + 0.25} if ema else None,
        "model_state": {"codes": jnp.full((2, 2), step)} if ema else {},
        "trainer": {"opt_state": optimizer.init(params), "step": jnp.int32(step)},
    }


def write_run(run_dir: Path, steps=(1, 2, 3), keep: int = 2, ema: bool = True):
    with runs.TrainingCheckpoints(run_dir, keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, parts_at(step, ema))
    store.save_config(run_dir, {"kind": "toy"})


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def damage(folder: Path):
    """Cuts every data file in half, as a full disk or a broken copy would."""
    for path in folder.rglob("*"):
        if path.is_file() and path.parent.name == "d":
            os.truncate(path, path.stat().st_size // 2)


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_model_folder_gives_back_tree_config_and_metadata(tmp_path):
    tree = toy_tree()
    store.save_model(tmp_path / "model", tree, {"width": 3}, metadata={"trained_steps": 10})
    assert_same(store.load_model(tmp_path / "model"), tree)
    assert_same(store.load_model(tmp_path / "model", tree), tree)
    assert store.load_config(tmp_path / "model") == {"width": 3}
    assert store.load_metadata(tmp_path / "model") == {"trained_steps": 10}


def test_dtype_casts_floats_alone_on_writing_and_on_reading(tmp_path):
    tree = toy_tree()
    store.save_model(tmp_path / "model", tree, {}, dtype=jnp.bfloat16)
    stored = store.load_model(tmp_path / "model")
    assert stored["params"]["layer_0"]["kernel"].dtype == jnp.bfloat16
    assert stored["model_state"]["count"].dtype == jnp.int32
    back = store.load_model(tmp_path / "model", tree, dtype=jnp.float32)
    want = tree["params"]["layer_0"]["kernel"].astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(back["params"]["layer_0"]["kernel"], want)


@pytest.mark.parametrize("leaves", [40, 150])
def test_a_shipped_model_is_small_in_few_files(tmp_path, leaves):
    tree = {"params": toy_tree(jnp.bfloat16, leaves, 900_000 // leaves)["params"]}
    store.save_model(tmp_path / "model", tree, {"width": 3})
    files = [path.relative_to(tmp_path) for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert bytes_of(tmp_path / "model") <= 1_470_000
    assert len(files) <= 9
    # A wheel leaves out no file whose name is plain.
    assert all(part.replace(".", "").replace("_", "").isalnum() for path in files for part in path.parts)


def test_a_model_folder_is_never_overwritten(tmp_path):
    store.save_model(tmp_path / "model", toy_tree(), {"width": 3})
    with pytest.raises(UserError, match="already exists"):
        store.save_model(tmp_path / "model", toy_tree(), {"width": 4})
    assert store.load_config(tmp_path / "model") == {"width": 3}


@pytest.mark.parametrize("ema", [True, False])
def test_a_run_folder_reads_as_a_model_with_its_averaged_weights(tmp_path, ema):
    write_run(tmp_path, ema=ema)
    parts = parts_at(3, ema)
    want = {"params": parts["ema"], "model_state": parts["model_state"]} if ema else {"params": parts["params"]}
    assert_same(store.load_model(tmp_path), want)
    assert_same(store.load_model(tmp_path, {"params": want["params"], "model_state": parts["model_state"]}), want)
    assert store.load_metadata(tmp_path) == {"step": 3}


@pytest.mark.parametrize("kind", ["model", "run"])
def test_parts_are_read_by_name(tmp_path, kind):
    folder = tmp_path / kind
    if kind == "model":
        store.save_model(folder, toy_tree(jnp.bfloat16), {})
        names, whole = ("params", "layer_2", "kernel"), toy_tree(jnp.bfloat16)["params"]["layer_2"]["kernel"]
    else:
        write_run(folder)
        names, whole = ("params", "w"), np.full((6, 4), 3.5)
    read = store.open_model(folder)
    found = read(names)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.asarray(whole, np.float32))
    assert set(read(names[:1])) == set(store.load_model(folder)["params"])
    assert store.stored_model(folder)["params"].keys() == read(names[:1]).keys()
    files = store.weight_files(folder)
    assert files == sorted(files)
    assert all(path.is_file() for path in files)
    damage(folder)
    with pytest.raises(UserError, match="cannot be read"):
        store.open_model(folder)(names)


def test_training_checkpoints_keep_the_latest_and_restore_the_whole_state(tmp_path):
    write_run(tmp_path)
    assert runs.steps(tmp_path) == [2, 3]
    step, parts = runs.restore_latest(tmp_path, {**sharded_abstract(parts_at(0))})
    assert step == 3
    assert_same(parts, parts_at(3))


def test_parts_without_leaves_come_back(tmp_path):
    write_run(tmp_path, ema=False)
    _, parts = runs.restore_latest(tmp_path, sharded_abstract(parts_at(0, ema=False)))
    assert parts["ema"] is None
    assert parts["model_state"] == {}


def test_arrays_may_be_donated_as_soon_as_save_returns(tmp_path):
    bump = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    state = {"params": {"w": jnp.zeros((512, 1024))}}
    with runs.TrainingCheckpoints(tmp_path, keep=20) as checkpoints:
        for step in range(1, 6):
            state = bump(state)
            checkpoints.save(step, state)
            for _ in range(3):
                state = bump(state)
            state = jax.tree.map(lambda leaf: leaf - 3, state)
    store.save_config(tmp_path, {})
    for step in (5, 4, 3, 2, 1):
        assert (np.asarray(store.load_model(tmp_path)["params"]["w"]) == step).all()
        shutil.rmtree(tmp_path / "checkpoints" / str(step))


def test_a_damaged_latest_checkpoint_is_set_aside_and_the_previous_one_used(tmp_path, capfd):
    write_run(tmp_path)
    damage(tmp_path / "checkpoints" / "3")
    step, parts = runs.restore_latest(tmp_path, sharded_abstract(parts_at(0)))
    assert step == 2
    assert_same(parts, parts_at(2))
    assert runs.steps(tmp_path) == [2]
    assert (tmp_path / "unreadable_checkpoint_3").is_dir()
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert "Checkpoint 3" in lines[0]


def test_half_written_checkpoints_are_ignored_and_cleaned_up(tmp_path):
    write_run(tmp_path)
    half = tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp"
    half.mkdir()
    assert runs.restore_latest(tmp_path, sharded_abstract(parts_at(0)))[0] == 3
    with runs.TrainingCheckpoints(tmp_path, 2) as checkpoints:
        checkpoints.save(4, parts_at(4))
    assert not half.exists()
    assert runs.steps(tmp_path) == [3, 4]


def test_no_readable_checkpoint_is_a_user_error(tmp_path):
    write_run(tmp_path)
    for step in (2, 3):
        (tmp_path / "checkpoints" / str(step) / "params" / "_METADATA").unlink()
    with pytest.raises(UserError, match="No checkpoint"):
        runs.restore_latest(tmp_path, sharded_abstract(parts_at(0)))


def test_no_checkpoint_restores_nothing(tmp_path):
    assert runs.restore_latest(tmp_path, sharded_abstract(parts_at(0))) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tree: tree["params"].update(extra={"bias": jnp.zeros(2)}), "no params/extra/bias"),
        (lambda tree: tree["params"].pop("layer_1"), "this model has no params/layer_1/kernel"),
        (
            lambda tree: tree["params"]["layer_2"].update(kernel=jnp.zeros((6, 10))),
            r"params/layer_2/kernel has shape \(60,\) there and \(6, 10\) here",
        ),
        (lambda tree: tree.pop("model_state"), "this model has no model_state/codes"),
    ],
)
def test_a_checkpoint_of_another_model_names_the_first_difference(tmp_path, change, words):
    store.save_model(tmp_path / "model", toy_tree(), {})
    other = toy_tree()
    change(other)
    with pytest.raises(UserError, match=words):
        store.load_model(tmp_path / "model", other)


def test_resuming_with_another_model_is_refused_not_taken_for_damage(tmp_path):
    write_run(tmp_path)
    other = parts_at(0)
    other["params"]["w"] = jnp.zeros((6, 5))
    with pytest.raises(UserError, match="params/w has shape"):
        runs.restore_latest(tmp_path, sharded_abstract(other))
    assert runs.steps(tmp_path) == [2, 3]


def test_what_is_no_checkpoint_is_a_user_error(tmp_path, capfd):
    with pytest.raises(UserError, match="no checkpoint folder"):
        store.load_model(tmp_path / "none")
    with pytest.raises(UserError, match="is no checkpoint"):
        store.load_config(tmp_path)
    store.save_config(tmp_path, {})
    with pytest.raises(UserError, match="no complete checkpoint"):
        store.load_model(tmp_path)
    store.save_model(tmp_path / "model", toy_tree(), {})
    damage(tmp_path / "model")
    with pytest.raises(UserError, match="cannot be read"):
        store.load_model(tmp_path / "model")
    store.save_model(tmp_path / "other", toy_tree(), {})
    (tmp_path / "other" / "weights" / "weights" / "_METADATA").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        store.load_model(tmp_path / "other")
    assert capfd.readouterr().err == ""
