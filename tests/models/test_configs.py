"""What a model's config refuses, and in which words: the key stands there as a user would type it."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from jukebox_jax import config as config_lib
from jukebox_jax.errors import UserError
from jukebox_jax.models.conditioning import ConditionerConfig, LabelConfig
from jukebox_jax.models.losses import CodecLossConfig
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.models.vqvae import VQVAEConfig

CONFIGS = Path(__file__).parents[2] / "configs"


def labels(**values) -> LabelConfig:
    return LabelConfig(**{"artists": 3, "genres": 2} | values)


def prior(**values) -> PriorConfig:
    return PriorConfig(**{"level": 2} | values)


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (VQVAEConfig, {"widths": (24, 32)}, r"model\.widths=\(24, 32\) has 2 entries, but model\.downs"),
        (VQVAEConfig, {"strides": (2, 2, 2, 2)}, r"model\.strides=.* has 4 entries"),
        (VQVAEConfig, {"depths": ()}, r"model\.depths=\(\) has 0 entries"),
        (VQVAEConfig, {"downs": (), "strides": (), "widths": (), "depths": ()}, r"model\.downs is empty"),
        (VQVAEConfig, {"widths": (24, 0, 32)}, r"model\.widths=.* at least 1"),
        (VQVAEConfig, {"depths": (3, -1, 2)}, r"model\.depths=.* at least 1"),
        (VQVAEConfig, {"downs": (0, 2, 2)}, r"model\.downs=\(0, 2, 2\)"),
        (VQVAEConfig, {"strides": (2, 3, 2)}, r"model\.strides=\(2, 3, 2\): every entry must be an even number"),
        (VQVAEConfig, {"codes": 0}, r"model\.codes=0"),
        (VQVAEConfig, {"sample_rate": -1}, r"model\.sample_rate=-1"),
        (VQVAEConfig, {"dilation_cycle": 0}, r"model\.dilation_cycle=0"),
        (VQVAEConfig, {"hidden_multiplier": 0.01}, r"model\.hidden_multiplier=0\.01"),
        (CodecLossConfig, {"loss": "l3"}, r"loss\.loss=l3 is unknown: choose one of l1, l2"),
        (CodecLossConfig, {"multispectral_hop": (240, 120)}, r"loss\.multispectral_hop has 2 entries and .*n_fft 3"),
        (
            CodecLossConfig,
            {"multispectral_n_fft": (), "multispectral_hop": (), "multispectral_window": ()},
            r"loss\.multispectral_n_fft has 0 entries",
        ),
        (CodecLossConfig, {"multispectral_hop": (240, 0, 50)}, r"loss\.multispectral_hop=\(240, 0, 50\)"),
        (CodecLossConfig, {"multispectral_window": (1200, 2048, 240)}, r"loss\.multispectral_window=.*longer than"),
        (CodecLossConfig, {"codebook_decay": 1.0}, r"loss\.codebook_decay=1\.0"),
        (CodecLossConfig, {"commit": -0.1}, r"loss\.commit=-0\.1 is negative"),
        (CodecLossConfig, {"linf_k": 0}, r"loss\.linf_k=0"),
        (labels, {"artists": -1}, r"model\.labels\.artists=-1"),
        (labels, {"max_genres": 0}, r"model\.labels\.max_genres=0"),
        (labels, {"time_bins": 0}, r"model\.labels\.time_bins=0"),
        (
            labels,
            {"min_duration_seconds": 700.0},
            r"model\.labels\.min_duration_seconds=700 .*max_duration_seconds=600",
        ),
        (ConditionerConfig, {"downs": 0}, r"model\.conditioner\.downs=0"),
        (ConditionerConfig, {"depth": 0}, r"model\.conditioner\.depth=0"),
        (ConditionerConfig, {"stride": 3}, r"model\.conditioner\.stride=3 must be an even number"),
        (ConditionerConfig, {"dilation_cycle": 0}, r"model\.conditioner\.dilation_cycle=0"),
        (ConditionerConfig, {"hidden_multiplier": 0.0}, r"model\.conditioner\.hidden_multiplier=0\.0"),
        (prior, {"blocks": 0}, r"model\.blocks=0"),
        (prior, {"heads": 0}, r"model\.heads=0"),
        (prior, {"depth": -1}, r"model\.depth=-1"),
        (prior, {"level": -1}, r"model\.level=-1"),
        (prior, {"init_scale": 0.0}, r"model\.init_scale=0\.0"),
        (prior, {"attention_multiplier": 0.0}, r"model\.attention_multiplier=0\.0"),
        (prior, {"remat": "blok"}, r"model\.remat=blok is unknown: choose one of none, block"),
        (prior, {"dtype": "float8"}, r"model\.dtype=float8 is unknown: choose one of float32, bfloat16, float16"),
    ],
)
def test_mistakes_are_told_by_their_key(config, values, message):
    config()  # what is refused is the change alone
    with pytest.raises(UserError, match=message):
        config(**values)


def test_a_level_may_add_no_downsampling():
    assert VQVAEConfig(downs=(3, 0, 2)).hops == (8, 8, 32)


@pytest.mark.parametrize(
    ("file", "variant"),
    [
        *(("vqvae.py", variant) for variant in ("demo", "small", "released")),
        *(("prior.py", f"demo_{name}") for name in ("top", "upsampler_1", "upsampler_0")),
        *(("prior.py", f"small{name}") for name in ("", "_labelled", "_upsampler")),
        *(("prior.py", variant) for variant in ("5b", "upsampler_1", "upsampler_0")),
    ],
)
def test_the_shipped_configs_build_and_come_back_from_json(file, variant):
    config = runpy.run_path(str(CONFIGS / file))["get_config"](variant)
    assert config_lib.from_dict(type(config), config_lib.to_dict(config)) == config
