"""The lab regenerates its tables, charts and results; here for one small model on two small slices."""

from __future__ import annotations

import json
import sys

import pytest

from experiments.sharding_lab import __main__ as lab

README = """# The lab

<!-- rows -->
old
<!-- end of rows -->

<!-- compiled -->
<!-- end of compiled -->

Between.

<!-- crossover -->
<!-- end of crossover -->

<!-- long -->
<!-- end of long -->
The end.
"""


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(lab, "HERE", tmp_path)
    monkeypatch.setattr(lab, "MODELS", {"5b": ("configs/prior.py:demo_top", 1)})
    monkeypatch.setattr(lab, "TOPOLOGIES", ("v5e:2x2", "v5p:2x2x1"))
    monkeypatch.setattr(lab, "STRONG_BATCH", 16)
    monkeypatch.setattr(lab, "CROSSOVER_ON", "v5p:2x2x1")
    monkeypatch.setattr(lab, "CROSSOVER_BATCHES", (2, 4, 8))
    monkeypatch.setattr(lab, "LONG_TOKENS", (8192,))
    monkeypatch.setattr(lab, "LONG_ON", ("v5p:4x4x4",))
    monkeypatch.setattr(sys, "argv", ["sharding_lab"])
    (tmp_path / "README.md").write_text(README)
    return tmp_path


def test_it_regenerates_itself_and_nothing_else(small):
    lab.main()
    first = {path.name: path.read_bytes() for path in small.iterdir()}
    assert set(first) == {
        *("README.md", "results.json", "compiled.json", "scaling.svg", "crossover.svg", "long_context.svg")
    }
    readme = first["README.md"].decode()
    assert "old" not in readme
    assert readme.startswith("# The lab")
    assert readme.endswith("The end.\n")
    assert "Between." in readme
    assert "| v5p:2x2x1 | fsdp |" in readme
    results = json.loads(first["results.json"])
    assert {row["topology"] for row in results} == {"v5e:2x2", "v5p:2x2x1"}
    lab.main()
    assert {path.name: path.read_bytes() for path in small.iterdir()} == first


def test_the_committed_page_says_what_the_committed_results_say():
    folder = lab.HERE
    results = json.loads((folder / "results.json").read_text())
    readme = (folder / "README.md").read_text()
    models = dict.fromkeys(row["model"] for row in results)
    assert list(models) == list(lab.MODELS)
    assert {row["topology"] for row in results} == set(lab.TOPOLOGIES)
    table = readme.partition("<!-- rows -->")[2].partition("<!-- end of rows -->")[0]
    assert sum(line.startswith(("| v", "| 2x")) for line in table.splitlines()) == len(results)
    compiled = json.loads((folder / "compiled.json").read_text())
    table = readme.partition("<!-- compiled -->")[2].partition("<!-- end of compiled -->")[0]
    assert table.count("| prior.py:") + table.count("| vqvae.py:") == len(compiled)
