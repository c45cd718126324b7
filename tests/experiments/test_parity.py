"""The parity tool: it passes what agrees, and fails whatever is changed, renamed, added, taken away or damaged."""

from __future__ import annotations

import copy
import functools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from recorded import PART, fixtures, recorded

from experiments.parity import run as runner
from experiments.parity.__main__ import main
from experiments.parity.fixture import Fixture, load, of_tree
from experiments.parity.report import EXACT, GRADIENT, OTHER, Check, Tolerance, compare

INPUTS = ("in/", "sd", "/in/", "/sd/")


def filtered(logits, top_k, top_p):
    """The filter by its definition, one row at a time."""
    out = np.full_like(logits, -np.inf)
    for row, kept in zip(logits.reshape(-1, logits.shape[-1]), out.reshape(-1, logits.shape[-1]), strict=True):
        order = np.argsort(-row, kind="stable")
        if top_k:
            order = order[row[order] >= row[order[min(top_k, len(row)) - 1]]]
        elif top_p:
            probability = np.exp(row[order].astype(np.float64))
            before = np.cumsum(probability / probability.sum()) - probability / probability.sum()
            order = order[before <= top_p]
        kept[order] = row[order]
    return out


@pytest.fixture
def folder(tmp_path):
    """A folder with one fixture that the package agrees with, made without it."""
    rng = np.random.default_rng(3)
    logits = (2 * rng.standard_normal((3, 1, 17))).astype(np.float32)
    cases = [(1.0, 0, 0.0), (0.5, 4, 0.0), (1.3, 0, 0.6), (0.98, 40, 0.0)]
    arrays, listed = {"in/logits": logits}, []
    for index, (temp, top_k, top_p) in enumerate(cases):
        key = f"out/logits_f{index}"
        arrays[key] = filtered(logits / np.float32(temp), top_k, top_p)
        kept = np.isfinite(arrays[key]).sum(axis=(1, 2)).tolist()
        listed.append({"key": key, "temp": temp, "top_k": top_k, "top_p": top_p, "kept": kept})
    write(tmp_path / "made", arrays, {"cases": listed, "both_top_k_and_top_p": "AssertionError"})
    return tmp_path


def write(stem, arrays, extra, **tree):
    np.savez(stem, **arrays)
    declared = {name: {"shape": list(array.shape), "dtype": str(array.dtype)} for name, array in arrays.items()}
    tree = {"fixture": stem.name, "set": "made", "config": {}, "extra": extra, "arrays": declared} | tree
    stem.with_suffix(".json").write_text(json.dumps(tree))


def status(capsys, *paths):
    code = main([str(path) for path in paths])
    return code, capsys.readouterr().out.splitlines()


def computed(fixture):
    return runner.compute(fixture, runner.set_of(fixture))


def failures(lines):
    return [str(line) for line in lines if not line.passed]


# ---- The command ------------------------------------------------------------------------------------------------


def test_agreement_is_a_line_for_each_quantity_and_status_0(folder, capsys):
    code, lines = status(capsys, folder)
    assert code == 0
    assert lines[-1] == f"{len(lines) - 1} passed, 0 failed"
    name, error, tolerance, verdict = lines[0].split("  ")
    assert (name, tolerance, verdict) == ("made/out/logits_f0", "1e-05+1e-04*|x|", "ok")
    assert 0 <= float(error) < 1e-5
    for path in ("made.npz", "made.json"):
        assert status(capsys, folder / path) == (0, lines)
    assert status(capsys, folder, folder / "made.npz") == (0, lines)


def test_paths_without_a_readable_fixture_fail_with_a_line_each(folder, capsys):
    (folder / "empty").mkdir()
    (folder / "text.txt").write_text("no fixture")
    for path in (folder / "empty", folder / "nowhere", folder / "text.txt"):
        code, lines = status(capsys, path)
        assert code == 1
        assert lines == [f"{path}  no fixture here  -  FAIL", "0 passed, 1 failed"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda stem: stem.with_suffix(".json").unlink(), "is missing"),
        (lambda stem: stem.with_suffix(".npz").unlink(), "is missing"),
        (lambda stem: stem.with_suffix(".json").write_text("{"), "is not JSON"),
        (lambda stem: stem.with_suffix(".json").write_text("[1]"), "does not hold an object"),
        (lambda stem: stem.with_suffix(".npz").write_bytes(b"PK\x03\x04 no more"), "cannot be read"),
        (lambda stem: write(stem, {"out/x": np.zeros(1)}, {}), "belongs to no known set"),
        (lambda stem: write(stem, {"out/x": np.array([{}])}, {"cases": []}), "cannot be read"),
        (lambda stem: write(stem, {}, {"cases": [{"key": "out/x"}]}), "KeyError"),
    ],
)
def test_damage_is_told_in_a_line(folder, capsys, change, reason):
    change(folder / "made")
    code, lines = status(capsys, folder)
    assert code == 1
    assert any(reason in line and line.endswith("FAIL") for line in lines)


