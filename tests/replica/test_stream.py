# SPDX-License-Identifier: LGPL-2.1-or-later
"""A backup and what a primary, a faulty one or a stranger may send it."""

from __future__ import annotations

import contextlib
import struct
import time
from pathlib import Path

import pytest

from remus_native import State, StateError
from support import formats
from support.formats import BYE, HELLO, REPLY, RESYNC
from support.peer import (
    BEGIN,
    END,
    SESSION,
    SIZE,
    Peer,
    barrier,
    one_epoch,
    served,
    write,
)
from support.waiting import until


def test_the_primary_learns_what_an_epoch_came_to(peer: Peer) -> None:
    n = one_epoch(peer)
    recs = [
        write(b"x" * 512, 0, 2, n),
        write(b"y" * 100, 50, 2, n + 1),  # over it
        write(b"z" * 50, 512, 2, n + 2),  # goes on where it ends
        write(b"far", 40000, 2, n + 3),
    ]
    peer.socket.sendall(b"".join(recs))
    peer.send(formats.BARRIER, formats.barrier(), **barrier(recs, 2, n + 4))
    ack = peer.receive(8)
    assert (ack.type, ack.epoch, len(ack.payload)) == (formats.ACK, 2, 8)
    assert formats.committed(ack.payload) == 1
    peer.send(formats.COMMIT, epoch=2)
    news: list[tuple[int, int, int]] = []
    while len(news) < 2:
        record = peer.receive()
        assert record.type == 8
        news += formats.measured(record.payload)
    assert news == [(1, 1, 0), (2, 2, 100)]


@pytest.mark.parametrize("at", [0, 255, 511])
def test_a_payload_that_was_damaged_on_the_way_ends_the_connection(backup, peer, at):
    """Nothing of it is kept: what is acked is the epoch before."""
    n = one_epoch(peer)
    damaged = bytearray(write(b"x" * 512, 0, 2, n))
    damaged[64 + at] ^= 0x10
    peer.socket.sendall(damaged)
    assert "payload CRC differs" in peer.error()
    assert [cp.epoch for cp in backup.checkpoints()] == [1]


def test_the_page_is_enough_to_write_a_primary(backup, peer, tmp_path):
    one_epoch(peer)
    assert backup.status().state is State.PROTECTED
    peer.send(BYE)
    with pytest.raises(EOFError):
        peer.receive()
    assert backup.promote(tag="tag1") == 1
    disk = (tmp_path / "disk").read_bytes()
    assert disk[:3] == b"one"
    assert disk[100:106] == b"copied"


def test_a_copy_without_the_epoch_that_ends_it_can_not_be_promoted(backup, peer):
    n = peer.greet()
    peer.copy()
    peer.socket.sendall(write(b"one", 0, 1, n))
    until(lambda: backup.status().journal_bytes)
    assert backup.status().state is State.CATCHING_UP
    peer.send(BYE)
    until(lambda: backup.status().state is State.INCONSISTENT)
    assert backup.checkpoints() == ()
    for wanted in ({}, {"checkpoint": 1}, {"force": True}):
        with pytest.raises(StateError):
            backup.promote(**wanted)


def test_nothing_to_promote_until_the_epoch_that_ends_the_copy_is_acked(
    backup, peer, tmp_path
):
    n = peer.greet()
    assert backup.checkpoints() == ()
    peer.copy()
    recs = [write(b"one", 0, 1, n)]
    peer.socket.sendall(b"".join(recs))
    until(lambda: backup.status().journal_bytes)
    assert backup.status().state is State.CATCHING_UP
    assert backup.checkpoints() == ()
    peer.send(formats.BARRIER, formats.barrier(b"t"), **barrier(recs, 1, n + 1))
    assert peer.receive().type == formats.ACK
    assert backup.status().state is State.PROTECTED
    assert [(cp.epoch, cp.committed) for cp in backup.checkpoints()] == [(1, False)]
    peer.send(BYE)
    with pytest.raises(EOFError):
        peer.receive()
    # Nobody committed it, so it wants its name.
    with pytest.raises(StateError, match=r"none is committed.*none.*, 1"):
        backup.promote()
    assert backup.status().state is State.STANDBY
    with pytest.raises(StateError, match="no checkpoint 0"):
        backup.promote(0)  # the copy alone is none
    assert backup.promote(tag="t") == 1
    disk = (tmp_path / "disk").read_bytes()
    assert disk[:3] == b"one"
    assert disk[100:106] == b"copied"


