"""One run from its config: which model, on which data, into which folder."""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jukebox_jax import config as config_lib
from jukebox_jax.checkpoint import store
from jukebox_jax.checkpoint.models import TrainedCodec, load_codec, load_params, load_prior_config
from jukebox_jax.corpus.encode import check_rate
from jukebox_jax.errors import UserError
from jukebox_jax.evaluation.codec import codec_evaluation
from jukebox_jax.evaluation.listening import codec_listening, prior_listening
from jukebox_jax.evaluation.prior import prior_evaluation
from jukebox_jax.labels.ids import LabelTable, NameTable
from jukebox_jax.models.codebook import Codebook
from jukebox_jax.models.losses import Bandwidth, CodecLossConfig
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.models.vqvae import VQVAEConfig
from jukebox_jax.parallel.hosts import Part
from jukebox_jax.pipeline.bandwidth import bandwidth, stored_bandwidth
from jukebox_jax.pipeline.dataset import Dataset, open_dataset
from jukebox_jax.pipeline.stream import LabelSpec, LyricSpec, Stream, TimingSpec, long_enough
from jukebox_jax.training.codec_task import codec_task
from jukebox_jax.training.config import TrainConfig
from jukebox_jax.training.devices import part_of_this_host
from jukebox_jax.training.loop import train
from jukebox_jax.training.on_the_fly import EncodedStream
from jukebox_jax.training.prior_task import prior_task
from jukebox_jax.training.state import TrainState

# Values that change how a prior is trained, but not what its weights mean.
_ONLY_TRAINING = ("dtype", "remat", "init_scale", "loss_fraction")


@dataclass(frozen=True)
class CodecData:
    """Windows the codec is trained on: `window_samples` long, stereo mixed by a random weight if `blend`."""

    window_samples: int = 393_216
    blend: bool = True


@dataclass(frozen=True)
class CodecRun:
    """Training a VQ-VAE."""

    model: VQVAEConfig = VQVAEConfig()
    loss: CodecLossConfig = CodecLossConfig()
    data: CodecData = CodecData()
    train: TrainConfig = TrainConfig()


@dataclass(frozen=True)
class PriorRun:
    """Training a prior on tokens, or on audio that a codec encodes on the fly.

    Label tables of size 0 take the dataset's size. On audio, `blend` mixes stereo by a random weight. With
    `extend_labels` a run that starts from trained weights learns the names which these do not know; without, they are
    unknown to it.
    """

    model: PriorConfig
    train: TrainConfig = TrainConfig()
    blend: bool = True
    extend_labels: bool = True


def train_run(
    config: CodecRun | PriorRun,
    data: os.PathLike | str,
    run_dir: os.PathLike | str,
    codec: os.PathLike | str | None = None,
    *,
    init: os.PathLike | str | None = None,
    progress: bool = True,
) -> TrainState:
    """Trains a codec on audio, or a prior on tokens or audio, or goes on where the run folder stopped.

    Args:
      codec: for a prior on audio, the codec that encodes it; on tokens, optionally, the one they must come from.
      init: a model folder or run folder whose weights a new run starts from; its config must be the same. A prior also
        takes over its label table; names of the dataset that it does not have get rows behind its own, which start as
        copies of the row of "unknown": the model treats them as it did before, until it learns better.

    Raises:
      UserError: the data does not fit the model; see `training.loop.train` for the rest.
    """
    dataset = open_dataset(data)
    if isinstance(config, CodecRun):
        return _train_codec(config, dataset, Path(run_dir), init, progress)
    return _train_prior(config, dataset, Path(run_dir), codec, init, progress)


