"""The main job, end to end: the embedded music, a VQ-VAE, three priors, samples, and a page to hear it all.

Small in size, complete in kind: every stage is the one that a full-size run uses, at a width that two CPU cores train
in minutes.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from jukebox_jax import api
from jukebox_jax.audio.files import to_float32, write_audio
from jukebox_jax.checkpoint.models import CODEC_FOLDER, level_folder
from jukebox_jax.checkpoint.store import load_metadata
from jukebox_jax.config import load_json, save_json
from jukebox_jax.corpus.demo_corpus import demo_folder
from jukebox_jax.corpus.encode import encode_dataset, encode_song
from jukebox_jax.corpus.prepare import prepare
from jukebox_jax.evaluation.codec import band_level_db, convergence, decibel
from jukebox_jax.evaluation.prior import (
    bigram_bits,
    held_out_batches,
    held_out_bits,
    unigram_bits,
    with_other_artist,
)
from jukebox_jax.export.curves import training_curves
from jukebox_jax.export.page import KeyFigure, PageContent, Piece, Sample, write_page
from jukebox_jax.export.plots import CodebookUsage
from jukebox_jax.files import folder_lock
from jukebox_jax.pipeline.dataset import Dataset, RecordReader, open_dataset
from jukebox_jax.recipe import CODES, LEVELS, Effort, codec_run, prior_run
from jukebox_jax.sampling.cascade import sample_level
from jukebox_jax.sampling.drawing import SamplingConfig
from jukebox_jax.sampling.requests import Request
from jukebox_jax.training.run import prior_stream, train_run

#: Where small codecs are weak: far below the loudest partials, and nearly inaudible to the loss.
HIGH_BAND_HZ = (4000.0, 10_000.0)
SAMPLE_SECONDS = 6.0
SAMPLES = 4


# ---- The run --------------------------------------------------------------------------------------------------------


def run_demo(out: os.PathLike | str, *, seed: int = 0, effort: Effort = Effort(), progress: bool = True) -> dict:
    """Runs every stage into `out`; stages that are done are kept, so the same command resumes.

    Returns:
      What `report.json` holds: figures by dotted names, and paths. `seconds` adds up all runs it took.
    """
    out = Path(out)
    runs, audio_folder, tokens_folder = out / "runs", out / "data" / "audio", out / "data" / "tokens"
    with folder_lock(out):
        stage = partial(_stage, out / "seconds.json")
        with stage("Preparing the embedded corpus"):
            if not audio_folder.exists():
                prepare(demo_folder(), audio_folder)
            audio = open_dataset(audio_folder)

        with stage("Training the VQ-VAE"):
            train_run(codec_run(seed, effort), audio_folder, runs / CODEC_FOLDER, progress=progress)

        with stage("Encoding"):
            if not tokens_folder.exists():
                encode_dataset(audio_folder, runs / CODEC_FOLDER, tokens_folder, progress=progress)
            tokens = open_dataset(tokens_folder)

        for level in reversed(LEVELS):
            with stage(f"Training the {'top prior' if level == LEVELS[-1] else 'upsampler'} of level {level}"):
                run, run_dir = prior_run(level, seed, effort), runs / level_folder(level)
                train_run(run, tokens_folder, run_dir, runs / CODEC_FOLDER, progress=progress)

        with stage("Measuring on held-out pieces"):
            model = api.load(runs)
            pieces = reconstruct_held_out(model, audio, progress)
            report = codec_figures(model, pieces, tokens) | prior_figures(model, tokens, progress=progress)
            report |= {f"{run.name}.steps": load_metadata(run)["step"] for run in sorted(runs.iterdir())}

        with stage("Sampling"):
            artists = song_artists(audio)
            songs = sample_songs(model, artists, seed, progress)
            report |= composer_figures(model, artists, seed)

        with stage("Writing audio and the page"):
            report["audio"] = write_audio_files(out / "audio", model, pieces, songs)
            report["page"] = str(out / "index.html")
            write_page(out / "index.html", page_content(model, pieces, songs, report, runs, tokens), progress=progress)
        report["seconds"] = round(sum(load_json(out / "seconds.json").values()), 1)
        save_json(out / "report.json", report)
    print(f"\n{table(report)}\n\nOpen {out / 'index.html'} to listen.", flush=True)
    return report


@contextlib.contextmanager
def _stage(record: Path, name: str) -> Iterator[None]:
    """Says what begins, and adds the time it took to `record`."""
    print(f"— {name}", flush=True)
    started = time.monotonic()
    yield
    seconds = load_json(record) if record.exists() else {}
    save_json(record, seconds | {name: round(seconds.get(name, 0.0) + time.monotonic() - started, 1)})


# ---- Measuring ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeldOut:
    """An excerpt of a held-out piece and what each level makes of it; convergence as linear ratios."""

    title: str
    artist: str
    genre: str
    original: Float[np.ndarray, " t"]
    levels: tuple[Float[np.ndarray, " t"], ...]
    convergence: tuple[float, ...]


def reconstruct_held_out(model: api.Model, audio: Dataset, progress: bool = False) -> list[HeldOut]:
    """Every held-out piece through the codec, over the length of the shortest (one shape, compiled once)."""
    config = model.codec.config
    songs = audio.splits["validation"]
    length = min(song.samples for song in songs) // config.hops[-1] * config.hops[-1]
    reader = RecordReader(audio, "validation")
    result = []
    for index, song in enumerate(tqdm(songs, desc="codec", unit="piece", file=sys.stderr, disable=not progress)):
        original = to_float32(reader.read(index, 0, length, ("audio",))[0]).mean(axis=1)
        levels = model.decode(encode_song(config, model.codec.codec, original))
        ratios = tuple(float(convergence(original[None, :, None], level[None, :, None])[0]) for level in levels)
        result.append(HeldOut(song.title, song.artist, song.genre, original, levels, ratios))
    return result


def codec_figures(model: api.Model, pieces: list[HeldOut], tokens: Dataset) -> dict[str, float]:
    """Spectral convergence (dB of the mean ratio over held-out pieces), the part of the codes that is in use, and how
    much too loud the reconstruction is between 4 and 10 kHz (mean over the pieces, dB)."""
    figures = {}
    for level in LEVELS:
        name = f"vqvae.level_{level}"
        used = np.count_nonzero(code_counts(tokens, level, model.codec.config.codes))
        mean_ratio = float(np.mean([piece.convergence[level] for piece in pieces]))
        figures[f"{name}.spectral_convergence_db"] = round(decibel(mean_ratio), 2)
        figures[f"{name}.codebook_used"] = round(float(used / model.codec.config.codes), 4)
        level_db = partial(band_level_db, band_hz=HIGH_BAND_HZ, sample_rate=model.codec.config.sample_rate)
        errors = [level_db(p.levels[level][None, :, None]) - level_db(p.original[None, :, None]) for p in pieces]
        figures[f"{name}.level_4_to_10_khz_db"] = round(float(np.mean(errors)), 2)
    return figures


def prior_figures(model: api.Model, tokens: Dataset, batch_size: int = 8, progress: bool = False) -> dict[str, float]:
    """Held-out bits per token of each prior, beside counting tokens and pairs, and with composers drawn at random.

    All are measured on the same held-out windows.
    """
    figures = {}
    for level in tqdm(LEVELS, desc="priors", unit="level", file=sys.stderr, disable=not progress):
        name, prior = f"prior.level_{level}", model.priors[level]
        params = prior.read_params()
        stream = prior_stream(prior.config, tokens, "validation", batch_size, tokens.labels, shuffle=False)
        train, codes = song_tokens(tokens, "train", level), prior.config.codes
        held_out = list(np.concatenate([batch["tokens"] for batch in held_out_batches(stream)])[: stream.n_windows])
        rng = np.random.default_rng(0)
        shuffle = partial(with_other_artist, artists=len(tokens.labels.artists), rng=rng)
        figures[f"{name}.bits_per_token"] = held_out_bits(prior.config, params, stream)
        figures[f"{name}.unigram_bits"] = unigram_bits(train, held_out, codes)
        figures[f"{name}.bigram_bits"] = bigram_bits(train, held_out, codes)
        figures[f"{name}.bits_wrong_composer"] = held_out_bits(prior.config, params, stream, change=shuffle)
    return {name: round(value, 4) for name, value in figures.items()}


def song_tokens(tokens: Dataset, split: str, level: int) -> list[np.ndarray]:
    """The codes of every song of a split, without the padding of its last record."""
    field = f"level_{level}"
    reader = RecordReader(tokens, split)
    return [
        reader.read_song(index, field)[: song.samples // tokens.fields[field]].astype(np.int64)
        for index, song in enumerate(tokens.splits[split])
    ]


def code_counts(tokens: Dataset, level: int, codes: int) -> np.ndarray:
    """How often the training songs use each code."""
    return np.bincount(np.concatenate(song_tokens(tokens, "train", level)), minlength=codes)


def composer_figures(model: api.Model, artists: list[tuple[str, str]], seed: int) -> dict[str, float]:
    """What changing nothing but the composer does to a top-level sample: the part of its tokens that stays."""
    level = model.levels[-1]
    total = level.prior.config.n_ctx
    length = total * level.hop_samples
    drawn = []
    for artist, genre in (artists[0], artists[1]):
        request = Request(0, length, artist=artist, genre=genre)
        settings = {"seed": seed, "sampling": SamplingConfig(), "hop_fraction": 0.5, "batch_size": SAMPLES}
        drawn.append(sample_level(level, [request], total, **settings)[0])
    return {"sampling.same_tokens_with_other_composer": round(float(np.mean(drawn[0] == drawn[1])), 4)}


# ---- Sampling and writing -------------------------------------------------------------------------------------------


def song_artists(audio: Dataset) -> list[tuple[str, str]]:
    """(artist, genre) of the training songs, each artist once, in the order of the corpus."""
    return list({song.artist: (song.artist, song.genre) for song in audio.splits["train"]}.values())


def sample_songs(
    model: api.Model, artists: list[tuple[str, str]], seed: int, progress: bool
) -> list[tuple[str, str, api.Song]]:
    """One song each for the first artists of the corpus."""
    chosen = artists[:SAMPLES]
    songs = model.sample(
        artist=[artist for artist, _ in chosen],
        genre=[genre for _, genre in chosen],
        seconds=SAMPLE_SECONDS,
        total_seconds=24.0,
        seed=seed,
        n_samples=len(chosen),
        progress=progress,
    )
    return [(artist, genre, song) for (artist, genre), song in zip(chosen, songs, strict=True)]


def write_audio_files(
    folder: Path, model: api.Model, pieces: list[HeldOut], songs: list[tuple[str, str, api.Song]]
) -> list[str]:
    """Writes originals, reconstructions and samples as wav files; returns their paths."""
    paths = []
    for index, piece in enumerate(pieces):
        versions = {"original": piece.original} | {f"level_{i}": audio for i, audio in enumerate(piece.levels)}
        for name, audio in versions.items():
            paths.append(folder / f"held_out_{index}_{name}.wav")
            write_audio(paths[-1], audio, model.codec.config.sample_rate)
    for index, (_, _, song) in enumerate(songs):
        for level in LEVELS:
            paths.append(folder / f"sample_{index}_level_{level}.wav")
            song.save(paths[-1], level)
    return [str(path) for path in paths]


def page_content(
    model: api.Model,
    pieces: list[HeldOut],
    songs: list[tuple[str, str, api.Song]],
    report: dict,
    runs: Path,
    tokens: Dataset,
) -> PageContent:
    """All that the listening page shows."""
    return PageContent(
        title="Jukebox demo: trained from nothing in minutes",
        sample_rate=model.codec.config.sample_rate,
        pieces=[
            Piece(
                piece.title,
                piece.artist,
                piece.genre,
                piece.original,
                dict(enumerate(piece.levels)),
                {level: decibel(ratio) for level, ratio in enumerate(piece.convergence)},
            )
            for piece in pieces
        ],
        samples=[
            Sample(
                artist,
                genre,
                song.provenance["seed"],
                song.provenance["sampling"][-1]["temperature"],
                dict(enumerate(song.levels)),
            )
            for artist, genre, song in songs
        ],
        curves=training_curves(runs, len(LEVELS), bands=True),
        codebooks=[CodebookUsage(level, code_counts(tokens, level, model.codec.config.codes)) for level in LEVELS],
        figures=[KeyFigure(name, text, note) for name, text, note in rows_of(report)],
    )


def rows_of(report: dict) -> list[tuple[str, str, str]]:
    """The report's figures as (name, value, remark)."""
    rows = []
    for level in LEVELS:
        name = f"vqvae.level_{level}"
        decibels, used = report[f"{name}.spectral_convergence_db"], report[f"{name}.codebook_used"]
        rows.append(
            (f"Codec level {level}: spectral convergence", f"{decibels:.2f} dB", "held-out pieces; lower is better")
        )
        high = report[f"{name}.level_4_to_10_khz_db"]
        rows.append((f"Codec level {level}: 4 to 10 kHz", f"{high:+.1f} dB", "too loud (+) or too quiet (-)"))
        rows.append((f"Codec level {level}: codes in use", f"{100 * used:.1f} %", f"of {CODES}"))
    for level in LEVELS:
        name = f"prior.level_{level}"
        counted = f"unigram {report[f'{name}.unigram_bits']:.3f}, bigram {report[f'{name}.bigram_bits']:.3f}"
        rows.append((f"Prior level {level}: bits per token", f"{report[f'{name}.bits_per_token']:.3f}", counted))
        wrong = report[f"{name}.bits_wrong_composer"]
        rows.append(
            (f"Prior level {level}: with the wrong composer", f"{wrong:.3f}", "a random other one; bits per token")
        )
    same = report["sampling.same_tokens_with_other_composer"]
    rows.append(("Same key, other composer: tokens that stay", f"{100 * same:.1f} %", "top level"))
    if "seconds" in report:
        rows.append(("Seconds in all", f"{report['seconds']:.0f}", "without installation"))
    return rows


def table(report: dict) -> str:
    """The figures as aligned lines."""
    rows = rows_of(report)
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{name:<{widths[0]}}  {value:>{widths[1]}}  {note}" for name, value, note in rows)
