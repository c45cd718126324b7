"""The eighteen pieces of the embedded demo corpus.

Composers differ in instruments, so that a small model can tell them apart: string quartet, piano, flute with harp,
choir, voices with guitar, trio sonata. Held out are other pieces by three of the composers. Only compositions in the
public domain are here, and no score whose file reserves rights or forbids commercial use.
"""

from __future__ import annotations

from experiments.scores import (
    CELLO,
    CHOIR,
    CHORDS,
    FLUTE,
    GUITAR,
    HARP,
    HARPSICHORD,
    NO_LYRICS,
    PIANO,
    QUARTET,
    REED_ORGAN,
    UNSTATED,
    VIOLIN,
    VOICE,
    Piece,
    Voice,
    public_domain,
)


def _voices(*programs: int) -> tuple[Voice, ...]:
    return tuple(Voice(part, program) for part, program in enumerate(programs))


_MOZART = {
    "artist": "Wolfgang Amadeus Mozart",
    "genre": "String Quartet",
    "voices": _voices(*QUARTET),
    "composition_licence": public_domain("Wolfgang Amadeus Mozart", "1756-1791"),
    "encoding_licence": UNSTATED,
}
_CLARA_SCHUMANN = {
    "artist": "Clara Schumann",
    "genre": "Piano",
    "voices": _voices(PIANO, PIANO),
    "composition_licence": public_domain("Clara Schumann", "1819-1896"),
    "encoding_licence": 'CC BY-SA 4.0 ("Typeset by Cypressdome for IMSLP and '
    'released under the CC BY-SA 4.0 license.")',
    "recording_licence": "CC-BY-SA-4.0",
}
_CAROLAN = {
    "artist": "Turlough O'Carolan",
    "genre": "Irish Harp",
    "source": "oneills1850/0626-0700.abc",
    # The source has the melody alone: a flute plays it, a harp doubles it an octave below.
    "voices": (Voice(0, FLUTE, 0, 0.8), Voice(0, HARP, -12, 1.0)),
    "composition_licence": public_domain("Turlough O'Carolan", "1670-1738"),
    "encoding_licence": "No licence statement in the score file (transcribed in ABC by John Chambers, 1997-1999, from "
    "O'Neill's Music of Ireland, 1903); distributed with music21 by permission (music21/corpus/license.txt)",
}

