"""`jukebox-jax sample`: songs from trained models."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jukebox_jax.cli import arguments, page
from jukebox_jax.errors import UserError
from jukebox_jax.files import remove_unfinished

if TYPE_CHECKING:
    import numpy as np

    from jukebox_jax.api import Model, Song
    from jukebox_jax.sampling.memory import LevelPlan
    from jukebox_jax.sampling.order import Order

DESCRIPTION = """Sample songs: top prior, two upsamplers, decoder.

The same seed and batch size give the same songs, whatever is sampled beside them. Songs start from nothing, from audio
(--prompt), from the tokens of an earlier song (--continue), or from its top level alone (--upsample); what that song
was told (artist, genre, lyrics, place in the whole) holds again, unless you say otherwise. Every finished window is
kept: after whatever end, the same command goes on from there.

Artist and genre may be blends, in JSON: '{"Bach": 0.7, "Corelli": 0.3}', or, changing with the seconds of the song,
'{"0": "Bach", "10": {"Bach": 1, "Corelli": 1}}'."""
EXAMPLE = """  jukebox-jax sample --demo --seconds 6 --seed 1 --out songs
  jukebox-jax sample --demo --seconds 9 --continue songs/seed_1_song_0.tokens.npz --seed 2 --out longer
  jukebox-jax sample --model runs/mine --artist "Anna Magdalena" --artist "Johann" --n-samples 4 --out songs"""
IF_INTERRUPTED = "Run the same command again: it goes on from the windows that were finished."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_model(parser)
    parser.add_argument(
        "--out", metavar="FOLDER", type=arguments.local_path, default=Path("songs"), help="where to write (songs)"
    )
    parser.add_argument("--artist", action="append", help="in whose manner; given again, for the next song")
    parser.add_argument("--genre", action="append", help="in which genre; given again, for the next song")
    lyrics = parser.add_mutually_exclusive_group()
    lyrics.add_argument(
        "--lyrics", metavar="TEXT", action="append", help="of the whole song; given again, for the next song"
    )
    lyrics.add_argument(
        "--lyrics-file", metavar="FILE", type=arguments.local_path, action="append", help="the same from UTF-8 text"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=arguments.number, help="how long songs become (6, or all of --upsample)")
    length.add_argument("--sample-length", metavar="SAMPLES", type=int, help="the same in audio samples, exactly")
    parser.add_argument("--total-seconds", type=arguments.number, help="length of the imagined whole song")
    parser.add_argument("--offset-seconds", type=_offset, help="where in it the sampled part starts (0)")
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--prompt",
        metavar="FILE",
        type=arguments.local_path,
        action="append",
        help="audio to start from; given again, for the next song",
    )
    start.add_argument(
        "--continue",
        metavar="TOKENS.npz",
        type=arguments.local_path,
        action="append",
        dest="continue_from",
        help="song to go on with; given again, for the next song",
    )
    start.add_argument(
        "--upsample",
        metavar="TOKENS.npz",
        type=arguments.local_path,
        action="append",
        help="song of which only the top level is kept; given again, for the next song",
    )
    parser.add_argument("--prompt-seconds", type=arguments.number, help="how much to use of what songs start from")
    parser.add_argument("--seed", type=arguments.seed, default=0, help="(0)")
    parser.add_argument("--n-samples", type=arguments.count, default=1, help="how many songs (1)")
    parser.add_argument(
        "--batch-size", type=arguments.count, help="songs or segments at once (as many as there are, as memory allows)"
    )
    parser.add_argument(
        "--mesh",
        type=_mesh,
        metavar="AXIS=SIZE,…",
        help="devices: replicas with songs of their own, each of which fsdp or tensor devices make up that divide the "
        "weights: replica=4,fsdp=2 (all devices as replicas, as long as there are songs or segments for them)",
    )
    parser.add_argument(
        "--temperature",
        type=_by_level(arguments.number),
        help="above 1 bolder, below 1 safer (0.99); of each level: 2=0.99,1=0.98,0=0.97",
    )
    parser.add_argument(
        "--top-k",
        type=_by_level(int),
        help="draw each token from the k likeliest (0: from all); of each level: 2=50,1=0,0=0",
    )
    parser.add_argument(
        "--top-p",
        type=_by_level(float),
        help="draw each token from the likeliest that hold this probability (0: from all); of each level: "
        "2=0.9,1=0,0=0",
    )
    parser.add_argument(
        "--parallel",
        type=arguments.count,
        metavar="SEGMENTS",
        help="upsample in so many segments side by side: faster, but approximate at their seams (1)",
    )
    parser.add_argument("--precision", choices=["float32", "bfloat16", "int8"], help="of the priors' weights (float32)")
    parser.add_argument(
        "--session",
        metavar="FOLDER",
        type=arguments.local_path,
        help="where finished windows are kept (a folder of its own for each command, in OUT/sessions)",
    )
    parser.add_argument(
        "--preview", action="store_true", help="also write what there is, as soon as it can be heard, to OUT/preview"
    )

    parser.add_argument("--no-page", action="store_true", help="write no OUT/index.html to listen to the songs")
    parser.add_argument("--force", action="store_true", help="write over other songs that are in OUT already")
    parser.add_argument("--strict-labels", action="store_true", help="refuse names that the model does not know")
    parser.add_argument(
        "--original-overrun",
        action="store_true",
        help="prolong the top level of short songs beyond what was asked for, as the original does",
    )


def run(args: argparse.Namespace) -> None:
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out {args.out} is a file: name a folder.")
    names = ("artist", "genre", "lyrics", "seconds", "sample_length", "total_seconds", "offset_seconds", "batch_size")
    names += ("prompt_seconds", "temperature", "top_k", "top_p", "parallel", "precision", "mesh")
    names += ("strict_labels", "original_overrun")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.lyrics_file:
        given["lyrics"] = [arguments.read_lyrics(path) for path in args.lyrics_file]
    for name in ("artist", "genre"):
        if name in given:
            given[name] = [_blend(f"--{name}", text) for text in given[name]]
    _check_start(args)

    with _writable_folder(args.out):
        from jukebox_jax import api
        from jukebox_jax.cli.compile_cache import keep_compiled

        keep_compiled(None)
        model = api.load(None if args.demo else args.model)
        before = [model.load_song(path, decode=False) for path in args.continue_from or args.upsample or []]
        given = _as_before(args, before) | given | _start(args, model, before)
        order = model.order(seed=args.seed, n_samples=args.n_samples, **given)
        targets = [args.out / f"seed_{args.seed}_song_{index}.wav" for index in range(args.n_samples)]
        if not args.force:
            _refuse_other_songs(targets, order, model)
        session = args.session or args.out / "sessions" / model.session_name(order)
        preview = Preview(args.out / "preview", model, args.n_samples) if args.preview else None
        for event in model.run(order, session=session, tell=print_plan):
            if isinstance(event, list):
                songs = event
            elif preview is not None:
                preview.write(event)
        for song, path in zip(songs, targets, strict=True):
            remove_unfinished(args.out, f"{path.stem}.")
            song.save(path)
            song.save_tokens(path.with_suffix(".tokens.npz"))
            print(path)
        if not args.no_page:
            _write_page(model, songs, [path.stem for path in targets], args.out / "index.html", args.model)


def _as_before(args: argparse.Namespace, songs: Sequence[Song]) -> dict[str, Any]:
    """What songs to go on with, or to upsample, were told, as `Model.sample` takes it; says what is taken over."""
    from jukebox_jax.sampling.order import SECONDS
    from jukebox_jax.sampling.provenance import recorded_request

    requests = [recorded_request(song.provenance) for song in songs]
    if not requests or None in requests:
        return {}
    rate = songs[0].sample_rate
    texts = {"artist": args.artist, "genre": args.genre, "lyrics": args.lyrics or args.lyrics_file}
    found: dict[str, Any] = {
        name: [getattr(request, name) for request in requests] for name, given in texts.items() if given is None
    }
    if args.total_seconds is args.offset_seconds is None:
        length = args.sample_length or (args.seconds or (SECONDS if args.continue_from else 0)) * rate
        totals = [max(request.total_samples, request.offset_samples + length) for request in requests]
        # Half a sample more, lest rounding loses one.
        found["total_seconds"] = [(total + 0.5) / rate for total in totals]
        found["offset_seconds"] = [(request.offset_samples + 0.5) / rate for request in requests]
    for path, request in zip(args.continue_from or args.upsample, requests, strict=True):
        said = {name: getattr(request, name) for name in texts if name in found}
        said = [f"{name} {text}" for name, text in said.items() if text not in ("", "unknown")]
        if said:
            print(f"{path.name} was sampled with, and goes on with, {', '.join(said)}.", file=sys.stderr)
    return found


def _refuse_other_songs(targets: Sequence[Path], order: Order, model: Model) -> None:
    """Raises UserError if a song would be written over another one; one of the same settings is the same song."""
    from jukebox_jax.export.tags import read_provenance

    there_already = [(index, path) for index, path in enumerate(targets) if path.exists()]
    settings = order.settings(model.codec, model.priors) if there_already else {}
    for index, path in there_already:
        ours = json.loads(json.dumps({**settings, **settings["songs"][index], "song": index}))
        try:
            there = read_provenance(path)
        except UserError:
            there = {}
        if any(there.get(name) != value for name, value in ours.items() if name not in ("songs", "mesh")):
            raise UserError(f"{path} is another song: choose another --out or --seed, or write over it with --force.")


def _write_page(model: Model, songs: Sequence[Song], titles: Sequence[str], path: Path, folder: Path | None) -> None:
    """The page of songs that are written already: what stands in its way does not undo them."""
    try:
        page.write_songs(model, songs, titles, path, folder)
    except UserError as error:
        print(f"jukebox-jax: the songs are written, but no page: {error}", file=sys.stderr)
    else:
        print(f"Open {path} to listen.", file=sys.stderr)


def print_plan(plans: Sequence[LevelPlan]) -> None:
    """Says what each level takes of the device's memory, top level first, as that is the first to be loaded."""
    for plan in reversed(plans):
        print(plan, file=sys.stderr)


