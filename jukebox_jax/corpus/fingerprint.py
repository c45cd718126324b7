"""Acoustic fingerprints: the same recording in another encoding, at another rate or level, is found again.

After Haitsma and Kalker, "A Highly Robust Audio Fingerprinting System" (ISMIR 2002): a bit says whether the slope of
the spectrum between two neighbouring bands rises or falls with time; 32 bits are a sub-fingerprint. Theirs stand
11.6 ms apart, to find three seconds within an album. Ours compare whole songs, so frames of 0.74 s every 0.19 s do, and
the slope is compared with that of the frame just before, without overlap.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, UInt32

RATE = 5_512.5  # Hz: 44,100 / 8
FRAME = 4_096  # samples at RATE: 0.74 s
HOP = 1_024  # 0.19 s: 5.4 sub-fingerprints a second
LAG = FRAME // HOP
BANDS_HZ = (300.0, 2_000.0)  # 33 bands of equal ratio, as in the paper
# Differences below this share of a frame's energy are noise: a steady tone or silence gives zero bits.
LEAST_CHANGE = 1e-4
QUIET = 1e-4  # root mean square; -80 dB of full scale

# Measured over the 18 demo pieces (tests/corpus/test_fingerprint.py prints it): the distance of a piece to itself as
# MP3 at 128 kbit/s is at most 0.01, as Vorbis, 25 ms late and at -6 dB 0.07, half a hop late (the worst case) 0.17; of
# different pieces, at the best of 41 offsets, at least 0.49. No copy was missed, and none of 153 pairs taken for one.
MOST_DISTANCE = 0.2
QUARTERS = 4
LEAST_OVERLAP = 0.8  # of the shorter song
MOST_LENGTH_RATIO = 1.1  # longer to shorter: an excerpt, or an album in one file, is no duplicate
LEAST_WORDS = 16  # three seconds that say something
KEYS = 32  # of a song in the index
MOST_NEIGHBOURS = 32  # songs that a song is compared with for one key


class Fingerprinter:
    """Sub-fingerprints of a song that comes in blocks, the same whatever the sizes of the blocks."""

    def __init__(self, sample_rate: int):
        """Args: sample_rate: of the blocks, in Hz."""
        import soxr

        # No higher quality: nothing above 2 kHz is looked at.
        self._resampler = soxr.ResampleStream(sample_rate, RATE, 1, dtype="float32", quality="LQ")
        self._window = np.hanning(FRAME).astype(np.float32)
        self._edges = np.rint(np.geomspace(*BANDS_HZ, 34) * FRAME / RATE).astype(int)
        self._waiting = np.zeros(0, np.float32)  # samples of which not every frame is done
        self._slopes = np.zeros((0, 32), np.float32)  # of the last LAG frames
        self._energies = np.zeros(0, np.float32)
        self._words: list[int] = []

    def add(self, samples: Float[np.ndarray, "t c"]) -> None:
        """Takes the next block."""
        mono = samples[:, 0] if samples.shape[1] == 1 else np.float32(0.5) * (samples[:, 0] + samples[:, 1])
        self._resampled(self._resampler.resample_chunk(np.ascontiguousarray(mono)))

    def finish(self) -> tuple[int, ...]:
        """All sub-fingerprints: none for less than 1.5 seconds; 0 where nothing changes."""
        self._resampled(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        return tuple(self._words)

    def _resampled(self, samples: Float[np.ndarray, " t"]) -> None:
        self._waiting = np.concatenate([self._waiting, samples])
        if len(self._waiting) < FRAME:
            return
        frames = np.lib.stride_tricks.sliding_window_view(self._waiting, FRAME)[::HOP]
        self._waiting = self._waiting[len(frames) * HOP :].copy()
        spectrum = np.fft.rfft(frames * self._window)[:, self._edges[0] : self._edges[-1]]
        power = np.square(spectrum.real) + np.square(spectrum.imag)
        bands = np.add.reduceat(power, self._edges[:-1] - self._edges[0], axis=1)
        slopes = np.concatenate([self._slopes, bands[:, :-1] - bands[:, 1:]])
        energies = np.concatenate([self._energies, bands.sum(axis=1)])
        least = LEAST_CHANGE * (energies[LAG:] + energies[:-LAG])
        bits = slopes[LAG:] - slopes[:-LAG] > np.maximum(least, (QUIET * FRAME) ** 2 / 8)[:, None]
        self._words += np.packbits(bits, axis=1).view(">u4")[:, 0].tolist()
        self._slopes, self._energies = slopes[-LAG:], energies[-LAG:]


def distance(first: Sequence[int], second: Sequence[int], offset: int) -> float:
    """How much two songs differ where they overlap: 0 for the same, 0.5 by chance, 1.0 with too little to compare.

    It is the bit error rate with a denominator for sparse music: the bits that differ over the bits that are set in
    either, counted twice in both (Dice); where half the bits are set, the two agree. The overlap is cut into QUARTERS,
    and the worst of them counts: a song played faster fits at one place only.

    Args:
      offset: `first[i + offset]` sounds together with `second[i]`.
    """
    overlap = min(len(first) - max(offset, 0), len(second) - max(-offset, 0))
    if overlap < LEAST_OVERLAP * min(len(first), len(second)):
        return 1.0
    a = np.asarray(first[max(offset, 0) : max(offset, 0) + overlap], np.uint32)
    b = np.asarray(second[max(-offset, 0) : max(-offset, 0) + overlap], np.uint32)
    if np.count_nonzero(a & b) < LEAST_WORDS:
        return 1.0
    differing = [part.sum() for part in np.array_split(np.bitwise_count(a ^ b).astype(int), QUARTERS)]
    set_bits = [part.sum() for part in np.array_split(np.bitwise_count(a).astype(int) + np.bitwise_count(b), QUARTERS)]
    return float(max(d / s for d, s in zip(differing, set_bits, strict=True) if s))


def find_near_duplicates(fingerprints: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Groups of indices of songs that are one recording; the same groups in whatever order the songs come.

    A song stands in an inverted index with KEYS of its sub-fingerprints, chosen by their value, so that copies choose
    the same. Two songs that share one, at the offset that it implies (and one hop about it), are compared whole:
    a distance below MOST_DISTANCE over at least LEAST_OVERLAP of the shorter, lengths within MOST_LENGTH_RATIO.

    The index takes 12 bytes a key, 384 a song, and sorting it as much again. Fingerprints (four bytes a
    sub-fingerprint where they are packed: 5 kB for four minutes) are read one at a time, so a sequence that reads them
    from a file will do.

    Returns:
      Groups of two or more, each ascending, ordered by their first.
    """

    def rank(index: int) -> tuple[int, bytes]:
        # By length, so that what may be a duplicate is near; then by content, so that the order given does not matter.
        words = np.asarray(fingerprints[index], np.uint32)
        return len(words), hashlib.sha256(words.tobytes()).digest()[:8]

    order = sorted(range(len(fingerprints)), key=rank)
    leader = list(range(len(order)))

    def lead(song: int) -> int:
        while leader[song] != song:
            leader[song] = leader[leader[song]]
            song = leader[song]
        return song

    for first, second, offset in _candidates(fingerprints[index] for index in order):
        if lead(first) == lead(second):
            continue
        a, b = fingerprints[order[first]], fingerprints[order[second]]
        if any(distance(a, b, near) < MOST_DISTANCE for near in (offset, offset - 1, offset + 1)):
            leader[max(lead(first), lead(second))] = min(lead(first), lead(second))
    groups: dict[int, list[int]] = {}
    for song, index in enumerate(order):
        groups.setdefault(lead(song), []).append(index)
    return sorted(tuple(sorted(group)) for group in groups.values() if len(group) > 1)


