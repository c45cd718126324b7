"""The released models and the small recipes: their sizes, the names of their tensors, their hyper-parameters."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import recorded

from jukebox_jax.errors import UserError
from jukebox_jax.interop import layout, released
from jukebox_jax.interop.hparams import codec_config, codec_hparams, codec_loss_config, prior_config, prior_hparams
from jukebox_jax.labels.lyrics import LyricText
from jukebox_jax.models.conditioning import ConditionerConfig, LabelConfig
from jukebox_jax.models.lyrics import LyricConfig, LyricEncoderConfig
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.models.vqvae import VQVAEConfig


def with_tables(config: PriorConfig) -> PriorConfig:
    """With the label tables of the recorded recipes: ours leave their sizes to the dataset."""
    return dataclasses.replace(config, labels=dataclasses.replace(config.labels, artists=100, genres=10))


SMALL = {
    "small_vqvae": released.SMALL_VQVAE,
    "small_prior": released.SMALL_PRIOR,
    "small_upsampler": released.SMALL_UPSAMPLER,
    "small_labelled_prior": with_tables(released.SMALL_LABELLED_PRIOR),
    "small_single_enc_dec_prior": with_tables(released.SMALL_SINGLE_ENC_DEC_PRIOR),
    "small_sep_enc_dec_prior": with_tables(released.SMALL_SEP_ENC_DEC_PRIOR),
}
CONFIGS = {name: release.config for name, release in released.RELEASES.items()} | SMALL
# State entries, trainable parameters and numbers in the state, from the specification.
SIZES = {
    "vqvae": (669, 1_485_763, 1_878_979),
    "prior_5b": (872, 5_060_452_800, 5_060_452_800),
    "prior_5b_lyrics": (1194, 5_640_506_800, 5_640_506_800),
    "prior_1b_lyrics": (872, 942_643_200, 946_999_296),
    "upsampler_level_0": (1006, 981_298_176, 985_230_336),
    "upsampler_level_1": (1006, 981_298_176, 985_230_336),
    "small_vqvae": (486, 586_050, 586_050 + 2 * 1024 * 64),
    "small_prior": (580, 160_814_080, 160_814_080 + 1024 * 1024),
    "small_upsampler": (783, 218_015_232, 218_015_232 + 1024 * 1024),
    "small_labelled_prior": (584, 162_170_880, 162_170_880 + 2048 * 1024),
    "small_single_enc_dec_prior": (584, 160_547_840, 160_547_840 + 2127 * 1024),
    "small_sep_enc_dec_prior": (734, 168_633_280, 168_633_280 + 2048 * 1024),
}
MODS = "prior.transformer._attn_mods"
SOME_SHAPES = {
    "vqvae": {
        "encoders.0.level_blocks.0.model.0.0.weight": (64, 1, 4),
        "encoders.0.level_blocks.0.model.0.1.model.7.model.3.weight": (64, 64, 1),
        "encoders.2.level_blocks.0.model.3.weight": (64, 32, 3),
        "encoders.2.level_blocks.2.model.0.0.weight": (32, 64, 4),
        "encoders.1.level_blocks.1.model.2.bias": (64,),
        "decoders.0.level_blocks.0.model.0.weight": (64, 64, 3),
        "decoders.2.level_blocks.2.model.1.0.model.3.model.1.weight": (32, 32, 3),
        "decoders.2.level_blocks.2.model.1.1.weight": (32, 32, 4),
        "decoders.2.level_blocks.2.model.2.1.weight": (32, 64, 4),
        "decoders.1.out.weight": (1, 64, 3),
        "bottleneck.level_blocks.2.k": (2048, 64),
    },
    "prior_5b": {
        "y_emb.bow_genre_emb.emb.weight": (120, 4800),
        "y_emb.artist_emb.emb.weight": (4111, 4800),
        "y_emb.relative_pos_emb.emb.weight": (128, 4800),
        "prior.x_emb.weight": (2048, 4800),
        "prior.pos_emb.pos_emb": (8192, 4800),
        f"{MODS}.71.attn.c_attn.w": (4800, 3600),
        f"{MODS}.0.attn.c_proj.w": (1200, 4800),
        f"{MODS}.0.mlp.c_fc.w": (4800, 4800),
        f"{MODS}.0.ln_1.bias": (4800,),
        "prior.x_out.weight": (2048, 4800),
    },
    "prior_5b_lyrics": {
        "prime_prior.start_token": (1, 1280),
        "prime_prior.x_emb.weight": (80, 1280),
        "prime_prior.pos_emb.pos_emb": (512, 1280),
        "prime_prior.transformer._attn_mods.17.attn.c_attn.w": (1280, 960),
        "prime_state_proj.w": (1280, 4800),
        "prime_state_ln.weight": (4800,),
        "prime_x_out.weight": (80, 4800),
        f"{MODS}.18.attn.c_attn.w": (4800, 1200),
        f"{MODS}.18.attn.c_enc_kv.b": (2400,),
        f"{MODS}.78.attn.c_enc_kv.w": (4800, 2400),
        f"{MODS}.77.attn.c_attn.b": (3600,),
    },
    "prior_1b_lyrics": {
        "y_emb.bow_genre_emb.emb.weight": (604, 2048),
        "y_emb.artist_emb.emb.weight": (7898, 2048),
        "y_emb.total_length_emb.emb.weight": (64, 2048),
        "prior.x_emb.weight": (2127, 2048),
        "prior.pos_emb.pos_emb": (6528, 2048),
        f"{MODS}.15.attn.c_attn.w": (2048, 1536),
        "prior.x_out.weight": (2127, 2048),
    },
    "upsampler_level_1": {
        "conditioner_blocks.0.x_emb.weight": (2048, 1920),
        "conditioner_blocks.0.cond.model.0.weight": (1024, 1920, 3),
        "conditioner_blocks.0.cond.model.1.0.blocks.0.model.1.weight": (1024, 1024, 3),
        "conditioner_blocks.0.cond.model.2.0.blocks.15.model.3.bias": (1024,),
        "conditioner_blocks.0.cond.model.1.1.weight": (1024, 1024, 4),
        "conditioner_blocks.0.cond.model.2.1.weight": (1024, 1920, 4),
        "conditioner_blocks.0.ln.weight": (1920,),
        "prior.pos_emb.pos_emb": (8192, 1920),
    },
}
SOME_SHAPES["upsampler_level_0"] = SOME_SHAPES["upsampler_level_1"]


def is_codec(name: str) -> bool:
    return isinstance(CONFIGS[name], VQVAEConfig)


@functools.cache
def shapes_of(name: str, names: layout.ConditionerNames = "blocks") -> dict[str, tuple[int, ...]]:
    return layout.codec_shapes(CONFIGS[name]) if is_codec(name) else layout.prior_shapes(CONFIGS[name], names)


def sizes_of(name: str) -> tuple[int, int, int]:
    """State entries, trainable parameters, numbers in the state."""
    shapes = shapes_of(name)
    total = sum(math.prod(shape) for shape in shapes.values())
    if is_codec(name):
        untrained = [shape for key, shape in shapes.items() if key.startswith("bottleneck.")]
    else:
        untrained = [shapes[entry.key] for entry in layout.prior_layout(CONFIGS[name]) if entry.tied]
    return len(shapes), total - sum(map(math.prod, untrained)), total


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name):
    assert sizes_of(name) == SIZES[name]


def test_the_small_prior_over_the_codes_of_the_released_vqvae():
    shapes = layout.prior_shapes(dataclasses.replace(released.SMALL_PRIOR, level=2, codes=2048))
    assert sum(map(math.prod, shapes.values())) - 2048 * 1024 == 161_862_656


@pytest.mark.parametrize("name", SOME_SHAPES)
def test_names_and_shapes(name):
    shapes = shapes_of(name)
    assert {key: shapes[key] for key in SOME_SHAPES[name]} == SOME_SHAPES[name]
    enters_by_start = [key for key in shapes if "start_token" in key and not key.startswith("prime_")]
    assert not enters_by_start  # labels stand in its place
    assert any("c_enc_kv" in key for key in shapes) == (name == "prior_5b_lyrics")


def test_parts_of_the_released_priors():
    """The specification's split of the parameters."""

    def part(name: str, prefix: str) -> int:
        return sum(math.prod(shape) for key, shape in shapes_of(name).items() if key.startswith(prefix))

    assert part("prior_5b", "prior.transformer") == 4_979_318_400
    assert part("prior_5b", "prior.pos_emb") == 39_321_600
    assert part("prior_5b", "prior.x_out") == part("prior_5b", "prior.x_emb") == 9_830_400
    assert part("prior_5b", "y_emb") == 22_152_000
    assert part("prior_5b_lyrics", "prior.transformer") == 5_463_418_800
    assert part("prior_5b_lyrics", "prime_prior.transformer") == 88_652_160
    assert part("prior_5b_lyrics", "prime_prior.") == 88_652_160 + 759_040
    assert part("prior_5b_lyrics", "prime_state_proj") == 6_148_800
    assert part("prior_5b_lyrics", "prime_x_out") == 384_000
    assert part("prior_1b_lyrics", "prior.transformer") == 907_112_448
    assert part("prior_1b_lyrics", "prior.pos_emb") == 13_369_344
    assert part("prior_1b_lyrics", "prior.x_emb") == 4_356_096
    assert part("prior_1b_lyrics", "y_emb") == 17_805_312
    assert part("upsampler_level_0", "prior.transformer") == 797_333_760
    assert part("upsampler_level_0", "conditioner_blocks") == 156_180_096
    assert part("upsampler_level_0", "y_emb") == 8_123_520


