"""Where each tensor of an original checkpoint stands in our parameter trees (spec: VQ-VAE 7, priors 11).

A layout is a list of `Entry`s in the order of the original's state dictionary. The maps it defines are linear, so they
carry gradients as well as weights.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from flax.core import meta

from jukebox_jax.errors import UserError
from jukebox_jax.models.attention import Pattern
from jukebox_jax.models.prior import PriorConfig, init_params
from jukebox_jax.models.transformer import TransformerConfig
from jukebox_jax.models.vqvae import Codec, VQVAEConfig, init_codec

State = Mapping[str, np.ndarray]
#: How the residual blocks of a conditioner are called: it depends on a training option that changes nothing else.
ConditionerNames = Literal["blocks", "model"]

# Axes of the original's kernels in the order of ours, (taps, in, out).
_CONV = (2, 1, 0)  # theirs: out, in, taps
_CONV_TRANSPOSE = (2, 0, 1)  # theirs: in, out, taps


@dataclass(frozen=True)
class Entry:
    """One tensor of the original.

    Attributes:
      key: its name there.
      path: the leaf of ours that holds it.
      axes: its axes in our order; None: the same.
      layer: its index along the leaf's first axis; None: the leaf is not stacked.
      joined: how many of our leaf's last axes are one axis there.
      columns: (first, end) of its part of the leaf's last axis, after joining; None: all of it.
      tied: it is the same matrix as another entry, listed twice there.
    """

    key: str
    path: tuple[str, ...]
    axes: tuple[int, ...] | None = None
    layer: int | None = None
    joined: int = 1
    columns: tuple[int, int] | None = None
    tied: bool = False

    def shape(self, leaf: tuple[int, ...]) -> tuple[int, ...]:
        """Its shape, given that of our leaf."""
        shape = leaf if self.layer is None else leaf[1:]
        shape = (*shape[: -self.joined], math.prod(shape[-self.joined :]))
        if self.columns is not None:
            shape = (*shape[:-1], self.columns[1] - self.columns[0])
        return shape if self.axes is None else tuple(shape[self.axes.index(axis)] for axis in range(len(shape)))

    def part(self, leaf: np.ndarray) -> np.ndarray:
        """Its part of our leaf, as a view in our order of axes."""
        view = leaf if self.layer is None else leaf[self.layer]
        view = view.reshape(*view.shape[: -self.joined], -1)
        return view if self.columns is None else view[..., slice(*self.columns)]


# ---- The two kinds of model -------------------------------------------------------------------------------------


def codec_layout(config: VQVAEConfig) -> list[Entry]:
    """The VQ-VAE; codebooks are `codebooks/LEVEL` of our tree, the rest is under `params`."""
    return list(_codec_entries(config))


def prior_layout(config: PriorConfig, conditioner_names: ConditionerNames = "blocks") -> list[Entry]:
    """A prior with whatever conditioning its config asks for."""
    return list(_prior_entries(config, conditioner_names))


def decoder_layout(
    config: TransformerConfig,
    merged: bool,
    own_start: bool,
    *,
    theirs: str = "",
    ours: tuple[str, ...] = (),
    output: bool = True,
) -> list[Entry]:
    """An autoregressive core: start token, embeddings, transformer and, unless it is an encoder, the output."""
    entries = [Entry(f"{theirs}start_token", (*ours, "start"))] if own_start else []
    entries.append(Entry(f"{theirs}x_emb.weight", (*ours, "tokens")))
    entries.append(Entry(f"{theirs}pos_emb.pos_emb", (*ours, "positions")))
    for layer, pattern in enumerate(config.patterns):
        names = f"{theirs}transformer._attn_mods.{layer}."
        entries += _layer_entries(names, (*ours, "transformer", "layers"), layer, pattern, config.state)
    if output:
        entries.append(Entry(f"{theirs}x_out.weight", (*ours, "output" if merged else "tokens"), tied=not merged))
    return entries


def _codec_entries(config: VQVAEConfig) -> Iterator[Entry]:
    for level in range(config.levels):
        for block in range(level + 1):
            downs, names = config.downs[block], f"encoders.{level}.level_blocks.{block}.model."
            for stage in range(downs):
                ours = ("params", f"encoders_{level}", f"block_{block}_stage_{stage}")
                yield from _convolution(f"{names}{stage}.0", _named(ours, "_down"))
                yield from _residual(f"{names}{stage}.1.model.", _named(ours, "_residual"), config.depths[level])
            if downs:
                yield from _convolution(f"{names}{downs}", ("params", f"encoders_{level}", f"block_{block}_out"))
    for level in range(config.levels):
        for block in range(level + 1):
            downs, names = config.downs[block], f"decoders.{level}.level_blocks.{block}.model."
            if downs:
                yield from _convolution(f"{names}0", ("params", f"decoders_{level}", f"block_{block}_in"))
            for stage in range(downs):
                ours = ("params", f"decoders_{level}", f"block_{block}_stage_{stage}")
                yield from _residual(f"{names}{stage + 1}.0.model.", _named(ours, "_residual"), config.depths[level])
                yield from _convolution(f"{names}{stage + 1}.1", _named(ours, "_up"), _CONV_TRANSPOSE)
        yield from _convolution(f"decoders.{level}.out", ("params", f"decoders_{level}", "out"))
    for level in range(config.levels):
        yield Entry(f"bottleneck.level_blocks.{level}.k", ("codebooks", str(level)))


def _prior_entries(config: PriorConfig, conditioner_names: ConditionerNames) -> Iterator[Entry]:
    if config.conditioner is not None:
        names, ours = "conditioner_blocks.0.", ("conditioner",)
        yield Entry(f"{names}x_emb.weight", (*ours, "embedding"))
        yield from _convolution(f"{names}cond.model.0", (*ours, "in"))
        for stage in range(config.conditioner.downs):
            stack = f"{names}cond.model.{stage + 1}."
            residual = (*ours, f"stage_{stage}_residual")
            yield from _residual(f"{stack}0.{conditioner_names}.", residual, config.conditioner.depth)
            yield from _convolution(f"{stack}1", (*ours, f"stage_{stage}_up"), _CONV_TRANSPOSE)
        yield from _norm(f"{names}ln", (*ours, "norm"))
    if config.labels is not None:
        tables = {"bow_genre": "genre", "artist": "artist"}
        if config.has_timing:
            tables |= {
                "total_length": "total_length",
                "absolute_pos": "absolute_position",
                "relative_pos": "relative_position",
            }
        for theirs, name in tables.items():
            yield Entry(f"y_emb.{theirs}_emb.emb.weight", ("labels", name))
    if config.lyrics is not None and config.lyrics.encoder is not None:
        encoder = config.lyrics.encoder.transformer(config.lyrics.tokens, config.dtype, config.remat)
        ours = ("lyrics", "encoder")
        yield from decoder_layout(encoder, False, True, theirs="prime_prior.", ours=ours, output=False)
        yield Entry("prime_state_proj.w", ("lyrics", "projection", "kernel"))
        yield Entry("prime_state_proj.b", ("lyrics", "projection", "bias"))
        yield from _norm("prime_state_ln", ("lyrics", "norm"))
        yield Entry("prime_x_out.weight", ("lyrics", "output"))
    own_start = config.labels is None
    yield from decoder_layout(config.transformer, config.merged_decoder, own_start, theirs="prior.", ours=("decoder",))


def _layer_entries(names: str, ours: tuple[str, ...], layer: int, pattern: Pattern, state: int) -> Iterator[Entry]:
    # A layer that looks at the lyric encoder has its queries apart from its keys and values.
    parts = {"c_attn": None}
    if pattern == Pattern.ENCODER:
        parts = {"c_attn": (0, state), "c_enc_kv": (state, 3 * state)}
    for name, columns in parts.items():
        for theirs, leaf in (("w", "kernel"), ("b", "bias")):  # ours: (…, 3, heads, head width)
            yield Entry(f"{names}attn.{name}.{theirs}", (*ours, "qkv", leaf), layer=layer, joined=3, columns=columns)
    yield from _linear(f"{names}attn.c_proj", (*ours, "attention_out"), layer)
    yield from _norm(f"{names}ln_0", (*ours, "norm_attention"), layer)
    yield from _linear(f"{names}mlp.c_fc", (*ours, "mlp_in"), layer)
    yield from _linear(f"{names}mlp.c_proj", (*ours, "mlp_out"), layer)
    yield from _norm(f"{names}ln_1", (*ours, "norm_mlp"), layer)


def _residual(names: str, ours: tuple[str, ...], depth: int) -> Iterator[Entry]:
    for index in range(depth):
        yield from _convolution(f"{names}{index}.model.1", (*ours, f"dilated_{index}"))
        yield from _convolution(f"{names}{index}.model.3", (*ours, f"pointwise_{index}"))


def _convolution(name: str, ours: tuple[str, ...], axes: tuple[int, ...] = _CONV) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", (*ours, "kernel"), axes)
    yield Entry(f"{name}.bias", (*ours, "bias"))


def _linear(name: str, ours: tuple[str, ...], layer: int) -> Iterator[Entry]:
    yield Entry(f"{name}.w", (*ours, "kernel"), layer=layer)
    yield Entry(f"{name}.b", (*ours, "bias"), layer=layer)


def _norm(name: str, ours: tuple[str, ...], layer: int | None = None) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", (*ours, "scale"), layer=layer)
    yield Entry(f"{name}.bias", (*ours, "bias"), layer=layer)


def _named(path: tuple[str, ...], suffix: str) -> tuple[str, ...]:
    return (*path[:-1], path[-1] + suffix)


# ---- Shapes -----------------------------------------------------------------------------------------------------


def abstract_codec(config: VQVAEConfig) -> dict[str, Any]:
    """The codec's tree of shapes; allocates nothing."""
    params = meta.unbox(jax.eval_shape(lambda: init_codec(config, jax.random.key(0))))
    book = jax.ShapeDtypeStruct((config.codes, config.emb_width), np.float32)
    return {"params": params, "codebooks": {str(level): book for level in range(config.levels)}}


