"""The order of the house: imports run one way, and heavy libraries load only where they are used."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jukebox_jax"

# From the ground up; a module imports from its own package and from lower floors. Neighbours on one floor may lean on
# one another only in one direction, and models and parallel never: mathematics knows no mesh, and a mesh no model.
FLOORS = [
    {"errors", "files", "config", "remote"},
    {"labels", "audio"},
    {"models", "pipeline", "parallel"},
    {"corpus", "interop", "checkpoint"},
    {"sampling"},
    {"training", "evaluation", "embedding"},
    {"export"},
    {"recipe"},
    {"planning", "song"},
    {"api", "demo"},
    {"notebook"},
    {"cli", "__main__"},
]
STRANGERS = [{"models", "parallel"}, {"models", "pipeline"}]
HEAVY = [
    "tensorflow",
    "tensorflow_datasets",
    "array_record",
    "soundfile",
    "soxr",
    "av",
    "tinysoundfont",
    "matplotlib",
    "mutagen",
    "pyloudnorm",
    "c2pa",
    "cryptography",
    "pyarrow",
    "tensorboardX",
    "wandb",
    "torch",
]


def rooms_imported(source: str, module: str) -> set[str]:
    """The first names below jukebox_jax that a module's source imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top == "jukebox_jax" and rest and not rest.startswith("__version__"):
                found.add(rest.split(".")[0])
    return found


def edges() -> dict[str, set[str]]:
    """Which room imports which others."""
    graph: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        room = parts[1]
        if room == "__init__":
            continue
        graph.setdefault(room, set()).update(rooms_imported(path.read_text(encoding="utf-8"), ".".join(parts)) - {room})
    return graph


def floor(room: str) -> int:
    for index, rooms in enumerate(FLOORS):
        if room in rooms:
            return index
    raise AssertionError(f"jukebox_jax/{room} stands on no floor: give it its place in FLOORS")


def test_imports_run_one_way():
    graph = edges()
    upward = [f"{room} imports {other}" for room in graph for other in graph[room] if floor(other) > floor(room)]
    assert upward == []
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError where neighbours lean on each other
    strange = [f"{room} imports {other}" for room in graph for other in graph[room] if {room, other} in STRANGERS]
    assert strange == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import jukebox_jax.models.prior", {"models"}),
        ("from jukebox_jax import api, demo", {"api", "demo"}),
        ("from jukebox_jax import __version__", set()),
        ("def f():\n    from jukebox_jax.sampling.engine import x", {"sampling"}),
        ("from ..audio import files", {"audio"}),
        ("from . import loop", {"training"}),
        ("import numpy.fft, jukebox", set()),
    ],
)
def test_the_test_sees_every_form_of_import(source, expected):
    assert rooms_imported(source, "jukebox_jax.training.step") == expected


def test_importing_everything_loads_nothing_heavy():
    code = (
        "import importlib, pkgutil, sys, jukebox_jax\n"
        "for found in pkgutil.walk_packages(jukebox_jax.__path__, 'jukebox_jax.'):\n"
        "    if not found.name.endswith('__main__'):\n"
        "        importlib.import_module(found.name)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