def test_layouts_that_the_released_priors_run_in():
    one, five = released.PRIOR_1B_LYRICS, released.PRIOR_5B_LYRICS
    assert (one.transformer.context, one.transformer.block_ctx) == (6528, 102)
    assert [d for d, func in enumerate(one.transformer.patterns) if func == 7] == [15, 31, 63]
    assert [d for d, func in enumerate(one.transformer.patterns) if func == 0] == [47]
    assert [d for d, func in enumerate(five.transformer.patterns) if func == 6] == [18, 28, 38, 48, 58, 68, 78]
    for config in (one, five):
        assert config.transformer.patterns[config.lyrics.alignment_layer] in (6, 7)
        assert config.lyrics.vocabulary == config.lyrics.text.size
    for config in (released.UPSAMPLER_LEVEL_0, released.UPSAMPLER_LEVEL_1):
        conditioner, codec = config.conditioner, released.VQVAE
        assert conditioner.ratio == codec.hops[config.level + 1] // codec.hops[config.level]


# ---- The recorded manifests -------------------------------------------------------------------------------------


@functools.cache
def manifest(name: str) -> dict[str, Any]:
    which = "released" if name in released.RELEASES else "small"
    return json.loads(recorded(f"g_manifest_{which}.json").read_text())["models"][name]


