"""A source that is made of files: which of them it means, and which tables speak of them."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from jukebox_jax import remote
from jukebox_jax.corpus.piece import Problem
from jukebox_jax.corpus.sources import tables
from jukebox_jax.corpus.sources.fields import Statement, is_text, usable_fields
from jukebox_jax.corpus.sources.names import has_split_folders
from jukebox_jax.corpus.sources.tree import (
    MUSIC_SUFFIXES,
    File,
    Refused,
    Tree,
    has_magic,
    joined,
    split_glob,
    suffix_of,
    told,
)
from jukebox_jax.errors import UserError
from jukebox_jax.remote import is_remote


@dataclass
class Shelf:
    """A source.

    Attributes:
      source: as it was given.
      tree: the folder that its files are named in.
      files: key → file, those that the source means.
      tables: names of tables in the tree that speak of the files.
      kind: a "folder" means all its music, a "selection" (a glob or a file) only some, a "table" what its rows name.
    """

    source: str
    tree: Tree
    kind: str
    files: dict[str, File] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)

    @property
    def has_split_folders(self) -> bool:
        """Whether folders that are called like splits are meant so (an AudioFolder, or nothing but such folders)."""
        return bool(self.tables) or has_split_folders(file.name for file in self.files.values())


def open_shelves(sources: Iterable[str]) -> list[Shelf]:
    """Lists the files of each source.

    Raises:
      UserError: a source does not exist or cannot be listed.
    """
    trees: dict[str, Tree] = {}
    shelves = []
    for source in dict.fromkeys(sources):
        try:
            shelves.append(_open(source, trees))
        except OSError as error:
            raise UserError(f"{source} cannot be listed ({told(error)}): check the path and your rights.") from None
    return shelves


def read_tables(shelves: Sequence[Shelf]) -> dict[str, list[Statement]]:
    """What the tables of all shelves say: key of a file → its rows, the one to believe first in front.

    A table given as a source is believed before one found beside the music, and of those the nearer one. Files that
    rows name are added to their shelves; what is wrong with rows is added to the problems of the trees.
    """
    order = []
    for index, shelf in enumerate(shelves):
        for name in shelf.tables:
            real = shelf.tree.files[name].key
            order.append((shelf.kind != "table", -real.count("/"), real, index, name))
    statements: dict[str, list[Statement]] = {}
    done = set()
    for _, _, real, index, name in sorted(order):
        if real not in done:
            done.add(real)
            for key, statement in _read_table(shelves[index], name, [shelf.tree for shelf in shelves]):
                statements.setdefault(key, []).append(statement)
    return statements


def _open(source: str, trees: dict[str, Tree]) -> Shelf:
    def tree_of(root: str) -> Tree:
        key = root if is_remote(root) else os.path.realpath(root)
        return trees.setdefault(key, Tree(root))

    if not source or "\0" in source:
        raise UserError(f"{source!r} is no path: name a folder of music.")
    path = source if is_remote(source) else os.path.expanduser(source)
    path = path.rstrip("/") or "/"
    if _is_folder(path):
        shelf = Shelf(source, tree_of(path), "folder")
        names = list(shelf.tree.below())
        _take(shelf, names)
        shelf.tables = [name for name in names if _is_table(shelf.tree, name)]
    elif _exists(path):
        root, _, name = path.rpartition("/")
        shelf = Shelf(source, tree_of(root or ("/" if path.startswith("/") else ".")), "selection")
        try:
            file = shelf.tree.given(name)
        except Refused as refused:
            raise UserError(f"{source} cannot be used: {refused}") from None
        if tables.is_table(name):
            shelf.kind = "table"
            shelf.tree.files[name] = file
            shelf.tables = [name]
        else:
            shelf.files = {file.key: file}
            _take_tables(shelf)
    elif has_magic(path):
        root, pattern = split_glob(path)
        shelf = Shelf(source, tree_of(root), "selection")
        _take(shelf, set(shelf.tree.matching(pattern)) if _is_folder(root) else ())
        if not shelf.files:
            raise UserError(f"{source} matches no music: check the pattern, and quote it so that the shell leaves it.")
        _take_tables(shelf)
    else:
        raise UserError(f"{source} does not exist: name a folder of music, a file, or a glob in quotes.")
    return shelf


def _take(shelf: Shelf, names: Iterable[str]) -> None:
    """Music among the names; a file that is reached twice is taken by its own name rather than through a link."""
    files = (shelf.tree.files[name] for name in sorted(names) if suffix_of(name) in MUSIC_SUFFIXES)
    for file in sorted(files, key=lambda file: file.link):
        shelf.files.setdefault(file.key, file)


def _take_tables(shelf: Shelf) -> None:
    """The tables in the folders from the root of a selection down to its files."""
    folders = {""}
    for file in shelf.files.values():
        folder = posixpath.dirname(file.name)
        while folder:
            folders.add(folder)
            folder = posixpath.dirname(folder)
    names = [name for name in sorted(shelf.tree.files) if posixpath.dirname(name) in folders]
    shelf.tables = [name for name in names if _is_table(shelf.tree, name)]


def _is_table(tree: Tree, name: str) -> bool:
    """Whether a file that was found is a table: by its name or, of a manifest, by its first rows."""
    if tables.is_metadata_table(name):
        return True
    if not tables.may_be_manifest(name):
        return False
    try:
        with tree.read(name) as file:
            return tables.is_manifest(tables.read_table(file, name))
    except tree.errors:  # not known to be a table at all, so its trouble is nobody's
        return False


def _read_table(shelf: Shelf, name: str, trees: Sequence[Tree]) -> Iterator[tuple[str, Statement]]:
    """(key of a file, what its row says) for each row that can be used."""
    tree, folder = shelf.tree, posixpath.dirname(name)
    seen: dict[str, str] = {}

    def problem(where: str, reason: str, left_out: bool) -> None:
        tree.problems.append(Problem(f"{name}, {where}" if where else name, reason, left_out))

    # In a folder, music without a usable row is still a piece; a table as a source has nothing but its rows.
    losing = shelf.kind == "table"
    try:
        with tree.read(name) as file:
            for row in tables.read_table(file, name):
                if row.values is None:
                    problem(row.where, row.reason, losing)
                    continue
                named = next((row.values[key] for key in tables.FILE_KEYS if row.values.get(key)), None)
                if not isinstance(named, str):
                    problem(row.where, 'has no "file_name": give the path of an audio file.', losing)
                    continue
                if not is_text(named):
                    problem(row.where, '"file_name" holds characters that are not text: write it as UTF-8.', losing)
                    continue
                try:
                    located = _locate(named, folder, tree, trees if shelf.kind == "table" else ())
                except Refused as refused:
                    if shelf.kind != "selection":
                        problem(row.where, f"{refused}", True)
                    continue
                if located.key not in shelf.files and shelf.kind == "selection":
                    continue
                if located.key in seen:
                    reason = f"names {named} again (first in {seen[located.key]}): remove one."
                    problem(row.where, reason, False)
                    continue
                seen[located.key] = row.where
                shelf.files.setdefault(located.key, located)
                fields, reasons = usable_fields(row.values)
                for reason in reasons:
                    problem(row.where, reason, False)
                yield located.key, Statement("row", name, fields)
    except tree.errors as error:
        problem("", f"cannot be read ({told(error)}): mend its permissions, or copy it again.", losing)


def _locate(named: str, folder: str, own: Tree, others: Sequence[Tree]) -> File:
    """The file that a row means: inside the tree of its table or, for a table given as a source, of another source.

    Manifests are written with paths as they were given to the tool: absolute, or from the folder that it ran in.
    """
    try:
        return own.locate(named, folder)
    except Refused:
        for base in (joined(own.root, folder), "."):
            real = os.path.realpath(os.path.join(base, named))
            for tree in others:
                if tree.holds(real) and os.path.isfile(real):
                    return tree.locate(os.path.relpath(real, tree.real))
        raise


def _is_folder(path: str) -> bool:
    return remote.is_folder(path) if is_remote(path) else os.path.isdir(path)


def _exists(path: str) -> bool:
    # A wildcard in a bucket is taken for one: asking for such a name may be answered with its matches.
    return not has_magic(path) and remote.exists(path) if is_remote(path) else os.path.lexists(path)