def abstract_prior(config: PriorConfig) -> dict[str, Any]:
    """A prior's tree of shapes; allocates nothing."""
    return meta.unbox(jax.eval_shape(lambda: init_params(config, jax.random.key(0))))


def shapes(layout: Sequence[Entry], abstract: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor of the original, in its order."""
    return {entry.key: entry.shape(tuple(_leaf(abstract, entry.path).shape)) for entry in layout}


def codec_shapes(config: VQVAEConfig) -> dict[str, tuple[int, ...]]:
    """`shapes` of a VQ-VAE."""
    return shapes(codec_layout(config), abstract_codec(config))


def prior_shapes(config: PriorConfig, names: ConditionerNames = "blocks") -> dict[str, tuple[int, ...]]:
    """`shapes` of a prior."""
    return shapes(prior_layout(config, names), abstract_prior(config))


def check_names(expected: Collection[str], state: State, where: str) -> None:
    """Raises a UserError that names every missing and unexpected key."""
    missing, unexpected = ([k for k in a if k not in b] for a, b in ((expected, state), (state, expected)))
    if missing or unexpected:
        found = [
            f"{len(keys)} {what} ({_some(keys)})"
            for keys, what in ((missing, "missing"), (unexpected, "unexpected"))
            if keys
        ]
        raise UserError(f"{where} is the checkpoint of another model: keys {' and '.join(found)}.")


def check_state(expected: Mapping[str, tuple[int, ...]], state: State, where: str) -> None:
    """Raises a UserError that names every missing and unexpected key, or the first of a wrong shape."""
    check_names(expected, state, where)
    for key, shape in expected.items():
        if tuple(state[key].shape) != shape:
            raise UserError(
                f"{where} is the checkpoint of another model: {key} has shape {tuple(state[key].shape)}, where {shape} "
                "was expected."
            )


def _some(keys: Sequence[str], limit: int = 20) -> str:
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")


def _leaf(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


# ---- Weights ----------------------------------------------------------------------------------------------------


def from_state(layout: Sequence[Entry], abstract: Mapping[str, Any], state: State, where: str) -> dict[str, Any]:
    """Our tree of numpy arrays from the original's tensors, in their dtypes; what need not be stacked is not copied.

    Raises:
      UserError: missing or unexpected keys, other shapes, or two copies of a tied matrix that differ.
    """
    check_state(shapes(layout, abstract), state, where)
    tree: dict[str, Any] = {}
    for entry in layout:
        theirs = state[entry.key]
        ours = theirs if entry.axes is None else theirs.transpose(entry.axes)
        if entry.tied:
            if not np.array_equal(_leaf(tree, entry.path), ours):
                raise UserError(f"{where}: {entry.key} must equal the token embeddings, but does not.")
            continue
        if entry.layer is not None or entry.columns is not None:
            leaf = _allocated(tree, entry.path, _leaf(abstract, entry.path).shape, theirs.dtype)
            part = entry.part(leaf)
            if leaf.dtype != theirs.dtype:
                raise UserError(f"{where}: {entry.key} is {theirs.dtype}, unlike the same tensor of other layers.")
            part[...] = ours
        else:
            _put(tree, entry.path, ours)
    return tree


def to_state(layout: Sequence[Entry], tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The original's tensors from our tree, in its order; the inverse of `from_state`."""
    state = {}
    for entry in layout:
        part = entry.part(np.asarray(_leaf(tree, entry.path)))
        state[entry.key] = part if entry.axes is None else part.transpose(np.argsort(entry.axes))
    return state


def codec_from_state(config: VQVAEConfig, state: State, where: str = "the state") -> Codec:
    """The codec from the original's tensors; raises as `from_state`."""
    layout = codec_layout(config)
    check_names(
        dict.fromkeys(entry.key for entry in layout), state, where
    )  # shapes are found by running the model abstractly
    tree = from_state(layout, abstract_codec(config), state, where)
    return Codec(tree["params"], tuple(tree["codebooks"][str(level)] for level in range(config.levels)))


def codec_to_state(config: VQVAEConfig, codec: Codec) -> dict[str, np.ndarray]:
    """The original's tensors of a codec."""
    books = {str(level): codes for level, codes in enumerate(codec.codebooks)}
    return to_state(codec_layout(config), {"params": codec.params, "codebooks": books})


def prior_from_state(config: PriorConfig, state: State, where: str = "the state") -> dict[str, Any]:
    """A prior's parameters from the original's tensors; raises as `from_state`."""
    layout = prior_layout(config, conditioner_names(state))
    check_names(dict.fromkeys(entry.key for entry in layout), state, where)
    return from_state(layout, abstract_prior(config), state, where)


def prior_to_state(
    config: PriorConfig, params: Mapping[str, Any], names: ConditionerNames = "blocks"
) -> dict[str, np.ndarray]:
    """The original's tensors of a prior."""
    return to_state(prior_layout(config, names), params)


def conditioner_names(state: Mapping[str, Any]) -> ConditionerNames:
    """How a state dictionary calls the residual blocks of its conditioner."""
    plain = any(key.startswith("conditioner_blocks.0.cond.model.1.0.model.") for key in state)
    return "model" if plain else "blocks"


def _put(tree: dict[str, Any], path: tuple[str, ...], value: np.ndarray) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _allocated(tree: dict[str, Any], path: tuple[str, ...], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    if path[-1] not in tree:
        tree[path[-1]] = _aligned(shape, dtype)
    return tree[path[-1]]


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array at a 64-byte boundary: on CPU devices jax uses such memory as it is, without a copy."""
    size = math.prod(shape) * dtype.itemsize
    buffer = np.empty(size + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    return buffer[start : start + size].view(dtype).reshape(shape)
