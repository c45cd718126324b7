"""Where the original's tensors stand: against the specification's tables, and there and back bit for bit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
import pytest

from jukebox_jax.errors import UserError
from jukebox_jax.interop import layout
from jukebox_jax.interop.layout import Entry
from jukebox_jax.models.conditioning import ConditionerConfig, LabelConfig
from jukebox_jax.models.lyrics import LyricConfig, LyricEncoderConfig
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.models.transformer import TransformerConfig
from jukebox_jax.models.vqvae import Codec, VQVAEConfig

# Sizes that differ wherever they can, so that no two axes can be confused unseen.
CODECS = {
    "three levels": VQVAEConfig(widths=(6, 3, 3), depths=(2, 1, 1), emb_width=5, codes=7),
    "stride 4, dilation cycle": VQVAEConfig(
        downs=(1, 2), strides=(4, 2), widths=(3, 4), depths=(3, 2), emb_width=5, codes=7, dilation_cycle=2
    ),
    "wide inside, one level": VQVAEConfig(
        downs=(2,), strides=(2,), widths=(4,), depths=(1,), emb_width=3, codes=6, hidden_multiplier=1.5
    ),
    "a level at the rate of the one below": VQVAEConfig(
        downs=(1, 0, 1), strides=(2, 2, 2), widths=(3, 3, 3), depths=(1, 1, 1), emb_width=4, codes=6
    ),
}
PLAIN = PriorConfig(
    level=2, codes=10, n_ctx=24, width=16, depth=3, heads=2, blocks=4, attention_multiplier=0.5, mlp_multiplier=1.5
)
LABELLED = dataclasses.replace(PLAIN, labels=LabelConfig(5, 3, max_genres=2, time_bins=7))
ENCODER = LyricEncoderConfig(width=12, depth=2, heads=3, blocks=3)
UPSAMPLER = dataclasses.replace(LABELLED, level=1, conditioner=ConditionerConfig(width=9, depth=3))
PRIORS = {
    "unlabelled": PLAIN,
    "labelled": LABELLED,
    "merged": dataclasses.replace(LABELLED, merged_decoder=True),
    "lyric encoder": dataclasses.replace(
        LABELLED, depth=9, attention_order=6, lyrics=LyricConfig(6, 11, encoder=ENCODER), merged_decoder=True
    ),
    "lyric encoder, order 8": dataclasses.replace(
        LABELLED, depth=11, attention_order=8, lyrics=LyricConfig(6, 11, encoder=ENCODER)
    ),
    "single sequence": dataclasses.replace(LABELLED, depth=16, attention_order=12, lyrics=LyricConfig(8, 11)),
    "upsampler of two stages": UPSAMPLER,
    "upsampler of one stage": dataclasses.replace(UPSAMPLER, conditioner=ConditionerConfig(width=9, depth=1, downs=1)),
    "upsampler of three stages, unlabelled": dataclasses.replace(
        UPSAMPLER, level=0, labels=None, conditioner=ConditionerConfig(width=9, depth=2, downs=3, hidden_multiplier=2.0)
    ),
    "upsampler of stride 4": dataclasses.replace(
        UPSAMPLER, conditioner=ConditionerConfig(width=9, depth=1, downs=1, stride=4)
    ),
}
NAMES = ("blocks", "model")
CASES = [("codec", name, "blocks") for name in CODECS] + [
    ("prior", name, names) for name, config in PRIORS.items() for names in (NAMES if config.conditioner else NAMES[:1])
]
every_family = pytest.mark.parametrize(("kind", "name", "names"), CASES)

Shapes = dict[str, tuple[int, ...]]
MODS = "prior.transformer._attn_mods"


# ---- The specification's tables ---------------------------------------------------------------------------------


def specified_codec(c: VQVAEConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Section 7 of the VQ-VAE."""

    def residual(names: str, width: int, depth: int):
        hidden = int(c.hidden_multiplier * width)
        for d in range(depth):
            yield from convolution(f"{names}.model.{d}.model.1", (hidden, width, 3))
            yield from convolution(f"{names}.model.{d}.model.3", (width, hidden, 1))

    for level in range(c.levels):
        width, channels = c.widths[level], 1
        for j in range(level + 1):
            names, taps = f"encoders.{level}.level_blocks.{j}.model", 2 * c.strides[j]
            for i in range(c.downs[j]):
                yield from convolution(f"{names}.{i}.0", (width, channels, taps))
                yield from residual(f"{names}.{i}.1", width, c.depths[level])
                channels = width
            if c.downs[j]:
                yield from convolution(f"{names}.{c.downs[j]}", (c.emb_width, width, 3))
                channels = c.emb_width
    for level in range(c.levels):
        width = c.widths[level]
        for j in range(level + 1):
            names, taps = f"decoders.{level}.level_blocks.{j}.model", 2 * c.strides[j]
            if c.downs[j]:
                yield from convolution(f"{names}.0", (width, c.emb_width, 3))
            for i in range(c.downs[j]):
                out = c.emb_width if i == c.downs[j] - 1 else width
                yield from residual(f"{names}.{i + 1}.0", width, c.depths[level])
                yield from convolution(f"{names}.{i + 1}.1", (width, out, taps), bias=out)
        yield from convolution(f"decoders.{level}.out", (1, c.emb_width, 3))
    for level in range(c.levels):
        yield f"bottleneck.level_blocks.{level}.k", (c.codes, c.emb_width)


