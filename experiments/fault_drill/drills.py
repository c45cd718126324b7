"""Which drills there are, and the music that they work on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import numpy as np

import jukebox_jax
from experiments.fault_drill.config import CODES
from experiments.fault_drill.engine import Drill
from experiments.fault_drill.training import Place, bad_numbers_drill, training_drill
from experiments.fault_drill.verbs import embed_drill, encode_drill, prepare_drill, sample_drill
from jukebox_jax.corpus.demo_corpus import demo_folder
from jukebox_jax.corpus.prepare import prepare
from jukebox_jax.corpus.tokens import write_token_dataset
from jukebox_jax.pipeline.dataset import Song

HOPS = {"level_0": 8, "level_1": 32, "level_2": 128}
#: Of three songs of 6 s by the shipped model.
SAMPLE_WINDOWS = 561
CODEC = Path(jukebox_jax.__file__).parent / "toy" / "vqvae"


@dataclasses.dataclass(frozen=True)
class Data:
    """The demo corpus as files, as an audio dataset, and with random codes as a token dataset."""

    music: Path
    audio: Path
    tokens: Path


def write_data(folder: Path) -> Data:
    """Prepares the demo corpus and makes codes for it; some seconds."""
    audio = prepare(demo_folder(), folder / "audio")
    rng = np.random.default_rng(0)

    def codes(split: str, song: Song, samples: np.ndarray) -> dict[str, np.ndarray]:
        del split, song
        return {name: rng.integers(0, CODES, len(samples) // hop).astype(np.uint16) for name, hop in HOPS.items()}

    write_token_dataset(audio, folder / "tokens", HOPS, codes, "random", codes=CODES)
    return Data(demo_folder(), folder / "audio", folder / "tokens")


def make_drills(data: Data, cache: Path, steps: int, names: Collection[str]) -> list[Drill]:
    """The drills of these names, in the order of the table."""
    return [make(name, data, cache, steps) for name, make in _DRILLS.items() if name in names]


def _prior(name: str, data: Data, cache: Path, steps: int, **options) -> Drill:
    return training_drill(name, "prior", data.tokens, steps, cache, **options)


def _codec(name: str, data: Data, cache: Path, steps: int, **options) -> Drill:
    return training_drill(name, "codec", data.audio, steps, cache, **options)


def _near_prior(name: str, data: Data, cache: Path, steps: int, places: tuple[Place, ...]) -> Drill:
    return _prior(name, data, cache, steps, places=places, loss_limit=1e-4)


def _near_codec(name: str, data: Data, cache: Path, steps: int, places: tuple[Place, ...]) -> Drill:
    # Which code is nearest is chaotic: after more steps two runs that rounding parted are two runs.
    return _codec(name, data, cache, min(steps, 20), places=places, loss_limit=1e-3)


_PRIOR_MESHES = (Place(), Place("fsdp", 8), Place("dp", 4), Place("fsdp_sp", 4), Place("hsdp", 8), Place("fsdp_tp", 4))
_CODEC_MESHES = (Place(), Place("fsdp", 8), Place("dp", 4), Place("hsdp", 8))
_HOSTS = (Place("fsdp", 2, hosts=2), Place("fsdp", 4), Place("dp", 1, hosts=4))

_DRILLS: dict[str, Callable[[str, Data, Path, int], Drill]] = {
    "prior": _prior,
    "codec": _codec,
    "prior_sharded": partial(_prior, places=(Place("fsdp", 8),)),
    "codec_sharded": partial(_codec, places=(Place("fsdp", 8),)),
    "prior_two_hosts": partial(_prior, places=(Place("fsdp", 2, hosts=2),)),
    "prior_meshes": partial(_near_prior, places=_PRIOR_MESHES),
    "codec_meshes": partial(_near_codec, places=_CODEC_MESHES),
    "prior_hosts": partial(_near_prior, places=_HOSTS),
    "codec_hosts": partial(_near_codec, places=_HOSTS),
    "bad_numbers": lambda name, data, cache, steps: bad_numbers_drill(name, steps, cache),
    "prepare": lambda name, data, cache, steps: prepare_drill(data.music, "--workers", 2),
    "encode": lambda name, data, cache, steps: encode_drill(data.audio, CODEC),
    "embed": lambda name, data, cache, steps: embed_drill(data.music, CODEC.parent),
    "sample": lambda name, data, cache, steps: sample_drill(None, "--seconds", 6, songs=3, windows=SAMPLE_WINDOWS),
}
NAMES = tuple(_DRILLS)
