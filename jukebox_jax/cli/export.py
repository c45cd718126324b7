"""`jukebox-jax export`: a song as a file to send."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jukebox_jax.cli import arguments
from jukebox_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from jukebox_jax.api import Model

DESCRIPTION = """Export songs: another format, a chosen loudness, fades; with where they come from in their tags.

SONG is what `sample` or `export` wrote: a sound file with its sidecar .json or tags, which needs no model, or
.tokens.npz, of which every level can be heard with the model that it was sampled with. No peak of what is written
passes -1 dBTP as it is played. Lossy formats keep what good headphones can tell: MP3 V0, Ogg Vorbis q6, Opus at 128
kbit/s a channel. Needs the extra [export]."""
EXAMPLE = """  jukebox-jax export songs/seed_1_song_0.wav --format mp3 --loudness -14 --fade-out 2
  jukebox-jax export songs/*.tokens.npz --demo --level 2 --format flac --out drafts"""
IF_INTERRUPTED = "Songs that were finished are whole; run the same command with --force for all of them again."
NAMES = ("wav", "flac", "ogg", "opus", "mp3")
_TOKENS = ".tokens.npz"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "songs", metavar="SONG", nargs="+", type=arguments.local_path, help="sound files or .tokens.npz"
    )
    parser.add_argument("--format", choices=NAMES, help="what to write (that of --out, if it names a file)")
    parser.add_argument(
        "--out",
        metavar="FILE|FOLDER",
        type=arguments.local_path,
        help="a file such as song.mp3, for one song, or a folder (where the songs are)",
    )
    parser.add_argument("--force", action="store_true", help="write over files that are there")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--demo", action="store_true", help="tokens are those of the model that ships with the package")
    which.add_argument(
        "--model", metavar="FOLDER", type=arguments.local_path, help="model that tokens were sampled with"
    )
    parser.add_argument("--level", metavar="L", type=int, help="which of the tokens to hear; 0 is the finished one (0)")
    parser.add_argument("--loudness", metavar="LUFS", type=float, help="such as -14, for streaming (as it is)")
    parser.add_argument("--true-peak", metavar="DBTP", type=float, default=-1.0, help="what no peak passes (-1)")
    parser.add_argument("--fade-in", metavar="SECONDS", type=float, default=0.0, help="(0)")
    parser.add_argument("--fade-out", metavar="SECONDS", type=float, default=0.0, help="(0)")
    parser.add_argument(
        "--c2pa-certificate",
        metavar="CERT.pem",
        type=arguments.local_path,
        help="sign a C2PA manifest with this chain of certificates, the signer's first (extra [c2pa]; wav, flac, mp3)",
    )
    parser.add_argument("--c2pa-key", metavar="KEY.pem", type=arguments.local_path, help="and with its private key")


def run(args: argparse.Namespace) -> None:
    name, targets = _targets(args)
    _check_songs(args, targets)

    from jukebox_jax.export.audio import LOUDNESS_REMEDY, Finish
    from jukebox_jax.export.encoding import FORMATS
    from jukebox_jax.export.loudness import can_measure_loudness
    from jukebox_jax.export.manifest import check_signable, read_credentials
    from jukebox_jax.export.song import write_song
    from jukebox_jax.export.tags import TAGS_REMEDY, can_tag
    from jukebox_jax.files import check_targets

    finish = Finish(args.loudness, args.true_peak, args.fade_in, args.fade_out)
    if not can_tag():
        raise UserError(f"Songs are exported with tags, by mutagen, which is missing: {TAGS_REMEDY}.")
    if args.loudness is not None and not can_measure_loudness():
        raise UserError(f"Loudness is measured by pyloudnorm, which is missing: {LOUDNESS_REMEDY}.")
    credentials = None
    if (args.c2pa_certificate is None) != (args.c2pa_key is None):
        raise UserError("A C2PA manifest is signed with both --c2pa-certificate and --c2pa-key: give both.")
    if args.c2pa_certificate is not None:
        check_signable(FORMATS[name])
        credentials = read_credentials(args.c2pa_certificate, args.c2pa_key)
    model = None
    if any(_is_tokens(path) for path in args.songs):
        from jukebox_jax import api

        model = api.load(None if args.demo else args.model)
    songs = [_Song(path, args.level, model) for path in args.songs]
    check_targets(*targets)

    from tqdm import tqdm

    work = sum(song.seconds * (1 if song.tokens is None else 2) for song in songs)  # decoded and encoded
    told, shown = [], "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
    with tqdm(total=work, desc="export", bar_format=shown, delay=3, leave=False, file=sys.stderr) as bar:
        for song, target in zip(songs, targets, strict=True):
            encoded = 0.0

            def advance(seconds: float) -> None:
                bar.update(min(seconds, bar.total - bar.n))

            def tell(seconds: float, song: _Song = song) -> None:
                nonlocal encoded
                if encoded + seconds > 1.001 * song.seconds:  # a further round
                    bar.total, encoded = bar.total + song.seconds, 0.0
                encoded += seconds
                advance(seconds)

            samples = song.read(advance)
            remarks = write_song(
                target, samples, song.sample_rate, song.provenance, finish, credentials=credentials, tell=tell
            )
            told += [f"{target.name}: {text}" for text in remarks]
    for text in told:
        print(f"jukebox-jax: {text}", file=sys.stderr)
    for target in targets:
        print(target)


class _Song:
    """What one SONG is, before its sound is read."""

    def __init__(self, path: Path, level: int | None, model: Model | None):
        self.path, self.level, self.model, self.tokens = path, level, model, None
        if _is_tokens(path):
            self._find_tokens()
        else:
            self._find_sound()

    def _find_tokens(self) -> None:
        from jukebox_jax.sampling.provenance import token_differences

        song = self.model.load_song(self.path, decode=False)
        tokens, provenance = song.tokens, song.provenance
        if not provenance:
            raise UserError(f"{self.path} does not say where its tokens come from: save them with `Song.save_tokens`.")
        if token_differences(provenance, tokens):
            raise UserError(f"{self.path} holds other tokens than it says: give the file as it was saved.")
        self.level = self.level or 0
        if self.level not in range(len(tokens)):
            raise UserError(f"{self.path} has no level {self.level}: choose --level from 0 to {len(tokens) - 1}.")
        config = self.model.codec.config
        self.tokens, self.sample_rate = tokens[self.level], config.sample_rate
        self.seconds = len(self.tokens) * config.hops[self.level] / self.sample_rate
        self.provenance = provenance | {"level": self.level}

    def _find_sound(self) -> None:
        from jukebox_jax.audio.files import audio_info
        from jukebox_jax.export.audio import treatments
        from jukebox_jax.export.tags import read_provenance

        self.provenance = read_provenance(self.path)
        treatments(self.provenance)
        level = self.provenance.get("level", 0)
        if self.level not in (None, level):
            raise UserError(
                f"{self.path} is the sound of level {level}, not {self.level}: give the song's .tokens.npz, and "
                "--model or --demo."
            )
        info = audio_info(self.path)
        self.sample_rate, self.seconds = info.sample_rate, info.seconds

    def read(self, tell: Callable[[float], object]) -> np.ndarray:
        """The samples; `tell` is called with how many seconds have been decoded, of tokens only."""
        import numpy as np

        if self.tokens is None:
            from jukebox_jax.audio.files import read_audio

            return read_audio(self.path, self.sample_rate)
        from jukebox_jax.sampling.stream import decode_pieces

        pieces = []
        for piece in decode_pieces(self.model.codec, self.level, self.tokens):
            pieces.append(piece)
            tell(len(piece) / self.sample_rate)
        return np.concatenate(pieces)


def _is_tokens(path: Path) -> bool:
    return path.suffix.lower() == ".npz"


def _targets(args: argparse.Namespace) -> tuple[str, list[Path]]:
    """The format, and a path for each song."""
    out = args.out
    names_file = out is not None and not out.is_dir() and out.suffix.lower().lstrip(".") in NAMES
    if names_file and args.format not in (None, out.suffix.lower().lstrip(".")):
        raise UserError(f"--out {out} is not --format {args.format}: leave one of them out.")
    if names_file and len(args.songs) > 1:
        raise UserError(f"--out {out} is one file for {len(args.songs)} songs: name a folder.")
    name = out.suffix.lower().lstrip(".") if names_file else args.format
    if name is None:
        if out is not None and out.suffix and not out.is_dir():
            raise UserError(f"--out {out}: songs are written as {', '.join(NAMES)}: choose one of these suffixes.")
        raise UserError(f"The format is not given: add --format {'|'.join(NAMES)}, or --out with a file as song.mp3.")
    if not names_file and out is not None and out.is_file():
        raise UserError(f"--out {out} is a file of another kind: name a folder, or a file such as song.{name}.")
    level = f".level_{args.level}" if args.level else ""
    targets = []
    for song in args.songs:
        stem = song.name.removesuffix(_TOKENS) + level if song.name.endswith(_TOKENS) else song.stem
        targets.append(out if names_file else (out or song.parent) / f"{stem}.{name}")
    return name, targets


def _check_songs(args: argparse.Namespace, targets: Sequence[Path]) -> None:
    """Refuses what can be seen before anything is loaded."""
    for song, target in zip(args.songs, targets, strict=True):
        if not song.is_file():
            raise UserError(f"{song} is no file: check the path.")
        if _is_tokens(song) and not (args.demo or args.model):
            raise UserError(f"{song} holds tokens: name the --model that they were sampled with, or --demo.")
        if target.resolve() == song.resolve():
            raise UserError(f"{target} is the song itself: choose another --out.")
        if targets.count(target) > 1:
            raise UserError(f"Two songs would become {target}: export them one by one, with --out.")
        for path in (target, target.with_name(target.name + ".json")):
            if path.exists() and not args.force:
                raise UserError(f"{path} exists: choose another --out, or write over it with --force.")
    if (args.demo or args.model) and not any(_is_tokens(song) for song in args.songs):
        raise UserError("--model and --demo are for tokens, and sound files need none: leave it out.")
