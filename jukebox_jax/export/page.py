"""The listening page: one HTML file with audio, pictures, style and script inside, playable offline."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from string import Template

import numpy as np
from jaxtyping import Float

import jukebox_jax
from jukebox_jax.errors import UserError
from jukebox_jax.export import plots
from jukebox_jax.export.encoding import FORMATS, encode
from jukebox_jax.export.plots import Attention, CodebookUsage, LossCurve, Number, Series
from jukebox_jax.files import atomic_file
from jukebox_jax.labels.timed import TimedWord

EXPLANATION = (
    (
        "The model works on sound itself and never sees a note. A codec (a VQ-VAE) turns the waveform into tokens at "
        "three levels: level 0 is the finest, level 2 the coarsest. A prior composes level-2 tokens one after another, "
        "given an artist and a genre, and two upsamplers add the detail of levels 1 and 0."
    ),
    (
        "The held-out pieces were never trained on: they show how much of real music the tokens keep. The samples are "
        "new: no recording and no score stands behind them. What a small model trained for minutes can do is modest: "
        "expect the colour of instruments and short gestures that hang together for a moment, with noise; not melody, "
        "form or words."
    ),
)

# MP3, because Chrome, Firefox and Safari all play it and FLAC would be four times the page (Safari's Ogg Vorbis is
# unreliable). Constant bit rate, because browsers seek in variable-rate MP3 by an approximate table, and a switch
# between two versions must land on the same instant. The encoder's delay and its gain (0.95, for headroom) are the
# same for every version, and its header lets players remove the delay. 96 kbit/s mono keeps the band up to 19 kHz.
_MP3_KBITS = 96
# What an MP3 begins with that nobody played: the encoder's 576 samples and a decoder's 529. Decoders that read the
# encoder's header leave them out; the page's script takes them away where one did not.
_MP3_DELAY_SAMPLES = 576 + 529
# Audio of another rate is resampled: at lower ones the same setting means fewer bits, and at some of them frames too
# small for the encoder's header, so that its delay would stay in; rates that MP3 does not know cannot be encoded.
_MP3_RATES = (32_000, 44_100, 48_000)
_MP3 = dataclasses.replace(
    FORMATS["mp3"],
    # compression_level 0 and 1 mean 320 and 32 kbit/s for MPEG-1 layer III.
    options={"compression_level": (320 - _MP3_KBITS) / (320 - 32), "bitrate_mode": "CONSTANT"},
)


@dataclass(frozen=True)
class Piece:
    """A held-out piece; audio is mono in [-1, 1]. `reconstructions` and `spectral_convergence_db` go by level."""

    title: str
    artist: str
    genre: str
    original: Float[np.ndarray, " t"]
    reconstructions: Mapping[int, Float[np.ndarray, " t"]]
    spectral_convergence_db: Mapping[int, float]
    note: str = ""


@dataclass(frozen=True)
class Sample:
    """A sampled piece.

    Attributes:
      levels: by level (at least one) the audio decoded from its tokens, mono in [-1, 1].
      lyrics: as they were given; shown where there are no `words`.
      words: when they are sung, in order: they light up as the music plays.
      codebooks: how often each code occurs in it.
      series: what changes over its time, as how surprising a prior finds it.
      attention: where the prior looks in its lyrics.
      origin: how it was made, by name.
      title: None: "Sample" and its number.
    """

    artist: str
    genre: str
    seed: int
    temperature: float
    levels: Mapping[int, Float[np.ndarray, " t"]]
    lyrics: str = ""
    note: str = ""
    words: Sequence[TimedWord] = ()
    codebooks: Sequence[CodebookUsage] = ()
    series: Sequence[Series] = ()
    attention: Attention | None = None
    origin: Mapping[str, str] = field(default_factory=dict)
    title: str | None = None


@dataclass(frozen=True)
class KeyFigure:
    """A row of the table at the end; `value` is already formatted, with its unit."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class PageContent:
    """Everything on the page, in reading order. Text fields are plain text; the page escapes them."""

    title: str
    sample_rate: int
    pieces: Sequence[Piece] = ()
    samples: Sequence[Sample] = ()
    curves: Sequence[LossCurve] = ()
    codebooks: Sequence[CodebookUsage] = ()
    figures: Sequence[KeyFigure] = ()
    explanation: Sequence[str] = EXPLANATION
    generated_by: str = f"jukebox_jax {jukebox_jax.__version__}"


