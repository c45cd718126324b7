"""Runs without a dataset: what is planned for."""

from __future__ import annotations

import dataclasses

from jukebox_jax.interop.released import VQVAE
from jukebox_jax.models.losses import Bandwidth
from jukebox_jax.training.codec_task import codec_task
from jukebox_jax.training.prior_task import prior_task
from jukebox_jax.training.run import CodecRun, PriorRun
from jukebox_jax.training.task import Task

# Where a config leaves the sizes of the label tables to the dataset: those of the released models.
ARTISTS, GENRES = 4111, 120


def task_of(run: CodecRun | PriorRun) -> Task:
    """The task of a run, without a dataset: label tables as large as the released ones, loudness constants of 1."""
    if isinstance(run, CodecRun):
        return codec_task(run.model, run.loss, Bandwidth(), run.data.window_samples)
    return prior_task(with_labels(run).model)


def with_labels(run: PriorRun) -> PriorRun:
    """The run with label tables as large as the released ones where its config leaves that to the dataset."""
    model = run.model
    if model.labels is None:
        return run
    sizes = {"artists": model.labels.artists or ARTISTS, "genres": model.labels.genres or GENRES}
    return dataclasses.replace(run, model=dataclasses.replace(model, labels=dataclasses.replace(model.labels, **sizes)))


def audio_seconds(run: CodecRun | PriorRun) -> float:
    """Seconds of music in an example; of a prior, over the released codec."""
    if isinstance(run, CodecRun):
        return run.data.window_samples / run.model.sample_rate
    return run.model.n_ctx * VQVAE.hops[min(run.model.level, VQVAE.levels - 1)] / VQVAE.sample_rate
