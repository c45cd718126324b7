"""The original's hyper-parameters as our configs (spec: VQ-VAE 1, priors 10 and "further config keys").

Hyper-parameters travel as a dictionary with the original's names; what is absent takes the original's default. Those
of a checkpoint come from a stranger: `torch_file.hyperparameters` makes plain values of them, and every value is
checked here before anything is made of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, get_args

from jukebox_jax.errors import UserError
from jukebox_jax.interop.safe_pickle import shown
from jukebox_jax.labels.ids import Normalisation
from jukebox_jax.labels.lyrics import LyricText
from jukebox_jax.models.conditioning import ConditionerConfig, LabelConfig
from jukebox_jax.models.losses import CodecLossConfig, Waveform
from jukebox_jax.models.lyrics import LyricConfig, LyricEncoderConfig
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.models.vqvae import VQVAEConfig

Hparams = Mapping[str, Any]


@dataclass(frozen=True)
class _Rule:
    """What a value may be, in words and as a test; the values come from a file that may hold anything."""

    words: str
    allows: Callable[[Any], bool]


def _whole(least: int, most: int) -> _Rule:
    return _Rule(f"a whole number from {least} to {most}", lambda x: type(x) is int and least <= x <= most)


def _number(least: float, most: float) -> _Rule:
    return _Rule(f"a number from {least:g} to {most:g}", lambda x: type(x) in (int, float) and least <= x <= most)


def _many(rule: _Rule, least: int, most: int) -> _Rule:
    count = f"{least} to {most}" if most > least else f"{least}"
    return _Rule(
        f"a list of {count} entries, each {rule.words}",
        lambda x: isinstance(x, list | tuple) and least <= len(x) <= most and all(map(rule.allows, x)),
    )


def _or(value: Any, rule: _Rule) -> _Rule:
    return _Rule(
        f"{rule.words}, or {value}", lambda x: x is None or (type(x) is type(value) and x == value) or rule.allows(x)
    )


# Far above every model of the original, and small enough that no config makes its reader work or allocate for long.
_MOST_LEVELS, _MOST_LAYERS, _MOST_BLOCKS, _LONGEST_STEP = 8, 1024, 256, 2**24
_SWITCH = _Rule("true or false", lambda x: type(x) in (bool, int) and x in (0, 1))
_LEVELS, _LEVEL = _whole(1, _MOST_LEVELS), _whole(0, _MOST_LEVELS - 1)
_WIDTH, _LAYERS, _BLOCKS = _whole(1, 2**16), _whole(1, _MOST_LAYERS), _whole(1, _MOST_BLOCKS)
_TOKENS, _CODES, _HEADS = _whole(1, 2**17), _whole(1, 2**16), _whole(1, 1024)
_ORDER, _ROWS = _whole(0, 12), _whole(0, 2**24)
_WEIGHT, _MULTIPLIER, _SCALE, _SECONDS = _number(0.0, 1e6), _number(1e-3, 64.0), _number(1e-6, 1e6), _number(0.0, 1e9)
_STFT = _many(_whole(1, 2**20), 1, 64)
_LOSS = _Rule(" or ".join(get_args(Waveform)), lambda x: x in get_args(Waveform))

# Name → what is meant where it is absent, and what it may be.
# fmt: off
_CODEC = {
    "sr": (44100, _whole(1, 10**6)), "levels": (2, _LEVELS), "downs_t": ((1, 1), _many(_whole(0, 24), 1, 64)),
    "strides_t": ((2, 2), _many(_whole(1, 64), 1, 64)), "emb_width": (64, _WIDTH), "l_bins": (512, _CODES),
    "l_mu": (0.99, _number(0.0, 1.0)), "commit": (1.0, _WEIGHT), "spectral": (0.0, _WEIGHT),
    "multispectral": (1.0, _WEIGHT), "hvqvae_multipliers": (None, _or(None, _many(_whole(1, 64), 1, 64))),
    "revival_threshold": (1.0, _WEIGHT), "loss_fn": ("l2", _LOSS), "lmix_l1": (0.0, _WEIGHT),
    "lmix_l2": (0.0, _WEIGHT), "lmix_linf": (0.0, _WEIGHT), "linf_k": (2048, _whole(1, 2**31)),
    "use_nonrelative_specloss": (True, _SWITCH), "multispec_loss_n_fft": ((2048, 1024, 512), _STFT),
    "multispec_loss_hop_length": ((240, 120, 50), _STFT), "multispec_loss_window_size": ((1200, 600, 240), _STFT),
    "width": (128, _WIDTH), "depth": (3, _BLOCKS), "m_conv": (1.0, _MULTIPLIER),
    "dilation_growth_rate": (1, _whole(1, 64)), "dilation_cycle": (None, _or(None, _BLOCKS)),
    "vqvae_reverse_decoder_dilation": (True, _SWITCH),
}
_PRIOR = {
    "level": (0, _LEVEL), "n_ctx": (1024, _TOKENS), "prior_width": (128, _WIDTH), "prior_depth": (3, _LAYERS),
    "heads": (1, _HEADS), "attn_order": (0, _ORDER), "blocks": (None, _or(None, _TOKENS)),
    "spread": (None, _or(0, _TOKENS)), "m_attn": (0.25, _MULTIPLIER), "m_mlp": (1.0, _MULTIPLIER),
    "init_scale": (1.0, _SCALE), "res_scale": (False, _SWITCH), "merged_decoder": (False, _SWITCH),
    "labels": (True, _SWITCH), "labels_v3": (False, _SWITCH), "y_bins": (0, _or(0, _many(_ROWS, 2, 2))),
    "t_bins": (64, _CODES), "max_bow_genre_size": (None, _or(0, _whole(1, 1024))),
    "min_duration": (None, _or(None, _SECONDS)), "max_duration": (None, _or(None, _SECONDS)),
    "single_enc_dec": (False, _SWITCH), "use_tokens": (False, _SWITCH), "n_tokens": (0, _or(0, _TOKENS)),
    "n_vocab": (0, _or(0, _CODES)), "prime_loss_fraction": (0.1, _WEIGHT),
    "alignment_layer": (None, _or(None, _whole(0, _MOST_LAYERS))),
    "alignment_head": (None, _or(None, _whole(0, 1024))), "prime_width": (128, _WIDTH), "prime_depth": (3, _LAYERS),
    "prime_heads": (1, _HEADS), "prime_attn_order": (0, _ORDER), "prime_blocks": (None, _or(None, _TOKENS)),
    "prime_spread": (None, _or(0, _TOKENS)), "prime_m_attn": (0.25, _MULTIPLIER), "prime_m_mlp": (1.0, _MULTIPLIER),
    "prime_init_scale": (1.0, _SCALE), "prime_res_scale": (False, _SWITCH), "cond_width": (128, _WIDTH),
    "cond_depth": (3, _BLOCKS), "cond_m_conv": (1.0, _MULTIPLIER), "cond_res_scale": (False, _SWITCH),
    "cond_dilation_growth_rate": (1, _whole(1, 64)), "cond_dilation_cycle": (None, _or(None, _BLOCKS)),
}
# fmt: on

# fmt: off
# Options of the original that change its mathematics, that no released model uses and that are not built here.
_UNSUPPORTED = {
    "pos_init": False, "copy_input": False, "y_cond_as_bias": False, "prime_pos_init": False,
    "attn_dropout": 0.0, "resid_dropout": 0.0, "emb_dropout": 0.0, "use_bottleneck": True,
    "prime_attn_dropout": 0.0, "prime_resid_dropout": 0.0, "prime_emb_dropout": 0.0,
}
# fmt: on


def codec_config(hps: Hparams) -> VQVAEConfig:
    """The VQ-VAE's architecture; a model of fewer levels than its lists have entries takes the first ones.

    Raises:
      UserError: numbers that make no model.
    """
    h = _filled(_CODEC, hps)
    levels = h["levels"]
    multipliers = (h["hvqvae_multipliers"] or (1,) * levels)[:levels]
    lists = {"downs_t": h["downs_t"], "strides_t": h["strides_t"], "hvqvae_multipliers": multipliers}
    for name, values in lists.items():
        if len(values) < levels:
            _refuse(name, values, f"a list of at least {levels} entries, one for each of the 'levels'")
    if h["depth"] * max(multipliers) > _MOST_BLOCKS:
        _refuse("hvqvae_multipliers", multipliers, f"so small that they make at most {_MOST_BLOCKS} of 'depth'")
    if math.prod(s**d for s, d in zip(h["strides_t"][:levels], h["downs_t"][:levels], strict=True)) > _LONGEST_STEP:
        _refuse("strides_t", h["strides_t"], f"so small that a code stands for at most {_LONGEST_STEP} samples")
    _check_dilations(h, "", h["depth"] * max(multipliers))
    return VQVAEConfig(
        sample_rate=h["sr"],
        downs=tuple(h["downs_t"][:levels]),
        strides=tuple(h["strides_t"][:levels]),
        widths=tuple(h["width"] * m for m in multipliers),
        depths=tuple(h["depth"] * m for m in multipliers),
        emb_width=h["emb_width"],
        codes=h["l_bins"],
        hidden_multiplier=float(h["m_conv"]),
        dilation_growth=h["dilation_growth_rate"],
        dilation_cycle=h["dilation_cycle"],
        reverse_decoder_dilation=bool(h["vqvae_reverse_decoder_dilation"]),
    )


def codec_loss_config(hps: Hparams) -> CodecLossConfig:
    """What the VQ-VAE is trained on."""
    h = _filled(_CODEC, hps)
    return CodecLossConfig(
        loss=h["loss_fn"],
        linf_k=h["linf_k"],
        relative_spectral=not h["use_nonrelative_specloss"],
        multispectral_n_fft=tuple(h["multispec_loss_n_fft"]),
        multispectral_hop=tuple(h["multispec_loss_hop_length"]),
        multispectral_window=tuple(h["multispec_loss_window_size"]),
        codebook_decay=float(h["l_mu"]),
        **{
            name: float(h[name])
            for name in (
                *("lmix_l1", "lmix_l2", "lmix_linf", "spectral", "multispectral", "commit"),
                "revival_threshold",
            )
        },
    )


def prior_config(hps: Hparams, codec: VQVAEConfig) -> PriorConfig:
    """A prior over the codes of `codec`; one below its top level is an upsampler.

    Raises:
      UserError: numbers that make no model.
    """
    h = _filled(_PRIOR, hps)
    level = h["level"]
    if level >= codec.levels:
        _refuse("level", level, f"less than the {codec.levels} levels of the VQ-VAE")
    _check_dilations(h, "cond_", h["cond_depth"])
    return PriorConfig(
        level=level,
        codes=codec.codes,
        n_ctx=h["n_ctx"],
        width=h["prior_width"],
        depth=h["prior_depth"],
        heads=h["heads"],
        blocks=h["blocks"] or 1,
        attention_order=h["attn_order"],
        spread=h["spread"] or 0,
        attention_multiplier=float(h["m_attn"]),
        mlp_multiplier=float(h["m_mlp"]),
        init_scale=float(h["init_scale"]),
        residual_scale=bool(h["res_scale"]),
        merged_decoder=bool(h["merged_decoder"]),
        labels=_label_config(h) if h["labels"] else None,
        lyrics=_lyric_config(h) if h["use_tokens"] and h["n_tokens"] else None,
        conditioner=_conditioner_config(h, codec) if level < codec.levels - 1 else None,
    )


def codec_hparams(config: VQVAEConfig) -> dict[str, Any]:
    """The hyper-parameters that `codec_config` reads; its inverse.

    Raises:
      UserError: levels whose widths and depths differ by different factors, for which the original has no numbers.
    """
    width, depth = math.gcd(*config.widths), math.gcd(*config.depths)
    multipliers = [w // width for w in config.widths]
    if [(width * m, depth * m) for m in multipliers] != list(zip(config.widths, config.depths, strict=True)):
        raise UserError(
            f"The original has no numbers for model.widths={config.widths} with model.depths={config.depths}: it "
            "multiplies the width and the depth of a level by the same whole number."
        )
    return {
        "sr": config.sample_rate,
        "levels": config.levels,
        "downs_t": list(config.downs),
        "strides_t": list(config.strides),
        "emb_width": config.emb_width,
        "l_bins": config.codes,
        "hvqvae_multipliers": multipliers,
        "width": width,
        "depth": depth,
        "m_conv": config.hidden_multiplier,
        "dilation_growth_rate": config.dilation_growth,
        "dilation_cycle": config.dilation_cycle,
        "vqvae_reverse_decoder_dilation": config.reverse_decoder_dilation,
    }


def prior_hparams(config: PriorConfig, normalisation: Normalisation | None, names: str) -> dict[str, Any]:
    """The hyper-parameters that `prior_config` reads; its inverse.

    Args:
      normalisation: of the prior's labels, None without any.
      names: how the conditioner's blocks are called (see `layout.ConditionerNames`).
    """
    hps: dict[str, Any] = {
        "level": config.level,
        "n_ctx": config.n_ctx,
        "prior_width": config.width,
        "prior_depth": config.depth,
        "heads": config.heads,
        "attn_order": config.attention_order,
        "blocks": config.blocks,
        "spread": config.spread or None,
        "m_attn": config.attention_multiplier,
        "m_mlp": config.mlp_multiplier,
        "init_scale": config.init_scale,
        "res_scale": config.residual_scale,
        "merged_decoder": config.merged_decoder,
        "labels": config.labels is not None,
        "labels_v3": normalisation == "v3",
    }
    if labels := config.labels:
        hps |= {
            "y_bins": [labels.genres, labels.artists],
            "t_bins": labels.time_bins,
            "max_bow_genre_size": labels.max_genres,
            "min_duration": labels.min_duration_seconds,
            "max_duration": labels.max_duration_seconds,
        }
    if lyrics := config.lyrics:
        hps |= {
            "use_tokens": True,
            "n_tokens": lyrics.tokens,
            "n_vocab": lyrics.vocabulary,
            "single_enc_dec": lyrics.encoder is None,
            "prime_loss_fraction": lyrics.loss_fraction,
            "alignment_layer": lyrics.alignment_layer,
            "alignment_head": lyrics.alignment_head,
        }
        if encoder := lyrics.encoder:
            hps |= {
                "prime_width": encoder.width,
                "prime_depth": encoder.depth,
                "prime_heads": encoder.heads,
                "prime_blocks": encoder.blocks,
                "prime_attn_order": encoder.attention_order,
                "prime_spread": encoder.spread or None,
                "prime_m_attn": encoder.attention_multiplier,
                "prime_m_mlp": encoder.mlp_multiplier,
                "prime_init_scale": encoder.init_scale,
                "prime_res_scale": encoder.residual_scale,
            }
    if conditioner := config.conditioner:
        hps |= {
            "cond_width": conditioner.width,
            "cond_depth": conditioner.depth,
            "cond_m_conv": conditioner.hidden_multiplier,
            "cond_res_scale": conditioner.residual_scale,
            "cond_dilation_growth_rate": conditioner.dilation_growth,
            "cond_dilation_cycle": conditioner.dilation_cycle,
            "cond_c_res": int(names == "blocks"),
        }
    return hps


def _label_config(h: Hparams) -> LabelConfig:
    genres, artists = h["y_bins"] or (0, 0)
    return LabelConfig(
        artists=artists,
        genres=genres,
        max_genres=h["max_bow_genre_size"] or 1,
        time_bins=h["t_bins"],
        min_duration_seconds=float(h["min_duration"] or 0.0),
        max_duration_seconds=float(h["max_duration"] or 600.0),
    )


def _lyric_config(h: Hparams) -> LyricConfig:
    encoder = LyricEncoderConfig(
        width=h["prime_width"],
        depth=h["prime_depth"],
        heads=h["prime_heads"],
        blocks=h["prime_blocks"] or 1,
        attention_order=h["prime_attn_order"],
        spread=h["prime_spread"] or 0,
        attention_multiplier=float(h["prime_m_attn"]),
        mlp_multiplier=float(h["prime_m_mlp"]),
        init_scale=float(h["prime_init_scale"]),
        residual_scale=bool(h["prime_res_scale"]),
    )
    return LyricConfig(
        tokens=h["n_tokens"],
        vocabulary=h["n_vocab"],
        text=LyricText("v3" if h["labels_v3"] else "v2", "unidecode"),
        encoder=None if h["single_enc_dec"] else encoder,
        loss_fraction=float(h["prime_loss_fraction"]),
        alignment_layer=h["alignment_layer"],
        alignment_head=h["alignment_head"],
    )


def _conditioner_config(h: Hparams, codec: VQVAEConfig) -> ConditionerConfig:
    above = h["level"] + 1
    return ConditionerConfig(
        width=h["cond_width"],
        depth=h["cond_depth"],
        downs=codec.downs[above],
        stride=codec.strides[above],
        dilation_growth=h["cond_dilation_growth_rate"],
        dilation_cycle=h["cond_dilation_cycle"],
        hidden_multiplier=float(h["cond_m_conv"]),
        residual_scale=bool(h["cond_res_scale"]),
    )


def unsupported(hps: Hparams) -> list[str]:
    """Options switched on in `hps` that this package does not know."""
    strange = {name: hps[name] for name, off in _UNSUPPORTED.items() if hps.get(name, off) not in (off, None)}
    return [f"{name}={shown(repr(value))}" for name, value in strange.items()]


def _filled(table: Mapping[str, tuple[Any, _Rule]], hps: Hparams) -> dict[str, Any]:
    for name, (_, rule) in table.items():
        if name in hps and not rule.allows(hps[name]):
            _refuse(name, hps[name], rule.words)
    return {name: hps.get(name, default) for name, (default, _) in table.items()}


def _check_dilations(h: Hparams, prefix: str, depth: int) -> None:
    """The steps between the taps of the convolutions grow as a power of their number."""
    growth, cycle = h[f"{prefix}dilation_growth_rate"], h[f"{prefix}dilation_cycle"]
    if growth ** (min(depth, cycle or depth) - 1) > _LONGEST_STEP:
        _refuse(f"{prefix}dilation_growth_rate", growth, f"less, or dilations grow above {_LONGEST_STEP}")


def _refuse(name: str, value: Any, wanted: str) -> NoReturn:
    raise UserError(
        f"The hyper-parameter '{name}' is {shown(repr(value))}, but must be {wanted}: get the file from a source you "
        "trust, or name the model with --config."
    )
