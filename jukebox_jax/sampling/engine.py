"""The engine: songs side by side in slots, each at its own place in its own window.

Two programs do all the work, compiled once for a prior and a batch size. `admit` puts a window into a slot: it computes
the conditioning, and takes in all known tokens in large chunks of whole attention rows. `advance` then draws a token a
turn for every slot, on the device, until a window is done or a number of turns is over. A window that is done makes
room for the next, of whatever song, while the others go on.

`admit` works on one window at a time and rows of a batch do not meet in `advance`: at one batch size a song's tokens do
not depend on its neighbours, its slot, or when it was admitted. On several devices each has slots of its own, and
what is said of a batch holds for the batch of a device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import log
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key

from jukebox_jax.models.attention import LayerCache, empty_cache
from jukebox_jax.models.autoregressive import Conditioning
from jukebox_jax.models.prior import Prior, PriorConfig, batch_spec, music_codes, sequence
from jukebox_jax.parallel.mesh import make_mesh
from jukebox_jax.sampling.blends import MOST_PAIRS
from jukebox_jax.sampling.drawing import Drawing, SamplingConfig, draw

#: Known tokens taken in at once, at most: enough to keep a device busy, few enough for its memory.
PREFILL_TOKENS = 1024

_DATA = "replica"  # the mesh axis that slots lie along
_ALONG = PartitionSpec(_DATA)


@struct.dataclass
class Slots:
    """The state of sampling: `b` windows on every device, each somewhere between what was given and its target.

    Attributes:
      caches: of every layer.
      tokens: the decoder's sequences.
      start, inputs: conditioning of the first token, and of all (see `Conditioning`).
      position: of the next token in its sequence; a slot whose position is its `target` has nothing to do.
      first: position in the whole level of each sequence's token 0 (negative if lyrics come first).
    """

    caches: tuple[LayerCache, ...]
    tokens: Int[Array, "b t"]
    start: Float[Array, "b d"] | None
    inputs: Float[Array, "b _ d"] | None
    drawing: Drawing
    position: Int[Array, " b"]
    target: Int[Array, " b"]
    first: Int[Array, " b"]


@dataclass(frozen=True, eq=False)
class Entry:
    """A window to be sampled.

    Attributes:
      batch: of one song, without batch axis: `tokens` (n_ctx), of which the first `given` are read, and the inputs of
        `Prior.condition`; of a blend `artist` (m), `genres` (m, g) and `weights` (m).
      given, target: how many tokens are known before and after.
      first: position of the window's first token in the whole level. A token's key is folded from its own position, so
        it does not depend on how windows are cut.
      key: of `song_keys`, a scalar.
    """

    batch: Mapping[str, Any]
    given: int
    target: int
    first: int
    key: Key[Array, ""]
    sampling: SamplingConfig


@dataclass(frozen=True, eq=False)
class Engine:
    """The programs of one prior for `batch_size` slots on each device of the mesh's first axis.

    `config` and `weights` are those of `sampling.weights`.
    """

    config: PriorConfig
    weights: dict[str, Any]
    batch_size: int
    mesh: Mesh

    @property
    def slots(self) -> int:
        """Of all devices; those of a device stand together."""
        return self.batch_size * self.mesh.shape[_DATA]

    @property
    def places(self) -> list[int]:
        """All slots, in the order in which to fill them: devices share the work evenly."""
        return [
            device * self.batch_size + i for i in range(self.batch_size) for device in range(self.mesh.shape[_DATA])
        ]

    def empty(self) -> Slots:
        """Slots with nothing in them."""
        return _empty(self.config, self.batch_size, self.mesh)

    def admit(self, slots: Slots, entries: Mapping[int, Entry]) -> Slots:
        """Puts windows into slots, of which nothing may be needed any more; `slots` is given up."""
        devices = self.mesh.shape[_DATA]
        queues = [
            [(i % self.batch_size, entry) for i, entry in sorted(entries.items()) if i // self.batch_size == device]
            for device in range(devices)
        ]
        for turn in range(max(map(len, queues), default=0)):
            now = [queue[turn] if turn < len(queue) else None for queue in queues]
            some = next(filter(None, now))[1]
            arrays = [_arrays(self.config, *(one or (-1, some))) for one in now]
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *arrays)
            stacked = jax.device_put(stacked, NamedSharding(self.mesh, _ALONG))
            slots = _admit(self.config, self.mesh, self.weights, slots, stacked)
        return slots

    def advance(self, slots: Slots, turns: int) -> Slots:
        """Draws up to `turns` tokens in every slot, until one that had something to do is done; gives `slots` up."""
        return _advance(self.config, self.mesh, self.weights, slots, jnp.asarray(turns))

    def bits(self, entry: Entry) -> Float[np.ndarray, " t"]:
        """Bits that each of an entry's `given` tokens takes after those before it; without meaning for the others."""
        return np.asarray(_bits(self.config, self.weights, _arrays(self.config, 0, entry)))[self.config.prefix :]

    def codes(self, slots: Slots) -> Int[np.ndarray, "b t"]:
        """The music in all slots."""
        return np.asarray(music_codes(self.config, slots.tokens))


