"""The larger corpus: which collections of music21's corpus are rendered, how, and in which order.

Left out are collections whose encoders reserve their rights or allow non-commercial use only (Palestrina, Essen), whose
tunes may be recent (Nottingham), and single works. The metadata says of every recording what is known of the licence of
its encoding: read it before passing the result on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from experiments.demo_pieces import PIECES
from experiments.scores import (
    ACCORDION,
    BAGPIPE,
    BASSOON,
    CHOIR,
    CHURCH_ORGAN,
    CLARINET,
    FLUTE,
    GUITAR,
    HARP,
    HARPSICHORD,
    NO_LYRICS,
    OBOE,
    PIANO,
    PICCOLO,
    QUARTET,
    REED_ORGAN,
    STRINGS,
    UNSTATED,
    VIOLIN,
    VOICE,
    Piece,
    Voice,
    public_domain,
)


@dataclasses.dataclass(frozen=True)
class Collection:
    """Files of music21's corpus that are rendered alike; `arrangements` (programs or voices) take turns.

    `pattern` is a glob below the corpus folder. `artist` "" and `title_from_file` False: as the score says.
    """

    pattern: str
    artist: str
    genre: str
    arrangements: tuple[tuple[int, ...] | tuple[Voice, ...], ...]
    default_tempo: float
    sung: bool = False
    title_from_file: str = ""  # a prefix: "BWV " makes bach/bwv66.6.mxl "BWV 66.6"
    composition_licence: str = "Public domain"
    encoding_licence: str = UNSTATED


_IMSLP = "CC BY-SA 4.0 (typeset by Cypressdome for IMSLP)"
_GREENTREE = 'Margaret Greentree (jsbchorales.net, 2004), "used by permission" in music21; no general licence'
_TRADITIONAL = "Public domain (traditional, in print before 1910)"
_ABC = "No licence statement; ABC transcription shared by its transcriber, distributed with music21 by permission"
_QUARTETS = (QUARTET, (STRINGS,), (FLUTE, OBOE, CLARINET, BASSOON))
_CHOIRS = ((CHOIR,), (CHURCH_ORGAN,), (VOICE, REED_ORGAN))
_FIDDLE_TUNES = (
    (Voice(0, VIOLIN), Voice(0, GUITAR, -12, 0.8)),
    (Voice(0, ACCORDION, 0, 0.9),),
    (Voice(0, FLUTE, 0, 0.9), Voice(0, HARP, -12)),
    (Voice(0, VIOLIN, 0, 0.9), Voice(0, ACCORDION, -12, 0.7)),
)
_FIFE_TUNES = (
    (Voice(0, PICCOLO, 12, 0.9),),
    (Voice(0, VIOLIN),),
    (Voice(0, BAGPIPE, 0, 0.7),),
    (Voice(0, FLUTE), Voice(0, HARPSICHORD, -12, 0.8)),
)

COLLECTIONS: tuple[Collection, ...] = (
    Collection(
        "bach/*.mxl",
        "Johann Sebastian Bach",
        "Chorale",
        ((CHURCH_ORGAN,), (CHOIR,), (REED_ORGAN,)),
        76,
        True,
        "BWV ",
        public_domain("Johann Sebastian Bach", "1685-1750"),
        _GREENTREE,
    ),
    Collection(
        "mozart/k[0-9]*/movement[0-9].mxl",
        "Wolfgang Amadeus Mozart",
        "String Quartet",
        _QUARTETS,
        112,
        False,
        "String Quartet ",
        public_domain("Wolfgang Amadeus Mozart", "1756-1791"),
    ),
    Collection(
        "monteverdi/madrigal*.mxl",
        "Claudio Monteverdi",
        "Madrigal",
        _CHOIRS,
        116,
        False,  # the text under the notes was read by machine, badly
        "Madrigal ",
        public_domain("Claudio Monteverdi", "1567-1643"),
    ),
    Collection("oneills1850/*.abc", "", "Irish", _FIDDLE_TUNES, 176, False, "", _TRADITIONAL, _ABC),
    Collection(
        "haydn/*/*.mxl",
        "Joseph Haydn",
        "String Quartet",
        _QUARTETS,
        108,
        False,
        "String Quartet ",
        public_domain("Joseph Haydn", "1732-1809"),
    ),
    Collection(
        "schumann_clara/polonaise*.mxl",
        "Clara Schumann",
        "Piano",
        ((PIANO,),),
        96,
        False,
        "",
        public_domain("Clara Schumann", "1819-1896"),
        _IMSLP,
    ),
    Collection("trecento/*", "", "Ars Nova", _CHOIRS, 132, True, "", "Public domain (14th or 15th century)"),
    Collection(
        "beethoven/**/*.mxl",
        "Ludwig van Beethoven",
        "String Quartet",
        _QUARTETS,
        112,
        False,
        "String Quartet ",
        public_domain("Ludwig van Beethoven", "1770-1827"),
    ),
    Collection("ryansMammoth/*.abc", "", "American", _FIDDLE_TUNES, 184, False, "", _TRADITIONAL, _ABC),
    Collection(
        "schumann_robert/opus41no1/*.mxl",
        "Robert Schumann",
        "String Quartet",
        _QUARTETS,
        112,
        False,
        "String Quartet ",
        public_domain("Robert Schumann", "1810-1856"),
    ),
    Collection("airdsAirs/*.abc", "", "Scottish", _FIFE_TUNES, 184, False, "", _TRADITIONAL, _ABC),
)
# An older version of another file, and a book whose files carry its publisher's copyright.
_LEFT_OUT = re.compile(r"_old\.mxl$|monteverdi/madrigal\.5\.")
# The demo's pieces keep their side: what the demo holds out is never trained on here.
_DEMO_SPLITS = {(piece.source.split("/")[0], piece.number or piece.source): piece.split for piece in PIECES}


def catalogue(corpus_folder: Path, variants: int = 4) -> Iterator[Piece]:
    """Every piece of `COLLECTIONS`, in a fixed order that mixes them, then again in other keys and arrangements.

    The order depends on nothing but the names in `corpus_folder` (music21's), so that a run can be resumed, and a
    longer run begins with the pieces of a shorter one.
    """
    sources = [sorted(_sources(corpus_folder, collection), key=_draw) for collection in COLLECTIONS]
    for variant in range(variants):
        for row in itertools.zip_longest(*sources):
            for collection, source in zip(COLLECTIONS, row, strict=True):
                if source is not None:
                    yield _catalogue_piece(collection, *source, variant)


def _sources(corpus_folder: Path, collection: Collection) -> Iterator[tuple[str, int | None]]:
    seen = set()
    for path in sorted(corpus_folder.glob(collection.pattern)):
        if path.suffix not in (".mxl", ".xml", ".abc"):
            continue
        source = path.relative_to(corpus_folder).as_posix()
        numbers: list[int | None] = [None]
        if path.suffix == ".abc":
            numbers = [int(n) for n in re.findall(r"^X:\s*(\d+)", path.read_text(encoding="latin-1"), re.M)]
            numbers = numbers if len(numbers) > 1 else [None]
        for number in numbers:
            # Some of the O'Neill files overlap, and some scores are there in two formats: each once.
            key = number if collection.genre == "Irish" and number is not None else (source.rpartition(".")[0], number)
            if key not in seen and not _LEFT_OUT.search(source):
                seen.add(key)
                yield source, number


def _draw(source: tuple[str, int | None]) -> int:
    """A fixed random number from a name."""
    return int.from_bytes(hashlib.sha256(f"{source[0]}#{source[1]}".encode()).digest()[:8], "big")


def _catalogue_piece(collection: Collection, source: str, number: int | None, variant: int) -> Piece:
    draw = _draw((source, number))
    arrangement = collection.arrangements[(draw + variant) % len(collection.arrangements)]
    voiced = isinstance(arrangement[0], Voice)
    stem = Path(source).with_suffix("").as_posix()
    words = stem.split("/", 1)[1].replace("/", " ").removeprefix("bwv").removeprefix("madrigal.")
    name = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-") + (f"-{number}" if number is not None else "")
    return Piece(
        name=name + (f"-v{variant}" if variant else ""),
        title=collection.title_from_file + words if collection.title_from_file else "",
        artist=collection.artist,
        genre=collection.genre,
        split=_DEMO_SPLITS.get((source.split("/")[0], number or source), ""),
        source=source,
        number=number,
        voices=arrangement if voiced else (),
        programs=() if voiced else arrangement,
        default_tempo=collection.default_tempo,
        max_seconds=360.0,  # whole pieces, but no half-hour quartet in one file
        tempo_factor=(0.92, 1.0, 1.08)[draw // 7 % 3],
        transpose=(0, 2, -2, 3, -3, 1)[variant % 6],
        lyric_part=None if collection.sung else NO_LYRICS,
        composition_licence=collection.composition_licence,
        encoding_licence=collection.encoding_licence,
        recording_licence="CC0-1.0 as far as the encoding's licence allows",
    )


def split_of(title: str) -> str:
    """ "train" or, for one title in twenty, "validation": the same tune from two books falls on the same side."""
    key = re.sub(r"[^a-z0-9]+", "", title.lower().removeprefix("the "))
    return "validation" if hashlib.sha256(key.encode()).digest()[0] < 13 else "train"
