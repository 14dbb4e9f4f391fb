# SPDX-License-Identifier: LGPL-2.1-or-later
"""Vectored reads and writes: one write, however many pieces it comes in."""

from __future__ import annotations

import array
import mmap
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remus_native import ConfigError, StateError
from support.pair import checkpoint

MIB = 1 << 20
PIECES_MAX = 1024
ROOMY = {"segment_bytes": 4 * MIB, "journal_bytes": 64 * MIB}


@st.composite
def vectors(draw):
    """Pieces that fit a volume of 1 MiB, some empty, and where they go."""
    lengths = draw(
        st.lists(st.sampled_from([0, 1, 511, 512, 4096, 70_001]), max_size=9)
    )
    fill = draw(st.integers(1, 255))
    pieces = [bytes([(fill + i) % 256]) * n for i, n in enumerate(lengths)]
    return pieces, draw(st.integers(0, MIB - sum(lengths)))


class Shared:
    """One pair, and what its disks must hold."""

    def __init__(self, pair):
        self.pair, self.model = pair, bytearray(MIB)


@pytest.fixture
def shared(make_pair):
    """At the end the backup holds every byte of the model."""
    both = Shared(make_pair([MIB]))
    yield both
    epoch = checkpoint(both.pair.primary)
    both.pair.primary.close()
    both.pair.backup.promote(epoch)
    assert both.pair.image("backup", 0) == both.model


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(written=vectors(), cut=st.integers(700, 100_000))
def test_a_vector_is_what_its_pieces_join_to(shared, written, cut):
    pair, model = shared.pair, shared.model
    pieces, offset = written
    joined = b"".join(pieces)
    pair.primary.pwritev("xvda", pieces, offset)
    model[offset : offset + len(joined)] = joined
    # Read it back in other pieces than it was written in.
    into = [bytearray(len(joined[at : at + cut])) for at in range(0, len(joined), cut)]
    pair.primary.preadv("xvda", into, offset)
    assert b"".join(into) == joined
    assert pair.primary.pread("xvda", MIB, 0) == model


def test_a_vector_of_up_to_1_mib_is_one_record_so_in_one_epoch(make_pair):
    primary = make_pair([2 * MIB], **ROOMY).primary
    before = primary.status()
    primary.pwritev(0, [bytes([i]) * 1024 for i in range(256)] * 4, 512)
    after = primary.status()
    assert after.records - before.records == 1
    assert after.bytes_written - before.bytes_written == MIB


def test_a_barrier_beside_it_never_divides_a_vector(make_pair):
    """The same number stands in each piece of a checkpoint."""
    pair = make_pair([MIB], **ROOMY)
    end = threading.Event()

    def write() -> None:
        number = 0
        while not end.is_set():
            number += 1
            word = number.to_bytes(4, "little")
            pair.primary.pwritev(
                0, [word, bytes(200_000), word, bytes(90_000), word], 0
            )

    with pair.primary.writer():
        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(40):
                epoch = checkpoint(pair.primary)
        finally:
            end.set()
            writer.join()
    pair.primary.close()
    pair.backup.promote(epoch)
    disk = pair.image("backup", 0)
    places = (0, 200_004, 290_008)
    numbers = {int.from_bytes(disk[at : at + 4], "little") for at in places}
    assert len(numbers) == 1 and numbers != {0}


def test_any_memory_will_do(make_pair):
    primary = make_pair().primary
    numbers = array.array("Q", range(64))
    with mmap.mmap(-1, 4096) as memory:
        memory[:] = b"m" * 4096
        primary.pwritev(0, [numbers, memoryview(memory)[8:512], b""], 100)
    into = [bytearray(512), array.array("B", bytes(504))]
    primary.preadv(0, into, 100)
    assert into[0] == numbers.tobytes() and into[1].tobytes() == b"m" * 504


def test_what_is_refused_changes_nothing(make_pair):
    primary = make_pair([MIB]).primary
    before = primary.status().records
    # A bytes-like object is no sequence of buffers.
    for bad in (b"abc", [1], [memoryview(bytes(64))[::2]], [None]):
        with pytest.raises(ConfigError, match="pwritev: buffers"):
            primary.pwritev(0, bad, 0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="preadv: buffers"):
        primary.preadv(0, [b"read-only"], 0)
    with pytest.raises(StateError) as beyond:
        primary.pwritev(0, [bytes(MIB), b"x"], 0)
    assert beyond.value.errno == 28  # ENOSPC
    with pytest.raises(StateError):
        primary.preadv(0, [bytearray(2)], MIB - 1)
    with pytest.raises(StateError, match="at most 1024"):
        primary.pwritev(0, [b"x"] * (PIECES_MAX + 1), 0)
    with pytest.raises(ConfigError):
        primary.pwritev("xvdz", [b"x"], 0)
    assert primary.status().records == before
    assert primary.pread(0, MIB, 0) == bytes(MIB)
    primary.pwritev(0, [b"x"] * PIECES_MAX, 0)
    primary.pwritev(0, [], MIB)
    primary.preadv(0, [], 0)
    assert primary.pread(0, PIECES_MAX, 0) == b"x" * PIECES_MAX
