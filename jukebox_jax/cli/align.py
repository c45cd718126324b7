"""`jukebox-jax align`: when each word of a song's lyrics is sung."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jukebox_jax.cli import arguments
from jukebox_jax.errors import UserError
from jukebox_jax.files import check_targets

if TYPE_CHECKING:
    from jukebox_jax.api import Model
    from jukebox_jax.song import Song

DESCRIPTION = """Find out when each word of a song's lyrics is sung, by what the top prior looks at.

For each SONG.tokens.npz there are OUT/SONG.lrc (for players, with the time of each word), OUT/SONG.json (for programs)
and OUT/SONG.png (the attention, to see whether it can be believed). Lyrics are those the song was sampled with.

Only one head of a prior follows the lyrics. The released models' are known; that of a new model is found by --search,
from a few songs with different lyrics, and noted beside its folder, where later commands find it."""
EXAMPLE = """  jukebox-jax align songs/seed_1_song_0.tokens.npz --model models/1b_lyrics --out aligned
  jukebox-jax align songs/*.tokens.npz --model runs/mine --search --out aligned"""
IF_INTERRUPTED = "The same command, with --force, starts again."

FORMATS = ("lrc", "json", "png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("song", metavar="SONG", nargs="+", type=arguments.local_path, help="NAME.tokens.npz")
    parser.add_argument(
        "--model",
        metavar="FOLDER",
        type=arguments.local_path,
        required=True,
        help="folder that holds vqvae and level_0, level_1, …, by which the songs were sampled",
    )
    parser.add_argument("--out", metavar="FOLDER", type=arguments.local_path, required=True, help="where to write")
    parser.add_argument(
        "--formats", type=_formats, default=FORMATS, metavar="lrc,json,png", help="which files to write (all three)"
    )
    parser.add_argument(
        "--lyrics-file", metavar="FILE", type=arguments.local_path, help="lyrics as UTF-8 text (the song's own)"
    )
    parser.add_argument("--total-seconds", type=arguments.number, help="length of the whole song (as sampled)")
    parser.add_argument("--layer", type=int, metavar="N", help="whose attention to read, from 0 (the known one)")
    parser.add_argument("--head", type=int, metavar="N", help="which head of the layer, from 0 (the known one)")
    parser.add_argument("--search", action="store_true", help="look for the layer and head first, in all the songs")
    parser.add_argument("--force", action="store_true", help="replace files that are there")


def run(args: argparse.Namespace) -> None:
    if args.search and (args.layer is not None or args.head is not None):
        raise UserError("--search looks for the layer and the head: leave --layer and --head out.")
    targets = _targets(args)
    lyrics = None if args.lyrics_file is None else arguments.read_lyrics(args.lyrics_file)
    if args.search and lyrics is not None and len(args.song) > 1:
        print("jukebox-jax: all songs are searched with the same lyrics; better are different ones.", file=sys.stderr)
    check_targets(*(path for paths in targets for path in paths))

    from jukebox_jax import api
    from jukebox_jax.cli.compile_cache import keep_compiled

    keep_compiled(None)
    model = api.load(args.model)
    songs = [model.load_song(path, decode=False) for path in args.song]
    if args.search:
        layer, head = _search(model, songs, lyrics)
    else:
        layer, head = args.layer, args.head
    found = [model.align(song, lyrics, total_seconds=args.total_seconds, layer=layer, head=head) for song in songs]
    for alignment, paths in zip(found, targets, strict=True):
        for path in paths:
            alignment.save(path)
            print(path)


def _targets(args: argparse.Namespace) -> list[list[Path]]:
    """The files of each song, none of which is there already."""
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out {args.out} is a file: name a folder.")
    targets = [[args.out / f"{_name(path)}.{suffix}" for suffix in args.formats] for path in args.song]
    for path in args.song:
        if not path.is_file():
            raise UserError(f"{path} is no file: check the path.")
    names = [_name(path) for path in args.song]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"Two songs are called {name}, and their files would be one: align them one by one.")
    for path in (path for paths in targets for path in paths):
        if path.exists() and not args.force:
            raise UserError(f"{path} is there already: choose another --out, or replace it with --force.")
    return targets


def _search(model: Model, songs: list[Song], lyrics: str | None) -> tuple[int, int]:
    """Prints how well each head follows the lyrics, and notes the best beside the model if that can be written."""
    from jukebox_jax.evaluation.alignment import record_head

    found = model.search_alignment(songs, None if lyrics is None else [lyrics] * len(songs))
    print("layer  head  follows the lyrics (1: all of its attention, in order; 0: none)")
    for one in found:
        print(f"{one.layer:5d} {one.head:5d}  {one.score:.3f}")
    best = found[0]
    try:
        note = record_head(model.priors[-1], best.layer, best.head)
        print(f"jukebox-jax: noted in {note}.", file=sys.stderr)
    except OSError as error:
        print(
            f"jukebox-jax: could not be noted beside the model ({error.strerror}): give --layer {best.layer} "
            f"--head {best.head} from now on.",
            file=sys.stderr,
        )
    return best.layer, best.head


def _formats(text: str) -> tuple[str, ...]:
    formats = tuple(dict.fromkeys(text.split(",")))
    if not set(formats) <= set(FORMATS):
        raise argparse.ArgumentTypeError(f"{text} has other formats than {', '.join(FORMATS)}: give some of these")
    return formats


def _name(path: Path) -> str:
    return path.name.removesuffix(".npz").removesuffix(".tokens")
