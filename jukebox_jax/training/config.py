"""What a training run can be told: `OptimizerConfig` and `TrainConfig`."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from jukebox_jax.errors import UserError


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise UserError(f"train.{name} cannot be {value}: it must be {wanted}.")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam with warm-up, clipping, an average of the weights, and, for half precision, a scaled loss.

    Attributes:
      rule: "adamw"; or the Adam of the original (`optimizer.scale_by_original_adam`), which also trains parameters
        stored in float16; or "adafactor", which needs little memory: b2 and eps are its own, and with b1=0 it keeps
        hardly more than the parameters.
      learning_rate: its peak.
      warmup_steps: the learning rate grows linearly over these steps.
      schedule: what follows the warm-up until the run's last step. "original" and "original_linear" are those of the
        original (spec training 3): they start at 0 and do not depend on the run's length.
      final_learning_rate: fraction of the peak at the end of "cosine" and "linear".
      decay_factor: "original" multiplies the learning rate by it every `decay_steps` steps.
      decay_steps: see `decay_factor`, None for never; "original_linear" goes down to 0 in that many steps.
      decay_start: finished steps at which "original_linear" starts to go down.
      moment_dtype: of the first moment; not for "original".
      weight_decay: decoupled, on all parameters (spec training 2).
      clip_norm: largest global L2 norm of the gradients; None leaves them.
      ignore_grad_norm: a step whose gradients have a larger norm is skipped; None skips none.
      ema_decay: decay of the average of the weights that evaluation and sampling use; "original" takes the original's
        for the run's batch size; None keeps no average.
      ema_every: the average moves on every so-manieth update only, by as much at once.
      loss_scale: by which the loss is multiplied and the gradients are divided, for float16; "dynamic" halves it when
        gradients overflow, skipping that step, and else lets it grow; None leaves the loss.
      loss_scale_window: steps without overflow in which a dynamic loss scale doubles.
    """

    rule: Literal["adamw", "original", "adafactor"] = "adamw"
    learning_rate: float = 3e-4
    warmup_steps: int = 100
    schedule: Literal["constant", "cosine", "linear", "original", "original_linear"] = "constant"
    final_learning_rate: float = 0.0
    decay_factor: float = 1.0
    decay_steps: int | None = None
    decay_start: int = 0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    ignore_grad_norm: float | None = None
    ema_decay: float | Literal["original"] | None = None
    ema_every: int = 1
    loss_scale: float | Literal["dynamic"] | None = None
    loss_scale_window: int = 1000

    def __post_init__(self) -> None:
        schedules = ("constant", "cosine", "linear", "original", "original_linear")
        rules, dtypes = ("adamw", "original", "adafactor"), ("float32", "bfloat16")
        _require(self.rule in rules, "optimizer.rule", self.rule, f"one of {', '.join(rules)}")
        _require(self.moment_dtype in dtypes, "optimizer.moment_dtype", self.moment_dtype, " or ".join(dtypes))
        float32 = self.rule != "original" or self.moment_dtype == "float32"
        _require(float32, "optimizer.moment_dtype", self.moment_dtype, "float32 with rule=original")
        _require(self.schedule in schedules, "optimizer.schedule", self.schedule, f"one of {', '.join(schedules)}")
        _require(self.learning_rate >= 0, "optimizer.learning_rate", self.learning_rate, "0 or more")
        _require(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "0 or more")
        _require(self.decay_factor > 0, "optimizer.decay_factor", self.decay_factor, "above 0")
        _require(0 <= self.decay_start < 2**31, "optimizer.decay_start", self.decay_start, f"from 0 to {2**31 - 1}")
        steps, needed = self.decay_steps, self.schedule == "original_linear"
        wanted = f"from 1 to {2**31 - 1}" + (" for original_linear" if needed else ", or absent")
        _require(not needed if steps is None else 1 <= steps < 2**31, "optimizer.decay_steps", steps, wanted)
        _require(0 <= self.b1 < 1, "optimizer.b1", self.b1, "in [0, 1)")
        _require(0 <= self.b2 < 1, "optimizer.b2", self.b2, "in [0, 1)")
        for name in ("clip_norm", "ignore_grad_norm"):
            norm = getattr(self, name)
            _require(norm is None or norm > 0, f"optimizer.{name}", norm, "above 0, or absent")
        decay, scale = self.ema_decay, self.loss_scale
        valid = decay == "original" if isinstance(decay, str) else decay is None or 0 <= decay < 1
        _require(valid, "optimizer.ema_decay", decay, "in [0, 1), original, or absent")
        _require(self.ema_every >= 1, "optimizer.ema_every", self.ema_every, "1 or more")
        valid = scale == "dynamic" if isinstance(scale, str) else scale is None or 0 < scale < math.inf
        _require(valid, "optimizer.loss_scale", scale, "above 0 and finite, dynamic, or absent")
        _require(self.loss_scale_window >= 1, "optimizer.loss_scale_window", self.loss_scale_window, "1 or more")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, how often, on which devices. The models' dtypes belong to the models.

    Attributes:
      seed: of the initial weights and of every step's randomness; 0 <= seed < 2**32.
      batch_size: examples per step over all devices and hosts.
      accumulate: parts that a step's batch is computed in, one after another: the same gradients from a smaller memory.
        Not for the codec, whose codebooks learn from whole batches.
      steps: the run's number of steps; with `seconds`, the largest one.
      seconds: wall-clock budget in seconds, compilation included, evaluation and checkpoints not. The number of steps
        that fits is chosen once, after measuring some first steps, and kept in the checkpoint: from then on steps
        decide, so that the schedule is well defined and a resumed run is the same run.
      min_steps: the smallest number of steps that `seconds` may choose (a busy machine can halve the speed).
      log_every, eval_every, checkpoint_every: in steps; 0 for the last two means: only at the end.
      checkpoint_minutes: also a checkpoint when the last one is so old; 0: by steps alone.
      audio_every: how often fixed held-out items are made audible, in steps; 0: never.
      profile: (first step, number of steps) to profile into RUN/profile; empty: none.
      peak_flops: what one device can do at best, in FLOP/s, for the metric `mfu`; None: what `parallel.peaks` knows
        of its kind.
      wandb_project: also log to this project of Weights & Biases (extra `[wandb]`).
      keep_checkpoints: how many of the latest checkpoints stay, beside the latest that `checkpoint_every` asked for.
      keep_best: how many checkpoints stay beside these because their `best_metric` was smallest.
      best_metric: a metric of the evaluation, by its name in the log.
      frozen: patterns of parameters that stay as they are, as "decoder/*" or "labels" (see `freezing.partition`): they
        get no update and have no moments.
      max_skipped: after this many consecutive steps whose loss or gradients were not finite, return to the last
        checkpoint before them and go on with the data behind them (`training.rewind`).
      watchdog_minutes: end the process, with the stacks of all its threads, if no step is finished for so long; 0:
        never.
      strategy: a row of `parallel.strategies.STRATEGIES`.
      mesh: sizes of (replica, fsdp, sequence, tensor) in place of the strategy's own; empty keeps those.
    """

    seed: int = 0
    batch_size: int = 4
    accumulate: int = 1
    steps: int = 1000
    seconds: float | None = None
    min_steps: int = 1
    log_every: int = 10
    eval_every: int = 0
    checkpoint_every: int = 0
    checkpoint_minutes: float = 0.0
    audio_every: int = 0
    profile: tuple[int, ...] = ()
    peak_flops: float | None = None
    wandb_project: str | None = None
    keep_checkpoints: int = 2
    keep_best: int = 0
    best_metric: str = "eval_loss"
    frozen: tuple[str, ...] = ()
    max_skipped: int = 10
    watchdog_minutes: float = 60.0
    strategy: str = "single"
    mesh: tuple[int, ...] = ()
    optimizer: OptimizerConfig = OptimizerConfig()

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**32, "seed", self.seed, f"from 0 to {2**32 - 1}")
        for name in ("batch_size", "accumulate", "steps", "min_steps", "log_every", "keep_checkpoints", "max_skipped"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        wanted = f"a divisor of batch_size ({self.batch_size})"
        _require(self.batch_size % self.accumulate == 0, "accumulate", self.accumulate, wanted)
        for name in ("eval_every", "checkpoint_every", "checkpoint_minutes", "audio_every", "keep_best"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _require(self.watchdog_minutes >= 0, "watchdog_minutes", self.watchdog_minutes, "0 or more")
        measured = self.eval_every and self.checkpoint_every and self.checkpoint_every % self.eval_every == 0
        wanted = "0 unless eval_every divides checkpoint_every, so that every checkpoint is measured"
        _require(not self.keep_best or bool(measured), "keep_best", self.keep_best, wanted)
        window = len(self.profile) in (0, 2) and all(number >= 1 for number in self.profile)
        _require(window, "profile", self.profile, "(first step, number of steps), both 1 or more, or empty")
        _require(self.peak_flops is None or self.peak_flops > 0, "peak_flops", self.peak_flops, "above 0, or absent")
        _require(self.seconds is None or self.seconds > 0, "seconds", self.seconds, "above 0, or absent")
        if self.seconds is not None:
            longest = self.last_step
            _require(self.min_steps <= longest, "min_steps", self.min_steps, f"at most the run's steps ({longest})")
        if self.optimizer.ema_decay == "original":
            _require(self.batch_size <= 8000, "batch_size", self.batch_size, "at most 8000 with ema_decay=original")

    @property
    def last_step(self) -> int:
        """The largest number of steps: `steps`, or before that where "original_linear" has come down to 0."""
        optimizer = self.optimizer
        if optimizer.schedule != "original_linear" or optimizer.decay_steps is None:
            return self.steps
        return min(self.steps, optimizer.decay_start + optimizer.decay_steps)
