"""Songs of any length cut into chunks of one length, such that their codes are those of the song in one piece."""

from __future__ import annotations

from dataclasses import dataclass

from jukebox_jax.models.vqvae import VQVAEConfig, encoder_reach

# No chunk need be longer than 20 times the encoders' reach: then at most a tenth of it is encoded twice.
_REACHES = 20
# Below this, starting the computation costs more than what is in it.
_LEAST_SAMPLES = 2**18


@dataclass(frozen=True)
class Chunk:
    """Samples [start, stop) of a song are encoded; of the codes, those of samples [first, last) are kept."""

    start: int
    stop: int
    first: int
    last: int


@dataclass(frozen=True)
class Chunking:
    """Chunks of `samples` that overlap so far that each code sees all that it depends on, up to `reach` samples away.

    Both are whole hops of the coarsest level. A song is cut to whole hops of it, too.
    """

    samples: int
    reach: int
    hop: int

    @classmethod
    def of(cls, config: VQVAEConfig, longest: int, samples: int | None = None) -> Chunking:
        """Chunks for songs of up to `longest` samples: `samples` long or, by default, as long as pays off."""
        hop = config.hops[-1]
        reach = -(-encoder_reach(config) // hop) * hop
        if samples is None:
            samples = min(max(_LEAST_SAMPLES, _power_of_two(_REACHES * reach)), _power_of_two(longest))
        # Room for the overlap on both sides, and for something new between.
        samples = max(samples, 2 * reach + hop) if longest > samples else samples
        return cls(-(-samples // hop) * hop, reach, hop)

    def count(self, length: int) -> int:
        """How many chunks a song has; at least one."""
        new = self.samples - 2 * self.reach
        length = length // self.hop * self.hop
        return 1 if length <= self.samples else -(-(length - 2 * self.reach) // new)

    def chunk(self, length: int, index: int) -> Chunk:
        """Chunk number `index` of a song of `length` samples."""
        length = length // self.hop * self.hop
        start = index * (self.samples - 2 * self.reach)
        stop = min(start + self.samples, length)
        # Where the song begins and ends, there is nothing beyond the edge to wait for.
        return Chunk(start, stop, start + self.reach if start else 0, stop if stop == length else stop - self.reach)


def _power_of_two(least: int) -> int:
    """The smallest power of two that is not below `least`."""
    return 1 << max(0, least - 1).bit_length()
