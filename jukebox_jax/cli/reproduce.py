"""`jukebox-jax reproduce`: a song sampled again, and compared."""

from __future__ import annotations

import argparse

from jukebox_jax.cli import arguments
from jukebox_jax.errors import UserError

DESCRIPTION = """Sample a song again, as its tags or its sidecar say, and compare.

Tags are only read: the model is the one that you name, and must be the one that the song was sampled with, by their
hashes. A song that started from audio or from tokens needs them again, or its own tokens (--prompt).
Exit status: 0 the same song, 1 another, 2 it cannot be sampled."""
EXAMPLE = """  jukebox-jax reproduce songs/seed_1_song_0.mp3 --demo
  jukebox-jax reproduce found.flac --model models/5b --prompt beginning.wav"""
IF_INTERRUPTED = "Run the same command again: it goes on from the windows that were finished."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=arguments.local_path, help="a song that was saved or exported")
    arguments.add_model(parser)
    parser.add_argument(
        "--prompt", metavar="FILE", type=arguments.local_path, help="what it started from: audio or .tokens.npz"
    )
    parser.add_argument(
        "--session",
        metavar="FOLDER",
        type=arguments.local_path,
        help="where finished windows are kept, until there is a verdict (FILE.session)",
    )


def run(args: argparse.Namespace) -> int:
    from jukebox_jax.export.tags import read_provenance

    provenance = read_provenance(args.file)
    if args.prompt is not None and not args.prompt.is_file():
        raise UserError(f"{args.prompt} is no file: check the path.")
    if args.prompt is None and provenance.get("mode", "ancestral") != "ancestral":
        raise UserError(
            f"{args.file} did not start from nothing: give what it started from, or its own .tokens.npz, as --prompt."
        )

    from jukebox_jax import api
    from jukebox_jax.audio.files import read_audio
    from jukebox_jax.cli.compile_cache import keep_compiled
    from jukebox_jax.sampling.session import remove_session

    keep_compiled(None)
    model = api.load(None if args.demo else args.model)
    start = {}
    if args.prompt is not None and args.prompt.suffix.lower() == ".npz":
        start["tokens"] = model.load_tokens(args.prompt)
    elif args.prompt is not None:
        start["prompt"] = read_audio(args.prompt, model.codec.config.sample_rate).mean(axis=1)
    session = args.session or args.file.with_name(args.file.name + ".session")
    again = model.reproduce(args.file, **start, session=session)
    remove_session(session)
    if not again.differences:
        print(f"{args.file} is the same song: the tokens of all levels are equal, and its sound is theirs.")
        return 0
    print(f"{args.file} is another song than its tags make of this model.")
    for text in again.differences:
        print(text)
    for text in again.environment:
        print(f"Not the same here, and perhaps the reason: {text}.")
    return 1
