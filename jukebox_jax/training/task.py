"""What the trainer knows of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import Array, Float, Key

PyTree = Any
Loss = tuple[Float[Array, ""], PyTree, dict[str, Float[Array, ""]]]


@dataclasses.dataclass(frozen=True)
class Task:
    """Something to train: pure functions and two facts. The codec and the priors are tasks.

    Attributes:
      init: key → (params, model_state). Leaves may be boxed in `nn.LogicallyPartitioned`, which names their logical
        axes. `model_state` is what the loss updates without gradients (codebooks); `{}` if nothing.
      loss: (params, model_state, batch, key) → (loss, model_state, metrics); all trees unboxed, metrics are scalars.
      flops_per_example: floating-point operations of one training step per example, forward and backward.
      batch_spec: shape and dtype of each array of a batch, without the batch axis.
      alarming_loss: the log warns when the loss climbs above this; None: never.
    """

    init: Callable[[Key[Array, ""]], tuple[PyTree, PyTree]]
    loss: Callable[[PyTree, PyTree, dict[str, Array], Key[Array, ""]], Loss]
    flops_per_example: float
    batch_spec: Mapping[str, jax.ShapeDtypeStruct]
    alarming_loss: float | None = None
