"""The original's hyper-parameters as our configs (spec: VQ-VAE 1, priors 10 and "further config keys").

Hyper-parameters travel as a dictionary with the original's names; what is absent takes the original's default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jukebox_jax.errors import UserError
from jukebox_jax.labels.ids import Normalisation
from jukebox_jax.labels.lyrics import LyricText
from jukebox_jax.models.conditioning import ConditionerConfig, LabelConfig
from jukebox_jax.models.losses import CodecLossConfig
from jukebox_jax.models.lyrics import LyricConfig, LyricEncoderConfig
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.models.vqvae import VQVAEConfig

Hparams = Mapping[str, Any]

# fmt: off
_CODEC_DEFAULTS = {
    "sr": 44100, "levels": 2, "downs_t": (1, 1), "strides_t": (2, 2), "emb_width": 64, "l_bins": 512, "l_mu": 0.99,
    "commit": 1.0, "spectral": 0.0, "multispectral": 1.0, "hvqvae_multipliers": None, "revival_threshold": 1.0,
    "loss_fn": "l2", "lmix_l1": 0.0, "lmix_l2": 0.0, "lmix_linf": 0.0, "linf_k": 2048,
    "use_nonrelative_specloss": True, "multispec_loss_n_fft": (2048, 1024, 512),
    "multispec_loss_hop_length": (240, 120, 50), "multispec_loss_window_size": (1200, 600, 240),
    "width": 128, "depth": 3, "m_conv": 1.0, "dilation_growth_rate": 1, "dilation_cycle": None,
    "vqvae_reverse_decoder_dilation": True,
}
# fmt: on

# fmt: off
_PRIOR_DEFAULTS = {
    "level": 0, "n_ctx": 1024, "prior_width": 128, "prior_depth": 3, "heads": 1, "attn_order": 0, "blocks": None,
    "spread": None, "m_attn": 0.25, "m_mlp": 1.0, "init_scale": 1.0, "res_scale": False, "merged_decoder": False,
    "labels": True, "labels_v3": False, "y_bins": 0, "t_bins": 64, "max_bow_genre_size": None,
    "min_duration": None, "max_duration": None, "single_enc_dec": False, "use_tokens": False,
    "n_tokens": 0, "n_vocab": 0, "prime_loss_fraction": 0.1, "alignment_layer": None, "alignment_head": None,
    "prime_width": 128, "prime_depth": 3, "prime_heads": 1, "prime_attn_order": 0, "prime_blocks": None,
    "prime_spread": None, "prime_m_attn": 0.25, "prime_m_mlp": 1.0, "prime_init_scale": 1.0,
    "prime_res_scale": False, "cond_width": 128, "cond_depth": 3, "cond_m_conv": 1.0, "cond_res_scale": False,
    "cond_dilation_growth_rate": 1, "cond_dilation_cycle": None,
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
    h = _filled(_CODEC_DEFAULTS, hps)
    levels = h["levels"]
    multipliers = h["hvqvae_multipliers"] or (1,) * levels
    return VQVAEConfig(
        sample_rate=h["sr"],
        downs=tuple(h["downs_t"][:levels]),
        strides=tuple(h["strides_t"][:levels]),
        widths=tuple(h["width"] * m for m in multipliers[:levels]),
        depths=tuple(h["depth"] * m for m in multipliers[:levels]),
        emb_width=h["emb_width"],
        codes=h["l_bins"],
        hidden_multiplier=float(h["m_conv"]),
        dilation_growth=h["dilation_growth_rate"],
        dilation_cycle=h["dilation_cycle"],
        reverse_decoder_dilation=h["vqvae_reverse_decoder_dilation"],
    )


def codec_loss_config(hps: Hparams) -> CodecLossConfig:
    """What the VQ-VAE is trained on."""
    h = _filled(_CODEC_DEFAULTS, hps)
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
    h = _filled(_PRIOR_DEFAULTS, hps)
    level = h["level"]
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
        residual_scale=h["res_scale"],
        merged_decoder=h["merged_decoder"],
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
        residual_scale=h["prime_res_scale"],
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
        residual_scale=h["cond_res_scale"],
    )


def unsupported(hps: Hparams) -> list[str]:
    """Options switched on in `hps` that this package does not know."""
    return [f"{name}={hps[name]}" for name, off in _UNSUPPORTED.items() if hps.get(name, off) not in (off, None)]


def _filled(defaults: Hparams, hps: Hparams) -> dict[str, Any]:
    return {name: hps.get(name, default) for name, default in defaults.items()}
