"""The files of a folder, on a disk or in a bucket: each listed once, hidden ones ignored, none from outside it."""

from __future__ import annotations

import fnmatch
import io
import os
import posixpath
import re
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from jukebox_jax import remote
from jukebox_jax.audio.files import READABLE_SUFFIXES, UNREADABLE_SUFFIXES
from jukebox_jax.corpus.piece import Problem
from jukebox_jax.corpus.sources.fields import is_text
from jukebox_jax.remote import is_remote

#: Files that are taken for music by their names. Whether they can be decoded shows when they are.
AUDIO_SUFFIXES = (
    READABLE_SUFFIXES
    | UNREADABLE_SUFFIXES
    | {".3gp", ".ac3", ".aifc", ".alac", ".amr", ".au", ".dff", ".dsf", ".m4b", ".mp1", ".mp2", ".mpc", ".mpga", ".ra"}
    | {".rf64", ".snd", ".spx", ".tta", ".voc", ".wave", ".weba", ".wv"}
)
MIDI_SUFFIXES = frozenset({".mid", ".midi"})
MUSIC_SUFFIXES = AUDIO_SUFFIXES | MIDI_SUFFIXES

# Files that say something of others: worth a word if they cannot be used.
TELLING_SUFFIXES = frozenset({".csv", ".gz", ".json", ".jsonl", ".lrc", ".parquet", ".txt"})

# What systems leave in folders. Names that begin with a dot are ignored as well (.DS_Store, ._song.mp3).
_SYSTEM_NAMES = frozenset(
    {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "system volume information"}
)

_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_MAGIC = re.compile(r"[*?[]")


@dataclass(frozen=True, slots=True)
class File:
    """A file of a tree.

    Attributes:
      root: of its tree.
      name: its path inside the tree, with "/".
      key: equal for the same file reached by another way: its path without links.
      link: whether it was reached through a link.
      size, modified: in bytes and nanoseconds.
    """

    root: str
    name: str
    key: str
    link: bool = False
    size: int = 0
    modified: int = 0

    @property
    def path(self) -> str:
        return joined(self.root, self.name)


class Refused(Exception):
    """A name in a table that leads to no usable file; the text is the reason, as a sentence."""


