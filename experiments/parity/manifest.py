"""Set g: names and shapes of every tensor of the original's models, from their hyper-parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from experiments.parity.fixture import Reader
from experiments.parity.report import Check
from jukebox_jax.interop.hparams import codec_config, prior_config
from jukebox_jax.interop.layout import codec_shapes, prior_layout, prior_shapes
from jukebox_jax.models.vqvae import VQVAEConfig

_CODEBOOKS = "bottleneck."
#: What both manifests tell of a model; the released ones tell more.
_ALWAYS = ("n_keys", "n_parameters", "n_state_elements")


def checks(recorded: Reader) -> Iterator[Check]:
    models = recorded.fixture.tree["models"]
    codecs = [codec_config(model["hparams"]) for model in models.values() if _is_codec(model)]
    for name, model in models.items():
        hps = model["hparams"]
        recorded.below(f"models/{name}/hparams/")
        released = "released_file" in model
        if released:
            recorded[f"models/{name}/released_file"]
        shapes, facts = _codec(hps) if _is_codec(model) else _prior(hps, _codec_of(hps, codecs))
        keys = [[key, list(shape)] for key, shape in shapes.items()]
        yield Check(f"models/{name}/keys", keys, view=lambda recorded: [[*item] for item in recorded.items()])
        for key, value in facts.items():
            if released or key in _ALWAYS or key in model:
                yield Check(f"models/{name}/{key}", value)


def _is_codec(model: Mapping[str, Any]) -> bool:
    return any(key.startswith(_CODEBOOKS) for key in model["keys"])


def _codec_of(hps: Mapping[str, Any], codecs: list[VQVAEConfig]) -> VQVAEConfig:
    """The codec that a prior's hyper-parameters describe, or if they leave it at the defaults, the manifest's."""
    own = codec_config(hps)
    return codecs[0] if own == codec_config({}) and codecs else own


def _codec(hps: Mapping[str, Any]) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    config = codec_config(hps)
    shapes = codec_shapes(config)
    return shapes, {
        **_sizes(shapes, [key for key in shapes if key.startswith(_CODEBOOKS)]),
        **_half([], shapes),
        "tied_keys": {},
        "hop_lengths": list(config.hops),
        "multipliers": [width // hps["width"] for width in config.widths],
    }


def _prior(hps: Mapping[str, Any], codec: VQVAEConfig) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    config = prior_config(hps, codec)
    names = "blocks" if hps.get("cond_c_res") else "model"
    shapes, layout = prior_shapes(config, names), prior_layout(config, names)
    first = {entry.path: entry.key for entry in reversed(layout) if not entry.tied}
    tied = {entry.key: first[entry.path] for entry in layout if entry.tied}
    half = [key for key in shapes if key.endswith(".w")] if hps.get("fp16_params") else []
    hop = codec.hops[config.level]
    lyrics = config.lyrics
    return shapes, {
        **_sizes(shapes, tied),
        **_half(half, shapes),
        "tied_keys": tied,
        "n_ctx": config.n_ctx,
        "raw_to_tokens": hop,
        "sample_length": config.n_ctx * hop,
        "z_shapes": [[config.n_ctx * hop // other] for other in codec.hops],
        "attn_funcs": [int(pattern) for pattern in config.transformer.patterns],
        "chosen_alignment": {
            "layer": lyrics and lyrics.alignment_layer,
            "head": lyrics and lyrics.alignment_head,
        },
    }


def _sizes(shapes: Mapping[str, tuple[int, ...]], no_parameters: Any) -> dict[str, int]:
    elements = {key: prod(shape) for key, shape in shapes.items()}
    state = sum(elements.values())
    return {
        "n_keys": len(shapes),
        "n_parameters": state - sum(elements[key] for key in no_parameters),
        "n_state_elements": state,
    }


def _half(keys: list[str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    return {
        "float16_keys": "every key ending in .w (Conv1D weights)" if keys else "none",
        "n_float16_elements": sum(prod(shapes[key]) for key in keys),
    }
