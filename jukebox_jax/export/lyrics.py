"""When lyrics are sung, as files: LRC for players, JSON for programs, a picture for the eye."""

from __future__ import annotations

import io
import json
import os
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int

from jukebox_jax import __version__
from jukebox_jax.errors import UserError
from jukebox_jax.evaluation.alignment import alignment
from jukebox_jax.evaluation.lyric_times import ShownWord, lines_of, shown_words, word_times
from jukebox_jax.evaluation.monotone import monotone_path
from jukebox_jax.files import atomic_file
from jukebox_jax.labels.timed import TimedWord
from jukebox_jax.sampling.requests import Level, Request

FORMAT = 1
GENERATOR = f"jukebox_jax {__version__}"


@dataclass(frozen=True, eq=False)
class Alignment:
    """Where a prior looks in the lyrics of a song, and the times of the words that follow from it.

    Attributes:
      matrix: how much each token of the top level looks at each character of the cleaned lyrics; place i has seen the
        characters before i.
      path: the place of each token on the best way through the matrix that never goes back.
      words: as they are shown, in order.
      shown: all words of the lyrics, with their places in the cleaned ones.
      seconds: length of the song.
      layer, head: whose attention it is.
    """

    lyrics: str
    matrix: Float32[np.ndarray, "t l"]
    path: Int[np.ndarray, " t"]
    words: tuple[TimedWord, ...]
    shown: tuple[ShownWord, ...]
    seconds: float
    layer: int
    head: int

    def save(self, path: os.PathLike | str) -> None:
        """Writes the times as .lrc (`lrc_text`) or .json (`lyrics_json`), or the attention as .png (`attention_png`).

        Raises:
          UserError: another suffix.

        Warns:
          UserWarning: for letters that the picture's font lacks.
        """
        path = Path(path)
        write = lyric_format(path)
        with atomic_file(path) as temporary:
            temporary.write_bytes(write(self))


def align_lyrics(
    level: Level,
    codes: Int[np.ndarray, " t"],
    request: Request,
    hop_fraction: float,
    layer: int,
    head: int,
    progress: bool = False,
) -> Alignment:
    """When the lyrics of a request are sung in the codes of the top level.

    Args:
      hop_fraction: as the song was sampled.
      layer, head: whose attention follows the lyrics (`evaluation.alignment.alignment_head`).
      progress: whether to draw a progress line on stderr.

    Raises:
      UserError: there are no lyrics, or none that the prior can spell.
    """
    spelling = level.prior.config.lyrics.text
    characters = len(spelling.tokens(request.lyrics))
    if not request.lyrics.strip():
        raise UserError("The song comes without lyrics: give those that are to be aligned.")
    if not characters:
        raise UserError("The lyrics hold no character that the model can spell: write them in Latin.")
    (matrix,) = alignment(level, codes[None], [request], hop_fraction, layer, head, progress)
    path, shown = monotone_path(matrix), shown_words(request.lyrics, spelling)
    token_seconds = level.hop_samples / level.sample_rate
    words = word_times(
        shown,
        path,
        characters,
        token_seconds,
        from_start=request.offset_samples == 0,
        to_end=request.offset_samples + len(codes) * level.hop_samples >= request.total_samples,
    )
    return Alignment(request.lyrics, matrix, path, tuple(words), tuple(shown), len(codes) * token_seconds, layer, head)


def lyric_format(path: Path) -> Callable[[Alignment], bytes]:
    """What makes the bytes of a file with this suffix.

    Raises:
      UserError: there is nothing that does.
    """
    writers = {
        ".lrc": lambda alignment: lrc_text(alignment.words, alignment.seconds).encode(),
        ".json": lambda alignment: (json.dumps(lyrics_json(alignment), indent=1, ensure_ascii=False) + "\n").encode(),
        ".png": attention_png,
    }
    if path.suffix.lower() not in writers:
        raise UserError(f"{path}: aligned lyrics are written as {', '.join(writers)}: choose one of these suffixes.")
    return writers[path.suffix.lower()]


# ---- LRC --------------------------------------------------------------------------------------------------------

# What a player would take for a time stamp.
_STAMP = re.compile(r"[<\[](?=[^<>\[\]]*\d[^<>\[\]]*:[^<>\[\]]*[>\]])([^<>\[\]]*)[>\]]")