def _train_codec(
    config: CodecRun, dataset: Dataset, run_dir: Path, init: os.PathLike | str | None, progress: bool
) -> TrainState:
    model, window, hop = config.model, config.data.window_samples, config.model.hops[-1]
    if window % hop:
        valid = max(1, round(window / hop)) * hop
        raise UserError(f"data.window_samples={window} is not a multiple of the top hop {hop}: use {valid}.")
    if dataset.sample_rate != model.sample_rate:
        raise UserError(
            f"{dataset.folder} is at {dataset.sample_rate} Hz, the model at {model.sample_rate} Hz: prepare it again."
        )
    batch_size = config.train.batch_size
    trained = None
    if init is not None:
        trained = load_codec(init)
        _check_start("codec", init, trained.config, model)
    part = part_of_this_host(config.train)
    stream = Stream(
        dataset,
        "train",
        window,
        batch_size=batch_size,
        blend=config.data.blend,
        process_index=part.index,
        process_count=part.count,
    )
    held_out = _holds_out(dataset, window)
    _say_what_is_missing(stream, held_out)
    scales = Bandwidth(**_bandwidth(dataset, window))
    listen = None
    if held_out and config.train.audio_every:
        items = Stream(dataset, "validation", window, batch_size=1, shuffle=False, shift=False)
        listen = codec_listening(model, items)
    return train(
        codec_task(model, config.loss, scales, window),
        config.train,
        lambda position: stream.batches(config.train.seed, position),
        run_dir,
        start=None if trained is None else lambda state: codec_start(state, trained, window),
        evaluate=codec_evaluation(model, config.loss, scales, dataset, window, batch_size) if held_out else None,
        listen=listen,
        run_config={
            "kind": "codec",
            **config_lib.to_dict(config),
            "bandwidth": config_lib.to_dict(scales),
            **_licence(init),
        },
        progress=progress,
    )


