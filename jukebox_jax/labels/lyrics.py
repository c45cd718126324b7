"""Lyrics to tokens, one a character, and the part of them that is sung around a window (spec/prior.md 9)."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

import numpy as np
from jaxtyping import Int32, Integer

from jukebox_jax.errors import UserError

Vocabulary = Literal["v2", "v3"]
Transliterator = Literal["unidecode", "anyascii"]
Precision = Literal["float64", "float32"]

#: The token of nothing: it stands before lyrics shorter than a window, and is no character.
PADDING = 0

# In the order of their tokens, from 1.
_CHARACTERS = {
    version: string.ascii_uppercase + string.ascii_lowercase + string.digits + ".,:;!?-" + plus + "'\"()[] \t\n"
    for version, plus in (("v2", "+"), ("v3", ""))
}

_LATEST_UNIDECODE = (1, 3, 4)  # 1.3.5 spells vulgar fractions in another way


@dataclass(frozen=True)
class LyricText:
    """How a model spells lyrics: its vocabulary, and what turns other scripts into ASCII.

    The released models need "unidecode" (GPL, an extra of the installation); "anyascii" is always there.
    """

    vocabulary: Vocabulary = "v3"
    transliterator: Transliterator = "anyascii"

    @property
    def size(self) -> int:
        """How many tokens there are, with the padding: v2 has 80, v3 (which lacks the plus sign) 79."""
        return 1 + len(_CHARACTERS[self.vocabulary])

    def clean(self, text: str) -> str:
        """What the model reads of a text: in ASCII, a backslash as a new line, other characters left out.

        Raises:
          UserError: Unidecode is needed and missing, or too new.
        """
        ascii_text = _transliterate(self.transliterator)(text).replace("\\", "\n")
        characters = frozenset(_CHARACTERS[self.vocabulary])
        return "".join(character for character in ascii_text if character in characters)

    def tokens(self, text: str) -> Int32[np.ndarray, " l"]:
        """The tokens of a text, one for each character of `clean(text)`; raises as `clean`."""
        table = np.zeros(128, np.int32)
        characters = _CHARACTERS[self.vocabulary].encode("ascii")
        table[np.frombuffer(characters, np.uint8)] = 1 + np.arange(len(characters))
        return table[np.frombuffer(self.clean(text).encode("ascii"), np.uint8)]

    def text(self, tokens: Iterable[int] | Integer[np.ndarray, " l"]) -> str:
        """The text of tokens; padding leaves no trace."""
        characters = ("", *_CHARACTERS[self.vocabulary])
        return "".join(characters[token] for token in tokens)


@dataclass(frozen=True)
class LyricWindow:
    """The lyric tokens that belong to a window of music, and the place of each in the song's lyrics (-1: padding)."""

    tokens: Int32[np.ndarray, " n"]
    indices: Int32[np.ndarray, " n"]


def lyric_window(
    tokens: Integer[np.ndarray, " l"],
    n_tokens: int,
    total_length: int,
    offset: int,
    duration: int,
    precision: Precision = "float64",
) -> LyricWindow:
    """The `n_tokens` of a song's lyrics around the middle of a window, as if they were sung at an even pace.

    Lyrics shorter than that come whole, behind padding.

    Args:
      tokens: those of the whole song.
      total_length: samples of the song.
      offset: samples before the window.
      duration: samples of the model's whole window.
      precision: the original computes the middle in float64 where it makes labels (for training, and first when
        sampling), but in float32 where it moves on from window to window while sampling. Now and then the two differ by
        one character.

    Raises:
      UserError: an odd `n_tokens` no more than the lyrics' length, or an offset outside the song.
    """
    if not 0 <= offset < total_length:
        raise UserError(
            f"A window at sample {offset} is outside a song of {total_length} samples, so it has no lyrics: "
            "use a smaller offset or a longer total length."
        )
    length = len(tokens)
    if length < n_tokens:
        padding = n_tokens - length
        return LyricWindow(
            tokens=np.concatenate([np.full(padding, PADDING), tokens]).astype(np.int32),
            indices=np.concatenate([np.full(padding, -1), np.arange(length)]).astype(np.int32),
        )
    if n_tokens % 2:
        raise UserError(f"A window of {n_tokens} lyric tokens has no middle: use an even number.")
    half = n_tokens // 2
    number = np.float32 if precision == "float32" else np.float64
    middle = int(number(length) * (number(offset) + number(duration) / number(2)) / number(total_length))
    start = min(max(middle, half), length - half) - half
    return LyricWindow(
        tokens=tokens[start : start + n_tokens].astype(np.int32),
        indices=np.arange(start, start + n_tokens, dtype=np.int32),
    )


def _transliterate(name: Transliterator) -> Callable[[str], str]:
    if name == "anyascii":
        from anyascii import anyascii

        return anyascii
    remedy = 'install a fitting one by `pip install "jukebox-jax[openai]"`'
    try:
        from unidecode import unidecode
    except ImportError:
        raise UserError(f"This model reads lyrics as Unidecode spells them, which is not here: {remedy}.") from None
    version = metadata.version("Unidecode")
    if tuple(int(part) for part in re.findall("[0-9]+", version)[:3]) > _LATEST_UNIDECODE:
        latest = ".".join(map(str, _LATEST_UNIDECODE))
        raise UserError(
            f"This model reads lyrics as Unidecode up to {latest} spells them, but {version} is installed: {remedy}."
        )
    return unidecode
