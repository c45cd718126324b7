"""Evaluates and listens, under a strategy's mesh on several processes or without one, and prints what came out."""

from __future__ import annotations

import json
import sys

import jax

if __name__ == "__main__":
    index, count, port, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    if count > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", count, index, initialization_timeout=60)

import numpy as np
from flax import linen as nn
from flax.core import meta

from jukebox_jax.checkpoint.models import TrainedCodec
from jukebox_jax.evaluation.codec import codec_evaluation
from jukebox_jax.evaluation.listening import codec_listening, prior_listening
from jukebox_jax.evaluation.prior import prior_evaluation
from jukebox_jax.models.losses import Bandwidth, CodecLossConfig
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.models.vqvae import Codec, VQVAEConfig, init_codec
from jukebox_jax.parallel.mesh import make_mesh
from jukebox_jax.parallel.strategies import get_strategy
from jukebox_jax.pipeline.dataset import open_dataset
from jukebox_jax.pipeline.stream import Stream
from jukebox_jax.training.codec_task import codec_task
from jukebox_jax.training.config import TrainConfig
from jukebox_jax.training.prior_task import prior_task
from jukebox_jax.training.state import TrainState, abstract_state
from jukebox_jax.training.task import Task

CODEC = VQVAEConfig(widths=(4, 4, 4), depths=(1, 1, 1), emb_width=4, codes=16)
LOSS = CodecLossConfig(multispectral_n_fft=(256,), multispectral_hop=(64,), multispectral_window=(256,))
PRIOR = PriorConfig(2, 16, n_ctx=32, width=8, depth=1, heads=2, blocks=4, init_scale=4.0, remat="none")
WINDOW, BATCH = 4096, 4


class TokenWindows:
    """Six windows in order."""

    n_windows = 6

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self.tokens = np.random.default_rng(0).integers(0, 16, (6, 32)).astype(np.int32)

    def batch(self, seed: int, position: int) -> dict[str, np.ndarray]:
        return {"tokens": self.tokens[(position + np.arange(self.batch_size)) % 6]}


def player_codec() -> Codec:
    rng = np.random.default_rng(1)
    shapes = meta.unbox(jax.eval_shape(lambda: init_codec(CODEC, jax.random.key(0))))
    params = jax.tree.map(lambda leaf: 0.2 * rng.normal(size=leaf.shape).astype(np.float32), shapes)
    return Codec(params, tuple(rng.normal(size=(16, 4)).astype(np.float32) for _ in range(3)))


def report(folder: str, strategy_name: str) -> dict[str, float]:
    """Held-out metrics of a codec and a prior of random weights, and the loudness of every clip."""
    strategy = get_strategy(strategy_name)
    mesh = make_mesh(strategy.mesh_shape)
    dataset, config = open_dataset(folder), TrainConfig(batch_size=BATCH, strategy=strategy_name)

    def drawn(task: Task) -> TrainState:
        # By numpy, in place of the real initialisation, which takes longer to compile than all the rest.
        rng = np.random.default_rng(0)

        def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
            values = np.asarray(0.2 * rng.normal(size=leaf.shape)).astype(leaf.dtype)
            return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: values[index])

        return jax.tree.map(draw, abstract_state(task, config, mesh, strategy.rules))

    with jax.set_mesh(mesh):
        codec, prior = drawn(codec_task(CODEC, LOSS, Bandwidth(), WINDOW)), drawn(prior_task(PRIOR))
        with nn.logical_axis_rules(strategy.rules):
            evaluate = codec_evaluation(CODEC, LOSS, Bandwidth(), dataset, WINDOW, BATCH)
            found = dict(evaluate(codec.params, codec.model_state))
            found |= prior_evaluation(PRIOR, TokenWindows(BATCH))(prior.params, {})
        items = Stream(dataset, "validation", WINDOW, batch_size=1, shuffle=False, shift=False)
        clips = dict(codec_listening(CODEC, items)(codec.params, codec.model_state))
        # What plays a prior's tokens is on each host for itself.
        player = TrainedCodec(CODEC, player_codec(), "random")
        listen = prior_listening(PRIOR, TokenWindows(1), player)
        clips |= {f"prior_{name}": clip for name, clip in listen(prior.params, {}).items()}
    found |= {name: float(np.std(samples)) for name, (samples, _) in clips.items()}
    leaves = jax.tree.leaves(prior.params)
    return found | {"parts": max(leaf.size // leaf.addressable_shards[0].data.size for leaf in leaves)}


if __name__ == "__main__":
    result = report(folder, "single" if count == 1 else "fsdp")
    print(json.dumps(result))