def _train_prior(
    config: PriorRun,
    dataset: Dataset,
    run_dir: Path,
    codec: os.PathLike | str | None,
    init: os.PathLike | str | None,
    progress: bool,
) -> TrainState:
    model, labels = config.model, dataset.labels
    if init is not None:
        start, known, start_codec = load_prior_config(init)
        labels = _labels_from(known, start, dataset, init, config.extend_labels)
        wanted = _with_new_rows(start, labels)
        model = _with_rows(model, wanted)
        _check_start("prior", init, wanted, model)
    model = with_label_sizes(model, labels, f"{dataset.folder if init is None else init}")
    batch_size, audio = config.train.batch_size, "audio" in dataset.fields
    if audio and codec is None:
        raise UserError(
            f"{dataset.folder} holds audio and a prior learns tokens: add --codec CODEC to encode while training, or "
            "name a dataset that `jukebox-jax encode` wrote."
        )
    trained = None if codec is None else load_codec(codec)
    encoder = trained if audio else None
    part = part_of_this_host(config.train)
    stream = prior_stream(model, dataset, "train", batch_size, labels, codec=encoder, blend=config.blend, part=part)
    if audio:
        codec_hash, codes = trained.hash, trained.config.codes
    else:
        codec_hash, codes = dataset.codec["hash"], dataset.codec.get("codes", model.codes)  # older ones do not say
        if trained is not None and trained.hash != codec_hash:
            raise UserError(f"{dataset.folder} was not encoded by {codec}: encode it again with that codec.")
    if init is not None and start_codec not in ("", codec_hash):
        raise UserError(
            f"The prior in {init} was trained on the tokens of another codec than that of {codec or dataset.folder}: "
            "encode the audio with the prior's own codec."
        )
    if codes != model.codes:
        raise UserError(f"model.codes={model.codes}, but these tokens use {codes}: set --config.model.codes={codes}.")
    evaluate = listen = None
    if _holds_out(dataset, stream.window_samples):
        held_out = prior_stream(model, dataset, "validation", batch_size, labels, codec=encoder, shuffle=False)
        evaluate = prior_evaluation(model, _tokens_of(held_out, model, encoder, batch_size))
        if config.train.audio_every and trained is not None:
            items = prior_stream(model, dataset, "validation", 1, labels, codec=encoder, shuffle=False)
            listen = prior_listening(model, _tokens_of(items, model, encoder, 1), trained)
        elif config.train.audio_every and jax.process_index() == 0:
            print("Nothing will be heard while training: tokens become audio with --codec CODEC.", file=sys.stderr)
    _say_what_is_missing(stream, evaluate is not None)
    windows = _tokens_of(stream, model, encoder, batch_size // part.count)
    run_config: dict[str, Any] = {
        "kind": "prior",
        **config_lib.to_dict(dataclasses.replace(config, model=model)),
        "labels": labels.to_json() if model.labels else None,
        "codec": codec_hash,
        **_licence(init),
    }
    return train(
        prior_task(model),
        config.train,
        lambda position: windows.batches(config.train.seed, position),
        run_dir,
        start=None if init is None else lambda state: prior_start(state, init, start),
        evaluate=evaluate,
        listen=listen,
        run_config=run_config,
        progress=progress,
    )


def _bandwidth(dataset: Dataset, window_samples: int) -> dict[str, float]:
    """The constants that `prepare` stored, or else those computed now, which gives the same numbers."""
    return stored_bandwidth(dataset, window_samples) or bandwidth(dataset, window_samples)


def _tokens_of(
    stream: Stream, model: PriorConfig, encoder: TrainedCodec | None, local_batch: int
) -> Stream | EncodedStream:
    """The stream of a prior, encoded on the fly if it is one of audio."""
    if encoder is None:
        return stream
    levels = (model.level,) if model.conditioner is None else (model.level, model.level + 1)
    return EncodedStream(stream, encoder, levels, local_batch)


def _holds_out(dataset: Dataset, window_samples: int) -> bool:
    return bool(long_enough(dataset, "validation", window_samples))


def _say_what_is_missing(stream: Stream, held_out: bool) -> None:
    if jax.process_index():
        return
    folder, seconds = stream.dataset.folder, stream.window_samples / stream.dataset.sample_rate
    if stream.skipped_songs:
        songs = len(stream.dataset.splits[stream.split])
        print(
            f"{folder}: {len(stream.skipped_songs)} of {songs} training songs are shorter than a window "
            f"({seconds:.2f} s) and are left out.",
            file=sys.stderr,
        )
    if not held_out:
        print(
            f"{folder}: nothing is held out (no validation song is as long as a window, {seconds:.2f} s): "
            "training goes on without evaluation.",
            file=sys.stderr,
        )


def _licence(init: os.PathLike | str | None) -> dict[str, str]:
    """What is made from weights under a licence says so."""
    licence = "" if init is None else store.load_licence(init)
    return {"licence": licence} if licence else {}


def _check_start(kind: str, init: os.PathLike | str, trained: Any, model: Any) -> None:
    """Raises a UserError unless weights trained with one config mean the same with the other."""
    different = [key for key in config_lib.differences(trained, model) if key.rpartition(".")[2] not in _ONLY_TRAINING]
    if different:
        names = ", ".join(f"model.{key}" for key in different)
        raise UserError(f"The {kind} in {init} has another config, which differs in {names}: use its values.")


def _labels_from(
    known: LabelTable | None, trained: PriorConfig, dataset: Dataset, init: os.PathLike | str, extend: bool
) -> LabelTable:
    """The label table of a run that starts from a trained prior with the table `known`."""
    if known is None or trained.labels is None:
        return known or dataset.labels
    names = dataset.labels.artists.names, dataset.labels.genres.names
    table = known.extended(*names, (trained.labels.artists, trained.labels.genres)) if extend else known
    new = [len(after.names) - len(before.names) for after, before in zip(_tables(table), _tables(known), strict=True)]
    if any(new) and jax.process_index() == 0:
        print(
            f"{init} does not know {new[0]} artists and {new[1]} genres of {dataset.folder}: they get rows of their "
            'own, which start as that of "unknown".',
            file=sys.stderr,
        )
    return table


def _tables(labels: LabelTable) -> tuple[NameTable, NameTable]:
    return labels.artists, labels.genres


def _with_new_rows(trained: PriorConfig, labels: LabelTable) -> PriorConfig:
    """A trained prior's config with label tables that are large enough for `labels`."""
    if trained.labels is None:
        return trained
    artists, genres = max(trained.labels.artists, labels.artists.rows), max(trained.labels.genres, labels.genres.rows)
    return dataclasses.replace(trained, labels=dataclasses.replace(trained.labels, artists=artists, genres=genres))


def _with_rows(model: PriorConfig, trained: PriorConfig) -> PriorConfig:
    """`model` with label tables as large as those of `trained` where it leaves their sizes open."""
    if model.labels is None or trained.labels is None:
        return model
    rows = {name: getattr(model.labels, name) or getattr(trained.labels, name) for name in ("artists", "genres")}
    return dataclasses.replace(model, labels=dataclasses.replace(model.labels, **rows))


def codec_start(state: TrainState, trained: TrainedCodec, window_samples: int) -> TrainState:
    """A fresh state with a trained codec's weights and codes.

    The moving averages behind the codes are rebuilt as if every code had been used equally (spec: VQ-VAE, section 3).
    """
    config = trained.config
    books = tuple(
        Codebook.restored(codes, window_samples // hop * jax.device_count() / config.codes)
        for codes, hop in zip(trained.codec.codebooks, config.hops, strict=True)
    )
    return _started(state, trained.codec.params, books)


def prior_start(state: TrainState, init: os.PathLike | str, trained: PriorConfig) -> TrainState:
    """A fresh state with a trained prior's weights, read into the state's shardings.

    Label tables of more rows than the trained ones are filled with copies of the trained row of "unknown".

    Args:
      trained: the config in `init`.

    Raises:
      UserError: no prior there, or one of another config.
    """
    like = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=p.sharding), state.params)
    if trained.labels is not None:
        for name, rows in (("artist", trained.labels.artists), ("genre", trained.labels.genres)):
            table = like["labels"][name]
            like["labels"][name] = table.update(shape=(rows, table.shape[1]))
    params = load_params(init, like)
    if trained.labels is not None:
        for name in ("artist", "genre"):
            new = state.params["labels"][name].shape[0] - params["labels"][name].shape[0]
            params["labels"][name] = _with_copies_of_first_row(params["labels"][name], new)
    return _started(state, params, state.model_state)