def _candidates(fingerprints: Iterable[tuple[int, ...]]) -> Iterator[tuple[int, int, int]]:
    """(song, later song, offset) that share a key, of songs ordered by length."""
    keys, songs, positions, lengths = [], [], [], []
    for song, fingerprint in enumerate(fingerprints):
        words, places = _keys(np.asarray(fingerprint, np.uint32))
        keys.append(words)
        songs.append(np.full(len(words), song, np.uint32))
        positions.append(places)
        lengths.append(len(fingerprint))
    if not keys:
        return
    key, song, position = np.concatenate(keys), np.concatenate(songs), np.concatenate(positions)
    by_key = np.lexsort((song, key))
    key, song, position = key[by_key], song[by_key], position[by_key]
    length = np.asarray(lengths)
    for step in range(1, min(MOST_NEIGHBOURS + 1, len(key))):
        same = np.flatnonzero(key[:-step] == key[step:])
        if not len(same):
            break
        same = same[length[song[same + step]] <= MOST_LENGTH_RATIO * length[song[same]]]
        offsets = position[same].astype(int) - position[same + step].astype(int)
        pairs = np.stack([song[same], song[same + step], offsets], axis=1).astype(int)
        yield from map(tuple, np.unique(pairs, axis=0).tolist())


def _keys(words: UInt32[np.ndarray, " n"]) -> tuple[UInt32[np.ndarray, " k"], UInt32[np.ndarray, " k"]]:
    """The sub-fingerprints under which a song is indexed, and where each stands first."""
    found, first = np.unique(words, return_index=True)
    bits = np.bitwise_count(found)
    found, first = found[telling := (bits >= 4) & (bits <= 28)], first[telling]
    # In an order that has nothing to do with music (Knuth's multiplicative hashing), the same for every copy.
    chosen = np.argsort(found * np.uint32(2_654_435_769))[:KEYS]
    return found[chosen], first[chosen].astype(np.uint32)