def lrc_text(words: Sequence[TimedWord], seconds: float, by_word: bool = True) -> str:
    """LRC: [mm:ss.xx] before each line, and with `by_word`, as "enhanced" LRC, <mm:ss.xx> before each word and behind
    the last of a line.

    LRC knows no escape: what looks like a stamp in the lyrics gets round brackets.
    """
    head = [f"[re:{GENERATOR}]", f"[length:{_stamp(seconds)}]"]
    rows = []
    for line in lines_of(words):
        texts = [_STAMP.sub(r"(\1)", word.text) for word in line]
        if by_word:
            stamped = [f"<{_stamp(word.start)}>{text}" for word, text in zip(line, texts, strict=True)]
            texts = [*stamped, f"<{_stamp(line[-1].end)}>"]
        rows.append(f"[{_stamp(line[0].start)}]{' '.join(texts)}")
    return "\n".join([*head, *rows]) + "\n"


def _stamp(seconds: float) -> str:
    hundredths = round(seconds * 100)
    return f"{hundredths // 6000:02d}:{hundredths // 100 % 60:02d}.{hundredths % 100:02d}"


# ---- JSON -------------------------------------------------------------------------------------------------------


def lyrics_json(alignment: Alignment) -> dict[str, Any]:
    """An object with the keys

    - `format`: 1; `generator`: what wrote it;
    - `seconds`: length of the song; `lyrics`: the whole text as it was given;
    - `layer`, `head`: whose attention it is, as numbers from 0;
    - `lines`: of each line of the lyrics that is sung, its number `line` from 0, `start` and `end` in seconds from the
      beginning of the song, and its `words`, each with `text`, `start` and `end`.
    """
    lines = [
        {
            "line": words[0].line,
            "start": words[0].start,
            "end": words[-1].end,
            "words": [{"text": word.text, "start": word.start, "end": word.end} for word in words],
        }
        for words in lines_of(alignment.words)
    ]
    return {
        "format": FORMAT,
        "generator": GENERATOR,
        "seconds": alignment.seconds,
        "lyrics": alignment.lyrics,
        "layer": alignment.layer,
        "head": alignment.head,
        "lines": lines,
    }


# ---- Picture ----------------------------------------------------------------------------------------------------

_MOST_COLUMNS = 1600  # of the picture; a longer song has several tokens in one
_MOST_LABELS = 60
_LONGEST_LABEL = 24
_FONT = "DejaVu Sans"  # comes with matplotlib
_MISSING = "□"
_COLOURS = 128


def attention_png(alignment: Alignment) -> bytes:
    """The attention over time (to the right) and lyrics (downwards), with the path through it, as a PNG.

    Warns:
      UserWarning: for letters that the font lacks; boxes stand for them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    characters = alignment.matrix.shape[1]
    shares = _peaks(alignment.matrix, _MOST_COLUMNS)
    figure = Figure(figsize=(11, 7), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    # The square root shows what is faint.
    image = np.sqrt(np.clip(shares.T, 0, 1))
    axes.imshow(
        image,
        aspect="auto",
        cmap="magma",
        extent=(0, alignment.seconds, characters, 0),
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    times = np.linspace(0, alignment.seconds, len(alignment.path), endpoint=False)
    axes.plot(times, alignment.path + 0.5, color="cyan", linewidth=0.8)
    labelled = alignment.shown[:: -(-len(alignment.shown) // _MOST_LABELS)] if alignment.shown else ()
    labels, missing = _drawable([word.text for word in labelled])
    places = [min(word.start + 1, characters) for word in labelled]
    axes.set_yticks(places, labels, parse_math=False, fontfamily=_FONT, fontsize=8)
    axes.set_xlabel("seconds")
    axes.set_title(f"Attention to the lyrics: layer {alignment.layer}, head {alignment.head}", fontsize=10)
    if missing:
        warnings.warn(
            f"The picture's font has no glyph for {' '.join(missing[:8])}{' …' if missing[8:] else ''}: boxes stand "
            "for them; LRC and JSON have the words as they are.",
            stacklevel=3,
        )
    canvas, buffer = FigureCanvasAgg(figure), io.BytesIO()
    canvas.draw()
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    # A palette has fewer bytes; covering the range of colours keeps the few bright spots.
    few = drawn.quantize(_COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _peaks(matrix: Float32[np.ndarray, "t l"], most: int) -> Float[np.ndarray, "u l"]:
    """The largest value of each of at most so many runs of rows."""
    starts = np.unique(np.linspace(0, len(matrix), min(most, len(matrix)), endpoint=False).astype(int))
    return np.maximum.reduceat(matrix, starts, axis=0)


def _drawable(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The texts with boxes for what the font cannot draw, cut to a length that fits, and the characters it cannot."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family=_FONT)))
    missing = [c for c in dict.fromkeys("".join(texts)) if not c.isprintable() or not font.get_char_index(ord(c))]
    boxes = str.maketrans(dict.fromkeys(missing, _MISSING))
    cut = [text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}…" for text in texts]
    return [text.translate(boxes) for text in cut], [c if c.isprintable() else f"U+{ord(c):04X}" for c in missing]
