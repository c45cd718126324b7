"""The VQ-VAE: shapes, convolutions against plain definitions, reach of the encoders."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jukebox_jax.models.convolution import convolve, dilations, upsample
from jukebox_jax.models.vqvae import (
    VQVAE,
    Codec,
    VQVAEConfig,
    decode,
    encode,
    encoder_reach,
    flops_per_sample,
    init_codec,
)

TINY = VQVAEConfig(widths=(8, 4, 4), depths=(2, 2, 1), emb_width=8, codes=16)


def make_codec(config: VQVAEConfig) -> Codec:
    params = meta.unbox(init_codec(config, jax.random.key(0)))
    rng = np.random.default_rng(0)
    # Codes near the latents' scale, so that different latents get different codes.
    audio = jnp.asarray(rng.normal(size=(1, config.hops[-1] * 64, 1)) * 0.3, jnp.float32)
    books = []
    for level in range(config.levels):
        latents = VQVAE(config).apply({"params": params}, audio, level, method="encode_latents")[0]
        books.append(latents[rng.permutation(len(latents))[: config.codes]])
    return Codec(params, tuple(books))


def test_hops_and_lengths():
    assert VQVAEConfig().hops == (8, 32, 128)
    codec = make_codec(TINY)
    audio = jnp.asarray(np.random.default_rng(1).normal(size=(2, 512, 1)), jnp.float32)
    codes = encode(TINY, codec, audio)
    assert [c.shape for c in codes] == [(2, 64), (2, 16), (2, 4)]
    for level, tokens in enumerate(codes):
        assert decode(TINY, codec, tokens, level).shape == audio.shape


def test_the_released_model_has_its_number_of_parameters():
    shapes = jax.eval_shape(lambda: init_codec(VQVAEConfig(), jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 1_485_763


@pytest.mark.parametrize(
    ("channels", "features", "taps", "stride", "dilation", "padding"),
    [
        (3, 4, 3, 1, 3, 3),
        (1, 4, 4, 2, 1, 1),
        (1, 4, 8, 4, 1, 2),
        (3, 1, 3, 1, 1, 1),
        (3, 5, 1, 1, 1, 0),
        (3, 1, 4, 2, 1, 1),
    ],
)
def test_every_formulation_of_a_convolution_is_the_plain_one(channels, features, taps, stride, dilation, padding):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 24, channels)).astype(np.float32)
    kernel = rng.normal(size=(taps, channels, features)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (padding, padding), (0, 0)))
    length = (24 + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
    expected = np.zeros((2, length, features))
    for position in range(length):
        for tap in range(taps):
            expected[:, position] += padded[:, position * stride + tap * dilation] @ kernel[tap]
    out = convolve(jnp.asarray(x), jnp.asarray(kernel), stride, dilation, padding)
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [1, 5, 8])
def test_a_transposed_convolution_scatters_its_kernel(stride, length):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, length, 3)), rng.normal(size=(2 * stride, 3, 4))
    padding = stride // 2
    scattered = np.zeros((2, (length - 1) * stride + 2 * stride, 4))
    for position in range(length):
        for tap in range(2 * stride):
            scattered[:, position * stride + tap] += x[:, position] @ kernel[tap]
    expected = scattered[:, padding : scattered.shape[1] - padding]
    out = upsample(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32), stride)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_dilations_grow_cycle_and_reverse():
    assert dilations(4, 3) == (1, 3, 9, 27)
    assert dilations(4, 3, reverse=True) == (27, 9, 3, 1)
    assert dilations(5, 3, 2) == (1, 3, 1, 3, 1)


def test_nothing_beyond_the_reach_moves_a_latent():
    reach, model = encoder_reach(TINY), VQVAE(TINY)
    codec = make_codec(TINY)
    length = -(-(2 * reach + 512) // 128) * 128
    audio = jnp.asarray(np.random.default_rng(2).normal(size=(1, length, 1)), jnp.float32)
    for level, hop in enumerate(TINY.hops):

        def latents(x, level=level):
            return model.apply({"params": codec.params}, x, level, method="encode_latents")[0]

        gradient = jax.grad(lambda x, f=latents, hop=hop: jnp.sum(f(x)[length // 2 // hop] ** 2))(audio)[0, :, 0]
        touched = np.flatnonzero(np.asarray(gradient))
        first = length // 2 // hop * hop
        assert touched[0] >= first - reach
        assert touched[-1] < first + hop + reach


def test_operations_are_counted():
    config = VQVAEConfig(widths=(16, 16, 16), depths=(2, 2, 2), emb_width=16, dilation_growth=1)
    params = {"params": meta.unbox(init_codec(config, jax.random.key(0)))}
    audio = jnp.zeros((1, 1024, 1))
    counted = jax.jit(VQVAE(config).apply).lower(params, audio).compile().cost_analysis()["flops"]
    assert flops_per_sample(config) * 1024 == pytest.approx(counted, rel=0.25)


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        VQVAEConfig(
            downs=(1, 0), strides=(4, 2), widths=(8, 4), depths=(4, 3), emb_width=8, codes=16, dilation_cycle=2
        ),
    ],
)
def test_what_is_behind_an_items_end_does_not_count(config):
    codec, hop = make_codec(config), config.hops[-1]
    run = jax.jit(encode, static_argnums=(0, 3))
    audio = jnp.asarray(np.random.default_rng(3).normal(size=(3, 24 * hop, 1)), jnp.float32)
    together = run(config, codec, audio, None, jnp.asarray([24, 17, 0]) * hop)
    alone = run(config, codec, audio[1:2, : 17 * hop])
    whole = run(config, codec, audio)
    for ours, cut, uncut in zip(together, alone, whole, strict=True):
        np.testing.assert_array_equal(ours[0], uncut[0])
        np.testing.assert_array_equal(ours[1, : cut.shape[1]], cut[0])
    assert any((uncut[1, : cut.shape[1]] != cut[0]).any() for cut, uncut in zip(alone, whole, strict=True))


def test_without_ends_nothing_is_masked():
    audio, params = jnp.zeros((1, 512, 1)), {"params": make_codec(TINY).params}
    traced = [
        str(jax.make_jaxpr(lambda x, v=valid: VQVAE(TINY).apply(params, x, 0, v, method="encode_latents"))(audio))
        for valid in (None, jnp.array([512]))
    ]
    assert ["select_n" in trace for trace in traced] == [False, True]
