"""Sources become a catalogue: every piece once, and a word on everything that is none."""

from __future__ import annotations

import itertools
import posixpath
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from jukebox_jax.corpus.piece import Catalogue, Piece, Problem
from jukebox_jax.corpus.sources import beside, tfds_items
from jukebox_jax.corpus.sources.fields import Statement, merged
from jukebox_jax.corpus.sources.names import folder_statement, title_of
from jukebox_jax.corpus.sources.shelves import Shelf, open_shelves, read_tables
from jukebox_jax.corpus.sources.tags import can_read_tags, read_tags
from jukebox_jax.corpus.sources.tree import MIDI_SUFFIXES, TELLING_SUFFIXES, File, Tree, open_file, suffix_of, told
from jukebox_jax.errors import UserError
from jukebox_jax.remote import is_remote, retry

#: Lyrics and sidecars that are longer are something else.
MAX_BESIDE_BYTES = 1 << 20

_BESIDE = {".json": ("sidecar", beside.read_json), ".lrc": ("lrc", beside.read_lrc), ".txt": ("txt", beside.read_txt)}

# Reading what files say of themselves waits for disks and, longer, for networks. A block bounds what is under way.
_THREADS, _THREADS_REMOTE, _BLOCK = 8, 32, 1024


def find_pieces(
    sources: Sequence[str],
    *,
    data_dir: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Catalogue:
    """The pieces of all sources and what is said of them, without decoding any sound.

    A source is a folder (searched with all below it), a glob, a file, a table of metadata (which then means its rows),
    each on a disk or in a bucket ("gs://…"), or "tfds:NAME[/CONFIG][:VERSION]". `fields.PRECEDENCE` says whom to
    believe. A file that is reached twice is taken once; if files of two sources have the same name, the names of both
    sources' pieces begin with the sources' own. A path in a table that leaves its source is refused, and so is a link
    that does; only a table that is itself a source may name files of the other sources.

    Args:
      data_dir: where TFDS datasets lie, if not in TFDS's own place.
      progress: called with (pieces looked at, pieces in all).

    Raises:
      UserError: a source does not exist, cannot be listed, or has no music.
    """
    if not sources:
        raise UserError("no source is given: name a folder of music.")
    names = [source for source in dict.fromkeys(sources) if source.startswith(tfds_items.PREFIX)]
    datasets = [tfds_items.open_items(name, data_dir) for name in names]
    shelves = open_shelves(source for source in sources if source not in names)
    rows = read_tables(shelves)
    _check_not_empty(shelves)

    chosen: dict[str, tuple[File, bool]] = {}  # key → file, whether its first folder may be a split
    for shelf in shelves:
        splits = shelf.has_split_folders
        for key, file in shelf.files.items():
            chosen.setdefault(key, (file, splits))
    trees = {shelf.tree.root: shelf.tree for shelf in shelves}

    # Root of a source → its pieces and problems, named inside the source.
    pieces: dict[str, list[Piece]] = {}
    problems: dict[str, list[Problem]] = {}
    steps = itertools.count(1)
    total = len(chosen) + sum(map(len, datasets))
    looks = _look_at_all([file for file, _ in chosen.values()], trees)
    for (file, splits), look in zip(chosen.values(), looks, strict=True):
        if look.readable:
            said = [*rows.get(file.key, ()), *look.statements, *_names(file, splits)]
            pieces.setdefault(file.root, []).append(_piece(look.file, said))
        problems.setdefault(file.root, []).extend(look.problems)
        if progress is not None:
            progress(next(steps), total)
    for dataset in datasets:
        for piece, wrong in dataset.pieces():
            pieces.setdefault(dataset.source, []).append(piece)
            problems.setdefault(dataset.source, []).extend(wrong)
            if progress is not None:
                progress(next(steps), total)

    for tree in trees.values():
        problems.setdefault(tree.root, []).extend(tree.problems)
    places = {tree.root: tree.real.strip("/").split("/") for tree in trees.values()}
    places |= {dataset.source: list(dataset.place) for dataset in datasets}
    catalogue = _catalogue(pieces, problems, places)
    if not catalogue.pieces:
        first = next(problem for problem in catalogue.problems if problem.left_out)
        raise UserError(f"no music in {', '.join(sources)} can be read ({first.where} {first.reason.rstrip('.')}).")
    catalogue = replace(catalogue, other_files=_other_files(trees.values(), chosen))
    if chosen and not can_read_tags():
        catalogue = replace(catalogue, problems=(_NO_MUTAGEN, *catalogue.problems))
    return catalogue


def _other_files(trees: Iterable[Tree], chosen: Container[str]) -> dict[str, int]:
    """Files that are no pieces and tell of none, counted by suffix: a recording under a strange name is among them."""
    files = (file for tree in trees for file in tree.files.values() if file.key not in chosen)
    suffixes = Counter(suffix_of(file.name) or "no suffix" for file in files)
    return {suffix: suffixes[suffix] for suffix in sorted(suffixes) if suffix not in TELLING_SUFFIXES}


_NO_MUTAGEN = Problem(
    "tags",
    'inside the files were not read, as mutagen is not installed: pip install "jukebox-jax[tags]" if they matter.',
    left_out=False,
)


@dataclass(frozen=True)
class _Seen:
    """What looking at a file found: whether it opens, what it and the files beside it say, and what is wrong there."""

    file: File
    readable: bool
    statements: list[Statement]
    problems: list[Problem]


def _look_at_all(files: Sequence[File], trees: Mapping[str, Tree]) -> Iterator[_Seen]:
    """Looks at the files in parallel, in order."""
    tags = can_read_tags()
    threads = _THREADS_REMOTE if any(is_remote(root) for root in trees) else _THREADS
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(files), _BLOCK):
            block = files[start : start + _BLOCK]
            yield from pool.map(_look_at, block, [trees[file.root] for file in block], itertools.repeat(tags))