def specified_prior(c: PriorConfig, names: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Section 11 of the priors."""
    width = c.width
    if k := c.conditioner:
        hidden = int(k.hidden_multiplier * k.width)
        yield "conditioner_blocks.0.x_emb.weight", (c.codes, width)
        yield from convolution("conditioner_blocks.0.cond.model.0", (k.width, width, 3))
        for stage in range(1, k.downs + 1):
            for d in range(k.depth):
                block = f"conditioner_blocks.0.cond.model.{stage}.0.{names}.{d}.model"
                yield from convolution(f"{block}.1", (hidden, k.width, 3))
                yield from convolution(f"{block}.3", (k.width, hidden, 1))
            out = width if stage == k.downs else k.width
            yield from convolution(f"conditioner_blocks.0.cond.model.{stage}.1", (k.width, out, 2 * k.stride), bias=out)
        yield from norm("conditioner_blocks.0.ln", width)
    if y := c.labels:
        yield "y_emb.bow_genre_emb.emb.weight", (y.genres, width)
        yield "y_emb.artist_emb.emb.weight", (y.artists, width)
        if not c.conditioner:
            for time in ("total_length", "absolute_pos", "relative_pos"):
                yield f"y_emb.{time}_emb.emb.weight", (y.time_bins, width)
    if c.lyrics and c.lyrics.encoder:
        e, s = c.lyrics.encoder, c.lyrics.tokens
        yield "prime_prior.start_token", (1, e.width)
        yield "prime_prior.x_emb.weight", (c.lyrics.vocabulary, e.width)
        yield "prime_prior.pos_emb.pos_emb", (s, e.width)
        yield from specified_layers("prime_prior", e.transformer(s, "float32", "none"))
        yield "prime_state_proj.w", (e.width, width)
        yield "prime_state_proj.b", (width,)
        yield from norm("prime_state_ln", width)
        yield "prime_x_out.weight", (c.lyrics.vocabulary, width)
    single = c.lyrics is not None and c.lyrics.encoder is None
    bins = c.codes + (c.lyrics.vocabulary if single else 0)
    if not c.labels:
        yield "prior.start_token", (1, width)
    yield "prior.x_emb.weight", (bins, width)
    yield "prior.pos_emb.pos_emb", (c.n_ctx + (c.lyrics.tokens if single else 0), width)
    yield from specified_layers("prior", c.transformer)
    yield "prior.x_out.weight", (bins, width)


def specified_layers(prior: str, t: TransformerConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    state, hidden = int(t.attention_multiplier * t.width), int(t.mlp_multiplier * t.width)
    for d, func in enumerate(t.patterns):
        layer = f"{prior}.transformer._attn_mods.{d}"
        if func == 6:
            yield from linear(f"{layer}.attn.c_attn", t.width, state)
            yield from linear(f"{layer}.attn.c_enc_kv", t.width, 2 * state)
        else:
            yield from linear(f"{layer}.attn.c_attn", t.width, 3 * state)
        yield from linear(f"{layer}.attn.c_proj", state, t.width)
        yield from norm(f"{layer}.ln_0", t.width)
        yield from linear(f"{layer}.mlp.c_fc", t.width, hidden)
        yield from linear(f"{layer}.mlp.c_proj", hidden, t.width)
        yield from norm(f"{layer}.ln_1", t.width)


def convolution(name: str, shape: tuple[int, ...], bias: int | None = None):
    yield f"{name}.weight", shape
    yield f"{name}.bias", (shape[0] if bias is None else bias,)


def linear(name: str, n_in: int, n_out: int):
    yield f"{name}.w", (n_in, n_out)
    yield f"{name}.b", (n_out,)


def norm(name: str, width: int):
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


# ---- Both directions --------------------------------------------------------------------------------------------


def of(kind: str, name: str, names: str) -> tuple[list[Entry], dict, Shapes]:
    """Layout, our tree of shapes, and the original's shapes of a case."""
    if kind == "codec":
        config = CODECS[name]
        return layout.codec_layout(config), layout.abstract_codec(config), layout.codec_shapes(config)
    config = PRIORS[name]
    return layout.prior_layout(config, names), layout.abstract_prior(config), layout.prior_shapes(config, names)


def random_state(entries: Sequence[Entry], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Random tensors, Conv1D weights in half precision, tied ones equal."""
    rng, of_path, state = np.random.default_rng(0), {}, {}
    for entry in entries:
        dtype = np.float16 if entry.key.endswith(".w") else np.float32
        values = rng.normal(size=shapes[entry.key]).astype(dtype)
        state[entry.key] = of_path.setdefault(entry.path, values) if entry.tied else values
        if not entry.tied:
            of_path.setdefault(entry.path, values)
    return state


def same_bits(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> None:
    assert list(a) == list(b)
    for key in a:
        assert (a[key].dtype, a[key].shape) == (b[key].dtype, b[key].shape), key
        assert a[key].tobytes() == b[key].tobytes(), key


@every_family
def test_names_and_shapes_are_those_of_the_specification(kind, name, names):
    entries, _, shapes = of(kind, name, names)
    specified = specified_codec(CODECS[name]) if kind == "codec" else specified_prior(PRIORS[name], names)
    assert list(shapes.items()) == list(specified)
    assert len({entry.key for entry in entries}) == len(entries)


@every_family
def test_there_and_back_bit_for_bit(kind, name, names):
    entries, abstract, shapes = of(kind, name, names)
    state = random_state(entries, shapes)
    tree = layout.from_state(entries, abstract, state, "here")
    same_bits(layout.to_state(entries, tree), state)
    assert jax.tree.structure(tree) == jax.tree.structure(abstract)
    assert [leaf.shape for leaf in jax.tree.leaves(tree)] == [leaf.shape for leaf in jax.tree.leaves(abstract)]


def random_tree(abstract: dict) -> dict:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), abstract)


@pytest.mark.parametrize("name", CODECS)
def test_codecs_there_and_back(name):
    config = CODECS[name]
    tree = random_tree(layout.abstract_codec(config))
    codec = Codec(tree["params"], tuple(tree["codebooks"][str(level)] for level in range(config.levels)))
    back = layout.codec_from_state(config, layout.codec_to_state(config, codec))
    jax.tree.map(np.testing.assert_array_equal, (back.params, back.codebooks), (codec.params, codec.codebooks))


@pytest.mark.parametrize(("name", "names"), [case[1:] for case in CASES if case[0] == "prior"])
def test_priors_there_and_back(name, names):
    config = PRIORS[name]
    params = random_tree(layout.abstract_prior(config))
    state = layout.prior_to_state(config, params, names)
    # Which names the conditioner uses is told from the state itself.
    assert layout.conditioner_names(state) == names
    jax.tree.map(np.testing.assert_array_equal, layout.prior_from_state(config, state), params)


@every_family
def test_every_number_of_ours_is_one_of_theirs(kind, name, names):
    entries, abstract, shapes = of(kind, name, names)
    leaves = {tuple(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
    writes = {path: np.zeros(leaf.shape, np.int8) for path, leaf in leaves.items()}
    for entry in entries:
        part = entry.part(writes[entry.path])
        assert part.size == math.prod(shapes[entry.key])
        if entry.tied:
            assert part.shape == leaves[entry.path].shape
        else:
            part += 1
    for path, counted in writes.items():
        assert (counted == 1).all(), path


def test_which_axis_is_which():
    """Conv (out, in, taps), transposed (in, out, taps), Conv1D (in, out) of the original; (taps, in, out), (in, out) of
    ours: square kernels would not tell."""
    entries, abstract, shapes = of("codec", "three levels", "blocks")
    state = random_state(entries, shapes)
    params = layout.from_state(entries, abstract, state, "here")["params"]
    down = state["encoders.2.level_blocks.1.model.1.0.weight"]
    ours = params["encoders_2"]["block_1_stage_1_down"]["kernel"]
    assert down.shape == (3, 3, 4)
    for out, channel, tap in np.ndindex(down.shape):
        assert ours[tap, channel, out] == down[out, channel, tap]
    up = state["decoders.0.level_blocks.0.model.2.1.weight"]
    ours = params["decoders_0"]["block_0_stage_1_up"]["kernel"]
    assert up.shape == (6, 6, 4)
    for channel, out, tap in np.ndindex(up.shape):
        assert ours[tap, channel, out] == up[channel, out, tap]

    square = dataclasses.replace(PLAIN, mlp_multiplier=1.0)
    state = random_state(layout.prior_layout(square), layout.prior_shapes(square))
    layers = layout.prior_from_state(square, state)["decoder"]["transformer"]["layers"]
    for d in range(square.depth):
        np.testing.assert_array_equal(layers["mlp_in"]["kernel"][d], state[f"{MODS}.{d}.mlp.c_fc.w"])
        np.testing.assert_array_equal(layers["mlp_out"]["bias"][d], state[f"{MODS}.{d}.mlp.c_proj.b"])
        np.testing.assert_array_equal(layers["norm_mlp"]["scale"][d], state[f"{MODS}.{d}.ln_1.weight"])


def test_queries_of_a_layer_that_looks_at_lyrics_stand_before_its_keys_and_values():
    config = PRIORS["lyric encoder"]
    state = random_state(layout.prior_layout(config), layout.prior_shapes(config))
    qkv = layout.prior_from_state(config, state)["decoder"]["transformer"]["layers"]["qkv"]
    layers = [layer for layer, pattern in enumerate(config.transformer.patterns) if pattern == 6]
    assert layers == [3, 7]
    for layer in layers:
        q, kv = (state[f"{MODS}.{layer}.attn.{name}.w"] for name in ("c_attn", "c_enc_kv"))
        kernel = qkv["kernel"][layer]
        np.testing.assert_array_equal(kernel.reshape(len(kernel), -1), np.concatenate([q, kv], axis=1))


# ---- What does not fit ------------------------------------------------------------------------------------------


@pytest.fixture
def state() -> dict[str, np.ndarray]:
    return random_state(layout.prior_layout(LABELLED), layout.prior_shapes(LABELLED))


def refusal(state: dict[str, np.ndarray], config: PriorConfig = LABELLED) -> str:
    with pytest.raises(UserError) as caught:
        layout.prior_from_state(config, state, "a.pth.tar")
    return str(caught.value)


def test_missing_and_unexpected_keys_are_named(state):
    del state["prior.pos_emb.pos_emb"], state[f"{MODS}.1.ln_0.bias"]
    expected = f"keys 2 missing (prior.pos_emb.pos_emb, {MODS}.1.ln_0.bias)."
    assert refusal(state).endswith(expected)
    state["optimizer"] = np.zeros(3)
    assert refusal(state).endswith(f"{expected[:-1]} and 1 unexpected (optimizer).")
    assert refusal(state).startswith("a.pth.tar is the checkpoint of another model")
    many = refusal(state, dataclasses.replace(LABELLED, depth=30))
    assert "326 missing" in many
    assert "and 306 more" in many
    assert len(many) < 2000


def test_a_tensor_of_another_shape_is_named(state):
    key = f"{MODS}.2.attn.c_attn.w"
    state[key] = state[key].T
    assert f"{key} has shape (24, 16), where (16, 24) was expected" in refusal(state)


def test_tied_matrices_must_be_equal(state):
    state["prior.x_out.weight"] = state["prior.x_out.weight"].copy()
    layout.prior_from_state(LABELLED, state)
    state["prior.x_out.weight"][3, 4] += 1e-3
    assert "prior.x_out.weight must equal the token embeddings" in refusal(state)
    merged = layout.prior_from_state(PRIORS["merged"], state)["decoder"]  # which has two
    assert not np.array_equal(merged["output"], merged["tokens"])


def test_layers_of_unequal_precision_are_refused(state):
    key = f"{MODS}.1.mlp.c_fc.w"
    state[key] = state[key].astype(np.float32)
    assert f"{key} is float32, unlike the same tensor of other layers" in refusal(state)
