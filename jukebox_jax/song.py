"""A song: its tokens, its sound, and where it comes from."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jukebox_jax.errors import UserError
from jukebox_jax.export.audio import Finish, Number
from jukebox_jax.export.song import write_song
from jukebox_jax.files import atomic_file


@dataclass(frozen=True)
class Song:
    """A sampled song.

    Attributes:
      tokens: level 0 first, each int32 (t / hop,).
      levels: audio decoded from each level alone, float32 (t,), level 0 first.
      provenance: all that is needed to sample it again with the same model.
    """

    tokens: tuple[Int[np.ndarray, " _"], ...]
    levels: tuple[Float[np.ndarray, " _"], ...]
    sample_rate: int
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def audio(self) -> Float[np.ndarray, " t"]:
        """The finished sound: level 0."""
        return self.levels[0]

    def save(
        self,
        path: os.PathLike | str,
        level: int = 0,
        *,
        loudness: Number | None = None,
        true_peak: Number | None = None,
        fade_in: Number = 0,
        fade_out: Number = 0,
    ) -> None:
        """Writes the sound of one level, in the format of the suffix (.wav, .flac, .ogg, .opus, .mp3), over what may be
        there; where it comes from stands in its tags (if mutagen is installed) and in `PATH.json` beside it.

        Args:
          loudness: to turn it to, in LUFS (-14 for streaming), as far as its peaks allow; by default it stays as it is.
          true_peak: what no peak of the file, as it is played, may pass, in dBTP. By default -1, but a .wav or .flac
            without `loudness` has the samples as they are, unless they go beyond full scale.
          fade_in, fade_out: in seconds.

        Raises:
          UserError: another suffix, or what this song cannot be given; nothing is written then.

        Warns:
          UserWarning: what came out otherwise than asked for: turned down, resampled, silent, without tags.
        """
        if not 0 <= level < len(self.levels):
            raise UserError(f"The song has no level {level}: choose from 0 to {len(self.levels) - 1}.")
        finish = Finish(loudness, true_peak, fade_in, fade_out)
        for text in write_song(path, self.levels[level], self.sample_rate, self.provenance | {"level": level}, finish):
            warnings.warn(text, stacklevel=2)

    def save_tokens(self, path: os.PathLike | str) -> None:
        """Writes the tokens of all levels as an npz file, with where they come from, for `Model.load_tokens`.

        Raises:
          UserError: a suffix other than .npz.
        """
        path = Path(path)
        if path.suffix.lower() != ".npz":
            raise UserError(f"{path}: tokens are written as .npz: choose this suffix.")
        levels = {f"level_{level}": codes for level, codes in enumerate(self.tokens)}
        with atomic_file(path) as temporary:
            np.savez_compressed(
                temporary,
                codec=np.asarray(self.provenance["codec"]),
                provenance=np.asarray(json.dumps(self.provenance, allow_nan=False)),
                **levels,
            )


@dataclass(frozen=True)
class Reproduction:
    """A song sampled again.

    Attributes:
      song: None if it was not sampled, as the file is of another length.
      differences: from what it was, a sentence each; none if it is the same song.
      environment: what is otherwise here than where it was first sampled, which may be why.
    """

    song: Song | None
    differences: tuple[str, ...]
    environment: tuple[str, ...]
