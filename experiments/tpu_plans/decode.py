"""The engine's decode loop, compiled ahead of time for TPU chips, and its row of the table."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jukebox_jax.errors import UserError
from jukebox_jax.interop.released import PRIOR_1B_LYRICS, PRIOR_5B, PRIOR_5B_LYRICS, UPSAMPLER_LEVEL_0
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.parallel.mesh import make_mesh
from jukebox_jax.parallel.peaks import GIB, peak
from jukebox_jax.parallel.plan import bytes_per_device, memory_limit, out_of_memory_told
from jukebox_jax.planning.decode_counts import cache_bytes_read, packed_shapes, weight_bytes_read
from jukebox_jax.sampling.engine import Slots, _advance, empty_slots
from jukebox_jax.sampling.weights import Precision

#: The released priors; the two upsamplers decode alike, and differ only in their conditioners.
MODELS: dict[str, PriorConfig] = {
    "upsampler": UPSAMPLER_LEVEL_0,
    "prior_1b_lyrics": PRIOR_1B_LYRICS,
    "prior_5b": PRIOR_5B,
    "prior_5b_lyrics": PRIOR_5B_LYRICS,
}
PRECISIONS: tuple[Precision, ...] = ("bfloat16", "int8")
#: Topologies whose chips the rows are for: of each the first alone.
CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}

# Slots lie in the compiler's favourite order while it loops, which is not that of arguments: it copies most of them.
_COPIES = 3


@dataclass(frozen=True)
class DecodeRow:
    """A compiled decode loop; bytes are of one chip.

    Attributes:
      weights, slots: of all weights of the prior, those that decoding does not read included, and of all slots.
      temporaries: by the compiler.
      read: by a step, of weights and caches, counted from the model.
      seconds_per_step: modelled: `read` over the sold bandwidth of the memory.
    """

    model: str
    chip: str
    chips: int
    precision: str
    batch: int
    weights: int
    slots: int
    temporaries: int
    limit: int
    read: int
    seconds_per_step: float
    compile_seconds: float


def largest_batch(config: PriorConfig, precision: Precision, limit: int) -> int:
    """The largest power of two whose slots fit beside the weights into a chip's memory, 0 if none does; at most 64."""
    weights = _bytes(packed_shapes(config, precision, 2))
    slot = _bytes(jax.eval_shape(lambda: empty_slots(config, 1)))
    room = int((0.97 * limit - weights) // (_COPIES * slot))
    return 0 if room < 1 else min(64, 2 ** (room.bit_length() - 1))


def chip_mesh(chip: str, tensor: int = 1) -> Mesh:
    """A mesh of the first chip of its kind, or of `tensor` of them.

    Raises:
      UserError: libtpu is missing.
    """
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[chip]).devices
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"No topology {CHIPS[chip]}: {reason}. Install the extra [tpu].") from None
    return make_mesh((1, 1, 1, tensor), devices)


def compile_decode(model: str, chip: str, precision: Precision, batch: int | None, tensor: int = 1) -> DecodeRow | None:
    """Compiles the decode loop of a prior for a chip, or with its weights divided over several.

    Args:
      batch: None: the largest that fits; the result is None if that is 1, or not even that.

    Raises:
      UserError: libtpu is missing, or the program does not fit.
    """
    mesh, config = chip_mesh(chip, tensor), replace(MODELS[model], dtype="bfloat16")
    device = mesh.devices.flat[0]
    limit = memory_limit(device)
    if batch is None:
        batch = largest_batch(config, precision, limit)
        if batch <= 1:
            return None
    weights = jax.tree_util.tree_map_with_path(
        lambda path, leaf: _placed(leaf, mesh, _weight_spec(path, leaf.ndim)), packed_shapes(config, precision, batch)
    )
    slots = jax.eval_shape(lambda: empty_slots(config, batch))
    slots = jax.tree_util.tree_map_with_path(lambda path, leaf: _placed(leaf, mesh, _slot_spec(path)), slots)
    turns = _placed(jax.ShapeDtypeStruct((), jnp.int32), mesh, PartitionSpec())
    started = time.monotonic()
    with out_of_memory_told():
        compiled = _advance.lower(config, mesh, weights, slots, turns).compile()
    seconds = time.monotonic() - started
    # Every chip reads its part of the layers and of the output, which is all but some rows of embeddings.
    read = (weight_bytes_read(config, weights, batch) + cache_bytes_read(config, batch)) // tensor
    return DecodeRow(
        model=model,
        chip=chip,
        chips=tensor,
        precision=precision,
        batch=batch,
        weights=bytes_per_device(weights),
        slots=bytes_per_device(slots),
        temporaries=compiled.memory_analysis().temp_size_in_bytes,
        limit=limit,
        read=read,
        seconds_per_step=read / peak(device.device_kind).memory_bytes_per_second,
        compile_seconds=seconds,
    )


def _placed(leaf: jax.ShapeDtypeStruct, mesh: Mesh, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))


def _weight_spec(path: tuple[Any, ...], ndim: int) -> PartitionSpec:
    """Over `tensor`: heads, hidden features and vocabulary, as fsdp_tp has them; packed kernels end in their inputs."""
    names = [getattr(key, "key", getattr(key, "name", None)) for key in path]
    if "decoder" not in names:
        return PartitionSpec()
    if names[-1] in ("tokens", "output"):
        return PartitionSpec("tensor")
    if "qkv" in names:  # (3, h, k, d), and (3, h, k) of scale and bias
        return PartitionSpec(None, "tensor")
    if "mlp_in" in names:
        return PartitionSpec("tensor")
    if names[-1] == "values" and ("attention_out" in names or "mlp_out" in names):
        return PartitionSpec(*[None] * (ndim - 1), "tensor")
    return PartitionSpec()


def _slot_spec(path: tuple[Any, ...]) -> PartitionSpec:
    """Caches by heads."""
    return PartitionSpec("replica", None, None, "tensor") if path[-1].name == "kv" else PartitionSpec("replica")


def _bytes(tree: dict[str, Any] | Slots) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def decode_table(rows: list[DecodeRow]) -> str:
    """Markdown; memory in GiB and what a step reads in GB, of one chip."""
    head = ["model", "chips", "precision", "batch", "weights", "slots", "temporaries", "total of", "read per step, GB"]
    head += ["modelled ms/step", "tokens/s", "compiled in"]
    lines = [f"| {' | '.join(head)} |", "|---" * 3 + "|---:" * (len(head) - 3) + "|"]
    for row in rows:
        total = row.weights + row.slots + row.temporaries
        cells = [
            row.model,
            row.chip if row.chips == 1 else f"{row.chips} × {row.chip}, tensor-parallel",
            row.precision,
            f"{row.batch}",
            *(f"{size / GIB:.2f}" for size in (row.weights, row.slots, row.temporaries)),
            f"{total / GIB:.2f} of {row.limit / GIB:.2f}",
            f"{row.read / 1e9:.2f}",
            f"{1e3 * row.seconds_per_step:.2f}",
            f"{row.batch / row.seconds_per_step:,.0f}",
            f"{row.compile_seconds:.0f} s",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
