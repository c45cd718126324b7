"""What sampling and encoding cost each chip, by the model: decode steps, prefills, windows of the codec's encoder."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax.core import meta

from jukebox_jax.errors import UserError
from jukebox_jax.models.vqvae import Codec as CodecArrays
from jukebox_jax.models.vqvae import VQVAEConfig, encode, init_codec
from jukebox_jax.parallel.collectives import Message
from jukebox_jax.planning.costs import Costs, Memory
from jukebox_jax.planning.decode_counts import (
    cache_bytes_read,
    packed_shapes,
    prefill_flops,
    slots_read,
    weight_bytes_read,
)
from jukebox_jax.planning.layouts import Combination, Run
from jukebox_jax.planning.work import work
from jukebox_jax.planning.workload import with_labels
from jukebox_jax.sampling.engine import empty_slots, prefill_rows
from jukebox_jax.sampling.weights import Precision, decoding_config
from jukebox_jax.training.run import CodecRun

#: One token of every song; a whole window of known tokens; a window of audio to codes.
ServingStep = Literal["decode", "prefill", "encode"]
#: Strategies that sampling and encoding know: songs for every chip, and priors divided by heads.
SERVING = ("dp", "fsdp_tp")

# Slots lie in the compiler's favourite order while it loops, which is not that of arguments: it copies them, and some
# more (compiled: 1.2 to 1.3 times; experiments/tpu_plans).
_COPIES = 1.25


def serving_costs(run: Run, combination: Combination, step: ServingStep, precision: Precision, tile: int) -> Costs:
    """Costs of one step of sampling or encoding.

    - decode: reads all weights of the layers and the output once, and of each song the keys and values that it looks
      at; sums of activations behind the attention and the MLP among the chips that divide heads.
    - prefill: a window of known tokens, in chunks each of which reads the weights.
    - encode: a window of audio for every example, through the encoders and codebooks of all levels.

    Raises:
      UserError: a step that is not one of this kind of model, or a strategy or mesh that it does not know.
    """
    codec = isinstance(run, CodecRun)
    if codec != (step == "encode"):
        raise UserError(f"{step} is a step of {'priors' if codec else 'the codec'}: choose another --step or --config.")
    replica, fsdp, sequence, tensor = combination.mesh
    if combination.strategy not in SERVING or fsdp > 1 or sequence > 1 or (codec and tensor > 1):
        raise UserError(
            f"{combination.strategy} is not for {step}: songs lie side by side (dp), and priors may be divided by "
            "heads (fsdp_tp, with a mesh as 4x1x1x2)."
        )
    if combination.batch_size % replica:
        raise UserError(f"{combination.batch_size} songs are no multiple of {replica} copies: choose another --batch.")
    songs = combination.batch_size // replica
    if codec:
        return _encode_costs(run, songs, tile)
    config = decoding_config(replace(with_labels(run).model, dtype="bfloat16"), precision)
    t = config.transformer
    if t.heads % tensor or t.hidden % tensor:
        raise UserError(f"{t.heads} heads cannot be divided among {tensor} chips: choose a smaller tensor axis.")
    weights = packed_shapes(config, precision, songs)
    held = _tree_bytes(weights) // tensor
    slots = _tree_bytes(jax.eval_shape(lambda: empty_slots(config, songs))) // tensor
    layers = t.depth * (4 * t.width * t.state + 2 * t.width * t.hidden) + t.width * (config.shift + config.codes)
    keys = sum(slots_read(pattern, t.layout) for pattern in t.patterns)
    read = weight_bytes_read(config, weights, songs)
    tokens = 1
    if step == "decode":
        flops = 2.0 * songs * (layers + 2 * keys * t.state) / tensor
        tiled = flops * -(-songs // 8) * 8 / songs if tile > 1 else flops
        traffic = (read + cache_bytes_read(config, songs)) / tensor
    else:
        tokens = t.context
        flops = tiled = songs * prefill_flops(config, weights, t.context) / tensor
        chunks = songs * -(-t.context // (prefill_rows(config) * t.block_ctx))
        # Of every token and layer about ten features of the model's width are written and read, in two bytes.
        traffic = (chunks * read + 2.0 * songs * t.context * t.depth * 10 * t.width * 2) / tensor
    sums = 2 * t.depth * songs * tokens * t.width * 2
    sent = Message("all-reduce", ("tensor",), 2 * (tensor - 1) / tensor * sums)
    return Costs(
        model_flops=flops,
        executed_flops=flops,
        tiled_flops=tiled,
        traffic_bytes=float(traffic),
        messages=(sent,) if tensor > 1 else (),
        memory=Memory(held, 0, 0, round((1 + _COPIES) * slots)),
        part=tokens / t.context,
    )


def _encode_costs(run: CodecRun, examples: int, tile: int) -> Costs:
    model: VQVAEConfig = run.model
    params = meta.unbox(jax.eval_shape(partial(init_codec, model), jax.random.key(0)))
    books = tuple(jax.ShapeDtypeStruct((model.codes, model.emb_width), jnp.float32) for _ in range(model.levels))
    audio = jax.ShapeDtypeStruct((1, run.data.window_samples, 1), jnp.float32)
    one = work(
        lambda params, books, audio: encode(model, CodecArrays(params, books), audio), params, books, audio, tile=tile
    )
    return Costs(
        model_flops=examples * one.flops,
        executed_flops=examples * one.flops,
        tiled_flops=examples * one.tiled_flops,
        traffic_bytes=examples * one.traffic_bytes,
        messages=(),
        memory=Memory(_tree_bytes((params, books)), 0, 0, round(examples * one.peak_bytes)),
    )


def _tree_bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
