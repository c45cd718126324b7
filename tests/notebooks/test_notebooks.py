"""Every notebook from top to bottom, twice in the same folder, with short settings in place of its own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from jukebox_jax.corpus.demo_corpus import demo_folder

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments/notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
#: What takes the place of values in the cell that is tagged "parameters".
SHORT = {
    "1_sample_and_choose": "DRAFTS, SECONDS, LONGER = 2, 1.5, 2.5",
    "2_train_on_your_music": (
        'MUSIC = "music"\n'
        "EFFORT = Effort(codec_seconds=None, codec_steps=(3, 3), prior_seconds=None, prior_steps=(2, 2))\nSECONDS = 0.5"
    ),
    "3_plan_before_you_rent": 'CONFIG, TOPOLOGIES = "configs/prior.py:small", ["v5e:4x4", "gpu:8xh100"]',
    "4_features": "SECONDS = 6.0",
}


def short(name: str) -> nbformat.NotebookNode:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    (place,) = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(SHORT[name]))
    return notebook


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a notebook in a folder; returns all that it showed."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = short(name)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return "\n".join(str(output) for cell in notebook.cells for output in cell.get("outputs", ()))


def test_all_are_known():
    assert [path.stem for path in NOTEBOOKS] == list(SHORT)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_are_kept_without_output(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert "google.colab" in code[0].source


def test_sample_and_choose(tmp_path, monkeypatch):
    shown = run("1_sample_and_choose", tmp_path, monkeypatch)
    assert shown.count("<audio") == 2 * 2 + 2 + 2
    first = (tmp_path / "songs/mine.tokens.npz").read_bytes()
    assert (tmp_path / "songs/mine.mp3").stat().st_size > 1000
    run("1_sample_and_choose", tmp_path, monkeypatch)
    assert (tmp_path / "songs/mine.tokens.npz").read_bytes() == first


def test_train_on_your_music(tmp_path, monkeypatch):
    for part, name in (("train", "clara-schumann-op1-4"), ("validation", "clara-schumann-op1-3")):
        folder = tmp_path / "music" / part / "Clara Schumann"
        folder.mkdir(parents=True)
        shutil.copy(demo_folder() / f"{name}.ogg", folder)
    shown = run("2_train_on_your_music", tmp_path, monkeypatch)
    assert shown.count("image/png") >= 4  # a live picture of each model
    assert shown.count("<audio") == 3
    shown = run("2_train_on_your_music", tmp_path, monkeypatch)  # what is trained is not trained again
    assert shown.count("<audio") == 3


def test_plan_before_you_rent(tmp_path, monkeypatch):
    shown = run("3_plan_before_you_rent", tmp_path, monkeypatch)
    assert "Sharding plan" in shown
    assert "per 10⁹ tokens" in shown
    assert "image/png" in shown


def test_features(tmp_path, monkeypatch):
    shown = run("4_features", tmp_path, monkeypatch)
    assert "Windows of held-out pieces:" in shown