def test_a_pickle_in_an_npz_is_never_run(folder, capsys):
    class Trap:
        def __reduce__(self):
            return Path.touch, (folder / "trapped",)

    write(folder / "made", {"out/x": np.array([Trap()], object)}, {"cases": []})
    assert status(capsys, folder)[0] == 1
    assert not (folder / "trapped").exists()


def test_usage_errors_exit_with_2():
    for arguments in ([], ["--no-such-option"]):
        with pytest.raises(SystemExit) as raised:
            main(arguments)
        assert raised.value.code == 2


def test_the_module_runs_from_the_repository_root(folder):
    command = [sys.executable, "-m", "experiments.parity", str(folder)]
    result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith(" passed, 0 failed\n")


# ---- Comparing --------------------------------------------------------------------------------------------------


def test_tolerances_are_absolute_relative_and_of_the_largest():
    values = np.array([0.0, 1.0, -100.0, np.inf])
    np.testing.assert_allclose(Tolerance(1e-5, 1e-4).allowed(values), [1e-5, 1.1e-4, 1.001e-2, 1e-5])
    np.testing.assert_allclose(GRADIENT.allowed(values), 0.1)
    assert [str(t) for t in (EXACT, OTHER, GRADIENT)] == ["exact", "1e-05+1e-04*|x|", "1e-03*max|x|"]


