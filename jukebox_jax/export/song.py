"""A song on disk: the sound, tags inside it, a sidecar beside it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jukebox_jax.export.audio import PLAIN, Finish, render, treatments
from jukebox_jax.export.encoding import format_of
from jukebox_jax.export.manifest import Credentials, signed
from jukebox_jax.export.tags import TAGS_REMEDY, can_tag, sidecar, tagged
from jukebox_jax.files import atomic_file


def write_song(
    path: os.PathLike | str,
    samples: Float[np.ndarray, " t *channels"],
    sample_rate: int,
    provenance: Mapping[str, Any],
    finish: Finish = PLAIN,
    *,
    credentials: Credentials | None = None,
    tell: Callable[[float], object] = lambda seconds: None,
) -> list[str]:
    """Writes a song in the format of the suffix, with where it comes from in its tags and in the sidecar `PATH.json`;
    both files or none, and over those that are there.

    Args:
      samples: (t,) or (t, channels), nominally in [-1, 1].
      provenance: JSON (see `sampling.provenance`); what is done here is added to its "export".
      credentials: sign a C2PA manifest with these.
      tell: called with how many seconds have been encoded; it may take several rounds.

    Returns:
      What the user should know, a sentence each.

    Raises:
      UserError: see `audio.render` and `manifest.signed`; nothing is written then.
    """
    path = Path(path)
    format = format_of(path)
    rendered = render(samples, sample_rate, format, finish, tell)
    remarks, data = list(rendered.remarks), rendered.data
    steps = [*treatments(provenance), rendered.treatment]
    provenance = {**provenance, "export": [dataclasses.asdict(step) for step in steps]}
    if can_tag():
        data = tagged(data, format, provenance)
    else:
        remarks.append(
            f"{path.name} has no tags inside, only {sidecar(path).name} beside it, as mutagen is missing: "
            f"{TAGS_REMEDY}."
        )
    if credentials is not None:
        data = signed(data, format, path.name, provenance, credentials)
    text = json.dumps(provenance, indent=1, allow_nan=False) + "\n"
    with atomic_file(path) as temporary, atomic_file(sidecar(path)) as beside:
        temporary.write_bytes(data)
        beside.write_text(text, encoding="utf-8")
    return remarks