class Tree:
    """One folder and what has been listed of it so far.

    Attributes:
      root: as it was given; every `File.path` begins with it.
      real: the root without links.
      errors: what opening and listing raises where something cannot be read. That a bucket is out of reach is none of
        these: it ends everything.
      files: name → file, of the folders listed so far, whatever their suffix.
      problems: what was met on the way; `where` is a name inside the tree.
    """

    def __init__(self, root: str):
        self.root = root
        self.remote = is_remote(root)
        self.errors = (OSError, remote.RefusedError)
        self.real = root if self.remote else os.path.realpath(root)
        self.files: dict[str, File] = {}
        self.problems: list[Problem] = []
        self._listed: dict[str, tuple[list[str], list[str]]] = {}  # folder → the folders and files in it
        self._linked: set[str] = set()
        self._composed: dict[str, str] = {}

    def listing(self, folder: str) -> tuple[list[str], list[str]]:
        """The names of the folders and of the files in `folder` ("" is the root).

        Raises:
          one of `errors`: it cannot be listed, or lies outside.
        """
        if folder not in self._listed:
            folders, files = self._list_remote(folder) if self.remote else self._list_local(folder)
            self.files |= {file.name: file for file in files}
            self._listed[folder] = sorted(folders), sorted(file.name for file in files)
        return self._listed[folder]

    def walk(self, folder: str = "") -> Iterator[str]:
        """Lists `folder` and all below it, and yields their names; links come last, and no folder twice.

        A folder below that cannot be listed becomes a problem.
        """
        plain, linked, entered = [folder], [], set()
        while plain or linked:
            current = plain.pop() if plain else linked.pop()
            real = current if self.remote else os.path.realpath(joined(self.root, current))
            if real in entered:
                continue
            entered.add(real)
            try:
                folders, _ = self.listing(current)
            except self.errors as error:
                if current == folder:
                    raise
                self._listed[current] = [], []
                self._problem(current, f"cannot be listed ({told(error)}): mend its permissions, or remove it.", True)
                continue
            yield current
            for name in reversed(folders):
                (linked if name in self._linked else plain).append(name)

    def below(self, folder: str = "") -> Iterator[str]:
        """The names of all files in and below `folder`."""
        for current in self.walk(folder):
            yield from self.listing(current)[1]

    def matching(self, pattern: Sequence[str], folder: str = "") -> Iterator[str]:
        """The files that a glob matches, split at its slashes; "**" is any number of folders.

        Of a folder that it matches, all files are taken. A hidden name is matched by a pattern that begins with a dot
        only, hence never.
        """
        part, *rest = pattern
        if part == "**":
            for current in self.walk(folder):
                yield from self.matching(rest, current) if rest else self.listing(current)[1]
            return
        folders, files = self.listing(folder)
        for name in folders:
            if fnmatch.fnmatchcase(posixpath.basename(name), part):
                yield from self.matching(rest, name) if rest else self.below(name)
        if not rest:
            yield from (name for name in files if fnmatch.fnmatchcase(posixpath.basename(name), part))

    def locate(self, name: str, folder: str = "") -> File:
        """The file that a table in `folder` names.

        Raises:
          Refused: there is none, it is no file, or it lies outside the tree (absolute, by "..", or by a link).
        """
        if self.remote and name.startswith(self.root.rstrip("/") + "/"):
            name, folder = name[len(self.root.rstrip("/")) + 1 :], ""
        inner = posixpath.normpath(posixpath.join(folder, name))
        if self.remote and (is_remote(name) or inner.startswith(("/", "../")) or inner == ".."):
            raise Refused(f"{name} lies outside {self.root}: copy the file into the folder.")
        # ".." means another folder where a link leads to the one before it: only the system can tell.
        if not os.path.isabs(name) and ".." not in name.split("/") and (file := self._known(inner)):
            return file
        if not self.remote and (file := self._asked(posixpath.join(folder, name))):
            return file
        if len(self._composed) != len(self.files):
            self._composed = {unicodedata.normalize("NFC", known): known for known in self.files}
        # macOS takes names with composed and with decomposed accents for the same, and tables are copied from there.
        if known := self._composed.get(unicodedata.normalize("NFC", inner)):
            return self.files[known]
        raise Refused(f"{joined(self.root, inner)} does not exist: add the file, or remove the row.")

    def given(self, name: str) -> File:
        """A file in the root that is itself a source, so wherever it leads.

        Raises:
          Refused: it is no file.
        """
        file = self._known(name)
        if file is None and not self.remote:
            try:
                status = os.stat(joined(self.root, name))
            except OSError as error:
                raise Refused(f"{told(error)}: check the path.") from None
            if stat.S_ISREG(status.st_mode):
                real = os.path.realpath(joined(self.root, name))
                file = File(self.root, name, real, True, status.st_size, status.st_mtime_ns)
        if file is None:
            raise Refused("it is not a file: name a folder, a file, or a glob in quotes.")
        return file

    def holds(self, path: str) -> bool:
        """Whether a local path without links lies inside."""
        return not self.remote and path.startswith(self.real.rstrip("/") + "/")

    def read(self, name: str) -> AbstractContextManager:
        """A table or another small file of the tree, opened for reading bytes."""
        return open_file(joined(self.root, name), whole=True)

    def _known(self, name: str) -> File | None:
        try:
            self.listing(posixpath.dirname(name))
        except self.errors:  # a table can name any folder: one that cannot be listed has no files
            return None
        return self.files.get(name)

    def _asked(self, name: str) -> File | None:
        """A file that listing passes over: hidden, or spelled otherwise."""
        try:
            real = os.path.realpath(os.path.join(self.root, name))
            status = os.stat(real)
        except OSError:
            real, status = os.path.realpath(os.path.join(self.root, name)), None
        if real != self.real and not self.holds(real):
            raise Refused(f"{name} lies outside {self.root}: copy the file into the folder.")
        if status is None:
            return None
        if not stat.S_ISREG(status.st_mode):
            raise Refused(f"{name} is not a file: name an audio file.")
        inner = os.path.relpath(real, self.real)
        return self._known(inner) or File(self.root, inner, real, False, status.st_size, status.st_mtime_ns)

    def _list_local(self, folder: str) -> tuple[list[str], list[File]]:
        real_folder = os.path.realpath(joined(self.root, folder))
        if real_folder != self.real and not self.holds(real_folder):
            raise OSError("it lies outside")
        folders, files = [], []
        with os.scandir(joined(self.root, folder)) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                name = f"{folder}/{entry.name}" if folder else entry.name
                try:
                    is_link = entry.is_symlink()
                    key = os.path.realpath(entry.path, strict=True) if is_link else f"{real_folder}/{entry.name}"
                    status = entry.stat()
                except OSError as error:
                    # It may have been a folder.
                    self._problem(name, f"cannot be reached ({told(error)}): mend the link or its permissions.", True)
                    continue
                is_folder = stat.S_ISDIR(status.st_mode)
                if not is_text(name):
                    self._problem(name, "has a name that is not UTF-8: rename it.", is_folder)
                elif is_link and not self.holds(key) and key != self.real:
                    remedy = "give the folder that it leads to as a source of its own, or copy it here."
                    self._problem(name, f"is a link to {key}, outside {self.root}: {remedy}", is_folder)
                elif is_folder:
                    folders.append(name)
                    if is_link:
                        self._linked.add(name)
                elif stat.S_ISREG(status.st_mode):
                    link = key != os.path.join(self.real, name)
                    files.append(File(self.root, name, key, link, status.st_size, status.st_mtime_ns))
                else:
                    self._problem(name, "is neither a file nor a folder but a pipe, socket or device: remove it.")
        return folders, files

    def _list_remote(self, folder: str) -> tuple[list[str], list[File]]:
        folders, files = [], []
        for entry in remote.list_folder(joined(self.root, folder)):
            if is_hidden(entry.name):
                continue
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_folder:
                folders.append(name)
            else:
                files.append(File(self.root, name, joined(self.root, name), False, entry.size, entry.modified))
        return folders, files

    def _problem(self, name: str, reason: str, is_folder: bool = False) -> None:
        """Notes a file or folder that cannot be used, if it could have mattered."""
        suffix = suffix_of(name)
        if is_folder or suffix in MUSIC_SUFFIXES or suffix in TELLING_SUFFIXES:
            shown = name.encode("utf-8", "backslashreplace").decode()
            self.problems.append(Problem(shown, reason, left_out=suffix not in TELLING_SUFFIXES))