@pytest.mark.parametrize("at", [3, 4, 17, 40, 59, 62, 66])
def test_a_damaged_record_ends_the_connection(backup, peer, at):
    n = one_epoch(peer)
    rec = bytearray(write(b"two", 0, 2, n))
    rec[at] ^= 0x10
    peer.socket.sendall(bytes(rec) + bytes(4096))
    assert "CRC" in (reason := peer.error()) or "magic" in reason
    assert [cp.epoch for cp in backup.checkpoints()] == [1]
    assert reason in backup.status().reason


@pytest.mark.parametrize(
    ("record", "match"),
    [
        (lambda n: write(b"x", 0, 2, n + 1), "expected"),
        (lambda n: write(b"x", 0, 3, n), "expected"),
        (lambda n: write(b"x", SIZE, 2, n), "outside of"),
        (lambda n: write(b"x" * 20000, 0, 2, n), "limit here"),
        (lambda n: formats.encode(3, b"x", volume=9, epoch=2, session=SESSION,
                                  number=n), "no volume 9"),
        (lambda n: formats.encode(3, b"x", epoch=2, session=1, number=n), "session"),
        (lambda n: formats.encode(3, b"x", flags=1, session=SESSION), "outside of a"),
        (lambda n: formats.encode(5, b"x" * 57, epoch=2, session=SESSION, number=n),
         "57 bytes of payload"),
        (lambda n: formats.encode(5, formats.barrier(), epoch=2, offset=1,
                                  session=SESSION, number=n), "announced"),
        (lambda n: formats.encode(7, epoch=9, session=SESSION), "not prepared"),
        (lambda n: formats.encode(9, flags=77, session=SESSION), "unknown step"),
        (lambda n: formats.encode(99, session=SESSION), "unknown type"),
        (lambda n: formats.encode(32, session=SESSION), "memory pages"),
        (lambda n: formats.encode(33, session=SESSION), "memory state"),
        (lambda n: formats.encode(34, session=SESSION), "growing a volume"),
        (lambda n: formats.encode(3, b"x", flags=4, epoch=2, session=SESSION,
                                  number=n), "unknown flag 0x04 of type 3"),
        (lambda n: formats.encode(5, formats.barrier(), flags=8, epoch=2,
                                  session=SESSION, number=n), "unknown flag"),
        (lambda n: formats.encode(10, flags=2, session=SESSION), "unknown flag"),
        (lambda n: formats.encode(6, session=SESSION), "from a primary"),
        (lambda n: formats.encode(9, flags=BEGIN, session=SESSION), "BEGIN refused"),
    ],
)  # fmt: skip
def test_a_wrong_record_ends_the_connection(backup, peer, record, match):
    n = one_epoch(peer)
    peer.socket.sendall(record(n))
    assert match in peer.error()
    assert [cp.epoch for cp in backup.checkpoints()] == [1]


@pytest.mark.parametrize(
    ("payload", "match"),
    [
        (formats.hello("guest1", [("xvda", SIZE)]), "resource guest1"),
        (formats.hello("guest0", [("xvdb", SIZE)]), "xvdb on the primary"),
        (formats.hello("guest0", [("xvda", 512)]), "make them equal"),
        (formats.hello("guest0", [("xvda", SIZE)] * 2), "2 volumes"),
        (formats.hello("guest0", [("xvda", SIZE)], version=9), "version 9"),
        (formats.hello("guest0", [("xvda", SIZE)], version=3), "version 3"),
        (formats.hello("guest0", [("xvda", SIZE)], flags=1), "unknown flag 0x1"),
        (b"", "too short"),
        (formats.hello("guest0", [("xvda", SIZE)])[:-1], "with 1 volumes"),
    ],
)
def test_a_wrong_hello_is_refused(backup, peer, payload, match):
    peer.send(HELLO, payload)
    assert match in peer.error()
    assert not backup.status().connected


def test_who_says_nothing_is_dropped(backup, peer):
    assert "sent nothing" in peer.error()


def test_a_hello_in_drips_ends_in_time(backup, peer):
    """Half a second (`loss_ms`) for all of it, however many pieces come."""
    hello = formats.encode(
        HELLO, formats.hello("guest0", [("xvda", SIZE)]), session=SESSION
    )
    start = time.monotonic()
    sent = 0
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for byte in hello:
            peer.socket.sendall(bytes([byte]))
            sent += 1
            time.sleep(0.05)
    assert sent < len(hello)
    assert time.monotonic() - start < 3
    assert "did not complete it in time" in peer.error()