def codec_of(name: str) -> VQVAEConfig:
    return released.SMALL_VQVAE if name in ("small_prior", "small_upsampler") else released.VQVAE


def hps_of(name: str) -> dict[str, Any]:
    return manifest(name)["hparams"]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_and_shape_in_its_order(name):
    expected = manifest(name)
    names = "blocks" if is_codec(name) or hps_of(name)["cond_c_res"] else "model"
    shapes = shapes_of(name, names)
    assert list(shapes.items()) == [(key, tuple(shape)) for key, shape in expected["keys"].items()]
    assert sizes_of(name) == (expected["n_keys"], expected["n_parameters"], expected["n_state_elements"])
    if name in released.RELEASES and not is_codec(name):
        entries = layout.prior_layout(CONFIGS[name])
        assert {entry.key for entry in entries if entry.tied} == set(expected["tied_keys"])
        # Half precision is for the 5B models, and there for exactly the Conv1D weights.
        half = [shape for key, shape in shapes.items() if key.endswith(".w")] if CONFIGS[name].merged_decoder else []
        assert sum(map(math.prod, half)) == expected["n_float16_elements"]
        assert list(CONFIGS[name].transformer.patterns) == expected["attn_funcs"]


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_are_those_of_the_recorded_hyperparameters(name):
    hps = hps_of(name)
    config = codec_config(hps) if is_codec(name) else prior_config(hps, codec_of(name))
    assert config == CONFIGS[name]
    if name in released.RELEASES and not is_codec(name):
        assert released.RELEASES[name].normalisation == ("v3" if hps["labels_v3"] else "v2")