@dataclass(frozen=True)
class _Version:
    """One of the audios that share a play position; `key` is the keyboard key that chooses it."""

    key: str
    label: str
    audio: Float[np.ndarray, " t"]
    measure: str = ""


def write_page(
    path: os.PathLike | str,
    content: PageContent,
    *,
    piece_seconds: Number = 15,
    sample_seconds: Number = 60,
    progress: bool = False,
) -> None:
    """Writes the page to `path`, whole or not at all.

    Pieces are cut to their first `piece_seconds`, samples to `sample_seconds`; the page says so where it happens.
    About 16 kB of page per second of audio. With `progress`, a progress line is drawn on stderr.

    Raises:
      ValueError: an audio is empty, not one-dimensional or not finite.
      UserError: soundfile is missing, or cannot write MP3.
    """
    from tqdm import tqdm

    rate, pieces, samples = content.sample_rate, [], []
    count = len(content.pieces) + len(content.samples)
    with tqdm(total=count, desc="page", unit="song", file=sys.stderr, disable=not progress) as bar:
        for piece in content.pieces:
            pieces.append(_piece_html(piece, rate, piece_seconds))
            bar.update()
        for number, sample in enumerate(content.samples, 1):
            samples.append(_sample_html(number, sample, rate, sample_seconds))
            bar.update()
    sections = [
        _section(
            "Held-out pieces",
            "Original and reconstruction from the tokens of one level. The number is the spectral convergence: the "
            "error of the spectrogram relative to the original, in dB; lower is closer.",
            _scale_html() + "".join(pieces),
            shown=bool(pieces),
        ),
        _section(
            "Samples",
            "Each sample as it grows: what the top prior composed, then what each upsampler made of it.",
            ("" if pieces else _scale_html()) + "".join(samples),
            shown=bool(samples),
        ),
        _section(
            "Training",
            "Values of the training batches (faint; the bold line is their running mean) and of held-out music (dots). "
            "A grey band is where runs that went well have been.",
            '<div class="charts">' + "".join(map(_curve_html, content.curves)) + "</div>",
            shown=bool(content.curves),
        ),
        _section(
            "Codebooks",
            "How evenly the codes of each level are used. The dashed line is equal use.",
            '<div class="charts small">' + "".join(map(_codebook_html, content.codebooks)) + "</div>",
            shown=bool(content.codebooks),
        ),
        _section("Key figures", "", _table_html(content.figures), shown=bool(content.figures)),
    ]
    script = _resource("page.js")
    page = Template(_resource("page.html")).substitute(
        title=_text(content.title),
        generated_by=_text(content.generated_by),
        explanation="".join(f"<p>{_text(paragraph)}</p>" for paragraph in content.explanation),
        sections="".join(sections),
        style=_resource("page.css"),
        script=script,
        # The browser then runs this script and no other, even if text on the page could pass for one.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        kbits=_MP3_KBITS,
        original_key="<kbd>O</kbd> original, " if pieces else "",
    )
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")


# ------------------------------------------------------------------------------------------------- sections


def _section(heading: str, introduction: str, body: str, *, shown: bool) -> str:
    if not shown:
        return ""
    lead = f'<p class="lead">{introduction}</p>' if introduction else ""
    return f"<section><h2>{heading}</h2>{lead}{body}</section>"


def _piece_html(piece: Piece, sample_rate: int, most_seconds: Number) -> str:
    versions = [_Version("o", "Original", piece.original)]
    for level, audio in sorted(piece.reconstructions.items()):
        decibels = piece.spectral_convergence_db.get(level)
        measure = "" if decibels is None else f"{decibels:.1f} dB".replace("-", "−")
        versions.append(_Version(str(level), f"Level {level}", audio, measure))
    return _deck_html(piece.title, [piece.artist, piece.genre, piece.note], versions, sample_rate, most_seconds, 0)


def _sample_html(number: int, sample: Sample, sample_rate: int, most_seconds: Number) -> str:
    levels = sorted(sample.levels.items(), reverse=True)
    stage = {level: f"upsampler {level}" for level, _ in levels[1:]} | {levels[0][0]: "top prior"}
    versions = [_Version(str(level), f"Level {level}", audio, stage[level]) for level, audio in levels]
    facts = [sample.artist, sample.genre, f"seed {sample.seed}", f"temperature {sample.temperature:g}", sample.note]
    extra = _words_html(sample.words) if sample.words else _lyrics_html(sample.lyrics)
    # The finished sample, its finest level, is the one that plays first.
    return _deck_html(
        sample.title or f"Sample {number}",
        facts,
        versions,
        sample_rate,
        most_seconds,
        len(versions) - 1,
        columns=3,
        extra=extra,
        more=_details_html(sample),
    )


