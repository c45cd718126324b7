"""Finding pieces and what is known of them, without decoding a sound.

    SOURCE ──tree──▶ files ──┬─ tables (rows) ────────┐
                             ├─ beside (JSON, lyrics) ─┼──fields──▶ Piece ──find──▶ Catalogue
                             ├─ tags                   │
                             └─ names (folders, file) ─┘
    tfds:NAME ──tfds_items──▶ Piece

`find.find_pieces` is the way in; `fields.PRECEDENCE` says whom it believes.
"""
