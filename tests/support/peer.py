# SPDX-License-Identifier: LGPL-2.1-or-later
"""A primary made of bytes, and the backup that it talks to."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from remus_native import Backup, Volume
from support import formats
from support.formats import ERROR, HELLO, REPLY, RESYNC

BEGIN, FLUSH, FLUSHED, END, DONE = 1, 2, 3, 4, 5
SIZE = 65536
SESSION = 0x5E55104


class Peer:
    """A primary made of bytes, after docs/formats.md."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(path)
        self.buffer = b""

    def send(self, kind: int, payload: bytes = b"", **fields: int) -> None:
        self.socket.sendall(formats.encode(kind, payload, session=SESSION, **fields))

    def receive(self, *skip: int) -> formats.Record:
        """The next record that is not a ping or of a type to skip."""
        while True:
            while True:
                try:
                    record = formats.record(self.buffer)
                    break
                except formats.Invalid:
                    data = self.socket.recv(65536)
                    if not data:
                        raise EOFError from None
                    self.buffer += data
            self.buffer = self.buffer[64 + len(record.payload) :]
            if record.type != 10 and record.type not in skip:
                return record

    def error(self) -> str:
        """The reason with which the backup ends the connection."""
        record = self.receive(formats.ACK, 8)
        assert record.type == ERROR
        with pytest.raises(EOFError):
            self.receive()
        return record.payload.decode()

    def greet(self) -> int:
        """Hello and its reply; the number of the first counted record."""
        self.send(HELLO, formats.hello("guest0", [("xvda", SIZE)]))
        reply = self.receive()
        assert reply.type == REPLY
        return int.from_bytes(reply.payload[16:24], "little")

    def copy(self, first_epoch: int = 1) -> None:
        """A first copy of one block."""
        self.send(RESYNC, flags=BEGIN)
        self.send(formats.WRITE, b"copied", flags=1, offset=100)
        self.send(RESYNC, flags=FLUSH)
        assert self.receive().flags == FLUSHED
        self.send(RESYNC, flags=END, epoch=first_epoch)
        assert self.receive().flags == DONE


@contextmanager
def served(folder: Path, *, discard_local: bool = False) -> Iterator[Backup]:
    """A backup in ``folder`` that listens on its ``sock``."""
    with Backup(
        "guest0",
        state_dir=folder / "state",
        volumes=[Volume("xvda", folder / "disk")],
        journal_bytes=1 << 20,
        segment_bytes=65536,
        discard_local=discard_local,
    ) as handle:
        handle.serve(f"unix:{folder}/sock", loss_ms=500)
        yield handle


@pytest.fixture
def backup(tmp_path: Path) -> Iterator[Backup]:
    (tmp_path / "disk").write_bytes(bytes(SIZE))
    (tmp_path / "state").mkdir()
    with served(tmp_path) as handle:
        yield handle


@pytest.fixture
def peer(backup: Backup, tmp_path: Path) -> Iterator[Peer]:
    with ExitStack() as stack:
        made = Peer(str(tmp_path / "sock"))
        stack.callback(made.socket.close)
        yield made


def barrier(recs: list[bytes], epoch: int, number: int) -> dict[str, int]:
    run = formats.running_crc([formats.record(rec) for rec in recs])
    return {"offset": len(recs), "span": run, "epoch": epoch, "number": number}


def write(data: bytes, offset: int, epoch: int, number: int) -> bytes:
    return formats.encode(
        formats.WRITE, data, offset=offset, epoch=epoch, session=SESSION, number=number
    )


def one_epoch(peer: Peer) -> int:
    """Copied, and epoch 1 acked and committed; the next number."""
    n = peer.greet()
    peer.copy()
    rec = write(b"one", 0, 1, n)
    peer.socket.sendall(rec)
    peer.send(formats.BARRIER, formats.barrier(b"tag1"), **barrier([rec], 1, n + 1))
    ack = peer.receive()
    assert (ack.type, ack.epoch) == (formats.ACK, 1)
    peer.send(formats.COMMIT, epoch=1)
    assert peer.receive().type == 8  # durably consistent
    return n + 2