def _lyrics_html(lyrics: str) -> str:
    return f'<p class="lyrics" dir="auto">{_text(lyrics.strip())}</p>' if lyrics.strip() else ""


def _words_html(words: Sequence[TimedWord]) -> str:
    """Words that light up as they are sung, and can be jumped to."""
    parts = []
    for before, word in zip([None, *words], words, strict=False):
        if before is not None:
            parts.append(" " if before.line == word.line else "\n")
        # One stop of the Tab key for all of them; arrow keys go from word to word.
        parts.append(
            f'<button type="button" class="word" tabindex="{0 if before is None else -1}" '
            f'data-start="{word.start:.3f}" data-end="{word.end:.3f}">'
            f"{_text(word.text)}</button>"
        )
    label = "Lyrics: arrow keys go from word to word, Enter plays from there"
    return f'<p class="lyrics" dir="auto" role="group" aria-label="{label}">{"".join(parts)}</p>'


def _details_html(sample: Sample) -> str:
    """What only some want to know: how it was made, and which codes it uses."""
    rows = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in sample.origin.items())
    charts = "".join(map(_codebook_html, sample.codebooks)) + "".join(map(_series_html, sample.series))
    if sample.attention is not None:
        charts += f"<figure><figcaption>Attention</figcaption>{plots.attention_svg(sample.attention)}</figure>"
    parts = (f"<dl>{rows}</dl>" if rows else "") + (f'<div class="charts small">{charts}</div>' if charts else "")
    return f"<details><summary>How it was made</summary>{parts}</details>" if parts else ""


def _deck_html(
    title: str,
    facts: Sequence[str],
    versions: Sequence[_Version],
    sample_rate: int,
    most_seconds: Number,
    chosen: int,
    columns: int = 2,
    extra: str = "",
    more: str = "",
) -> str:
    """A card with several versions of the same seconds of music and one play position for all of them."""
    most_samples = round(most_seconds * sample_rate)
    whole = max(_checked(version.audio, f"{title}, {version.label}") for version in versions)
    length = min(whole, most_samples)
    seconds = length / sample_rate
    facts = [fact for fact in facts if fact]
    if whole > most_samples:
        total = f"{whole / sample_rate:.1f}".removesuffix(".0")
        facts.append(f"first {seconds:g} s of {total} s")
    buttons, views = [], []
    for index, version in enumerate(versions):
        # All versions get the same length, so that one position means the same instant in each.
        audio = np.zeros(length, np.float32)
        cut = version.audio[:length]
        audio[: len(cut)] = cut
        buttons.append(
            f'<button type="button" aria-pressed="{"true" if index == chosen else "false"}" '
            f'data-key="{version.key}" aria-keyshortcuts="{version.key}">{version.label}</button>'
        )
        views.append(_version_html(title, version, audio, sample_rate))
    return (
        f'<article class="deck" data-seconds="{seconds:.4f}">'
        f'<header><h3 dir="auto">{_text(title)}</h3>'
        f'<ul class="facts">{"".join(f"<li dir=auto>{_text(fact)}</li>" for fact in facts)}</ul></header>{extra}'
        '<div class="bar"><button type="button" class="play" aria-label="Play">'
        '<svg viewBox="0 0 24 24" aria-hidden="true"><path class="go" d="M7 4.5v15l12.5-7.5z"/>'
        '<path class="stop" d="M6 5h4v14H6zM14 5h4v14h-4z"/></svg></button>'
        f'<div class="versions" role="group" aria-label="Version">{"".join(buttons)}</div>'
        f'<input type="range" min="0" max="{seconds:.3f}" step="0.01" value="0" aria-label="Position">'
        f'<output class="clock" aria-live="off">0:00 / {round(seconds) // 60}:{round(seconds) % 60:02d}</output></div>'
        f'<div class="views columns-{columns}">{"".join(views)}</div>{more}</article>'
    )