class Preview:
    """Wave files that grow while songs are sampled, one for each level of each song."""

    def __init__(self, folder: Path, model: Model, songs: int):
        from jukebox_jax.sampling.stream import Streamer

        self.folder, self.streamer = folder, Streamer(model.codec, songs)
        self.heard: dict[tuple[int, int], list[np.ndarray]] = {}

    def write(self, event: Any) -> None:
        """Adds what can be heard of an event; a file is always whole."""
        import numpy as np

        from jukebox_jax.audio.files import write_audio

        for chunk in self.streamer.heard(event):
            pieces = self.heard.setdefault((chunk.level, chunk.song), [])
            pieces.append(chunk.audio)
            path = self.folder / f"song_{chunk.song}_level_{chunk.level}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_audio(path, np.concatenate(pieces), chunk.sample_rate)


def _by_level(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """A number of all levels, or LEVEL=NUMBER,… for each."""

    def parsed(text: str) -> Any:
        if "=" not in text:
            return parse(text)
        pairs = [pair.partition("=") for pair in text.split(",")]
        try:
            return {int(level): parse(value) for level, _, value in pairs}
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text} is no number for each level: write 2=1,1=1,0=1") from None

    return parsed


def _mesh(text: str) -> dict[str, int]:
    try:
        return {axis: int(size) for axis, _, size in (pair.partition("=") for pair in text.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no mesh: give sizes such as replica=4,fsdp=2") from None


def _blend(flag: str, text: str) -> Any:
    """A name, or a blend in JSON."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{flag} {text} is no JSON ({error}): write for instance '{{\"Bach\": 0.7}}'.") from None


def _offset(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text} is no place in a song: give a finite number, 0 or more")
    return value


def _check_start(args: argparse.Namespace) -> None:
    """Refuses before anything is loaded what can be seen without the model."""
    files = args.prompt or args.continue_from or args.upsample or []
    if args.prompt_seconds is not None and not files:
        raise UserError("--prompt-seconds cuts what songs start from: give --prompt, --continue or --upsample.")
    if len(files) > args.n_samples:
        raise UserError(f"{len(files)} songs to start from are more than --n-samples {args.n_samples}: ask for more.")
    for path in files:
        if not path.is_file():
            raise UserError(f"{path} is no file: check the path.")
    if args.prompt:
        from jukebox_jax.audio.files import audio_info

        for path in args.prompt:
            audio_info(path)


def _start(args: argparse.Namespace, model: Model, before: Sequence[Song]) -> dict[str, Any]:
    """What songs start from, audio or songs that were `before`, as `Model.sample` takes it."""
    from jukebox_jax.audio.files import audio_info, read_audio

    if args.prompt:
        rate = model.codec.config.sample_rate
        for path in args.prompt:
            own = audio_info(path).sample_rate
            if own != rate:
                print(f"{path} is resampled from {own} to {rate} Hz.", file=sys.stderr)
        return {"prompt": [read_audio(path, rate).mean(axis=1) for path in args.prompt]}
    levels = [list(level) for level in zip(*(song.tokens for song in before), strict=True)]
    if args.continue_from:
        return {"continue_from": levels}
    return {"upsample": levels[-1]} if args.upsample else {}


@contextlib.contextmanager
def _writable_folder(folder: Path) -> Iterator[None]:
    """A folder that can be written, tried out at once; what was created for it goes again if nothing came into it.

    Raises:
      OSError: it cannot be created or written.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(bytes(4096))  # a full disk may still have room for a name
        except OSError as error:
            error.filename = str(folder)
            raise
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty, or never created
            for path in created:
                path.rmdir()
