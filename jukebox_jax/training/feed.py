"""From the stream of batches on this host to batches on the devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

from jukebox_jax.errors import UserError
from jukebox_jax.parallel.hosts import Part

#: From a position in the data, in examples, to batches without end.
Batches = Callable[[int], Iterator[Mapping[str, np.ndarray]]]


class Feed:
    """Batches of a run in order, each placed on the devices as soon as it is asked for.

    Args:
      batches: gives the rows of this host.
      spec: of whole batches, with shardings.
      part: which rows of a batch are this host's.
      step: finished steps; the next batch is for the step after.
      position: where in the data that batch begins, in examples.
    """

    def __init__(
        self, batches: Batches, spec: Mapping[str, jax.ShapeDtypeStruct], part: Part, step: int, position: int
    ) -> None:
        self._batches, self._spec, self._part = batches, spec, part
        self._batch_size = next(iter(spec.values())).shape[0]
        self.move(step, position)

    def move(self, step: int, position: int) -> None:
        """The next batch begins at `position`, and is for the step after `step`."""
        self._origin = position - step * self._batch_size
        self._step = step
        self._stream = self._batches(position)

    def position_after(self, step: int) -> int:
        """Where in the data the batch of step `step` ends."""
        return self._origin + step * self._batch_size

    def next(self) -> dict[str, jax.Array]:
        """The next batch; it is on its way to the devices.

        Raises:
          UserError: the data ended, or do not fit the model.
        """
        try:
            batch = next(self._stream)
        except StopIteration:
            raise UserError(f"The data ended after step {self._step}: training needs a stream without end.") from None
        self._step += 1
        return {name: self._place(name, wanted, batch) for name, wanted in self._spec.items()}

    def _place(self, name: str, wanted: jax.ShapeDtypeStruct, batch: Mapping[str, np.ndarray]) -> jax.Array:
        if name not in batch:
            raise UserError(f"The data has no {name!r}, which this model needs: prepare the data for this model.")
        array = batch[name]
        here = (wanted.shape[0] // self._part.count, *wanted.shape[1:])
        if array.shape != here or array.dtype != wanted.dtype:
            raise UserError(
                f"The data's {name!r} is {array.dtype}{list(array.shape)} and this model needs "
                f"{wanted.dtype}{list(here)}: prepare the data for this model."
            )
        return jax.make_array_from_process_local_data(wanted.sharding, array, wanted.shape)