def _version_html(title: str, version: _Version, audio: Float[np.ndarray, " t"], sample_rate: int) -> str:
    frequency = plots.frequency_ticks(sample_rate)
    # Time runs to the picture's edge: a label there would stand outside it.
    time = [(at, label) for at, label in plots.time_ticks(len(audio) / sample_rate) if at <= 0.96]
    picture = _data_uri("image/webp", plots.spectrogram_image(audio, sample_rate))
    name = f"{title}, {version.label}"
    heard, heard_rate = _playable(audio, sample_rate)
    return (
        f'<figure class="version"><figcaption><span>{version.label}</span>'
        f'<span class="measure">{_text(version.measure)}</span></figcaption><div class="spectrogram">'
        f'<div class="hertz" aria-hidden="true">{"".join(_tick("bottom", *tick) for tick in frequency)}</div>'
        f'<div class="picture"><img src="{picture}" alt="Spectrogram: {_text(name)}"><i class="playhead"></i></div>'
        f'<div class="seconds" aria-hidden="true">{"".join(_tick("left", *tick) for tick in time)}</div></div>'
        f'<audio controls preload="none" aria-label="{_text(name)}" '
        f'data-delay="{_MP3_DELAY_SAMPLES / heard_rate:.5f}" '
        f'src="{_data_uri("audio/mpeg", _mp3(heard, heard_rate))}"></audio></figure>'
    )


def _tick(side: str, fraction: float, label: str) -> str:
    return f'<span style="{side}:{fraction:.2%}">{label}</span>'


def _scale_html() -> str:
    low, high = (f"{value:.0f} dB".replace("-", "−") for value in plots.SCALE_DB)
    colours = ",".join("#" + bytes(colour).hex() for colour in plots.palette()[::9])
    return (
        f'<p class="scale">All spectrograms share one scale, in dB relative to a full-scale sine: <span>{low}'
        f'<i style="background:linear-gradient(90deg,{colours})"></i>{high}</span></p>'
    )


def _curve_html(curve: LossCurve) -> str:
    return f"<figure><figcaption>{_text(curve.model)}</figcaption>{plots.loss_curve_svg(curve)}</figure>"


def _codebook_html(usage: CodebookUsage) -> str:
    used = int(np.count_nonzero(usage.counts))
    summary = f"{used} of {len(usage.counts)} used"
    if used:
        summary += f" · perplexity {plots.perplexity(usage):.0f}"
    return (
        f'<figure><figcaption>Level {usage.level} <span class="measure">{summary}</span></figcaption>'
        f"{plots.codebook_usage_svg(usage)}</figure>"
    )


def _series_html(series: Series) -> str:
    return f"<figure><figcaption>{_text(series.name)}</figcaption>{plots.series_svg(series)}</figure>"


def _table_html(figures: Sequence[KeyFigure]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{_text(row.name)}</th><td class="value">{_text(row.value)}</td>'
        f"<td>{_text(row.note)}</td></tr>"
        for row in figures
    )
    head = '<tr><th scope="col">Figure</th><th scope="col" class="value">Value</th><th scope="col">Note</th></tr>'
    return f'<div class="table"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


# ---------------------------------------------------------------------------------------------------- parts


def _text(text: str) -> str:
    return html.escape(text, quote=True)


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _data_uri(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def _checked(audio: np.ndarray, name: str) -> int:
    """The length of `audio` in samples."""
    if audio.ndim != 1 or len(audio) == 0 or not np.isfinite(audio).all():
        raise ValueError(f"{name}: expected finite mono audio of shape (t,), t > 0; got shape {audio.shape}.")
    return len(audio)


def _playable(audio: Float[np.ndarray, " t"], sample_rate: int) -> tuple[Float[np.ndarray, " _"], int]:
    """Audio at a rate of `_MP3_RATES`, and that rate."""
    if sample_rate in _MP3_RATES:
        return audio, sample_rate
    import soxr

    return soxr.resample(audio, sample_rate, 44_100, quality="HQ"), 44_100


def _mp3(audio: Float[np.ndarray, " t"], sample_rate: int) -> bytes:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the library that it wraps is not there
        raise UserError(f"A page needs soundfile for its sound ({error}): pip install soundfile.") from None
    if "MP3" not in soundfile.available_formats():
        raise UserError("A page needs MP3, which this libsndfile cannot write: install version 1.1 or later.")
    return encode(np.clip(audio, -1, 1)[:, None], sample_rate, _MP3)
