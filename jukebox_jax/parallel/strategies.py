"""Strategies: a mesh shape and rules from logical axes to mesh axes, one row each, and the resolver of the rules.

A model names the axes of its arrays with words (`batch time rows columns heads hidden vocab width channels layers
codes`); a strategy says over which mesh axes each word is sharded. A new strategy is a new row; no model changes.

What moves, in each step, over which mesh axis (per layer, unless said otherwise; Adam's moments, the average of the
weights and the gradients always lie as the parameters do, and no update moves anything):

| axis       | what moves over it                                                                                      |
|------------|---------------------------------------------------------------------------------------------------------|
| `replica`  | gradients, summed once per step (all-reduce): little enough for the network between slices (DCN)        |
| `fsdp`     | parameters, gathered before use, forward and backward; gradients, summed into shards (reduce-scatter)   |
| `sequence` | what attention looks at outside its own rows (below), and parameters and gradients as over `fsdp`       |
| `tensor`   | activations, summed behind the attention and behind the MLP (all-reduce), forward and backward          |

Which to choose:

- `dp` while everything fits on one device: it moves least. The codec (2 million parameters) needs no more.
- `fsdp` when parameters, moments and average do not fit. It needs no less than one example per device, and widths
  that the number of devices divides: 64 divides 4800 (5b) and 1920 (upsamplers), 256 and 512 do not.
- `hsdp` beyond that number, and on more than one slice: copies of FSDP groups, a group never larger than a slice.
- `fsdp_sp` when there are more devices than examples, or one example's activations do not fit: a device holds some
  *rows* of an example's tokens. Attention within rows then moves nothing, the previous row costs one row from the
  neighbour, columns cost an all-to-all there and back; dense, prime and lyric layers and the summaries gather the keys
  that they see. `sequence` should divide the rows (`blocks`), and the columns (`block_ctx`), or devices are padded.
  The codec's audio is cut along time, and neighbours exchange what the convolutions reach over.
- `fsdp_tp` when the number of devices is above what `fsdp` and `fsdp_sp` can use. Jukebox is narrow (MLP as wide as
  the model, attention a quarter of it), so the sums of activations cost more than they save on most machines. Models
  of one head (the upsamplers, small_prior) cannot be cut.

Any row takes another mesh (`train.mesh`): `fsdp_sp` with mesh=(4, 8, 2, 1) is that in four copies.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
from flax import linen as nn
from flax.core import meta
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jukebox_jax.config import nearest
from jukebox_jax.errors import UserError
from jukebox_jax.parallel.mesh import Size

Axes = str | tuple[str, ...] | None
Rules = tuple[tuple[str, Axes], ...]

#: Words of parameters that a device may hold whole where the mesh does not divide them: convolutions are small (of 32
#: or 64 channels in the codec), and lyrics add odd numbers of symbols to a vocabulary.
MAY_STAY_WHOLE = ("channels", "vocab")


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A row of the table.

    Attributes:
      mesh_shape: sizes of (replica, fsdp, sequence, tensor); see `mesh.make_mesh`.
      rules: (logical axis, mesh axis or axes or None), in order of precedence: in an activation whose dimensions ask
        for the same mesh axis, the earlier rule has it (Linen's reading); for a parameter that is an error.
    """

    mesh_shape: tuple[Size, Size, Size, Size]
    rules: Rules


def _rules(**sharded: str | tuple[str, ...]) -> Rules:
    """Every logical axis has a rule, so that a misspelt one in a model is found; batches are always divided alike."""
    words = ("batch", "time", "rows", "columns", "heads", "hidden", "vocab", "width", "channels", "layers", "codes")
    unknown = sharded.keys() - set(words)
    assert not unknown, unknown
    return tuple((word, sharded.get(word)) for word in words)


_BATCH = ("replica", "fsdp")
_FSDP = _rules(batch=_BATCH, width="fsdp", channels="fsdp")

STRATEGIES: dict[str, Strategy] = {
    # One device, whatever the machine has.
    "single": Strategy((1, 1, 1, 1), _rules(batch=_BATCH)),
    # Every device holds all parameters and a part of the batch.
    "dp": Strategy((-1, 1, 1, 1), _rules(batch=_BATCH)),
    # Every device holds a part of the batch and a part of each parameter, optimizer moment and average.
    "fsdp": Strategy((1, -1, 1, 1), _FSDP),
    # Groups of devices that do so, each with a copy: one group per slice or, without slices, two.
    "hsdp": Strategy(("slices", -1, 1, 1), _FSDP),
    # Pairs of devices divide heads, hidden features and vocabulary of one example.
    "fsdp_tp": Strategy(
        (1, -1, 1, 2),
        _rules(batch=_BATCH, width="fsdp", channels="fsdp", heads="tensor", hidden="tensor", vocab="tensor"),
    ),
    # Pairs of devices divide the rows of one example, and every device has as small a part of each parameter as if
    # they did not. A column layer turns its rows into columns for as long as it looks along them.
    "fsdp_sp": Strategy(
        (1, -1, 2, 1),
        _rules(
            batch=_BATCH,
            time="sequence",
            rows="sequence",
            columns="sequence",
            width=("fsdp", "sequence"),
            channels=("fsdp", "sequence"),
        ),
    ),
}


