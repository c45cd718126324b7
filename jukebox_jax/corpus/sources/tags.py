"""Tags inside audio files, read by mutagen (the optional extra [tags]: mutagen is GPL, this package is not)."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jukebox_jax.corpus.sources.fields import usable_fields

# Per family of formats: field → where its tags keep it, the first that is not empty counts. An album's artist stands in
# for the artist of a track that names none.
_VORBIS_AND_APE = {
    "title": ("title",),
    "artist": ("artist", "albumartist", "album artist"),
    "album": ("album",),
    "genre": ("genre",),
    "lyrics": ("lyrics", "unsyncedlyrics", "unsynced lyrics"),
}
_ID3 = {
    "title": ("TIT2",),
    "artist": ("TPE1", "TPE2"),
    "album": ("TALB",),
    "genre": ("TCON",),
    "lyrics": ("USLT",),
}
_MP4 = {
    "title": ("\xa9nam",),
    "artist": ("\xa9ART", "aART"),
    "album": ("\xa9alb",),
    "genre": ("\xa9gen",),
    "lyrics": ("\xa9lyr",),
}
_ASF = {
    "title": ("Title",),
    "artist": ("Author", "WM/AlbumArtist"),
    "album": ("WM/AlbumTitle",),
    "genre": ("WM/Genre",),
    "lyrics": ("WM/Lyrics",),
}


@runtime_checkable
class Readable(Protocol):
    """What mutagen needs of an open file; those of buckets have no more."""

    def read(self, size: int = -1, /) -> bytes: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def tell(self) -> int: ...


def can_read_tags() -> bool:
    """Whether mutagen is installed."""
    try:
        import mutagen  # noqa: F401
    except ImportError:
        return False
    return True


def read_tags(file: Readable) -> tuple[dict[str, str], list[str]]:
    """The fields that the tags of an open audio file give, and a sentence for what in them cannot be used."""
    import mutagen
    from mutagen.asf import ASFTags
    from mutagen.id3 import ID3
    from mutagen.mp4 import MP4Tags

    try:
        audio = mutagen.File(file)
    except Exception as error:  # a damaged file can make the parsers of twenty formats raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        return {}, [f"its tags cannot be read ({reason}): if it plays, write its tags anew."]
    if audio is None or audio.tags is None:
        return {}, []
    tags = audio.tags
    if isinstance(tags, ID3):
        keys, values = _ID3, tags.getall
    elif isinstance(tags, MP4Tags):
        keys, values = _MP4, lambda key: tags.get(key) or ()
    elif isinstance(tags, ASFTags):
        keys, values = _ASF, lambda key: tags.get(key) or ()
    else:
        keys, values = _VORBIS_AND_APE, lambda key: tags.get(key) or ()
    row = {}
    for field, names in keys.items():
        for name in names:
            texts = _texts(values(name))
            # Artists and genres may be several; of anything else the first will do (lyrics may stand in two languages).
            row[name] = texts if field in ("artist", "genre") else next(iter(texts), "")
    fields, reasons = usable_fields(row, keys)
    return fields, [f"its tag {reason}" for reason in reasons]


def _texts(values: object) -> list[str]:
    """The texts of a tag: of frames, of wrapped values, or plain."""
    texts = []
    for value in values:
        value = getattr(value, "genres", None) or getattr(value, "text", None) or getattr(value, "value", value)
        texts += [str(text) for text in (value if isinstance(value, list) else [value]) if text]
    return texts