def split_glob(pattern: str) -> tuple[str, list[str]]:
    """The folder that a glob starts from, and the rest, split at the slashes."""
    scheme = _REMOTE.match(pattern)
    start = scheme.end() if scheme else 0
    parts = pattern[start:].split("/")
    fixed = next(index for index, part in enumerate(parts) if has_magic(part))
    root = pattern[:start] + "/".join(parts[:fixed])
    if not root:
        root = "/" if fixed else "."
    return root, [part for part in parts[fixed:] if part]


def has_magic(name: str) -> bool:
    """Whether a name holds a wildcard: *, ? or [."""
    return _MAGIC.search(name) is not None


def is_hidden(name: str) -> bool:
    """Whether a file or folder is the system's rather than the user's. Titles may begin with an ellipsis."""
    return (name.startswith(".") and not name.startswith("..")) or name.lower() in _SYSTEM_NAMES


def suffix_of(name: str) -> str:
    """ ".wav" of "Song.WAV"."""
    return posixpath.splitext(name)[1].lower()


def joined(root: str, name: str) -> str:
    """The path of a name inside a folder."""
    return root if not name else root + name if root.endswith("/") else f"{root}/{name}"


def open_file(path: str, *, whole: bool = False) -> AbstractContextManager:
    """A file, local or remote, opened for reading bytes. `whole` fetches a remote one at once, to be read through."""
    if not is_remote(path):
        return open(path, "rb")
    return io.BytesIO(remote.read_bytes(path)) if whole else remote.open_file(path)


def told(error: Exception) -> str:
    """An error in few words."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split()).rstrip(".")
