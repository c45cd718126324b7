"""Where a song comes from, as JSON: enough to sample it again with the same models, and to see whether it is the same.

What is read here may have been written by anybody: types and values are checked, unknown keys are passed over, nothing
is evaluated, and no path is looked for in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Int

from jukebox_jax import __version__, config
from jukebox_jax.checkpoint.models import TrainedCodec, TrainedPrior, prior_fingerprint
from jukebox_jax.errors import UserError
from jukebox_jax.sampling.beginning import Beginning, Mode, Prompt, beginning
from jukebox_jax.sampling.devices import divided, sampling_mesh
from jukebox_jax.sampling.drawing import SamplingConfig
from jukebox_jax.sampling.order import Order, check_order, check_seed
from jukebox_jax.sampling.requests import Level, Request
from jukebox_jax.sampling.weights import check_precision

#: Of weights of which nobody has said under what licence they are.
UNKNOWN_LICENCE = 'unknown: whoever made the weights can name it in their config.json, as "licence"'


def song_provenance(
    codec: TrainedCodec,
    priors: Sequence[TrainedPrior],
    order: Order,
    batch_sizes: Sequence[int],
    song: int,
    tokens: Sequence[Int[np.ndarray, " _"]],
) -> dict[str, Any]:
    """Where one song of an order comes from; `tokens` are all that was sampled of it, level 0 first."""
    settings = order.settings(codec, priors)
    licences = [model.licence or UNKNOWN_LICENCE for model in (codec, *priors)]
    return {
        "generator": f"jukebox_jax {__version__}",
        "ai_generated": True,
        "licence_of_weights": "; ".join(dict.fromkeys(licences)),
        "codec": settings["codec"],
        "priors": settings["priors"],
        "song": song,
        **settings["songs"][song],
        "hop_fractions": settings["hop_fractions"],
        "n_segments": settings["n_segments"],
        "approximate": max(order.n_segments) > 1,
        "precision": order.precision,
        "batch_sizes": list(batch_sizes),
        "mesh": divided(order.mesh),
        "original_overrun": order.overrun,
        "environment": environment(),
        "tokens": [{"count": len(codes), "sha256": tokens_hash(codes)} for codes in tokens],
        "config": {
            "codec": config.to_dict(codec.config),
            "priors": [config.to_dict(prior.config) for prior in priors],
        },
    }


def environment() -> dict[str, str]:
    """What else tokens may depend on, by the rounding of sums: the version of jax and the kind of device."""
    device = jax.local_devices()[0]
    return {"jax": jax.__version__, "platform": device.platform, "device": device.device_kind}


def tokens_hash(codes: Int[np.ndarray, " _"]) -> str:
    """SHA-256 of the tokens of one level."""
    return hashlib.sha256(np.asarray(codes).astype("<i4").tobytes()).hexdigest()


# ---- Sampled again ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LevelTokens:
    """How many tokens a level has, and their `tokens_hash`."""

    count: int
    sha256: str


@dataclass(frozen=True)
class _Given:
    tokens: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class _Divided:
    fsdp: int
    tensor: int


@dataclass(frozen=True)
class _Request:
    index: int
    total_samples: int
    offset_samples: int
    artist: str | dict[str, Any]
    genre: str | dict[str, Any]
    lyrics: str


@dataclass(frozen=True)
class _HopFractions:
    hop_fractions: tuple[float, ...]


@dataclass(frozen=True)
class Recorded:
    """What of a provenance decides about the tokens. Sequences by level have level 0 first; `batch_sizes` are those of
    the levels that were sampled."""

    codec: str
    priors: tuple[str, ...]
    request: _Request
    seed: int
    sample_length: int
    sampling: tuple[SamplingConfig, ...]
    mode: Mode
    hop_fractions: tuple[float, ...]
    n_segments: tuple[int, ...]
    precision: Literal["float32", "bfloat16", "int8"]
    batch_sizes: tuple[int, ...]
    mesh: _Divided
    original_overrun: bool
    tokens: tuple[LevelTokens, ...]
    given: _Given | None = None


def recorded(provenance: Mapping[str, Any]) -> Recorded:
    """What of a provenance decides about the tokens, with its types checked.

    Raises:
      UserError: it is not one that `song_provenance` wrote, or has been changed.
    """
    return _checked(Recorded, {name: provenance[name] for name in Recorded.__dataclass_fields__ if name in provenance})


def recorded_request(provenance: Mapping[str, Any]) -> Request | None:
    """What a song was sampled by, if its provenance says so.

    Raises:
      UserError: what it says has been changed.
    """
    if "request" not in provenance:
        return None
    return Request(**vars(_checked(_Request, provenance["request"])))


def recorded_hop_fraction(provenance: Mapping[str, Any], level: int, default: float) -> float:
    """New tokens per window of a level, as a fraction of the window; `default` if the provenance does not say.

    Raises:
      UserError: what it says has been changed.
    """
    if "hop_fractions" not in provenance:
        return default
    fractions = _checked(_HopFractions, {"hop_fractions": provenance["hop_fractions"]}).hop_fractions
    if not (-len(fractions) <= level < len(fractions) and 0 < fractions[level] <= 1):
        raise _changed(f"no hop fraction of level {level} from 0 to 1")
    return fractions[level]


def _checked(kind: type, values: Any) -> Any:
    try:
        return config.from_dict(kind, values)
    except UserError as error:
        raise _changed(str(error).replace("Config key", "key").replace("config key", "key").rstrip(".")) from None


def _changed(problem: str) -> UserError:
    return UserError(
        f"What the song says of where it comes from is incomplete or was changed ({problem}): give the file as it was "
        "exported."
    )


def order_again(
    codec: TrainedCodec,
    priors: Sequence[TrainedPrior],
    levels: Sequence[Level],
    provenance: Mapping[str, Any],
    *,
    prompt: Prompt | None = None,
    tokens: Sequence[Int[np.ndarray, " _"]] | None = None,
) -> Order:
    """The order that samples a song again.

    Args:
      prompt: audio that the song started from, mono (t,) at the codec's sample rate; what follows is cut off.
      tokens: instead, the tokens that it started from, level 0 first, or those of the song itself, which begin with
        them.

    Raises:
      UserError: other models than those of the song, a provenance that no song can be sampled from, or not what the
        song started from.
    """
    song = recorded(provenance)
    _check_models(codec, priors, song)
    count = codec.config.levels
    by_level = (song.sampling, song.hop_fractions, song.n_segments, song.tokens)
    if any(len(values) != count for values in by_level) or len(song.batch_sizes) != count - (song.mode == "upsample"):
        raise UserError(f"The song's settings are not those of {count} levels: give the file as it was exported.")
    if min(*song.n_segments, *song.batch_sizes, song.mesh.fsdp, song.mesh.tensor) < 1 or song.request.index < 0:
        raise UserError("The song's settings hold numbers below 1 where none can be: give the file as it was exported.")
    total, rate, labels = song.request.total_samples, codec.config.sample_rate, priors[-1].config.labels
    longest = labels.max_duration_seconds * rate if labels else total
    if not 0 < song.sample_length <= total - max(0, song.request.offset_samples) or total > longest:
        raise UserError("The song's settings are of a length that it cannot have: give the file as it was exported.")
    check_seed(song.seed)
    check_precision(song.precision)
    parts = {"fsdp": song.mesh.fsdp, "tensor": song.mesh.tensor}
    order = Order(
        requests=(Request(**vars(song.request)),),
        sample_lengths=(song.sample_length,),
        seeds=(song.seed,),
        sampling=(song.sampling,),
        beginning=_start(codec, song, prompt, tokens),
        hop_fractions=song.hop_fractions,
        n_segments=song.n_segments,
        precision=song.precision,
        overrun=song.original_overrun,
        batch_sizes=(*song.batch_sizes, *(1,) * (count - len(song.batch_sizes))),
        mesh=sampling_mesh(None if set(parts.values()) == {1} else {"replica": 1, **parts}, max(song.n_segments)),
        remarks=(),
    )
    return check_order(levels, codec.config, order)


def token_differences(provenance: Mapping[str, Any], tokens: Sequence[Int[np.ndarray, " _"]]) -> list[str]:
    """A sentence for each level whose tokens are not the recorded ones, the top level first."""
    return [
        f"The tokens of level {level} differ."
        for level, (one, codes) in reversed(list(enumerate(zip(recorded(provenance).tokens, tokens, strict=True))))
        if (one.count, one.sha256) != (len(codes), tokens_hash(codes))
    ]


def other_environment(provenance: Mapping[str, Any]) -> list[str]:
    """What is otherwise here than where the song was sampled, each as "jax 0.10.2 there, 0.11.2 here"."""
    there = provenance.get("environment")
    there = dict(there) if isinstance(there, Mapping) else {}
    pairs = [(name, there.get(name, "unknown"), here) for name, here in environment().items()]
    pairs.append(("code", provenance.get("generator", "unknown"), f"jukebox_jax {__version__}"))
    return [f"{name} {str(then)[:60]} there, {here} here" for name, then, here in pairs if then != here]


def _check_models(codec: TrainedCodec, priors: Sequence[TrainedPrior], song: Recorded) -> None:
    if song.codec != codec.hash:
        raise UserError(
            f"The song was sampled with another codec ({song.codec[:12]}…, this one is {codec.hash[:12]}…): name the "
            "model that it was sampled with."
        )
    ours = [prior_fingerprint(prior) for prior in priors]
    if list(song.priors) != ours:
        if len(song.priors) != len(ours):
            raise UserError(
                f"The song was sampled with {len(song.priors)} priors, this model has {len(ours)}: name the model that "
                "it was sampled with."
            )
        level, there, here = next(
            (level, *pair) for level, pair in enumerate(zip(song.priors, ours, strict=True)) if pair[0] != pair[1]
        )
        raise UserError(
            f"The song was sampled with another prior of level {level} ({there[:12]}…, this one is {here[:12]}…): name "
            "the model, or the checkpoint of it, that it was sampled with."
        )


def _start(
    codec: TrainedCodec,
    song: Recorded,
    prompt: Prompt | None,
    tokens: Sequence[Int[np.ndarray, " _"]] | None,
) -> Beginning:
    hops = codec.config.hops
    if song.mode == "ancestral":
        if prompt is not None or tokens is not None:
            raise UserError("The song started from nothing: leave out what it should start from.")
        return beginning(codec, 1)
    what = "audio" if song.mode == "primed" else "tokens"
    if song.given is None or len(song.given.tokens) != len(hops) or min(song.given.tokens) < 0:
        raise UserError(f"The song does not say which {what} it started from: give the file as it was exported.")
    if prompt is None and tokens is None:
        raise UserError(
            f"The song started from {what} (SHA-256 of the tokens: {song.given.sha256[:12]}…): give them again, or the "
            "tokens of the song itself, which begin with them."
        )
    counts = song.given.tokens
    if tokens is None:
        start = beginning(codec, 1, prompt=np.asarray(prompt)[: counts[-1] * hops[-1]])
    elif song.mode == "upsample":
        start = beginning(codec, 1, upsample=tokens[-1][: counts[-1]])
    else:
        start = beginning(codec, 1, continue_from=[codes[:count] for codes, count in zip(tokens, counts, strict=True)])
    start = Beginning(song.mode, start.tokens)
    if start.provenance(0)["given"]["sha256"] != song.given.sha256:
        raise UserError(
            f"This is not what the song started from (the SHA-256 of its tokens is {song.given.sha256[:12]}…): give "
            f"the same {what} again, or the tokens of the song itself."
        )
    return start
