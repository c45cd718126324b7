from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jukebox_jax.corpus.chunks import Chunking
from jukebox_jax.models.vqvae import VQVAEConfig, encoder_reach

SMALL = VQVAEConfig(widths=(4, 4, 4), depths=(1, 1, 1), emb_width=4, codes=16)


@st.composite
def chunked_songs(draw) -> tuple[Chunking, int]:
    """Lengths at, just before and just behind every place where the number of chunks changes, and any others."""
    hop = draw(st.sampled_from([1, 2, 8, 128]))
    reach = draw(st.integers(1, 9)) * hop
    new = draw(st.integers(1, 20)) * hop
    edge = 2 * reach + draw(st.integers(0, 6)) * new
    length = max(0, draw(st.one_of(st.just(edge), st.integers(0, 9 * (new + reach)))) + draw(st.integers(-2, 2)))
    return Chunking(2 * reach + new, reach, hop), length


@given(chunked_songs())
def test_chunks_keep_every_sample_once_and_see_as_far_as_the_encoders(given_):
    chunking, length = given_
    whole = length // chunking.hop * chunking.hop
    done = 0
    for index in range(chunking.count(length)):
        chunk = chunking.chunk(length, index)
        assert chunk.first == done
        assert (chunk.last > chunk.first) or whole == 0
        assert chunk.stop - chunk.start <= chunking.samples
        assert chunk.start == 0 or chunk.first - chunk.start >= chunking.reach
        assert chunk.stop == whole or chunk.stop - chunk.last >= chunking.reach
        assert all(place % chunking.hop == 0 for place in (chunk.start, chunk.stop, chunk.first, chunk.last))
        done = chunk.last
    assert done == whole


@pytest.mark.parametrize(
    ("config", "longest", "asked", "expected"),
    [
        (VQVAEConfig(), 10_000_000, None, 2**20),  # a tenth of it at most is encoded twice
        (VQVAEConfig(), 300_000, None, 2**19),  # no longer than the longest song
        (SMALL, 10_000_000, None, 2**18),
        (SMALL, 100, None, 128),
        (SMALL, 0, None, 128),
        (SMALL, 10_000, 5_000, 5_120),
    ],
)
def test_chunks_are_as_long_as_pays_off(config, longest, asked, expected):
    assert Chunking.of(config, longest, asked).samples == expected


def test_a_chunk_has_room_for_something_new():
    chunking = Chunking.of(SMALL, 10_000, 128)
    assert chunking.samples >= 2 * encoder_reach(SMALL) + 128
    assert chunking.count(10_000) > 1
