"""Hyper-parameters of a file may be anything: each is a model's or a sentence that names file and key."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interop import recipe, synthetic

from jukebox_jax.checkpoint import store
from jukebox_jax.cli.main import main
from jukebox_jax.errors import UserError
from jukebox_jax.interop import layout
from jukebox_jax.interop.hparams import codec_config, codec_hparams, codec_loss_config, prior_config, prior_hparams
from jukebox_jax.interop.torch_file import hyperparameters
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.models.vqvae import VQVAEConfig

CODEC = codec_hparams(recipe.CODEC)
PRIORS = [prior_hparams(config, "v2", "blocks") for config in (recipe.TOP, recipe.UPSAMPLER)]
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64)
    | st.integers(-2, 300)
    | st.floats()
    | st.sampled_from([1e308, -0.0, 0.5, 2**16, 2**20, 2**24])
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=5,
)


def plain(hps: dict) -> dict:
    return hyperparameters({"hps": hps})


def changed(hps: dict) -> st.SearchStrategy[dict]:
    """With up to three values replaced, also of keys that the model leaves to their defaults."""
    more = (
        "dilation_cycle",
        "loss_fn",
        "l_mu",
        "linf_k",
        "multispec_loss_n_fft",
        "n_tokens",
        "use_tokens",
        "prime_depth",
    )
    return st.dictionaries(st.sampled_from([*hps, *more]), ANYTHING, max_size=3).map(lambda some: hps | some)


def model_or_sentence(make) -> VQVAEConfig | PriorConfig | None:
    started = time.perf_counter()
    try:
        config = make()
    except UserError:
        config = None
    assert time.perf_counter() - started < 1
    return config


@given(changed(CODEC))
@settings(deadline=None)
def test_any_hyperparameters_of_a_codec(hps):
    config = model_or_sentence(lambda: codec_config(plain(hps)))
    if config is not None:
        assert len(layout.codec_layout(config)) < 2**18
    model_or_sentence(lambda: codec_loss_config(plain(hps)))


@given(st.one_of(*map(changed, PRIORS)))
@settings(deadline=None)
def test_any_hyperparameters_of_a_prior(hps):
    config = model_or_sentence(lambda: prior_config(plain(hps), recipe.CODEC))
    if config is not None:
        assert len(layout.prior_layout(config)) < 2**18


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("depth", "x"),
        ("depth", True),
        ("depth", 1.0),
        ("depth", -1),
        ("depth", 10**9),
        ("depth", [[1]]),
        ("depth", {"a": 1}),
        ("depth", None),
        ("width", 2**40),
        ("l_bins", math.nan),
        ("emb_width", math.inf),
        ("m_conv", 1e308),
        ("m_conv", "1"),
        ("downs_t", [1]),
        ("downs_t", [1, "x"]),
        ("downs_t", [1, [1]]),
        ("downs_t", {"0": 1, "1": 1}),
        ("downs_t", 2),
        ("strides_t", [64, 64]),
        ("hvqvae_multipliers", [1, 0]),
        ("hvqvae_multipliers", [1, 64]),
        ("dilation_growth_rate", 64),
        ("vqvae_reverse_decoder_dilation", "no"),
        ("levels", 3),
        ("sr", 44100.5),
    ],
)
def test_a_bad_value_is_told_with_file_and_key(key, value, tmp_path, capsys):
    hps = CODEC | {"depth": 8} | {key: value}
    if key == "strides_t":
        hps["downs_t"] = [2, 24]
    synthetic.write_codec(tmp_path / "vqvae.pth.tar", recipe.CODEC, hps=hps)
    assert main(["import-openai", str(tmp_path / "vqvae.pth.tar"), "--out", str(tmp_path / "out")]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    # Three multipliers or lists are too few for three levels.
    assert f"vqvae.pth.tar: The hyper-parameter '{'downs_t' if key == 'levels' else key}' is" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("level", 2),
        ("level", "top"),
        ("n_ctx", 2**40),
        ("n_ctx", False),
        ("prior_width", [16]),
        ("prior_depth", 10**6),
        ("blocks", 0),
        ("attn_order", 13),
        ("m_attn", -0.25),
        ("init_scale", 0),
        ("labels", "yes"),
        ("y_bins", [5]),
        ("y_bins", [5, None]),
        ("y_bins", {"artists": 6}),
        ("t_bins", 10**9),
        ("min_duration", "0"),
        ("max_duration", math.inf),
        ("merged_decoder", 2),
        ("n_tokens", -3),
        ("alignment_layer", 1.5),
        ("cond_depth", 10**9),
        ("cond_dilation_growth_rate", 1e308),
    ],
)
def test_a_bad_value_of_a_prior_is_told_with_its_key(key, value):
    with pytest.raises(UserError, match=f"hyper-parameter '{key}' is "):
        prior_config(plain(PRIORS[0] | {key: value}), recipe.CODEC)


@pytest.mark.parametrize(
    ("hps", "words"),
    [
        ({"l_bins": 10**500}, "beyond 64 bits"),
        ({"note": 10**500}, "beyond 64 bits"),
        ({"note": [[[[[[[[[[[[[[[[[0]]]]]]]]]]]]]]]]]}, "too large or too deep"),
    ],
)
@pytest.mark.parametrize("config", [[], ["--config", "vqvae"]])
def test_hyperparameters_that_are_too_large(hps, words, config, tmp_path, capsys):
    synthetic.write_codec(tmp_path / "vqvae.pth.tar", recipe.CODEC, hps=CODEC | hps)
    assert main(["import-openai", str(tmp_path / "vqvae.pth.tar"), "--out", str(tmp_path / "out"), *config]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert "vqvae.pth.tar: The checkpoint's 'hps'" in told
    assert words in told
    assert not (tmp_path / "out").exists()


def test_what_json_has_no_number_for_is_kept_as_text(tmp_path):
    hps = CODEC | {"lr_decay": math.inf, "note": {"nan": math.nan}}
    synthetic.write_codec(tmp_path / "vqvae.pth.tar", recipe.CODEC, hps=hps, step=10**500)
    assert main(["import-openai", str(tmp_path / "vqvae.pth.tar"), "--out", str(tmp_path / "out")]) == 0
    metadata = store.load_metadata(tmp_path / "out/vqvae")
    assert metadata["hps"] == CODEC | {"lr_decay": "inf", "note": {"nan": "nan"}}
    assert "step" not in metadata


def test_sizes_of_another_model_are_refused_before_the_model_is_traced(tmp_path):
    """Names are compared first, so that a file of few tensors cannot ask for a model of many."""
    synthetic.write_prior(tmp_path / "prior.pth.tar", recipe.TOP, hps=PRIORS[0] | {"prior_depth": 1024})
    started = time.perf_counter()
    assert main(["import-openai", str(tmp_path / "prior.pth.tar"), "--out", str(tmp_path / "out")]) == 2
    assert time.perf_counter() - started < 2
