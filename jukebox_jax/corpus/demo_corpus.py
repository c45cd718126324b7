"""The embedded demo corpus: eighteen short recordings of public-domain music, with their metadata and licences.

Made by `experiments/render_corpus.py`; `demo_data/LICENSE.md` says what may be done with it.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def demo_folder() -> Path:
    """The folder of the demo corpus: Ogg Vorbis files (mono, 44.1 kHz) and `metadata.jsonl`, one row a file."""
    # An installed package is a plain folder (pip unpacks wheels), so the resource is a real path.
    return Path(str(resources.files("jukebox_jax.corpus") / "demo_data"))
