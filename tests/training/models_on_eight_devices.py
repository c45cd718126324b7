"""Every model under every strategy on eight devices, against one device; prints what came out.

Run as a program: `python tests/training/models_on_eight_devices.py FAMILY:STRATEGY …`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from jukebox_jax.models.attention import Layout, Pattern, attend_all
from jukebox_jax.models.codebook import Codebook
from jukebox_jax.models.conditioning import ConditionerConfig, LabelConfig
from jukebox_jax.models.losses import Bandwidth, CodecLossConfig
from jukebox_jax.models.lyrics import LyricConfig, LyricEncoderConfig
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.models.vqvae import VQVAEConfig
from jukebox_jax.parallel.mesh import make_mesh
from jukebox_jax.parallel.strategies import STRATEGIES, batch_sharding
from jukebox_jax.training.codec_task import codec_task
from jukebox_jax.training.config import OptimizerConfig, TrainConfig
from jukebox_jax.training.prior_task import prior_task
from jukebox_jax.training.state import TrainState, abstract_state, create_state, state_shardings
from jukebox_jax.training.step import make_train_step
from jukebox_jax.training.task import Task

BATCH = 8
PLAIN = PriorConfig(level=2, codes=48, n_ctx=128, width=16, depth=4, heads=2, blocks=8, init_scale=5.0, remat="none")
TOP = dataclasses.replace(PLAIN, labels=LabelConfig(5, 4, max_genres=2, time_bins=8))
ENCODER = LyricEncoderConfig(width=24, depth=2, heads=2, blocks=4, attention_order=1, init_scale=5.0)
#: Every attention pattern, every part that a prior can have.
PRIORS = {
    "plain": dataclasses.replace(PLAIN, attention_order=9),
    "labels": dataclasses.replace(TOP, attention_order=3, depth=2, remat="block"),
    "upsampler": dataclasses.replace(
        TOP, attention_order=4, depth=2, spread=3, conditioner=ConditionerConfig(width=8, depth=2), merged_decoder=True
    ),
    # The 16th layer is the first that looks at the lyrics; 16 × 9 tokens, and 11 + 48 symbols.
    "one_sequence": dataclasses.replace(TOP, attention_order=12, depth=16, lyrics=LyricConfig(16, 11), init_scale=2.0),
    "lyric_encoder": dataclasses.replace(
        TOP, attention_order=8, depth=10, lyrics=LyricConfig(24, 11, encoder=ENCODER), init_scale=2.0
    ),
    # In small what configs/prior.py:long is: a window that four devices share, in as many rows as columns.
    "long": dataclasses.replace(TOP, n_ctx=4096, blocks=64, depth=3, init_scale=10.0, remat="block"),
}
#: Where a family has another mesh than the strategy's own.
MESHES = {("long", "fsdp_sp"): (1, 2, 4, 1)}
CODEC = VQVAEConfig(downs=(1,), strides=(2,), widths=(16,), depths=(2,), emb_width=8, codes=8, sample_rate=8000)
CODEC_LOSS = CodecLossConfig(
    linf_k=64, multispectral_n_fft=(64,), multispectral_hop=(16,), multispectral_window=(48,), spectral=0.1
)
WINDOW = 4096
# The first moment of the first step is then the gradient.
OPTIMIZER = OptimizerConfig(b1=0.0, learning_rate=1e-3, warmup_steps=0, clip_norm=None, ema_decay=0.9)
CONFIG = TrainConfig(batch_size=BATCH, optimizer=OPTIMIZER)


def make_task(family: str) -> Task:
    if family != "codec":
        return prior_task(PRIORS[family])
    task = codec_task(CODEC, CODEC_LOSS, Bandwidth(), WINDOW)
    codes = np.random.default_rng(0).normal(size=(CODEC.codes, CODEC.emb_width)).astype(np.float32)
    # Codes far from each other, so that rounding chooses none of them.
    books = tuple(Codebook.restored(jnp.asarray(codes), BATCH * WINDOW / 8) for _ in range(CODEC.levels))
    return dataclasses.replace(task, init=lambda key: (task.init(key)[0], books))


def make_batch(task: Task) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    limits = {"tokens": 48, "upper": 48, "artist": 5, "genres": 4, "lyrics": 11}
    batch = {}
    for name, spec in task.batch_spec.items():
        shape = (BATCH, *spec.shape)
        if name == "audio":
            batch[name] = 0.3 * rng.normal(size=shape).astype(np.float32)
        else:
            batch[name] = rng.integers(0, limits.get(name, 8), shape, np.int32)
    return batch


def bytes_per_device(tree) -> float:
    """The bytes that the fullest device holds, as a fraction of all, of a tree of arrays."""
    held: dict[int, int] = {}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            held[shard.device.id] = held.get(shard.device.id, 0) + shard.data.nbytes
    return max(held.values()) / sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def by_name(tree) -> dict:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def spec_of(leaf) -> list:
    spec = list(leaf.sharding.spec)
    return spec + [None] * (leaf.ndim - len(spec))


def run(family: str, name: str, reference: dict) -> dict:
    """A step of one family under one strategy; `reference` gets what `single` computes, and the others compare."""
    strategy, task = STRATEGIES[name], make_task(family)
    mesh = make_mesh(MESHES.get((family, name), strategy.mesh_shape))
    with jax.set_mesh(mesh):
        abstract = abstract_state(task, CONFIG, mesh, strategy.rules)
        if name == "single":
            reference["state"] = start(create_state(task, CONFIG, abstract))
        shardings = state_shardings(abstract)
        state = jax.device_put(reference["state"], shardings)
        sharding = batch_sharding(mesh, strategy.rules, BATCH)
        batch = jax.device_put(make_batch(task), sharding)
        lowered = make_train_step(task, CONFIG, mesh, strategy.rules, abstract).lower(state, batch)
        step = lowered.compile()
        state, metrics = step(state, batch)

        gradients = by_name(state.opt_state[0].mu)
        whole = {key: np.asarray(leaf) for key, leaf in gradients.items()}
        reference.setdefault("gradients", whole)
        norms = {key: np.linalg.norm(leaf) for key, leaf in reference["gradients"].items()}
        return {
            "devices": mesh.size,
            "loss": float(metrics["loss"]),
            "skipped": float(metrics["skipped"]),
            "smallest_gradient": float(min(norms.values())),
            "errors": {
                key: float(np.linalg.norm(leaf - reference["gradients"][key]) / norms[key])
                for key, leaf in whole.items()
            },
            "largest_parameter": max(leaf.size for leaf in whole.values()),
            "specs": {key: spec_of(leaf) for key, leaf in gradients.items()},
            "fractions": {
                "params": bytes_per_device(state.params),
                "ema": bytes_per_device(state.ema),
                "mu": bytes_per_device(state.opt_state[0].mu),
                "nu": bytes_per_device(state.opt_state[0].nu),
            },
            # The compiled step takes the state as it gave it.
            "second_loss": float(step(state, batch)[1]["loss"]),
            "collectives": collectives(step.as_text()),
        }


def start(state: TrainState) -> TrainState:
    """The state on the host, with weights of which none are zero, so that every gradient says something."""
    state, rng = jax.device_get(state), np.random.default_rng(2)
    params = jax.tree.map(lambda p: p + rng.normal(size=p.shape).astype(np.float32) * 0.05, state.params)
    return state.replace(params=params, ema=params)


_COLLECTIVE = re.compile(r"= (.+?) (all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all)(?:-start)?\(")


def collectives(hlo: str) -> list[list]:
    """Name and number of elements, of the largest array, of every collective in a compiled program."""
    found = []
    for shapes, name in _COLLECTIVE.findall(hlo):
        sizes = [math.prod(map(int, shape.split(","))) if shape else 1 for shape in re.findall(r"\[([\d,]*)\]", shapes)]
        found.append([name, max(sizes)])
    return found


def attention_collectives(pattern: Pattern) -> list[list]:
    """What attention moves when rows lie on four devices, in its forward pass; `collectives` of it."""
    layout = Layout(length=64, blocks=8, spread=2, prime=9, encoded=16)
    mesh, rules = make_mesh((1, 2, 4, 1)), STRATEGIES["fsdp_sp"].rules
    sharding = NamedSharding(mesh, PartitionSpec("fsdp", "sequence"))
    query, key = (
        jax.ShapeDtypeStruct((2, length, 2, 4), jnp.float32, sharding=sharding)
        for length in (layout.length, layout.encoded if pattern == Pattern.ENCODER else layout.length)
    )

    def attention(q, k, v):
        with nn.logical_axis_rules(rules):
            return attend_all(pattern, q, k, v, layout)

    with jax.set_mesh(mesh):
        return collectives(jax.jit(attention, out_shardings=sharding).lower(query, key, key).compile().as_text())


def main(pairs: list[tuple[str, str]]) -> None:
    report: dict[str, dict] = {"attention": {pattern.name: attention_collectives(pattern) for pattern in Pattern}}
    for family in dict.fromkeys(family for family, _ in pairs):
        reference: dict = {}
        strategies = ["single", *(strategy for other, strategy in pairs if other == family)]
        report[family] = {strategy: run(family, strategy, reference) for strategy in strategies}
    print(json.dumps(report))


if __name__ == "__main__":
    main([tuple(argument.split(":")) for argument in sys.argv[1:]])