def make_engine(config: PriorConfig, weights: dict[str, Any], batch_size: int, mesh: Mesh | None = None) -> Engine:
    """An engine on a mesh, by default of one device; the weights must lie there already (see `weights.pack`)."""
    return Engine(config, weights, batch_size, make_mesh() if mesh is None else mesh)


def _arrays(config: PriorConfig, slot: int, entry: Entry) -> dict[str, Any]:
    """An entry as arrays of fixed shapes, with a batch axis of 1 where the models want one."""
    batch = {name: np.asarray(entry.batch[name], np.int32) for name in batch_spec(config)}
    if config.labels is not None:
        artist = np.atleast_1d(batch["artist"])
        missing = MOST_PAIRS - len(artist)
        batch["artist"] = np.pad(artist, (0, missing))
        batch["genres"] = np.pad(batch["genres"].reshape(len(artist), -1), ((0, missing), (0, 0)))
        weights = np.asarray(entry.batch.get("weights", np.ones(1)), np.float32)
        batch["weights"] = np.pad(weights, (0, missing))
    arrays = _where_and_how(config, entry.given, entry.target, entry.first, entry.sampling)
    return arrays | {"slot": np.int32(slot), "key": entry.key, "batch": {k: x[None] for k, x in batch.items()}}


def prefill_rows(config: PriorConfig) -> int:
    """Attention rows taken in at once: as many as `PREFILL_TOKENS` allow and the sequence is a multiple of."""
    layout = config.transformer.layout
    fitting = [n for n in range(1, layout.blocks + 1) if layout.blocks % n == 0]
    return max([n for n in fitting if n * layout.block_ctx <= PREFILL_TOKENS], default=1)


def empty_slots(config: PriorConfig, slots: int) -> Slots:
    """So many slots with nothing in them; `jax.eval_shape` says how much memory they take."""
    t, n = config.transformer, jnp.zeros(slots, jnp.int32)
    dtype, heads = jnp.dtype(config.dtype), (t.heads, t.state // t.heads)
    keys = jax.vmap(jax.random.key)(jnp.zeros(slots, jnp.uint32))
    conditioned = config.conditioner is not None or config.has_timing
    return Slots(
        caches=tuple(empty_cache(pattern, slots, t.layout, *heads, dtype) for pattern in t.patterns),
        tokens=jnp.zeros((slots, t.context), jnp.int32),
        start=None if config.labels is None else jnp.zeros((slots, config.width)),
        inputs=jnp.zeros((slots, t.context, config.width)) if conditioned else None,
        drawing=Drawing(keys, jnp.ones(slots), n, jnp.zeros(slots)),
        position=n,
        target=n,
        first=n,
    )


def slot_shardings(slots: Slots, mesh: Mesh) -> Slots:
    """How slots lie on a mesh: along `replica`, keys and values also by heads along `tensor`, and conditioning by
    features along `fsdp`, as the weights do that meet it."""

    def lie(part: Any, *spec: str | None) -> Any:
        return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec(_DATA, *spec)), part)

    return lie(slots).replace(
        caches=lie(slots.caches, None, None, "tensor"),
        start=lie(slots.start, "fsdp"),
        inputs=lie(slots.inputs, None, "fsdp"),
    )