def get_strategy(name: str) -> Strategy:
    """Looks a row up.

    Raises:
      UserError: there is no such row; names the nearest one.
    """
    if name not in STRATEGIES:
        raise UserError(f"Unknown strategy {name!r}: {nearest(name, STRATEGIES)}")
    return STRATEGIES[name]


def resolve(boxed: Any, mesh: Mesh | AbstractMesh, rules: Rules) -> Any:
    """Shardings of a tree whose leaves may carry Linen's partitioning metadata.

    Args:
      boxed: arrays or ShapeDtypeStructs, some boxed in `nn.LogicallyPartitioned`; an unboxed leaf is replicated.

    Returns:
      The unboxed tree's structure with a NamedSharding for every leaf.

    Raises:
      UserError: two dimensions of a leaf want the same mesh axis, or a mesh axis does not divide a dimension that may
        not stay whole; names leaf, dimension and mesh axis.
      ValueError: a logical axis without a rule (a mistake in the model).
    """
    shapes = meta.unbox(boxed)
    specs = nn.get_partition_spec(boxed)

    def one(path: tuple, leaf: Any, spec: PartitionSpec) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, _resolve_leaf(name, tuple(leaf.shape), tuple(spec), mesh, rules))

    return jax.tree_util.tree_map_with_path(one, shapes, specs)


def batch_sharding(mesh: Mesh | AbstractMesh, rules: Rules, batch_size: int, accumulate: int = 1) -> NamedSharding:
    """The sharding of every array of a batch: its first axis, `batch_size` long, over the rule for `batch`.

    Args:
      accumulate: how many microbatches a batch is cut into; each of them has this sharding, too.

    Raises:
      UserError: the mesh does not divide the batch, or its microbatches.
    """
    axes = dict(rules)["batch"]
    parts = _parts(mesh, axes)
    if batch_size % (parts * accumulate):
        cut = f" in accumulate={accumulate} microbatches" if accumulate > 1 else ""
        raise UserError(
            f"batch_size={batch_size}{cut} is not a multiple of {parts}, the parts that a batch is divided into (mesh "
            f"axes {_text(axes)}): change train.batch_size{', accumulate' if cut else ''}, or the mesh or strategy."
        )
    return NamedSharding(mesh, PartitionSpec(axes))


def _resolve_leaf(
    name: str, shape: tuple[int, ...], logical: tuple, mesh: Mesh | AbstractMesh, rules: Rules
) -> PartitionSpec:
    table = dict(rules)
    taken: dict[str, int] = {}
    spec: list[Axes] = []
    for dimension, word in enumerate(logical):
        if word is None:
            spec.append(None)
            continue
        if word not in table:
            raise ValueError(f"{name}: logical axis {word!r} has no rule; {nearest(word, table)}")
        axes = table[word]
        for axis in _names(axes):
            if axis in taken:
                raise UserError(
                    f"{name}: dimensions {taken[axis]} ({logical[taken[axis]]}) and {dimension} ({word}) both want "
                    f"mesh axis {axis!r}: choose another strategy."
                )
            taken[axis] = dimension
        parts = _parts(mesh, axes)
        if shape[dimension] % parts:
            if word not in MAY_STAY_WHOLE:
                raise UserError(
                    f"{name}: dimension {dimension} ({word}) of size {shape[dimension]} is not divisible by mesh axis "
                    f"{_text(axes)} of size {parts}: {_advice(shape[dimension], axes, mesh)}."
                )
            axes = None
        spec.append(axes)
    return PartitionSpec(*spec)


def _advice(size: int, axes: Axes, mesh: Mesh | AbstractMesh) -> str:
    """What to do about a dimension that `axes` do not divide: smaller FSDP groups, and more of them, if that helps."""
    if "fsdp" in _names(axes):
        fsdp = mesh.shape["fsdp"]
        others = _parts(mesh, axes) // fsdp
        group = max((n for n in range(1, fsdp + 1) if fsdp % n == 0 and size % (n * others) == 0), default=1)
        if group > 1:
            sizes = (mesh.shape["replica"] * fsdp // group, group, mesh.shape["sequence"], mesh.shape["tensor"])
            return f"choose copies of smaller groups (as hsdp has), mesh={sizes}"
    return "change the size, the mesh or the strategy"


def _names(axes: Axes) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else axes or ()


def _parts(mesh: Mesh | AbstractMesh, axes: Axes) -> int:
    """Into how many parts these mesh axes divide a dimension."""
    return math.prod(mesh.shape[axis] for axis in _names(axes))


def _text(axes: Axes) -> str:
    return "×".join(_names(axes))
