"""Set h: three levels sampled greedily, from nothing, over given codes, after a prompt, and on from codes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity.fixture import Reader
from experiments.parity.report import AUDIO, OTHER, Check
from experiments.parity.vqvae import settled_codes
from jukebox_jax.checkpoint.models import TrainedPrior
from jukebox_jax.evaluation.alignment import alignment
from jukebox_jax.interop.hparams import codec_config, prior_config
from jukebox_jax.interop.layout import codec_from_state, prior_from_state
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.models.vqvae import Codec, VQVAEConfig, decode, encode
from jukebox_jax.sampling.cascade import sample_level
from jukebox_jax.sampling.drawing import SamplingConfig
from jukebox_jax.sampling.requests import Level, SongLabels

Codes = Mapping[int, np.ndarray]


@dataclass(frozen=True)
class _Cascade:
    config: VQVAEConfig
    codec: Codec
    levels: Sequence[Level]
    songs: Sequence[Sequence[SongLabels]]


def checks(recorded: Reader) -> Iterator[Check]:
    cascade = _load(recorded)
    sample, levels = recorded.config["sample"], range(len(cascade.levels))
    for level, facts in enumerate(cascade.levels):
        window = facts.prior.config.n_ctx
        yield Check(f"extra/prior{level}_n_ctx", window)
        yield Check(f"extra/prior{level}_raw_to_tokens", facts.hop_samples)
        yield Check(f"extra/prior{level}_sample_length", window * facts.hop_samples)

    top = levels[-1]
    yield from _mode(recorded, cascade, "ancestral", sample["sample_length"], {})
    yield Check(f"out/upsample/z_l{top}", recorded[f"in/upsample_z_l{top}"])
    given = {top: recorded[f"in/upsample_z_l{top}"]}
    yield from _mode(recorded, cascade, "upsample", sample["sample_length"], given, levels[:-1])

    prompt = jnp.asarray(recorded["in/prompt_x"])
    for level in levels:
        codes = np.asarray(encode(cascade.config, cascade.codec, prompt, (level,))[0])
        name = f"out/primed/prompt_z_l{level}"
        yield Check(name, settled_codes(cascade.config, cascade.codec, prompt, level, codes, recorded[name]))
    given = {level: recorded[f"out/primed/prompt_z_l{level}"] for level in levels}
    yield from _mode(recorded, cascade, "primed", sample["sample_length"], given)
    given = {level: recorded[f"out/ancestral/z_l{level}"] for level in levels}
    yield from _mode(recorded, cascade, "continue", recorded.config["continue_sample_length"], given)


def _load(recorded: Reader) -> _Cascade:
    hps = recorded.config["vqvae"]
    config = codec_config(hps)
    codec = jax.tree.map(jnp.asarray, codec_from_state(config, recorded.below("sd_vqvae/")))
    metas = recorded.config["metas"]
    levels, songs = [], []
    for level, own in enumerate(recorded.config["priors"]):
        prior = prior_config(own, config)
        params = jax.tree.map(jnp.asarray, prior_from_state(prior, recorded.below(f"sd_prior{level}/")))
        levels.append(
            Level(
                prior=TrainedPrior(prior, params, labels=None, codec_hash=""),
                hop_samples=config.hops[level],
                ratio=1 if prior.conditioner is None else prior.conditioner.ratio,
                sample_rate=own.get("sr", config.sample_rate),
            )
        )
        rows = [[0, 0, 0, 0]] * recorded.config["sample"]["n_samples"]
        name = f"in/labels_y_prior{level}"
        # A prior without labels has label vectors of no entries, if any.
        if (name in recorded and recorded[name].size) or prior.labels is not None:
            rows = recorded[name].tolist()
        songs.append([_song(prior, index, row, metas[index % len(metas)]) for index, row in enumerate(rows)])
    return _Cascade(config, codec, levels, songs)


def _song(prior: PriorConfig, index: int, row: Sequence[int], meta: Mapping[str, Any]) -> SongLabels:
    """A song from its label vector [total length, offset, sample length, artist, genres…, lyrics of one window…]."""
    genres = () if prior.labels is None else tuple(row[4 : 4 + prior.labels.max_genres])
    lyrics = np.zeros(0, np.int32) if prior.lyrics is None else prior.lyrics.text.tokens(meta["lyrics"])
    return SongLabels(index, row[0], row[1], row[3], genres, lyrics)


def _mode(
    recorded: Reader, cascade: _Cascade, mode: str, length: int, given: Codes, sampled: Sequence[int] | None = None
) -> Iterator[Check]:
    """Codes and audio of one way to sample. Every level builds on the recorded codes of the one above."""
    sample, top = recorded.config["sample"], len(cascade.levels) - 1
    for level in reversed(range(top + 1) if sampled is None else sampled):
        facts = cascade.levels[level]
        codes = sample_level(
            facts,
            cascade.songs[level],
            length // facts.hop_samples,
            seed=0,
            sampling=SamplingConfig(temperature=float(sample["temps"][level]), top_k=1),
            hop_fraction=float(sample["hop_fraction"][level]),
            batch_size=min(sample["max_batch_size"][level], len(cascade.songs[level])),
            upper=None if level == top else recorded[f"out/{mode}/z_l{level + 1}"],
            given=given.get(level),
            overrun=True,
        )
        yield Check(f"out/{mode}/z_l{level}", codes)
    declared = (re.fullmatch(rf"out/{mode}/x_from_l(\d+)", name) for name in recorded.fixture.declared)
    for level in sorted(int(match[1]) for match in declared if match):
        codes = jnp.asarray(recorded[f"out/{mode}/z_l{level}"])
        yield Check(f"out/{mode}/x_from_l{level}", decode(cascade.config, cascade.codec, codes, level), AUDIO)
    if f"out/{mode}/alignment_item0" in recorded.fixture.declared:
        codes, fraction = recorded[f"out/{mode}/z_l{top}"], float(sample["hop_fraction"][top])
        for item, matrix in enumerate(alignment(cascade.levels[top], codes, cascade.songs[top], fraction)):
            yield Check(f"out/{mode}/alignment_item{item}", matrix, OTHER)
