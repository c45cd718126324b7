"""`jukebox-jax page`: one HTML file to listen to sampled songs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jukebox_jax.cli import arguments
from jukebox_jax.errors import UserError

if TYPE_CHECKING:
    from jukebox_jax.api import Model
    from jukebox_jax.export.lyrics import Alignment
    from jukebox_jax.song import Song

DESCRIPTION = """Write a page on which sampled songs can be heard, level by level.

FOLDERs are those that `jukebox-jax sample` wrote; songs of several stand on one page. Sound, spectrograms and how each
song was made are all in the one file, which needs no network. Lyrics light up as they are sung, where the model's head
that follows them is known (see `jukebox-jax align`)."""
EXAMPLE = "  jukebox-jax page songs longer --demo --out compared.html"
IF_INTERRUPTED = "Run the same command again."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders", metavar="FOLDER", nargs="+", type=arguments.local_path, help="with songs and their tokens"
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--demo", action="store_true", help="the songs are by the model that ships with the package")
    which.add_argument("--model", metavar="FOLDER", type=arguments.local_path, help="the model that made them")
    parser.add_argument(
        "--out", metavar="FILE.html", type=arguments.local_path, help="where to write (the first FOLDER's index.html)"
    )
    parser.add_argument("--surprise", action="store_true", help="also draw how many bits each top-level token takes")
    parser.add_argument("--quiet", action="store_true", help="no progress line")


def run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from jukebox_jax import api
    from jukebox_jax.files import check_targets

    out = args.out or args.folders[0] / "index.html"
    paths = [path for folder in args.folders for path in songs_in(folder)]
    check_targets(out)
    model = api.load(None if args.demo else args.model)
    songs = [model.load_song(path) for path in tqdm(paths, desc="decode", unit="song", disable=args.quiet)]
    titles = [f"{path.parent.name}/{path.name.removesuffix('.tokens.npz')}" for path in paths]
    write_songs(model, songs, titles, out, args.model, surprise=args.surprise, quiet=args.quiet)
    print(out)


def write_songs(
    model: Model,
    songs: Sequence[Song],
    titles: Sequence[str],
    path: Path,
    folder: Path | None,
    surprise: bool = False,
    quiet: bool = False,
) -> None:
    """Writes the page of songs, with lyrics that light up, and the loss curves of the model's `folder` if it has some.

    Raises:
      UserError: see `export.page.write_page`.
    """
    from tqdm import tqdm

    from jukebox_jax.checkpoint.store import split_step

    silent = quiet or model.priors[-1].config.lyrics is None
    alignments = [aligned(model, song) for song in tqdm(songs, desc="align", unit="song", disable=silent)]
    runs = None if folder is None else split_step(folder)[0]
    asked = {"alignments": alignments, "surprise": surprise, "runs": runs, "progress": not quiet}
    model.page(songs, path, titles=titles, **asked)


def songs_in(folder: Path) -> list[Path]:
    """The tokens files of a folder, in the order of their names.

    Raises:
      UserError: there are none.
    """
    paths = sorted(folder.glob("*.tokens.npz"))
    if not paths:
        raise UserError(f"{folder} holds no songs (*.tokens.npz): name a folder that `jukebox-jax sample` wrote.")
    return paths


def aligned(model: Model, song: Song) -> Alignment | None:
    """When its lyrics are sung; nothing where it has none, or where nobody knows which head follows them."""
    from jukebox_jax.sampling.provenance import recorded_request

    try:
        request = recorded_request(song.provenance)
        if request is None or not request.lyrics.strip():
            return None
        return model.align(song, progress=False)
    except UserError as error:
        print(f"jukebox-jax: lyrics do not light up: {error}", file=sys.stderr)
        return None
