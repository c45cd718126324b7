"""A task whose matrices are large enough to be factored; as a program it trains it on one device and on eight."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jukebox_jax.models.codebook import Codebook, draw_rows, quantise_and_learn
from jukebox_jax.parallel.mesh import make_mesh
from jukebox_jax.parallel.strategies import batch_sharding, get_strategy
from jukebox_jax.training.config import OptimizerConfig, TrainConfig
from jukebox_jax.training.loop import train
from jukebox_jax.training.task import Task

WIDTH, HIDDEN = 256, 128
LEAN = OptimizerConfig(rule="adafactor", b1=0.0, learning_rate=3e-3, warmup_steps=1, weight_decay=0.01, ema_decay=0.9)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        init = nn.initializers.lecun_normal()
        up = self.param("up", nn.with_logical_partitioning(init, ("width", "hidden")), (WIDTH, HIDDEN))
        down = self.param("down", nn.with_logical_partitioning(init, ("hidden", "width")), (HIDDEN, WIDTH))
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("width",)), (WIDTH,))
        return nn.relu(x @ up) @ down + bias


def make_task() -> Task:
    def loss(params, model_state, batch, key):
        return jnp.mean(jnp.square(Net().apply({"params": params}, batch["x"]) - batch["y"])), model_state, {}

    spec = jax.ShapeDtypeStruct((WIDTH,), jnp.float32)
    return Task(lambda key: (Net().init(key, jnp.zeros((1, WIDTH)))["params"], {}), loss, 1.0, {"x": spec, "y": spec})


def batches(position: int):
    while True:
        x = np.random.default_rng((3, position)).standard_normal((16, WIDTH)).astype(np.float32)
        yield {"x": x, "y": np.roll(x, 1, axis=1)}
        position += 16


def run(folder, steps: int, strategy: str = "single", optimizer: OptimizerConfig = LEAN, **changes):
    config = TrainConfig(batch_size=16, steps=steps, log_every=1, strategy=strategy, optimizer=optimizer, **changes)
    return train(make_task(), config, batches, folder, run_config={"train": {}}, progress=False)


def learnt_codebook(strategy: str) -> Codebook:
    """A codebook after one batch, whose latents lie on the strategy's devices."""
    row = get_strategy(strategy)
    latents = np.random.default_rng(0).standard_normal((16, 12, 4)).astype(np.float32)
    mesh = make_mesh(row.mesh_shape)
    with jax.set_mesh(mesh):
        latents = jax.device_put(latents, batch_sharding(mesh, row.rules, 16))
        book = Codebook.restored(jax.random.normal(jax.random.key(1), (8, 4)), 24.0)

        @jax.jit
        def learn(book: Codebook, latents: jax.Array) -> Codebook:
            return quantise_and_learn(book, latents, draw_rows(jax.random.key(2), latents, 8), 0.9, 1.0)[1]

        return learn(book, latents)


def main(folder: str) -> None:
    assert jax.device_count() == 8
    one, eight = run(Path(folder) / "one", 4), run(Path(folder) / "eight", 4, "fsdp")
    run(Path(folder) / "moved", 2, "fsdp")
    moved = run(Path(folder) / "moved", 4)
    again = run(Path(folder) / "eight", 4, "single")  # nothing is left to train: restored, as it was written

    def difference(a, b):
        gaps = jax.tree.map(lambda x, y: float(np.abs(np.float32(x) - np.float32(y)).max()), a, b)
        return max(jax.tree.leaves(gaps))

    second = eight.opt_state[0]
    print(
        json.dumps(
            {
                "sharded": difference((one.params, one.opt_state), (eight.params, eight.opt_state)),
                "moved": difference(one.params, moved.params),
                "codebook": difference(learnt_codebook("single"), learnt_codebook("dp")),
                "restored": difference((eight.params, eight.opt_state), (again.params, again.opt_state)),
                "shards": {
                    f"{name}/{key}": list(leaf.addressable_shards[0].data.shape)
                    for name, tree in {"row": second.v_row, "col": second.v_col, "whole": second.v}.items()
                    for key, leaf in tree.items()
                },
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