@pytest.mark.parametrize("name", CONFIGS)
def test_written_hyperparameters_are_the_recorded_ones(name):
    """Those left out of ours have no effect."""
    hps = hps_of(name)
    if is_codec(name):
        ours = codec_hparams(CONFIGS[name])
    else:
        names = "blocks" if hps["cond_c_res"] else "model"
        ours = prior_hparams(CONFIGS[name], "v3" if hps["labels_v3"] else "v2", names)
    # What None stands for, where we write it out.
    meant = {"max_duration": 600, "min_duration": 0, "max_bow_genre_size": 1, "hvqvae_multipliers": [1, 1]}
    for key, value in ours.items():
        assert value == (meant.get(key) if hps[key] is None else hps[key]), key


def test_the_recorded_loss():
    loss = codec_loss_config(hps_of("vqvae"))
    assert (loss.loss, loss.lmix_l2, loss.lmix_linf, loss.commit, loss.multispectral) == ("lmix", 1.0, 0.02, 0.02, 1.0)


# ---- There and back ---------------------------------------------------------------------------------------------

MULTIPLIERS = st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0])
SCALES = st.sampled_from([0.1, 0.7, 1.0])
CYCLES = st.none() | st.integers(1, 8)


@st.composite
def codecs(draw) -> VQVAEConfig:
    """Those the original has numbers for: a level's width and depth are the same multiple of common ones."""
    count = draw(st.integers(1, 4))
    many = lambda numbers: tuple(draw(st.lists(numbers, min_size=count, max_size=count)))  # noqa: E731
    width, depth, multipliers = draw(st.integers(2, 8)), draw(st.integers(1, 3)), many(st.integers(1, 4))
    return VQVAEConfig(
        sample_rate=draw(st.integers(1, 96_000)),
        downs=many(st.integers(1, 3)),
        strides=many(st.sampled_from([2, 4])),
        widths=tuple(width * m for m in multipliers),
        depths=tuple(depth * m for m in multipliers),
        emb_width=draw(st.integers(1, 64)),
        codes=draw(st.integers(1, 4096)),
        hidden_multiplier=draw(st.sampled_from([0.5, 1.0, 2.0])),
        dilation_growth=draw(st.integers(1, 3)),
        dilation_cycle=draw(CYCLES),
        reverse_decoder_dilation=draw(st.booleans()),
    )


