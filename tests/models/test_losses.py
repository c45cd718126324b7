"""The codec's losses against recorded numbers, and on digital silence."""

from __future__ import annotations

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jukebox_jax.audio.spectral import REFERENCE, magnitude_stfts, spectral_convergence, spectral_distance
from jukebox_jax.models.losses import Bandwidth, CodecLossConfig, audio_losses, codec_losses
from jukebox_jax.models.vqvae import VQVAEConfig, init_codec, untrained_codebooks
from jukebox_jax.parallel.hlo import ENTRY, computations

TINY = VQVAEConfig(downs=(1, 1, 1), widths=(4, 4, 4), depths=(1, 1, 1), emb_width=4, codes=8)
#: For what one level and one resolution can show: more take longer to compile.
ONE_LEVEL = VQVAEConfig(downs=(2,), strides=(2,), widths=(4,), depths=(1,), emb_width=4, codes=8)
ONE_RESOLUTION = CodecLossConfig(multispectral_n_fft=(256,), multispectral_hop=(64,), multispectral_window=(240,))


def recorded_signals():
    i = np.arange(8192)
    target = [0.5 * np.sin(0.03 * i) + 0.2 * np.sin(0.4 * i), 0.3 * np.sin(0.11 * i)]
    prediction = [
        0.45 * np.sin(0.03 * i + 0.1) + 0.1 * np.sin(0.7 * i),
        0.25 * np.sin(0.11 * i + 0.2) + 0.05 * np.sin(1.9 * i),
    ]
    return jnp.asarray(np.stack(target), jnp.float32), jnp.asarray(np.stack(prediction), jnp.float32)


def test_spectral_terms_are_the_recorded_ones():
    target, prediction = recorded_signals()
    resolutions = (REFERENCE, *CodecLossConfig().resolutions)
    pairs = list(zip(magnitude_stfts(resolutions, target), magnitude_stfts(resolutions, prediction), strict=True))
    distances = [spectral_distance(*pair) for pair in pairs]
    np.testing.assert_allclose(distances[0], [713.7433, 224.2011], rtol=1e-5)
    np.testing.assert_allclose(sum(distances[1:]) / len(distances[1:]), [473.5775, 147.5652], rtol=1e-5)
    np.testing.assert_allclose(spectral_convergence(*pairs[0]), [0.4252, 0.2395], atol=5e-5)


def test_waveform_terms_are_the_recorded_ones():
    terms = audio_losses(CodecLossConfig(), Bandwidth(l1=0.2, l2=0.05), *recorded_signals())
    expected = {"l1": 0.480610, "l2": 0.313547, "linf": 0.807183, "recons": 0.329690}
    for name, value in expected.items():
        assert float(terms[name]) == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize(
    ("model", "config"),
    [
        *(
            (ONE_LEVEL, dataclasses.replace(ONE_RESOLUTION, spectral=s, relative_spectral=r))
            for s in (0.0, 1.0)
            for r in (False, True)
        ),
        # All levels and resolutions together, once: they take long to compile.
        (TINY, CodecLossConfig(spectral=1.0)),
    ],
    ids=["waveform", "waveform, relative", "spectral", "spectral, relative", "all levels and resolutions"],
)
def test_silence_gives_finite_losses_and_gradients(model, config):

    @jax.jit
    def loss_and_gradients(params):
        def loss(params):
            books, silence, key = untrained_codebooks(model), jnp.zeros((2, 4096, 1)), jax.random.key(1)
            value, *rest = codec_losses(model, config, Bandwidth(), params, books, silence, key)
            return value, rest

        return jax.value_and_grad(loss, has_aux=True)(params)

    params = meta.unbox(init_codec(model, jax.random.key(0)))
    # Not only the target: a decoder that puts out exact silence, too.
    for p in (params, jax.tree.map(jnp.zeros_like, params)):
        for leaf in jax.tree.leaves(loss_and_gradients(p)):
            assert np.isfinite(np.asarray(leaf, np.float32)).all()


def test_metrics_are_given_per_level_and_levels_add_up():
    params = meta.unbox(init_codec(TINY, jax.random.key(0)))
    audio = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4096, 1)) * 0.1, jnp.float32)
    config = dataclasses.replace(ONE_RESOLUTION, spectral=0.5)
    losses = jax.jit(partial(codec_losses, TINY, config, Bandwidth()))
    loss, books, metrics = losses(params, untrained_codebooks(TINY), audio, jax.random.key(0))
    for name in ("l1_loss", "l2_loss", "linf_loss", "log_magnitude_loss", "spectral_convergence"):
        assert float(metrics[name]) == float(metrics[f"{name}_l1"])
        assert len({float(metrics[f"{name}_l{i}"]) for i in (1, 2, 3)}) == 3
    for name in ("recons_loss", "spectral_loss", "multispectral_loss", "commit_loss"):
        assert float(metrics[name]) == pytest.approx(sum(float(metrics[f"{name}_l{i}"]) for i in (1, 2, 3)), rel=1e-6)
    for name in ("fit", "pn", "entropy", "used_curr", "usage", "dk"):
        levels = [float(metrics[f"{name}_l{i}"]) for i in (1, 2, 3)]
        assert float(metrics[name]) == pytest.approx(np.mean(levels), rel=1e-5, abs=1e-9)
    total = (
        metrics["recons_loss"]
        + 0.5 * metrics["spectral_loss"]
        + metrics["multispectral_loss"]
        + 0.02 * metrics["commit_loss"]
    )
    assert float(loss) == pytest.approx(float(total), rel=1e-6)
    # Evaluation learns nothing and has no quantiser metrics.
    _, after, held_out = losses(params, books, audio, None)
    assert after is not books
    jax.tree.map(np.testing.assert_array_equal, after, books)
    assert "usage" not in held_out


def test_no_two_fourier_transforms_are_ready_at_once():
    """See `magnitude_stfts`: on two cores they might wait for each other for ever."""
    params = meta.unbox(init_codec(TINY, jax.random.key(0)))
    config = dataclasses.replace(
        CodecLossConfig(spectral=1.0),
        multispectral_n_fft=(256, 128),
        multispectral_hop=(64, 32),
        multispectral_window=(240, 100),
    )

    def loss(params, audio):
        value, _, metrics = codec_losses(
            TINY, config, Bandwidth(), params, untrained_codebooks(TINY), audio, jax.random.key(0)
        )
        return value, metrics

    audio = jnp.zeros((2, 4096, 1))
    lines = computations(jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params, audio).compile().as_text())
    before: dict[str, set[str]] = {}  # the transforms that everything in the program waits for
    transforms = []
    for line in lines[ENTRY]:
        name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
        operands = re.findall(r"%[\w.-]+", rest.partition("metadata=")[0])
        before[name] = set().union(*(before.get(operand, set()) for operand in operands))
        if " fft(" in rest:
            assert before[name] == set(transforms)
            transforms.append(name)
            before[name] = before[name] | {name}
    # The target once, forward and backward for each level.
    assert len(transforms) == 3 + 3 * 3 * 2