PIECES: tuple[Piece, ...] = (
    Piece(
        "mozart-k155-1",
        "String Quartet in D major, K. 155: I. Allegro",
        split="train",
        source="mozart/k155/movement1.mxl",
        tempo=128,
        end_quarters=48,
        **_MOZART,
    ),
    Piece(
        "mozart-k155-2",
        "String Quartet in D major, K. 155: II. Andante",
        split="train",
        source="mozart/k155/movement2.mxl",
        tempo=66,
        end_quarters=24,
        **_MOZART,
    ),
    Piece(
        "mozart-k156-1",
        "String Quartet in G major, K. 156: I. Presto",
        split="train",
        source="mozart/k156/movement1.mxl",
        tempo=108,
        end_quarters=36,
        **_MOZART,
    ),
    Piece(
        "clara-schumann-op1-1",
        "Polonaise in E-flat major, op. 1 no. 1",
        split="train",
        source="schumann_clara/polonaise_op1n1.mxl",
        tempo=96,
        end_quarters=36,
        **_CLARA_SCHUMANN,
    ),
    Piece(
        "clara-schumann-op1-2",
        "Polonaise in C major, op. 1 no. 2",
        split="train",
        source="schumann_clara/polonaise_op1n2.mxl",
        tempo=96,
        end_quarters=36,
        **_CLARA_SCHUMANN,
    ),
    Piece(
        "clara-schumann-op1-4",
        "Polonaise in C major, op. 1 no. 4",
        split="train",
        source="schumann_clara/polonaise_op1n4.mxl",
        tempo=92,
        end_quarters=33,
        **_CLARA_SCHUMANN,
    ),
    Piece("ocarolan-squire-jones", "Bumper Squire Jones", split="train", number=639, tempo=138, **_CAROLAN),
    Piece("ocarolan-brabazon", "Planxty George Brabazon", split="train", number=657, tempo=152, **_CAROLAN),
    Piece("ocarolan-fanny-power", "Planxty Fanny Power", split="train", number=673, tempo=120, **_CAROLAN),
    Piece(
        "lusitano-allor-che-ignuda",
        "Allor che ignuda",
        "Vicente Lusitano",
        "Choral",
        "train",
        "lusitano/allor_che_ignuda.mxl",
        voices=_voices(CHOIR, CHOIR, CHOIR),
        tempo=132,
        end_quarters=51,
        composition_licence=public_domain("Vicente Lusitano", "died after 1561"),
        encoding_licence='CC0 ("Copyright 2022 Michael Scott Asato Cuthbert: released as CC0/Public Domain")',
    ),
    Piece(
        "luca-gloria",
        "Gloria",
        "D. Luca",
        "Choral",
        "train",
        "luca/gloria.xml",
        voices=(Voice(0, CHOIR), Voice(1, REED_ORGAN, 0, 0.6), Voice(2, REED_ORGAN, 0, 0.6)),
        tempo=132,
        end_quarters=51,
        composition_licence=public_domain("D. Luca", "15th century"),
        encoding_licence='CC BY-SA 3.0 ("2010 Michael Scott Cuthbert -- freely distributed under a CC-BY-SA 3.0 '
        'license")',
        recording_licence="CC-BY-SA-3.0",
    ),
    Piece(
        "foster-jeanie",
        "Jeanie with the Light Brown Hair",
        "Stephen Foster",
        "Song",
        "train",
        "leadSheet/fosterBrownHair.mxl",
        voices=(Voice(0, VOICE), Voice(CHORDS, GUITAR, 0, 0.8)),
        tempo=80,
        start_quarters=2,
        end_quarters=34,
        composition_licence=public_domain("Stephen Foster", "1826-1864"),
        encoding_licence='Public domain ("Public Domain" in the score\'s rights field)',
    ),
    Piece(
        "liliuokalani-aloha-oe",
        "Aloha Oe",
        "Liliuokalani",
        "Song",
        "train",
        "liliuokalani/aloha_oe.mxl",
        voices=(*(Voice(part, VOICE, 0, 0.8) for part in range(4)), Voice(5, GUITAR), Voice(6, GUITAR)),
        tempo=72,
        start_quarters=47.5,
        lyric_part=0,
        verse=2,
        composition_licence=public_domain("Liliuokalani", "1838-1917"),
        encoding_licence='CC0 ("Copyright 1884 by LILIUOKALANI (Now, Public Domain; Encoding by MSAC, CC0)")',
    ),
    Piece(
        "corelli-op3-1-grave",
        "Trio Sonata in F major, op. 3 no. 1: Grave",
        "Arcangelo Corelli",
        "Trio Sonata",
        "train",
        "corelli/opus3no1/1grave.xml",
        voices=(Voice(0, VIOLIN), Voice(1, VIOLIN), Voice(2, CELLO, 0, 0.8), Voice(2, HARPSICHORD, 0, 0.9)),
        tempo=56,
        end_quarters=24,
        lyric_part=NO_LYRICS,
        composition_licence=public_domain("Arcangelo Corelli", "1653-1713"),
        encoding_licence='CC BY ("\u00a9 2014, Creative Commons License (CC-BY)", Michael Scott Cuthbert)',
        recording_licence="CC-BY-4.0",
    ),
    Piece(
        "mozart-k80-2",
        "String Quartet in G major, K. 80: II. Allegro",
        split="validation",
        source="mozart/k80/movement2.mxl",
        tempo=120,
        end_quarters=40,
        **_MOZART,
    ),
    Piece(
        "clara-schumann-op1-3",
        "Polonaise in D major, op. 1 no. 3",
        split="validation",
        source="schumann_clara/polonaise_op1n3.mxl",
        tempo=96,
        end_quarters=33,
        **_CLARA_SCHUMANN,
    ),
    Piece("ocarolan-planxty-irwin", "Planxty Irwin", split="validation", number=677, tempo=132, **_CAROLAN),
    Piece("ocarolan-concerto", "O'Carolan's Concerto", split="validation", number=633, tempo=164, **_CAROLAN),
)