@st.composite
def priors(draw) -> tuple[dict[str, Any], VQVAEConfig, str | None]:
    """The fields of a prior of any family, its codec, and how it spells names."""
    codec = draw(codecs())
    level = draw(st.integers(0, codec.levels - 1))
    normalisation = draw(st.sampled_from([None, "v2", "v3"]))
    conditioner = labels = lyrics = None
    if level < codec.levels - 1:
        conditioner = ConditionerConfig(
            width=draw(st.integers(4, 64)),
            depth=draw(st.integers(1, 16)),
            downs=codec.downs[level + 1],
            stride=codec.strides[level + 1],
            dilation_growth=draw(st.integers(1, 3)),
            dilation_cycle=draw(CYCLES),
            hidden_multiplier=draw(MULTIPLIERS),
            residual_scale=draw(st.booleans()),
        )
    if normalisation is not None:
        labels = LabelConfig(
            artists=draw(st.integers(0, 100)),
            genres=draw(st.integers(0, 100)),
            max_genres=draw(st.integers(1, 5)),
            time_bins=draw(st.integers(1, 128)),
            min_duration_seconds=draw(st.sampled_from([0.0, 17.84, 60.0])),
            max_duration_seconds=draw(st.sampled_from([61.0, 600.0])),
        )
    kind = draw(st.sampled_from(["none", "encoder", "single"]))
    if kind != "none":
        encoder = LyricEncoderConfig(
            width=16 * draw(st.integers(1, 3)),
            depth=draw(st.integers(1, 9)),
            heads=draw(st.sampled_from([1, 2, 4])),
            blocks=draw(st.sampled_from([1, 2, 4, 8])),
            attention_order=draw(st.sampled_from([0, 1, 2, 3, 9])),
            spread=draw(st.integers(0, 2)),
            attention_multiplier=draw(MULTIPLIERS),
            mlp_multiplier=draw(MULTIPLIERS),
            init_scale=draw(SCALES),
            residual_scale=draw(st.booleans()),
        )
        lyrics = LyricConfig(
            tokens=8 * draw(st.integers(1, 4)),
            vocabulary=draw(st.integers(1, 80)),
            text=LyricText("v3" if normalisation == "v3" else "v2", "unidecode"),
            encoder=encoder if kind == "encoder" else None,
            loss_fraction=draw(st.sampled_from([0.0, 0.1, 0.4])),
            alignment_layer=draw(st.none() | st.integers(0, 9)),
            alignment_head=draw(st.none() | st.integers(0, 9)),
        )
    orders = {"none": [0, 1, 2, 3, 9], "encoder": [2, 6, 7, 8, 10, 11], "single": [2, 12]}[kind]
    fields = dict(  # noqa: C408
        level=level,
        codes=codec.codes,
        n_ctx=64 * draw(st.integers(1, 3)) if conditioner is None else 4**3 * draw(st.integers(1, 2)),
        width=16 * draw(st.integers(1, 3)),
        depth=draw(st.integers(1, 20)),
        heads=draw(st.sampled_from([1, 2, 4])),
        blocks=draw(st.sampled_from([1, 2, 4, 8])),
        attention_order=draw(st.sampled_from(orders)),
        spread=draw(st.integers(0, 3)),
        attention_multiplier=draw(MULTIPLIERS),
        mlp_multiplier=draw(MULTIPLIERS),
        init_scale=draw(SCALES),
        residual_scale=draw(st.booleans()),
        merged_decoder=draw(st.booleans()),
        labels=labels,
        lyrics=lyrics,
        conditioner=conditioner,
    )
    return fields, codec, normalisation


@given(codecs())
def test_codec_configs_there_and_back(config):
    hps = json.loads(json.dumps(codec_hparams(config)))  # as a model folder keeps them
    assert codec_config(hps) == config


@given(priors(), st.sampled_from(["blocks", "model"]))
@settings(deadline=None)
def test_prior_configs_there_and_back(prior, names):
    fields, codec, normalisation = prior
    config = PriorConfig(**fields)
    hps = json.loads(json.dumps(prior_hparams(config, normalisation, names)))
    assert prior_config(hps, codec) == config
    assert hps["labels_v3"] == (normalisation == "v3")


def test_levels_without_a_common_factor_have_no_hyperparameters():
    with pytest.raises(UserError, match=r"no numbers for model\.widths=\(8, 4\) with model\.depths=\(2, 2\)"):
        codec_hparams(VQVAEConfig(downs=(1, 1), strides=(2, 2), widths=(8, 4), depths=(2, 2)))


def test_defaults_are_the_originals():
    assert codec_config({}) == VQVAEConfig(
        downs=(1, 1), strides=(2, 2), widths=(128, 128), depths=(3, 3), emb_width=64, codes=512, dilation_growth=1
    )
    expected = PriorConfig(1, 512, 1024, 128, 3, blocks=1, attention_order=0, init_scale=1.0, labels=LabelConfig(0, 0))
    assert prior_config({"level": 1}, codec_config({})) == expected
