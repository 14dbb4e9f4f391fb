# SPDX-License-Identifier: LGPL-2.1-or-later
"""A first copy whose end the primary did not hear of: what a session takes on
top of it is acked, so it can be had, though nobody has committed anything."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from remus_native import Export, State, StateError
from support import formats
from support.mounted import SEND, WAIT
from support.pair import MIB, Pair, next_checkpoint
from support.waiting import until


def whole_record(data: bytes) -> formats.Record | None:
    try:
        return formats.record(data)
    except formats.Invalid:
        return None  # the rest of it comes


class AckLost:
    """Between both sides: the first ack cuts the connection, and is lost."""

    def __init__(self, front: Path, back: Path) -> None:
        self.back, self.lost = back, False
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(front))
        self.listener.listen(16)
        self.sockets = [self.listener]
        self.threads: list[threading.Thread] = []
        self.start(self.accept)

    def start(self, what, *args) -> None:
        self.threads.append(threading.Thread(target=what, args=args))
        self.threads[-1].start()

    def accept(self) -> None:
        while True:
            try:
                front = self.listener.accept()[0]
            except OSError:
                return
            back = socket.socket(socket.AF_UNIX)
            self.sockets += [front, back]
            try:
                back.connect(str(self.back))
            except OSError:
                self.end(front)
                continue
            self.start(self.pass_on, front, back, False)
            self.start(self.pass_on, back, front, True)

    def pass_on(self, source: socket.socket, to: socket.socket, answers: bool) -> None:
        data = b""
        try:
            while more := source.recv(65536):
                if not answers or self.lost:
                    to.sendall(more)
                    continue
                data += more
                while (rec := whole_record(data)) is not None:
                    if rec.type == formats.ACK:
                        self.lost = True
                        return
                    length = formats.HEADER.size + len(rec.payload)
                    to.sendall(data[:length])
                    data = data[length:]
        except OSError:
            pass
        finally:
            self.end(source, to)

    def end(self, *sockets: socket.socket) -> None:
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.end(*self.sockets)
        for thread in self.threads:
            thread.join()
        for one in self.sockets:
            one.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Nothing was ever copied, and the primary's disk holds something."""
    pair = Pair(tmp_path, [MIB], grace_ms=3_600_000)
    (tmp_path / "primary.xvda").write_bytes(random.Random(3).randbytes(MIB))
    between = AckLost(tmp_path / "front", tmp_path / "sock")
    try:
        yield pair
    finally:
        pair.close()
        between.close()


def open_primary(pair: Pair):
    behind, pair.address = pair.address, f"unix:{pair.folder}/front"
    primary = pair.open_primary(wait=False)
    pair.address = behind
    return primary


def lost_primary(pair: Pair, *, restarted: bool):
    """The backup, alone."""
    pair.primary.close()
    if restarted:
        pair.backup.close()
        pair.open_backup(serve=False)
    assert pair.backup.status().state is State.STANDBY
    offered = pair.backup.checkpoints()
    assert not [cp for cp in offered if cp.committed]
    return pair.backup, offered


@pytest.mark.parametrize("named", ["number", "tag"])
@pytest.mark.parametrize("restarted", [False, True])
def test_it_can_be_failed_over_to_by_its_name(pair, named, restarted):
    primary = open_primary(pair)
    primary.session_begin()
    backup = pair.open_backup()
    assert backup.status().state is State.INCONSISTENT
    with pytest.raises(StateError, match="Inconsistent"):
        backup.promote()
    epoch = next_checkpoint(primary, "first")
    at_first = primary.pread(0, MIB, 0)
    assert primary.status().state is State.PROTECTED
    assert backup.status().state is State.PROTECTED
    primary.pwrite(0, b"and then it died", 0)
    backup, offered = lost_primary(pair, restarted=restarted)
    assert offered[-1].epoch == epoch
    with pytest.raises(StateError, match=f"none is committed.*{epoch}"):
        backup.promote()
    with pytest.raises(StateError, match="no checkpoint 0"):
        backup.promote(0)  # the copy alone is none
    by_name = {"number": {"checkpoint": epoch}, "tag": {"tag": "first"}}
    assert backup.promote(**by_name[named]) == epoch
    assert pair.image("backup", 0) == at_first


def taken(fd: int) -> bool:
    """An ioctl 20, once the copy is so far that it is taken."""
    try:
        return fcntl.ioctl(fd, SEND, 7) in (0, 1)
    except OSError as error:
        if error.errno != errno.EPROTO:
            raise
        return False


@pytest.mark.fuse
@pytest.mark.parametrize("restarted", [False, True])
def test_through_ioctls_it_is_the_default(pair, restarted):
    """They have no commit: what an ioctl 30 was told is what there is."""
    mount = pair.folder / "mount"
    mount.mkdir()
    primary = open_primary(pair)
    with Export(primary, mount):
        fd = os.open(mount / "xvda", os.O_RDWR)
        try:
            primary.session_begin()  # else the engine ends the catch-up
            pair.open_backup()
            until(lambda: taken(fd))
            at_first = primary.pread(0, MIB, 0)
            assert fcntl.ioctl(fd, WAIT, 0) == 0
            os.pwrite(fd, b"and then it died", 0)
        finally:
            os.close(fd)
    backup, offered = lost_primary(pair, restarted=restarted)
    assert offered[-1].tag == b"7"
    assert backup.promote() == offered[-1].epoch
    assert pair.image("backup", 0) == at_first
