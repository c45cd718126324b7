"""What a model sounds like while it trains: fixed held-out windows, what becomes of them, and short samples.

Under the mesh of training, but without its rules, every device computes all of the few items; on several hosts, all of
them call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jukebox_jax.audio.files import Clips
from jukebox_jax.checkpoint.models import TrainedCodec
from jukebox_jax.evaluation.placement import everywhere, placed
from jukebox_jax.evaluation.prior import Windows
from jukebox_jax.models.codebook import Codebook
from jukebox_jax.models.prior import PriorConfig
from jukebox_jax.models.vqvae import Codec, VQVAEConfig, decode, encode
from jukebox_jax.sampling.drawing import SamplingConfig, song_keys
from jukebox_jax.sampling.engine import sample_window

#: How many windows are listened to, spread over the held-out songs; always the same ones.
ITEMS = 3
#: A sample ends after so many tokens, or with the window: this is to be heard between two training steps.
SAMPLE_TOKENS = 2048


def codec_listening(model: VQVAEConfig, windows: Windows) -> Callable[[dict, tuple[Codebook, ...]], Clips]:
    """A function (params, codebooks) → `item_I_input` and, from each level alone, `item_I_level_L`.

    Args:
      windows: an unshuffled stream of held-out audio, one window a batch.
    """
    audio = _items(windows)["audio"]

    @jax.jit
    def reconstruct(params, codebooks, audio):
        codec = Codec(params, tuple(book.codes for book in codebooks))
        codes = encode(model, codec, audio)
        return everywhere([decode(model, codec, level_codes, level) for level, level_codes in enumerate(codes)])

    def listen(params: dict, codebooks: tuple[Codebook, ...]) -> Clips:
        levels = jax.device_get(reconstruct(params, codebooks, placed({"audio": audio})["audio"]))
        named = {"input": audio} | {f"level_{level}": heard for level, heard in enumerate(levels)}
        return _clips(named, model.sample_rate)

    return listen


def prior_listening(model: PriorConfig, windows: Windows, codec: TrainedCodec) -> Callable[[dict, dict], Clips]:
    """A function (params, model_state) → `item_I_input`, the window's own codes as the codec plays them, and
    `item_I_sample`, what the prior makes of the window's labels, lyrics and upper codes.

    Args:
      windows: an unshuffled stream of held-out tokens, one window a batch.
    """
    items, sampling, length = _items(windows), SamplingConfig(), min(model.n_ctx, SAMPLE_TOKENS)

    # One jitted function around all of them: on several hosts it may not meet arrays that are on one alone.
    @jax.jit
    def sample(params, batch):
        keys = song_keys(0, jnp.arange(len(batch["tokens"])), model.level)
        tokens = sample_window(model, sampling, params, batch, keys, given=0, target=length, first=0)
        return everywhere(tokens[:, :length])

    @jax.jit
    def play(codec_arrays, tokens):
        return decode(codec.config, codec_arrays, tokens, model.level)

    def listen(params: dict, model_state: dict) -> Clips:
        del model_state
        sampled = np.asarray(sample(params, placed(items)))
        named = {"input": play(codec.codec, items["tokens"]), "sample": play(codec.codec, sampled)}
        return _clips(named, codec.config.sample_rate)

    return listen


def _items(windows: Windows) -> dict[str, np.ndarray]:
    """The windows to listen to as one batch."""
    count = min(ITEMS, windows.n_windows)
    batches = [windows.batch(0, index * windows.n_windows // count) for index in range(count)]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _clips(named: Mapping[str, Float[Array, "b _ 1"] | Float[np.ndarray, "b _ 1"]], sample_rate: int) -> Clips:
    return {
        f"item_{item}_{name}": (np.asarray(audio[item, :, 0], np.float32), sample_rate)
        for name, audio in named.items()
        for item in range(len(audio))
    }