def _look_at(file: File, tree: Tree, tags: bool) -> _Seen:
    statements, problems = [], []
    tags = tags and suffix_of(file.name) not in MIDI_SUFFIXES
    try:
        if not tree.remote or (tags and file.size):

            def look() -> tuple[dict[str, str], list[str]]:
                with open_file(file.path) as opened:
                    # An empty file has no tags to complain of; that it is empty shows when it is decoded.
                    return read_tags(opened) if tags and file.size else ({}, [])

            fields, reasons = retry(look, f"Reading {file.path}") if tree.remote else look()
            statements.append(Statement("tags", "tags", fields))
            problems += [Problem(file.name, reason, left_out=False) for reason in reasons]
    except tree.errors as error:
        reason = f"cannot be read ({told(error)}): mend its permissions, or copy it again."
        return _Seen(file, False, [], [Problem(file.name, reason)])
    stem = posixpath.splitext(file.name)[0]
    for suffix, (kind, read) in _BESIDE.items():
        name = next((stem + spelt for spelt in (suffix, suffix.upper()) if stem + spelt in tree.files), None)
        if name is None or name == file.name:
            continue
        try:
            with tree.read(name) as opened:
                data = opened.read(MAX_BESIDE_BYTES + 1)
        except tree.errors as error:
            problems.append(Problem(name, f"cannot be read ({told(error)}): mend its permissions.", left_out=False))
            continue
        if len(data) > MAX_BESIDE_BYTES:
            reason = f"is larger than {MAX_BESIDE_BYTES >> 20} MiB and was not read: shorten it, or rename it."
            problems.append(Problem(name, reason, left_out=False))
            continue
        found = read(data)
        statements.append(Statement(kind, posixpath.basename(name), found.fields))
        problems += [
            Problem(f"{name}, line {line}" if line else name, reason, left_out=False) for line, reason in found.reasons
        ]
    return _Seen(file, True, statements, problems)


def _names(file: File, split_folders: bool) -> list[Statement]:
    """What the names of a file and of its folders say."""
    *folders, name = file.name.split("/")
    return [
        folder_statement(folders, split_folders),
        Statement("name", "file name", {"title": title_of(posixpath.splitext(name)[0])}),
    ]


def _piece(file: File, statements: Sequence[Statement]) -> Piece:
    values, origins = merged(statements)
    return Piece(file_name=file.name, path=file.path, origins=origins, size=file.size, modified=file.modified, **values)


def _check_not_empty(shelves: Sequence[Shelf]) -> None:
    for shelf in shelves:
        if not shelf.files:
            problems = [problem for problem in shelf.tree.problems if problem.left_out]
            why = f" ({problems[0].where} {problems[0].reason.rstrip('.')})" if problems else ""
            raise UserError(f"{shelf.source} holds no music{why}: put WAV, FLAC, Ogg or MP3 files there.")


def _catalogue(
    pieces: Mapping[str, Sequence[Piece]],
    problems: Mapping[str, Sequence[Problem]],
    places: Mapping[str, Sequence[str]],
) -> Catalogue:
    """Pieces and problems of all roots, under names that are unique, in their order."""
    names = {root: [piece.file_name for piece in found] for root, found in pieces.items()}
    for root, found in problems.items():  # else the same words about two tables would be taken for one problem
        names.setdefault(root, []).extend(problem.where for problem in found)
    prefixes = _prefixes(names, places)
    named = [
        replace(piece, file_name=prefixes[root] + piece.file_name) if prefixes[root] else piece
        for root, found in pieces.items()
        for piece in found
    ]
    told_of = {
        replace(problem, where=prefixes.get(root, "") + problem.where)
        for root, found in problems.items()
        for problem in found
    }
    return Catalogue(
        tuple(sorted(named, key=lambda piece: piece.file_name)),
        tuple(sorted(told_of, key=_place_of)),
    )


def _prefixes(names: Mapping[str, Sequence[str]], places: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """What to put before the names of each root so that no two of them share one: as few of its own folders as suffice.

    Args:
      places: root → the names of the folders that lead to it; they differ for different roots.
    """
    depths = dict.fromkeys(names, 0)
    while True:
        prefixes = {
            root: "".join(f"{part}/" for part in places[root][-depth:]) if depth else ""
            for root, depth in depths.items()
        }
        owners: dict[str, str] = {}
        clashing: set[str] = set()
        for root, found in names.items():
            for name in found:
                owner = owners.setdefault(prefixes[root] + name, root)
                if owner != root:
                    clashing |= {owner, root}
        if not clashing:
            return prefixes
        for root in clashing:
            depths[root] += 1


def _place_of(problem: Problem) -> tuple[str, int, str]:
    """Problems of one file in the order of its lines."""
    name, _, where = problem.where.rpartition(", ")
    number = where.rpartition(" ")[2]
    return (name, int(number), problem.reason) if name and number.isdecimal() else (problem.where, 0, problem.reason)
