"""The models that were released, and the recipes that came with them, by the original's names (spec: priors, 10).

Label tables of size 0 stand where a recipe leaves their size to the dataset.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from jukebox_jax.labels.ids import Normalisation
from jukebox_jax.labels.lyrics import LyricText
from jukebox_jax.models.conditioning import ConditionerConfig, LabelConfig
from jukebox_jax.models.lyrics import LyricConfig, LyricEncoderConfig
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.models.vqvae import VQVAEConfig

LICENCE = (
    "The weights that OpenAI released for Jukebox are licensed for noncommercial use only; "
    "read the terms that came with them before you use or pass on what is made from them."
)


@dataclass(frozen=True)
class Release:
    """A model's config and, of a prior with labels, how it spells names."""

    config: VQVAEConfig | PriorConfig
    normalisation: Normalisation | None = None


VQVAE = VQVAEConfig()
SMALL_VQVAE = VQVAEConfig(
    sample_rate=22050,
    downs=(5, 3),
    strides=(2, 2),
    widths=(32, 32),
    depths=(4, 4),
    emb_width=64,
    codes=1024,
)

_V2_LABELS = LabelConfig(artists=4111, genres=120, max_genres=5, time_bins=128, max_duration_seconds=600.0)
_V3_LABELS = LabelConfig(artists=7898, genres=604, time_bins=64, max_duration_seconds=600.0)

PRIOR_5B = PriorConfig(
    level=2,
    n_ctx=8192,
    width=4800,
    depth=72,
    heads=8,
    blocks=128,
    attention_order=2,
    init_scale=0.1,
    merged_decoder=True,
    labels=replace(_V2_LABELS, min_duration_seconds=60.0),
)
PRIOR_5B_LYRICS = replace(
    PRIOR_5B,
    depth=79,
    attention_order=10,
    labels=replace(_V2_LABELS, min_duration_seconds=23.8),
    lyrics=LyricConfig(
        tokens=512,
        vocabulary=80,
        text=LyricText("v2", "unidecode"),
        encoder=LyricEncoderConfig(width=1280, depth=18, heads=4, blocks=32, init_scale=0.7),
        alignment_layer=68,
        alignment_head=2,
    ),
)
PRIOR_1B_LYRICS = PriorConfig(
    level=2,
    n_ctx=6144,
    width=2048,
    depth=72,
    heads=2,
    blocks=64,
    attention_order=12,
    init_scale=0.2,
    labels=replace(_V3_LABELS, min_duration_seconds=17.84),
    lyrics=LyricConfig(
        tokens=384, vocabulary=79, text=LyricText("v3", "unidecode"), alignment_layer=63, alignment_head=0
    ),
)
UPSAMPLER_LEVEL_1 = PriorConfig(
    level=1,
    n_ctx=8192,
    width=1920,
    depth=72,
    heads=1,
    blocks=128,
    init_scale=0.4,
    labels=_V2_LABELS,
    conditioner=ConditionerConfig(residual_scale=True),
)
UPSAMPLER_LEVEL_0 = replace(UPSAMPLER_LEVEL_1, level=0, conditioner=ConditionerConfig())

SMALL_PRIOR = PriorConfig(
    level=1, codes=1024, n_ctx=8192, width=1024, depth=48, heads=1, blocks=64, attention_order=2, init_scale=0.7
)
SMALL_UPSAMPLER = replace(
    SMALL_PRIOR, level=0, conditioner=ConditionerConfig(width=512, depth=16, downs=3, dilation_cycle=8)
)
# The recipes with labels are for the released VQ-VAE.
SMALL_LABELLED_PRIOR = replace(
    SMALL_PRIOR,
    level=2,
    codes=2048,
    labels=LabelConfig(0, 0, time_bins=64, min_duration_seconds=60.0, max_duration_seconds=600.0),
)
_SMALL_LYRICS = LyricConfig(tokens=384, vocabulary=79, text=LyricText("v3", "unidecode"))
SMALL_SINGLE_ENC_DEC_PRIOR = replace(
    SMALL_LABELLED_PRIOR, n_ctx=6144, heads=2, attention_order=12, lyrics=_SMALL_LYRICS
)
SMALL_SEP_ENC_DEC_PRIOR = replace(
    SMALL_SINGLE_ENC_DEC_PRIOR,
    depth=50,
    attention_order=8,
    lyrics=replace(_SMALL_LYRICS, encoder=LyricEncoderConfig(width=256, depth=9, heads=2, blocks=32, init_scale=0.7)),
)

#: The files that were released, by the name of their configuration.
RELEASES = {
    "vqvae": Release(VQVAE),
    "prior_5b": Release(PRIOR_5B, "v2"),
    "prior_5b_lyrics": Release(PRIOR_5B_LYRICS, "v2"),
    "prior_1b_lyrics": Release(PRIOR_1B_LYRICS, "v3"),
    "upsampler_level_0": Release(UPSAMPLER_LEVEL_0, "v2"),
    "upsampler_level_1": Release(UPSAMPLER_LEVEL_1, "v2"),
}
