"""The factor by which a half-precision model's loss is multiplied, so that its gradients do not underflow."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool

PyTree = Any

FIRST = 2.0**16
LARGEST = 2.0**24


@flax.struct.dataclass
class LossScale:
    """A dynamic loss scale between two steps.

    Attributes:
      scale: the factor, a float32 scalar.
      unskipped: steps without overflow since the factor last changed, an int32 scalar.
    """

    scale: PyTree
    unskipped: PyTree


def create_loss_scale() -> LossScale:
    """The scale before the first step, 2^16."""
    return LossScale(scale=jnp.float32(FIRST), unskipped=jnp.int32(0))


def update_loss_scale(state: LossScale, overflow: Bool[Array, ""], factor: float, window: int = 1) -> LossScale:
    """Halves the scale after an overflow; multiplies it by `factor` after `window` steps without (spec training 4).

    The original's trainer has `window` = 1 and `factor` = 2^(1/w), and so doubles the scale in w steps.
    """
    unskipped = state.unskipped + 1
    grows = unskipped == window
    grown = jnp.where(grows, jnp.minimum(state.scale * factor, LARGEST), state.scale)
    return LossScale(
        scale=jnp.where(overflow, state.scale / 2, grown),
        unskipped=jnp.where(overflow | grows, 0, unskipped),
    )