def _placed(slots: Slots, mesh: Mesh) -> Slots:
    return jax.lax.with_sharding_constraint(slots, slot_shardings(slots, mesh))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _empty(config: PriorConfig, batch_size: int, mesh: Mesh) -> Slots:
    return _placed(empty_slots(config, batch_size * mesh.shape[_DATA]), mesh)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _admit(config: PriorConfig, mesh: Mesh, weights: dict[str, Any], slots: Slots, entries: dict[str, Any]) -> Slots:
    def on_device(weights, slots, entries):
        entry = jax.tree.map(lambda x: x[0], entries)
        if mesh.shape[_DATA] == 1:
            return _admit_one(config, weights, slots, entry)
        return jax.lax.cond(
            entry["slot"] < 0, lambda slots, _: slots, partial(_admit_one, config, weights), slots, entry
        )

    return _placed(_on_every_device(on_device, mesh, (PartitionSpec(), _ALONG, _ALONG))(weights, slots, entries), mesh)


@partial(jax.jit, static_argnums=0)
def _bits(config: PriorConfig, weights: dict[str, Any], entry: dict[str, Any]) -> Float[Array, " t"]:
    tokens = sequence(config, entry["batch"])

    def told(logits, start, size):
        here = jax.lax.dynamic_slice_in_dim(tokens, start, size, axis=1)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), here[..., None], axis=-1)
        return -chosen[0, :, 0] / log(2)

    return _take_in(config, weights, entry["batch"], entry["given"], told)[2]


def _admit_one(config: PriorConfig, weights: dict[str, Any], slots: Slots, entry: dict[str, Any]) -> Slots:
    conditioning, caches, _ = _take_in(config, weights, entry["batch"], entry["given"])
    tokens = sequence(config, entry["batch"])
    drawing = {name: entry[name][None] for name in ("key", "temperature", "top_k", "top_p")}
    where = {name: entry[key][None] for name, key in (("position", "given"), ("target", "target"), ("first", "first"))}
    one = Slots(caches, tokens, conditioning.start, conditioning.inputs, Drawing(**drawing), **where)
    return jax.tree.map(
        lambda all_, one: jax.lax.dynamic_update_index_in_dim(all_, one[0], entry["slot"], 0), slots, one
    )