@partial(jax.jit, static_argnums=1)
def _with_copies_of_first_row(table: Float[Array, "n d"], count: int) -> Float[Array, "m d"]:
    return jnp.concatenate([table, jnp.repeat(table[:1], count, axis=0)])


def _started(state: TrainState, params: Any, model_state: Any) -> TrainState:
    ema = None if state.ema is None else jax.tree.map(lambda old, new: new.astype(old.dtype) + 0, state.ema, params)
    new = state.replace(params=params, ema=ema, model_state=model_state)
    return jax.device_put(new, jax.tree.map(lambda leaf: leaf.sharding, state))


def with_label_sizes(model: PriorConfig, labels: LabelTable, where: str) -> PriorConfig:
    """`model` with label tables large enough for the names of `labels`: sizes of 0 are filled in.

    Raises:
      UserError: a table with fewer rows than there are names; `where` says whose.
    """
    if model.labels is None:
        return model
    sizes = {}
    for name, table in (("artists", labels.artists), ("genres", labels.genres)):
        rows = getattr(model.labels, name) or table.rows
        if rows < table.rows:
            raise UserError(f"model.labels.{name}={rows} is too small for {where}: it needs {table.rows}.")
        sizes[name] = rows
    return dataclasses.replace(model, labels=dataclasses.replace(model.labels, **sizes))


def prior_stream(
    model: PriorConfig,
    dataset: Dataset,
    split: str,
    batch_size: int,
    table: LabelTable,
    *,
    codec: TrainedCodec | None = None,
    shuffle: bool = True,
    blend: bool = False,
    part: Part = Part(0, 1),
) -> Stream:
    """The windows of tokens, upper tokens, labels and lyrics that `model` reads; of a batch, this process's part.

    Args:
      table: the model's own label table; names of the dataset that it does not have are unknown.
      codec: what will encode the windows, which are then windows of audio, mixed to mono by a random weight if `blend`.

    Raises:
      UserError: there are no tokens of the model's level, other ratios between levels, or audio of another rate than
        the codec's.
    """
    field, above = f"level_{model.level}", f"level_{model.level + 1}"
    hops, source = dataset.fields, f"{dataset.folder}"
    if codec is not None:
        check_rate(dataset, codec.config)
        hops = {f"level_{level}": hop for level, hop in enumerate(codec.config.hops)}
        source = "the codec"
    if field not in hops:
        raise UserError(
            f"{source} has no tokens of level {model.level}: choose another model.level, or a dataset that "
            "`jukebox-jax encode` wrote with another codec."
        )
    fields = (field,)
    if model.conditioner is not None:
        ratio = hops.get(above, 0) / hops[field]
        if ratio != model.conditioner.ratio:
            raise UserError(
                f"The conditioner upsamples {model.conditioner.ratio}-fold, but {source} has {ratio:g} tokens "
                f"of level {model.level} for one of the level above: set model.conditioner.downs and .stride."
            )
        fields += (above,)
    labels = None
    if model.labels is not None:
        c = model.labels
        timing = None
        if model.has_timing:
            timing = TimingSpec(c.time_bins, c.min_duration_seconds, c.max_duration_seconds, hops[field])
        lyrics = None if model.lyrics is None else LyricSpec(model.lyrics.text, model.lyrics.tokens)
        labels = LabelSpec(table, c.max_genres, timing, lyrics)
    elif model.lyrics is not None:
        raise UserError("model.lyrics needs model.labels, which say where in the song a window lies: give both.")
    return Stream(
        dataset,
        split,
        model.n_ctx * hops[field],
        batch_size=batch_size,
        fields=fields if codec is None else ("audio",),
        labels=labels,
        shuffle=shuffle,
        shift=shuffle,
        blend=blend and codec is not None,
        process_index=part.index,
        process_count=part.count,
    )