def test_an_epoch_beyond_all_numbers_is_refused(backup, peer):
    peer.greet()
    peer.send(RESYNC, flags=BEGIN)
    peer.send(RESYNC, flags=END, epoch=2**64 - 1)
    assert "first epoch" in peer.error()


def test_a_promoted_backup_says_so_in_its_refusals(backup, peer, tmp_path):
    one_epoch(peer)
    peer.socket.close()
    backup.promote()
    late = Peer(str(tmp_path / "sock"))
    try:
        late.send(HELLO, formats.hello("guest0", [("xvda", SIZE)]))
        assert late.receive().type == REPLY
        with pytest.raises(EOFError):
            late.receive()
    finally:
        late.socket.close()
    (refusal,) = backup.refusals()
    assert refusal.cause == "busy"
    assert "promoted: a primary was told so" in refusal.text


@pytest.mark.parametrize("discard", [False, True])
def test_a_primary_that_never_gave_its_numbers_can_be_let_in(
    backup, peer, tmp_path, discard
):
    """It was set back with its memory, and knows the session: whoever starts
    the backup with discard_local gets a new copy of its disks."""
    one_epoch(peer)
    peer.socket.close()
    backup.close()
    with served(tmp_path, discard_local=discard):
        late = Peer(str(tmp_path / "sock"))
        try:
            # Its next epoch is 1, and the backup holds that.
            late.send(HELLO, formats.hello("guest0", [("xvda", SIZE)]))
            reply = late.receive()
        finally:
            late.socket.close()
    assert reply.type == REPLY
    assert reply.payload[40:56] == (bytes(16) if discard else b"g" * 16)


def test_a_session_that_ends_in_an_epoch_leaves_no_trace(backup, peer, tmp_path):
    n = one_epoch(peer)
    peer.socket.sendall(write(b"never closed", 0, 2, n))
    peer.socket.close()
    backup.promote()
    assert (tmp_path / "disk").read_bytes()[:12] == b"one" + bytes(9)


def test_a_counted_record_in_the_middle_of_a_copy(backup, peer):
    n = peer.greet()
    peer.send(RESYNC, flags=BEGIN)
    peer.send(formats.WRITE, b"straight to the disk", flags=1, offset=100)
    peer.socket.sendall(write(b"counted", 0, 2, n))
    assert "before the copy ended" in peer.error()
    assert backup.status().state is State.INCONSISTENT
    with pytest.raises(StateError):
        backup.promote()


def greet_again(tmp_path: Path) -> tuple[Peer, formats.Record]:
    """One more connection, once the backup has let go of the last."""
    end = time.monotonic() + 20
    while True:
        made = Peer(str(tmp_path / "sock"))
        made.send(HELLO, formats.hello("guest0", [("xvda", SIZE)]))
        reply = made.receive()
        if reply.type == REPLY:
            return made, reply
        made.socket.close()
        assert b"another primary" in reply.payload and time.monotonic() < end


def test_a_hello_promises_no_reserve_that_is_used_up(backup, peer, tmp_path):
    """A session for each checkpoint and no commit: one day a primary is told
    that the journal is full; the reserve is whole, and for the commit there
    always is room."""
    one_epoch(peer)
    peer.socket.close()
    newest, reserves = 1, []
    while len(reserves) < 100:
        again, reply = greet_again(tmp_path)
        last, n, _, reserve = struct.unpack_from("<4Q", reply.payload, 8)
        reserves.append(reserve)
        if reply.payload[84] & 1:  # full
            break
        newest = last + 1
        again.send(RESYNC, flags=6, epoch=newest)
        again.send(formats.BARRIER, formats.barrier(), **barrier([], newest, n))
        ack = again.receive(8)
        assert (ack.type, ack.epoch) == (formats.ACK, newest)
        again.socket.close()
    assert 1 < len(reserves) < 100
    assert min(reserves) > 12288
    again.socket.close()
    again, reply = greet_again(tmp_path)
    again.send(RESYNC, flags=6, epoch=newest + 1)
    assert "full of checkpoints" in again.error()
    again, reply = greet_again(tmp_path)
    again.send(formats.COMMIT, epoch=newest)
    news = again.receive()
    assert news.type == 8 and news.range > 12288
    again.socket.close()
    assert backup.status().committed_epoch == newest
