"""What songs start from: nothing, a prompt, an earlier song, or a whole top level (spec: sampling, section 2)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Int32, Integer

from jukebox_jax.checkpoint.models import TrainedCodec
from jukebox_jax.errors import UserError
from jukebox_jax.models.vqvae import Codec, VQVAEConfig, encode

Mode = Literal["ancestral", "primed", "continue", "upsample"]
#: Mono audio: one prompt, or several.
Prompt = Float[np.ndarray, " _"] | Sequence[Float[np.ndarray, " _"]]
#: Tokens of one level: of one song, or of several, which may differ in length.
Codes = Integer[np.ndarray, "*n _"] | Sequence[Integer[np.ndarray, " _"]]
Row = Int32[np.ndarray, " _"]


@dataclass(frozen=True, eq=False)
class Beginning:
    """Tokens that are given: of each level, level 0 first, those of each song. Only in mode "upsample" is the top level
    complete."""

    mode: Mode
    tokens: tuple[tuple[Row, ...], ...]

    def within(self, config: VQVAEConfig, sample_lengths: Sequence[int], overrun: bool = False) -> Beginning:
        """What of it belongs to songs of so many samples: a top level to upsample is cut to them.

        Raises:
          UserError: a top level to upsample is too short, or (unless they may `overrun`) other tokens are too many.
        """
        for song, sample_length in enumerate(sample_lengths):
            have = len(self.tokens[-1][song]) * config.hops[-1]
            if self.mode == "upsample" and have < sample_length:
                raise UserError(
                    f"upsample holds {have / config.sample_rate:.2f} s of the top level, less than the "
                    f"{sample_length / config.sample_rate:.2f} s to make: ask for fewer seconds, or leave them out."
                )
            longest = max(len(level[song]) * hop for level, hop in zip(self.tokens, config.hops, strict=True))
            if self.mode != "upsample" and longest > sample_length and not overrun:
                raise UserError(
                    f"What the songs start from lasts {longest / config.sample_rate:.2f} s, more than the "
                    f"{sample_length / config.sample_rate:.2f} s to make: ask for more seconds, or use less "
                    "of it (prompt_seconds)."
                )
        if self.mode != "upsample":
            return self
        top = tuple(
            codes[: length // config.hops[-1]] for codes, length in zip(self.tokens[-1], sample_lengths, strict=True)
        )
        return Beginning(self.mode, (*self.tokens[:-1], top))

    def provenance(self, song: int) -> dict[str, Any]:
        """The mode, and of what is given to a song the number of tokens at each level and the SHA-256 of them all."""
        ours = [level[song] for level in self.tokens]
        if self.mode == "ancestral":
            return {"mode": self.mode}
        digest = hashlib.sha256(b"".join(codes.astype("<i4").tobytes() for codes in ours)).hexdigest()
        return {"mode": self.mode, "given": {"tokens": [len(codes) for codes in ours], "sha256": digest}}


def beginning(
    codec: TrainedCodec,
    songs: int,
    *,
    prompt: Prompt | None = None,
    continue_from: Sequence[Codes] | None = None,
    upsample: Codes | None = None,
    prompt_seconds: float | None = None,
) -> Beginning:
    """The beginnings of `songs` songs; `jukebox_jax.api.Model.sample` says what may be given.

    Raises:
      UserError: more than one of the three is given, or something that these songs cannot start from.
    """
    config = codec.config
    given = [
        name
        for name, value in (("prompt", prompt), ("continue_from", continue_from), ("upsample", upsample))
        if value is not None
    ]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} exclude each other: give one of them.")
    if not given:
        if prompt_seconds is not None:
            raise UserError("prompt_seconds cuts what songs start from: give a prompt or tokens, or leave it out.")
        return Beginning("ancestral", ((np.zeros(0, np.int32),) * songs,) * config.levels)
    length = None if prompt_seconds is None else _whole_top_tokens(config, prompt_seconds)
    if prompt is not None:
        return Beginning("primed", _encode_prompts(codec, prompt, songs, length))
    if upsample is not None:
        continue_from = [*(np.zeros(0, np.int32) for _ in config.hops[1:]), upsample]
    if len(continue_from) != config.levels:
        raise UserError(
            f"continue_from holds {len(continue_from)} levels, the model has {config.levels}: give the tokens of each, "
            "level 0 first (an empty array where there are none)."
        )
    levels = [_check_codes(config, given[0], level, codes) for level, codes in enumerate(continue_from)]
    top = min(len(row) for row in levels[-1])
    if top == 0:
        raise UserError(f"{given[0]} holds no tokens of the top level: give those, or leave it out.")
    if length is not None:
        if length > top * config.hops[-1]:
            raise _too_short(given[0], top * config.hops[-1], prompt_seconds, config)
        levels = [[row[: length // hop] for row in rows] for rows, hop in zip(levels, config.hops, strict=True)]
    tokens = tuple(_repeat(given[0], codes, songs) for codes in levels)
    return Beginning("continue" if upsample is None else "upsample", tokens)


def _whole_top_tokens(config: VQVAEConfig, seconds: float) -> int:
    """Samples in whole tokens of the top level."""
    if not math.isfinite(seconds):
        raise UserError(f"prompt_seconds is {seconds}: give a finite number of seconds.")
    top = config.hops[-1]
    length = int(seconds * config.sample_rate) // top * top
    if length <= 0:
        raise UserError(
            f"prompt_seconds={seconds:g} is less than one token of the top level: give at least "
            f"{math.ceil(1000 * top / config.sample_rate) / 1000:g}."
        )
    return length


def _encode_prompts(codec: TrainedCodec, prompt: Prompt, songs: int, length: int | None) -> tuple[tuple[Row, ...], ...]:
    config, top = codec.config, codec.config.hops[-1]
    prompts = [prompt] if isinstance(prompt, np.ndarray) and prompt.ndim == 1 else list(prompt)
    if not prompts:
        raise UserError("prompt is an empty list: give audio, or leave it out.")
    for audio in prompts:
        if np.ndim(audio) != 1 or not np.issubdtype(np.asarray(audio).dtype, np.floating):
            raise UserError("A prompt is not mono audio: give floating-point samples of shape (t,) in [-1, 1].")
        if not np.isfinite(audio).all():
            raise UserError("A prompt holds samples that are not finite numbers: give it without them.")
    shortest = min(len(audio) // top * top for audio in prompts)
    if shortest == 0:
        raise UserError(f"A prompt is shorter than a token of the top level, {top} samples: give a longer one.")
    if length is not None and length > shortest:
        raise _too_short("prompt", shortest, length / config.sample_rate, config)
    _check_rows("prompt", len(prompts), songs)
    # In one piece, as the original: a piece's edges are not those of silence around it.
    cut = [np.asarray(audio[: length or len(audio) // top * top], np.float32) for audio in prompts]
    encoded = jax.device_get([_encode(config, codec.codec, audio[None, :, None]) for audio in cut])
    return tuple(_repeat("prompt", [rows[level][0] for rows in encoded], songs) for level in range(config.levels))


def _check_codes(config: VQVAEConfig, what: str, level: int, codes: Codes) -> list[Row]:
    one = np.ndim(codes[0]) == 0 if len(codes) else True
    rows = [np.asarray(row) for row in ([codes] if one else codes)]
    for row in rows:
        if row.ndim != 1 or not (np.issubdtype(row.dtype, np.integer) or row.size == 0):
            raise UserError(
                f"{what} has no tokens as level {level}: give integers of shape (tokens,), or those of each song."
            )
        if row.size and not 0 <= row.min() <= row.max() < config.codes:
            wrong = row.min() if row.min() < 0 else row.max()
            raise UserError(
                f"{what} holds the code {wrong} at level {level}, the codec has 0 to {config.codes - 1}: "
                "give tokens of this model's codec."
            )
    return [row.astype(np.int32) for row in rows]


def _check_rows(what: str, rows: int, songs: int) -> None:
    if not 1 <= rows <= songs:
        raise UserError(f"{what} is for {rows} songs, but n_samples is {songs}: ask for n_samples={max(rows, 1)}.")


def _repeat(what: str, rows: Sequence[Int[np.ndarray, " _"]], songs: int) -> tuple[Row, ...]:
    _check_rows(what, len(rows), songs)
    return tuple(rows[song % len(rows)].astype(np.int32) for song in range(songs))


def _too_short(what: str, samples: int, seconds: float, config: VQVAEConfig) -> UserError:
    have = samples / config.sample_rate
    return UserError(f"{what} lasts {have:.2f} s, less than prompt_seconds={seconds:g}: give less, or a longer {what}.")


@partial(jax.jit, static_argnums=0)
def _encode(config: VQVAEConfig, codec: Codec, audio: Float[Array, "b t 1"]) -> list[Int[Array, "b _"]]:
    return encode(config, codec, audio)
