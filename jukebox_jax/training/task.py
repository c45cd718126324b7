"""What the trainer knows of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
from jaxtyping import Array, Float, Key

PyTree = Any
Loss = tuple[Float[Array, ""], PyTree, dict[str, Float[Array, ""]]]


@dataclasses.dataclass(frozen=True)
class Alarm:
    """A metric outside its bounds means trouble, which the log tells once until it is over.

    Attributes:
      metric: its name.
      text: one line with advice; `{value}` and `{step}` are filled in.
      above, below: the bounds; None: there is none.
      patience: tell after so many steps in a row outside.
      after: do not look at a run's first so many steps.
    """

    metric: str
    text: str
    above: float | None = None
    below: float | None = None
    patience: int = 1
    after: int = 0

    def outside(self, value: float) -> bool:
        """Whether the value is outside the bounds; NaN, which the trainer tells of itself, is not."""
        high = self.above is not None and value > self.above
        return high or (self.below is not None and value < self.below)


@dataclasses.dataclass(frozen=True)
class Task:
    """Something to train: pure functions and some facts. The codec and the priors are tasks.

    Attributes:
      init: key → (params, model_state). Leaves may be boxed in `nn.LogicallyPartitioned`, which names their logical
        axes. `model_state` is what the loss updates without gradients (codebooks); `{}` if nothing.
      loss: (params, model_state, batch, key) → (loss, model_state, metrics); all trees unboxed, metrics are scalars.
      flops_per_example: floating-point operations of one training step per example, forward and backward, that the
        model asks for: what is computed a second time to save memory does not count.
      batch_spec: shape and dtype of each array of a batch, without the batch axis.
      unit, units_per_example: what the speed of training is told in, and how many an example holds; None: in examples.
      alarms: metrics that are watched.
      drawn_first: whether `init` is called for whole arrays, from which the state is then made, and not compiled with
        it: for hundreds of small parameters, which XLA would compile for a minute (`models.drawing`).
    """

    init: Callable[[Key[Array, ""]], tuple[PyTree, PyTree]]
    loss: Callable[[PyTree, PyTree, dict[str, Array], Key[Array, ""]], Loss]
    flops_per_example: float
    batch_spec: Mapping[str, jax.ShapeDtypeStruct]
    unit: Literal["tokens", "audio_seconds"] | None = None
    units_per_example: float = 1.0
    alarms: tuple[Alarm, ...] = ()
    drawn_first: bool = False