@pytest.mark.parametrize(
    ("there", "here", "agrees"),
    [
        (np.float32([1, np.inf]), np.float32([1, np.inf]), True),
        (np.float32([1, np.inf]), np.float32([1, 2]), False),
        (np.float32([1, -np.inf]), np.float32([1, np.inf]), False),
        (np.float32([np.nan]), np.float32([np.nan]), False),
        (np.float32([1]), np.float64([1]), False),
        (np.float32([1]), np.float32([[1]]), False),
        (np.zeros((3, 0), np.float32), np.zeros((3, 0), np.float32), True),
        (3, 3, True),
        (3, 4, False),
        (True, 1, False),
        (None, 0, False),
        ("a", "b", False),
        ([1, [2]], [1, [2]], True),
        ([1, 2], [1], False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
    ],
)
def test_what_agrees(there, here, agrees):
    fixture = Fixture("f", Path(), {}, {"x": there})
    (line,) = compare(fixture, [Check("x", here)])
    assert line.passed == agrees


def test_an_array_may_be_an_input_or_checked_but_not_neither():
    one = np.ones(2, np.float32)
    fixture = Fixture("f", Path(), {}, {"a": one, "b": one, "c": one}, dict.fromkeys("abd", ((2,), "float32")))
    lines = {line.name: line for line in compare(fixture, [Check("a", one)], read={"b"})}
    assert [name for name, line in lines.items() if line.passed] == ["f/a"]
    assert {name: line.error for name, line in lines.items() if not line.passed} == {
        "f/c": "not checked",
        "f/d": "missing",
    }


# ---- Recorded numbers -------------------------------------------------------------------------------------------


@functools.cache
def room_of(name):
    """A recorded fixture and what the package computes for it, once for all tests."""
    fixture = load(recorded(f"{name}.json").with_suffix(""))
    return fixture, computed(fixture)


# Those in tests/golden at once; all of them together take minutes.
BRIEF = [name for name in fixtures() if (PART / f"{name}.json").exists()]
LONG = [pytest.param(name, marks=pytest.mark.slow) for name in fixtures() if name not in BRIEF]


@pytest.mark.parametrize("name", BRIEF + LONG)
def test_every_recorded_quantity_agrees(name):
    lines = runner.verdict(*room_of(name))
    assert lines
    assert not failures(lines)


# ---- Recorded numbers, changed ----------------------------------------------------------------------------------


def nudged(array, tolerance, rng):
    """The array with one element off by ten times its tolerance."""
    changed = array.copy()
    finite = np.argwhere(np.isfinite(array))
    index = tuple(rng.choice(finite))
    step = 1 if array.dtype.kind in "iu" else 10 * np.broadcast_to(tolerance.allowed(array), array.shape)[index]
    changed[index] += step or np.float32(1e-3)
    return changed


def check_that_changes_fail(fixture, room):
    """Perturbs, renames, adds and removes every recorded output that served as no input."""
    rng = np.random.default_rng(0)
    tolerances = {check.name: check.tolerance for check in room.checks}
    assert not failures(runner.verdict(fixture, room))
    for name, array in fixture.arrays.items():
        if name.startswith(INPUTS) or any(part in name for part in INPUTS[2:]):
            assert name in room.read
            continue
        others = {key: value for key, value in fixture.arrays.items() if key != name}
        variants = {
            "removed": (others, fixture.declared),
            "renamed": (others | {f"{name}x": array}, fixture.declared),
            "added": (fixture.arrays | {f"{name}x": array}, fixture.declared),
            "added and declared": (
                fixture.arrays | {f"{name}x": array},
                fixture.declared | {f"{name}x": fixture.declared[name]},
            ),
            "other type": (others | {name: array.astype(np.float64)}, fixture.declared),
        }
        if array.size and name not in room.read:
            variants["changed"] = (others | {name: nudged(array, tolerances[name], rng)}, fixture.declared)
        for kind, (arrays, declared) in variants.items():
            changed = replace(fixture, arrays=arrays, declared=declared)
            assert failures(runner.verdict(changed, room)), f"{name} {kind}"


def test_every_change_of_a_made_fixture_fails(folder):
    fixture = load(folder / "made")
    check_that_changes_fail(fixture, computed(fixture))


@pytest.mark.parametrize("name", ["e_filter_logits", "i_train_utils", "b_prior_order02", "c1_top_uncond"])
def test_every_change_of_recorded_arrays_fails(name):
    check_that_changes_fail(*room_of(name))


@pytest.mark.slow
def test_every_change_of_a_recorded_codec_fails():
    fixture, room = room_of("a2_vqvae")
    check_that_changes_fail(fixture, room)
    # These served as inputs, so that the codec has to be run again to notice.
    rng = np.random.default_rng(1)
    for case, level in (("ema_restart", 0), ("ema_init", 0), ("ema_init", 1)):
        names = [f"out/{case}/perm_l{level}", f"out/{case}/k_elem_l{level}"]
        names += [f"out/{case}/init_perm_l{level}", f"out/{case}/init_k_l{level}"] if case == "ema_init" else []
        names += ["out/z_l0", "out/dec_from_l0"] if case == "ema_restart" else []
        tolerances = {check.name: check.tolerance for check in room.checks}
        for name in names:
            array = nudged(fixture.arrays[name], tolerances[name], rng)
            changed = replace(fixture, arrays=fixture.arrays | {name: array})
            assert failures(runner.verdict(changed, computed(changed))), name


def altered(value):
    """A JSON value unlike the given one."""
    if isinstance(value, list):
        return [altered(value[0]), *value[1:]] if value else [1]
    if isinstance(value, dict):
        return value | {"added": 1}
    if isinstance(value, bool) or value is None:
        return 3
    return f"{value}x" if isinstance(value, str) else value + 1


@pytest.mark.parametrize("name", ["d_labels", "f_sampling_plan", "g_manifest_small"])
def test_every_change_of_recorded_json_fails(name):
    fixture, room = room_of(name)
    assert not failures(runner.verdict(fixture, room))
    outputs = [leaf for leaf in fixture.arrays if leaf not in room.read]
    chosen = np.random.default_rng(0).choice(outputs, min(len(outputs), 15), replace=False)
    for leaf in chosen:
        *path, last = leaf.split("/")
        for change in ("changed", "removed", "renamed", "added"):
            tree = copy.deepcopy(fixture.tree)
            node = tree
            for part in path:
                node = node[int(part)] if isinstance(node, list) else node[part]
            if change == "changed":
                node[last] = altered(node[last])
            elif change == "added":
                node[f"{last}x"] = node[last]
            else:
                value = node.pop(last)
                node |= {f"{last}x": value} if change == "renamed" else {}
            assert failures(runner.verdict(of_tree(tree, fixture.path), room)), f"{leaf} {change}"


def test_checkpoints_agree_and_another_byte_does_not(tmp_path, capsys):
    for path in recorded("checkpoints").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    code, lines = status(capsys, tmp_path)
    assert (code, lines[-1].split(", ")[1]) == (0, "0 failed")
    with (tmp_path / "vqvae.pth.tar").open("ab") as file:
        file.write(b"x")
    (tmp_path / "stranger.pth.tar").write_bytes(b"")
    code, lines = status(capsys, tmp_path)
    assert code == 1
    assert sum("vqvae.pth.tar" in line for line in lines if line.endswith("FAIL")) >= 1
    assert sum("stranger.pth.tar" in line for line in lines if line.endswith("FAIL")) == 1
