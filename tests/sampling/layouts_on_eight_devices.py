"""Songs sampled on meshes of up to eight devices, and what a mesh holds and moves; prints what came out.

Run as a program: `python tests/sampling/layouts_on_eight_devices.py`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jukebox_jax.api import Model
from jukebox_jax.checkpoint.models import TrainedCodec, TrainedPrior
from jukebox_jax.errors import UserError
from jukebox_jax.models.vqvae import VQVAEConfig
from jukebox_jax.parallel.plan import bytes_per_device
from jukebox_jax.sampling import engine as engine_module
from jukebox_jax.sampling.cascade import entry_of, level_engine, make_parts
from jukebox_jax.sampling.devices import sampling_mesh
from jukebox_jax.sampling.drawing import SamplingConfig
from jukebox_jax.sampling.order import LevelDone
from jukebox_jax.sampling.requests import Level, Request
from tests.cascade import LABELS, prior_config, random_codec, random_prior

CODEC = VQVAEConfig(sample_rate=8000, downs=(2,), strides=(2,), widths=(4,), depths=(1,), emb_width=4, codes=24)
SONGS = {"artist": ["Bach", "Corelli", "Monteverdi"], "genre": "Song", "n_samples": 8, "batch_size": 2, "seed": 5}
#: Of two windows and of three, so that no two devices are done at the same time.
LENGTHS = {"sample_length": [4 * 40, 4 * 60, 4 * 33]}
REPLICAS = [{"replica": count} for count in (1, 2, 4, 8)]
DIVIDED = [{"tensor": 2}, {"fsdp": 4}, {"replica": 2, "fsdp": 2, "tensor": 2}]


def one_level() -> Model:
    """A cascade of a top level only."""
    params = random_prior(2).params
    prior = TrainedPrior(dataclasses.replace(prior_config(2), level=0), params, LABELS, "tiny")
    return Model(TrainedCodec(CODEC, random_codec(CODEC), "tiny"), (prior,))


def tokens(model: Model, **settings: Any) -> list[np.ndarray]:
    order = model.order(**SONGS | LENGTHS | settings)
    return next(list(event.tokens) for event in model.run(order, progress=False) if isinstance(event, LevelDone))


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def bits(level: Level, precision: str, mesh: dict[str, int]) -> np.ndarray:
    """How well a level predicts a window of its own tokens, teacher-forced."""
    known = np.random.default_rng(0).integers(0, 24, 64).astype(np.int32)
    (part,) = make_parts(
        level, [Request(0, 8000, artist="Bach")], [64], seeds=[0], sampling=[SamplingConfig()], hop_fraction=0.5,
        given=[known[:60]], upper=[known[:16]],
    )  # fmt: skip
    engine = level_engine(level, 1, precision, sampling_mesh(mesh, 1))
    return engine.bits(entry_of(level, part, part.windows[-1], known))[:28]


_COLLECTIVE = re.compile(r"= (.+?) (all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all)(?:-start)?\(")


def held_and_moved(model: Model, precision: str, mesh: dict[str, int]) -> dict[str, Any]:
    """What a device holds of weights and slots, as planned and in truth, and what moves between devices at a token."""
    order = model.order(**SONGS | LENGTHS | {"mesh": mesh, "precision": precision})
    (plan,) = model.plan(order)
    (level,) = model.levels
    engine = level_engine(level, plan.batch_size, precision, order.mesh)
    slots = engine.empty()
    program = engine_module._advance.lower(engine.config, engine.mesh, engine.weights, slots, jnp.asarray(1)).compile()
    return {
        "planned": [plan.weights, plan.slots],
        "held": [bytes_per_device(engine.weights), bytes_per_device(slots)],
        "devices": sorted({len(leaf.sharding.device_set) for leaf in jax.tree.leaves((engine.weights, slots))}),
        "moved": sorted({f"{name} {shape}" for shape, name in _COLLECTIVE.findall(program.as_text())}),
    }


def refusal(model: Model, mesh: dict[str, int]) -> str:
    try:
        model.plan(model.order(**SONGS | {"mesh": mesh}))
    except UserError as error:
        return str(error)
    return ""


def main() -> None:
    model, upsampler = one_level(), Level(random_prior(0), 8, 4, 8000)
    drawn, greedy = ([tokens(model, mesh=mesh, top_k=k) for mesh in REPLICAS[: 4 if not k else 1]] for k in (0, 1))
    report = {
        "defaults": [model.order(**SONGS | {"n_samples": n}).mesh.shape["replica"] for n in (1, 3, 20)],
        "batch_sizes": [
            model.plan(model.order(**SONGS | {"n_samples": n, "batch_size": None}))[0].batch_size for n in (1, 8, 20)
        ],
        "sessions": [model.session_name(model.order(**SONGS | {"mesh": mesh})) for mesh in (*REPLICAS, *DIVIDED[:2])],
        "refused": [
            refusal(model, {axis: size})
            for axis, size in (("replica", 16), ("sequence", 2), ("tensor", 4), ("fsdp", 3), ("replicas", 2))
        ],
        "lengths": [len(song) for song in drawn[0]],
        "different": len({song[:33].tobytes() for song in drawn[0]}),
        "drawn": [same(drawn[0], other) for other in drawn],
        "greedy": [same(greedy[0], tokens(model, mesh=mesh, top_k=1)) for mesh in DIVIDED],
        "bits": {},
        "memory": {
            "one": held_and_moved(model, "float32", {"replica": 1}),
            **{name: held_and_moved(model, name, DIVIDED[-1]) for name in ("float32", "int8")},
        },
    }
    for level, precision, meshes in ((model.levels[0], "float32", DIVIDED), (upsampler, "float32", DIVIDED[-1:])):
        one = bits(level, precision, {"replica": 1})
        found = [bits(level, precision, mesh) for mesh in meshes]
        report["bits"][f"{level.ratio} {precision}"] = [float(np.abs(other / one - 1).max()) for other in found]
    print(json.dumps(report))


if __name__ == "__main__":
    main()