def _take_in(
    config: PriorConfig,
    weights: dict[str, Any],
    batch: dict[str, Array],
    known: Int[Array, ""],
    told: Callable[[Float[Array, "1 t v"], Int[Array, ""], int], Float[Array, " t"]] | None = None,
) -> tuple[Conditioning, tuple[LayerCache, ...], Float[Array, " t"]]:
    """The conditioning of one window, its caches after the first `known` tokens of the sequence, and what `told` makes
    of (logits, start, length) of each chunk of them."""
    apply = partial(Prior(config).apply, {"params": weights})
    conditioning = apply(batch, method="condition")
    # A token's predecessor is its input; the first one's is ignored.
    previous = jnp.pad(sequence(config, batch), ((0, 0), (1, 0)))
    rows = prefill_rows(config)
    size = rows * config.transformer.block_ctx

    def chunk(turn, carry):
        caches, found = carry
        inputs = jax.lax.dynamic_slice_in_dim(previous, turn * size, size, axis=1)
        count = jnp.minimum(known - turn * size, size)
        logits, caches = apply(caches, inputs, turn * rows, count, conditioning, method="rows")
        if told is not None:
            found = jax.lax.dynamic_update_slice_in_dim(found, told(logits, turn * size, size), turn * size, axis=0)
        return caches, found

    caches = apply(1, conditioning, method="empty_caches")
    found = jnp.zeros(config.transformer.context)
    caches, found = jax.lax.fori_loop(0, (known + size - 1) // size, chunk, (caches, found))
    return conditioning, caches, found


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _advance(config: PriorConfig, mesh: Mesh, weights: dict[str, Any], slots: Slots, turns: Int[Array, ""]) -> Slots:
    specs = (PartitionSpec(), _ALONG, PartitionSpec())
    return _placed(_on_every_device(partial(_take_turns, config), mesh, specs)(weights, slots, turns), mesh)


def _take_turns(config: PriorConfig, weights: dict[str, Any], slots: Slots, turns: Int[Array, ""]) -> Slots:
    prior, last, rows = Prior(config), config.transformer.context - 1, jnp.arange(len(slots.position))
    busy = slots.position < slots.target

    def going(carry):
        slots, left = carry
        return (left > 0) & jnp.any(busy) & jnp.all((slots.position < slots.target) == busy)

    def turn(carry):
        slots, left = carry
        here = jnp.minimum(slots.position, last)  # what an idle slot does is of no account
        previous = slots.tokens[rows, jnp.maximum(here - 1, 0)]
        conditioning = Conditioning(slots.start, slots.inputs)
        logits, caches = prior.apply({"params": weights}, slots.caches, previous, here, conditioning, method="step")
        token = draw(logits, slots.drawing, slots.first + here).astype(jnp.int32)
        tokens = slots.tokens.at[rows, here].set(jnp.where(busy, token, slots.tokens[rows, here]))
        return slots.replace(caches=caches, tokens=tokens, position=slots.position + busy), left - 1

    return jax.lax.while_loop(going, turn, (slots, turns))[0]


def sample_window(
    config: PriorConfig,
    sampling: SamplingConfig,
    params: dict[str, Any],
    batch: dict[str, Array],
    keys: Key[Array, " b"],
    *,
    given: int,
    target: int,
    first: int,
) -> Int[Array, "b t"]:
    """Samples codes `given` .. `target` - 1 of one window for several songs, as a pure function to be jitted whole.

    Args:
      params: as they are trained, or those of `sampling.weights`.
      batch: `tokens` (b, n_ctx), of which the first `given` are read, and the inputs of `Prior.condition`.
      keys, first: see `Entry`.

    Returns:
      `tokens` with the new codes filled in, and zeros behind them.
    """
    songs = len(keys)
    batch = batch | {"tokens": jnp.where(jnp.arange(config.n_ctx) < given, batch["tokens"], 0)}
    if config.labels is not None:
        batch["artist"], batch["genres"] = batch["artist"][:, None], batch["genres"][:, None]
        batch["weights"] = jnp.ones((songs, 1))
    entries = _where_and_how(config, given, target, first, sampling)
    entries = jax.tree.map(lambda x: jnp.full(songs, x), entries)
    entries |= {"key": keys, "slot": jnp.arange(songs), "batch": {name: x[:, None] for name, x in batch.items()}}
    slots, _ = jax.lax.scan(
        lambda slots, entry: (_admit_one(config, params, slots, entry), None), empty_slots(config, songs), entries
    )
    return music_codes(config, _take_turns(config, params, slots, jnp.asarray(target - given)).tokens)


def _where_and_how(
    config: PriorConfig, given: int, target: int, first: int, sampling: SamplingConfig
) -> dict[str, Any]:
    return {
        "given": np.int32(config.prefix + given),
        "target": np.int32(config.prefix + target),
        "first": np.int32(first - config.prefix),
        "temperature": np.float32(sampling.temperature),
        "top_k": np.int32(sampling.top_k),
        "top_p": np.float32(sampling.top_p),
    }


def _on_every_device(function: Any, mesh: Mesh, specs: tuple[PartitionSpec, ...]) -> Any:
    """`function` by itself along the first axis of the mesh; over the others XLA divides it, as the weights lie."""
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=_ALONG, axis_names={_DATA}, check_vma=False)
