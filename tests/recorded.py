"""Numbers recorded from the original: all of them where ../shared/golden is, else the small part in tests/golden."""

from __future__ import annotations

from pathlib import Path

import pytest

ALL = Path(__file__).parents[2] / "shared" / "golden"
PART = Path(__file__).parent / "golden"


def recorded(name: str) -> Path:
    """The path of a recorded file or folder; the test is skipped where neither place has it."""
    for folder in (ALL, PART):
        if (folder / name).exists():
            return folder / name
    pytest.skip(f"{name} is not recorded here")


def fixtures() -> list[str]:
    """The names of all fixtures that are here, without suffix."""
    return sorted({path.stem for folder in (ALL, PART) for path in folder.glob("*.json")})
