"""What a training run can be told: `OptimizerConfig` and `TrainConfig`."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jukebox_jax.errors import UserError


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise UserError(f"train.{name} cannot be {value}: it must be {wanted}.")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up, clipping and an average of the weights.

    Attributes:
      learning_rate: its peak.
      warmup_steps: the learning rate grows linearly over these steps.
      schedule: what follows the warm-up until the run's last step.
      final_learning_rate: fraction of the peak at the end of "cosine" and "linear".
      weight_decay: decoupled, on all parameters (spec training 2).
      clip_norm: largest global L2 norm of the gradients; None leaves them.
      ema_decay: decay of the average of the weights that evaluation and sampling use; None keeps none.
    """

    learning_rate: float = 3e-4
    warmup_steps: int = 100
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    final_learning_rate: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        _require(self.learning_rate >= 0, "optimizer.learning_rate", self.learning_rate, "0 or more")
        _require(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "0 or more")
        _require(0 <= self.b1 < 1, "optimizer.b1", self.b1, "in [0, 1)")
        _require(0 <= self.b2 < 1, "optimizer.b2", self.b2, "in [0, 1)")
        _require(self.clip_norm is None or self.clip_norm > 0, "optimizer.clip_norm", self.clip_norm, "above 0")
        decay = self.ema_decay
        _require(decay is None or 0 <= decay < 1, "optimizer.ema_decay", decay, "in [0, 1)")
        if self.schedule not in ("constant", "cosine", "linear"):
            raise UserError(f"optimizer.schedule cannot be {self.schedule!r}: choose constant, cosine or linear.")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, how often, on which devices. The models' dtypes belong to the models.

    Attributes:
      seed: of the initial weights and of every step's randomness; 0 <= seed < 2**32.
      batch_size: examples per step over all devices and hosts.
      steps: the run's number of steps; with `seconds`, the largest one.
      seconds: wall-clock budget in seconds, compilation included, evaluation and checkpoints not. The number of steps
        that fits is chosen once, after measuring some first steps, and kept in the checkpoint: from then on steps
        decide, so that the schedule is well defined and a resumed run is the same run.
      min_steps: the smallest number of steps that `seconds` may choose (a busy machine can halve the speed).
      log_every, eval_every, checkpoint_every: in steps; 0 for the last two means: only at the end.
      keep_checkpoints: how many of the latest checkpoints stay.
      max_skipped: stop after this many consecutive steps whose loss or gradients were not finite.
      strategy: a row of `parallel.strategies.STRATEGIES`.
      mesh: sizes of (replica, fsdp, sequence, tensor) in place of the strategy's own; empty keeps those.
    """

    seed: int = 0
    batch_size: int = 4
    steps: int = 1000
    seconds: float | None = None
    min_steps: int = 1
    log_every: int = 10
    eval_every: int = 0
    checkpoint_every: int = 0
    keep_checkpoints: int = 2
    max_skipped: int = 10
    strategy: str = "single"
    mesh: tuple[int, ...] = ()
    optimizer: OptimizerConfig = OptimizerConfig()

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**32, "seed", self.seed, f"from 0 to {2**32 - 1}")
        for name in ("batch_size", "steps", "min_steps", "log_every", "keep_checkpoints", "max_skipped"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("eval_every", "checkpoint_every"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _require(self.seconds is None or self.seconds > 0, "seconds", self.seconds, "above 0, or absent")
        if self.seconds is not None:
            _require(self.min_steps <= self.steps, "min_steps", self.min_steps, f"at most steps ({self.steps})")
