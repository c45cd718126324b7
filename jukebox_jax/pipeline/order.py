"""The stateless order of training examples: what example number e is, computed from (seed, e) alone.

Examples are counted over all epochs and all hosts. Example e belongs to epoch e // n; within an epoch the n windows
are permuted by a cipher on indices, so nothing is shuffled in memory, nothing is saved, and example e costs the same
wherever training starts. The random functions are TensorFlow ops, which run eagerly and inside tf.data alike.
"""

from __future__ import annotations

import functools
import os
from types import ModuleType

import numpy as np
from jaxtyping import Int64

# What random bits are drawn for: every use has numbers of its own. The permutation takes three.
SHIFT, BLEND, _PERMUTATION = 1, 2, 3


@functools.cache
def tensorflow() -> ModuleType:
    """TensorFlow kept to the host and to few threads: the accelerators and the other cores belong to JAX."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # announces itself at every start, and nothing here uses it
    import tensorflow as tf

    try:
        for kind in ("GPU", "TPU"):
            tf.config.set_visible_devices([], kind)
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(2)
    except RuntimeError:
        # The program had used TensorFlow before it came here: its own settings stand.
        pass
    return tf


def shuffled_index(examples, seed: int, count: int):
    """The windows of the examples: for each epoch a permutation of [0, count).

    Args:
      examples: int64 (n,), an array or a tensor; example e is at place e mod count of epoch e // count.
      seed: in [0, 2^64).
      count: windows in an epoch.

    Returns:
      int64 tensor (n,).
    """
    tf = tensorflow()
    examples = tf.convert_to_tensor(examples, tf.int64)
    epoch, place = examples // count, examples % count
    # The cipher has no key schedule to speak of: with small numbers as its key, neighbours stay neighbours (measured:
    # correlation 0.3 at 323 windows). So its three 32-bit words are hashed.
    keys = [random_bits(epoch, seed, purpose) for purpose in (_PERMUTATION, _PERMUTATION + 1, _PERMUTATION + 2)]
    words = tf.stack([tf.bitwise.right_shift(key, tf.constant(32, tf.uint64)) for key in keys], axis=1)
    # tf.random.experimental.index_shuffle would fill in the first word itself, and pads a matrix of seeds on the wrong
    # axis, so that vectors need the op beneath it.
    return tf.raw_ops.RandomIndexShuffle(index=place, seed=words, max_index=tf.constant(count - 1, tf.int64), rounds=4)


def random_integers(examples, seed: int, purpose: int, count: int):
    """For each example an integer in [0, count), int64 (n,): independent of the batch it is drawn in."""
    tf = tensorflow()
    # 63 bits: far more than `count`, so that the remainder is as good as uniform.
    bits = tf.bitwise.right_shift(random_bits(examples, seed, purpose), tf.constant(1, tf.uint64))
    return tf.cast(bits, tf.int64) % count


def random_bits(numbers, seed: int, purpose: int):
    """64 random bits for each number, uint64 (n,): a SplitMix64 hash of (seed, purpose, number)."""
    tf = tensorflow()
    state = _mix(_mix(tf.constant(seed, tf.uint64)) + tf.constant(purpose, tf.uint64))
    return _mix(tf.bitwise.bitwise_xor(_mix(tf.cast(numbers, tf.uint64)), state))


def window_chunks(
    items: Int64[np.ndarray, " n"],
    shifts: Int64[np.ndarray, " n"],
    song_ends: Int64[np.ndarray, " songs"],
    window: int,
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Maps items of the songs laid end to end to chunks that each lie inside one song (spec/training.md 1).

    Item i is nominally [i · window + shift, … + window). The song is the one that holds the midpoint (exactly on a
    boundary: the earlier one); a chunk that sticks out of it is pushed back by half a window, and no further than the
    song's other end. All lengths are in one unit: samples, or hops for tokens.

    Args:
      shifts: in [-(window // 2), window // 2), or zeros.
      song_ends: cumulative lengths of songs that are each at least `window` long.

    Returns:
      (song index, offset in that song).
    """
    half = window // 2
    start = items * window + shifts
    song = np.searchsorted(song_ends, start + half, side="left")
    song_end = song_ends[song]
    song_start = np.where(song == 0, 0, song_ends[song - 1])
    latest = song_end - window
    chunk = np.where(
        start > latest,
        np.maximum(song_start, start - half),
        np.where(start < song_start, np.minimum(latest, start + half), start),
    )
    # Half of an odd window is rounded down, which can leave the chunk one sample too late.
    chunk = np.minimum(chunk, latest)
    return song, chunk - song_start


def _mix(x):
    """The finaliser of SplitMix64, on uint64 tensors modulo 2^64."""
    tf = tensorflow()
    x += tf.constant(0x9E3779B97F4A7C15, tf.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(shift, tf.uint64)))
        x *= tf.constant(factor, tf.uint64)
    return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(31, tf.uint64)))
