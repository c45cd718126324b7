"""The released models at full size under every strategy, on meshes of devices that need not exist."""

from __future__ import annotations

import functools
import re

import jax
import pytest
from flax.core import meta
from jax.sharding import AbstractMesh

from jukebox_jax.errors import UserError
from jukebox_jax.interop import released
from jukebox_jax.models.losses import Bandwidth, CodecLossConfig
from jukebox_jax.models.vqvae import VQVAEConfig
from jukebox_jax.parallel.mesh import AXES, mesh_sizes
from jukebox_jax.parallel.strategies import STRATEGIES, resolve
from jukebox_jax.training.codec_task import codec_task
from jukebox_jax.training.prior_task import prior_task

#: (model, strategy): from how many devices on it is refused, and the word of the dimension. 4800 is 75 · 64, 1920 is
#: 15 · 128; the vocabulary may stay whole, and so may the codec.
REFUSED = {
    ("prior_5b", "fsdp"): (256, "width"),
    ("prior_5b", "hsdp"): (256, "width"),
    ("prior_5b", "fsdp_tp"): (256, "width"),
    ("prior_5b", "fsdp_sp"): (256, "width"),
    ("prior_5b_lyrics", "fsdp"): (256, "width"),
    ("prior_5b_lyrics", "hsdp"): (256, "width"),
    ("prior_5b_lyrics", "fsdp_tp"): (256, "width"),
    ("prior_5b_lyrics", "fsdp_sp"): (256, "width"),
    ("upsampler", "fsdp"): (256, "width"),
    ("upsampler", "hsdp"): (512, "width"),
    ("upsampler", "fsdp_tp"): (64, "heads|width"),  # one head
    ("upsampler", "fsdp_sp"): (256, "width"),
}


@functools.cache
def parameters(name: str):
    """Boxed shapes of a released model's parameters."""
    config = released.RELEASES[name].config
    if isinstance(config, VQVAEConfig):
        task = codec_task(config, CodecLossConfig(), Bandwidth(), 2**14)
    else:
        task = prior_task(config)
    return jax.eval_shape(lambda: task.init(jax.random.key(0))[0])


def resolved(name: str, strategy: str, shape, devices: int):
    mesh = AbstractMesh(mesh_sizes(shape, devices), AXES)
    return resolve(parameters(name), mesh, STRATEGIES[strategy].rules)


def bytes_of(name: str, shardings=None) -> int:
    shapes = meta.unbox(parameters(name))
    if shardings is None:
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))
    parts = jax.tree.map(lambda leaf, sharding: sharding.shard_shape(leaf.shape), shapes, shardings)
    sizes = jax.tree.map(lambda leaf, shape: functools.reduce(int.__mul__, shape, 1), shapes, parts)
    return sum(jax.tree.leaves(sizes))


@pytest.mark.parametrize("devices", [64, 256, 512])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", released.RELEASES)
def test_a_released_model_is_divided_or_the_error_says_why_and_how(name, strategy, devices):
    shape = STRATEGIES[strategy].mesh_shape
    limit, word = REFUSED.get((name.split("_level")[0], strategy), (10**9, ""))
    if devices < limit:
        sizes = mesh_sizes(shape, devices)
        parts = {"single": 1, "dp": 1}.get(strategy, devices // sizes[0])
        held = bytes_of(name, resolved(name, strategy, shape, devices))
        whole = bytes_of(name)
        if name == "vqvae":  # the codec's convolutions may stay whole
            assert whole / parts <= held <= whole
        else:
            assert whole / parts <= held < whole / parts * (1 + 0.25 * (parts > 1)) + 1
        return
    with pytest.raises(UserError, match=rf"dimension \d \({word}\) of size \d+ is not divisible") as raised:
        resolved(name, strategy, shape, devices)
    advised = re.search(r"mesh=\((.*)\)", str(raised.value))
    if word == "width":  # and what it advises is right
        resolved(name, strategy, tuple(map(int, advised[1].split(","))), devices)
