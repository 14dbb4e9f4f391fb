# SPDX-License-Identifier: LGPL-2.1-or-later
"""A primary and what a broken or hostile backup may answer."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remus_native import Primary, ReplicationLost, State, Volume
from remus_native._binding import ffi, lib, sized
from support import formats
from support.formats import ERROR, HELLO, REPLY
from support.pair import QUIET
from support.waiting import until

ACK, PING = 6, 10
COMPLETE, CONSISTENT = 2, 3  # REMUS_CONTENT_*
SIZE = 1 << 20


def reply(generation: bytes = b"", **fields: int) -> bytes:
    """The payload of a HELLO_REPLY: an empty backup's, but for `fields`."""
    names = ["last_epoch", "next_number", "credit", "reserve"]
    more = ["held", "committed", "capacity"]
    values = {
        "next_number": 1, "credit": SIZE * 8, "reserve": SIZE, "capacity": SIZE * 8,
        "payload": 60000, "content": 0, "flags": 0, "has": 0, **fields,
    }  # fmt: skip
    return struct.pack(
        "<II4Q16s3QII16xQ", 5, values["payload"],
        *(values.get(name, 0) for name in names), generation,
        *(values.get(name, 0) for name in more), values["content"],
        values["flags"], values["has"],
    )  # fmt: skip


class IllBackup(threading.Thread):
    """Answers each connection as `answer(self, hello)` says; listen=False
    does so without waiting for a hello."""

    def __init__(
        self,
        answer: Callable[[IllBackup, formats.Record | None], None],
        listen: bool = True,
    ) -> None:
        super().__init__(daemon=True)
        self.listen = listen
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.answer, self.served, self.buffer = answer, 0, b""
        self.socket: socket.socket | None = None
        self.errors: list[BaseException] = []
        self.start()

    def run(self) -> None:
        while True:
            try:
                self.socket, _ = self.listener.accept()
            except OSError:
                return
            self.socket.settimeout(20)
            self.buffer = b""
            with self.socket:
                try:
                    self.answer(self, self.receive(HELLO) if self.listen else None)
                except (EOFError, OSError):
                    pass
                except BaseException as error:
                    self.errors.append(error)
            self.served += 1

    def receive(self, kind: int) -> formats.Record:
        """The next record of this kind."""
        assert self.socket is not None
        while True:
            try:
                record = formats.record(self.buffer)
            except formats.Invalid:
                data = self.socket.recv(65536)
                if not data:
                    raise EOFError from None
                self.buffer += data
                continue
            self.buffer = self.buffer[64 + len(record.payload) :]
            if record.type == kind:
                return record

    def send(self, kind: int, payload: bytes = b"", **fields: int) -> None:
        assert self.socket is not None
        self.socket.sendall(formats.encode(kind, payload, **fields))

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        if self.socket is not None:
            self.socket.close()
        self.join(30)
        assert not self.errors


class Made:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts: list[Primary | IllBackup] = []

    def __call__(
        self,
        answer: Callable[[IllBackup, formats.Record], None],
        volumes: int = 1,
        size: int = SIZE,
        listen: bool = True,
        **options: int,
    ) -> tuple[Primary, IllBackup]:
        backup = IllBackup(answer, listen)
        self.parts.append(backup)
        (self.folder / "state").mkdir()
        for i in range(volumes):
            (self.folder / f"disk{i}").write_bytes(bytes(size))
        primary = Primary(
            "guest0", state_dir=self.folder / "state", tls="off", connect_ms=5,
            volumes=[Volume(f"xvd{i}", self.folder / f"disk{i}")
                     for i in range(volumes)],
            address=f"tcp:127.0.0.1:{backup.port}", **{**QUIET, **options},
        )  # fmt: skip
        self.parts.append(primary)
        return primary, backup


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    one = Made(tmp_path)
    yield one
    for part in reversed(one.parts):
        part.close()


def says(primary: Primary, words: str) -> None:
    until(lambda: words in primary.status().reason)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"last_epoch": 2**64 - 1}, "a number of"),
        ({"held": 2**63}, "a number of"),
        ({"next_number": 2**64 - 1}, "a number of"),
        ({"credit": 2**64 - 1, "reserve": 2**64 - 1}, "a number of"),
        ({"payload": 0}, "payload limit 0"),
        ({"payload": 2**31}, "payload limit"),
        ({"content": 77}, "unknown content 77"),
    ],
)
def test_a_reply_that_can_not_be(made, fields, words):
    def answer(backup: IllBackup, hello: formats.Record) -> None:
        backup.send(REPLY, reply(**fields), session=hello.session)
        backup.receive(0)

    primary, _ = made(answer)
    says(primary, words)
    assert primary.status().state is State.CONNECTING
    primary.pwrite(0, b"x", 0)
    assert primary.pread(0, 1, 0) == b"x"


@pytest.mark.parametrize("field", ["epoch", "offset", "number", "span"])
def test_progress_that_can_not_be(made, field):
    """Above all: nothing is forgotten that the backup only claims to have."""

    def answer(backup: IllBackup, hello: formats.Record) -> None:
        backup.send(REPLY, reply(), session=hello.session)
        backup.send(PING, session=hello.session)
        backup.send(PING, session=hello.session, **{field: 2**64 - 1})
        backup.receive(0)

    primary, _ = made(answer)
    says(primary, "the newest barrier is")
    assert primary.status().state is not State.PROTECTED


def test_an_ack_of_nothing_protects_nobody(made):
    """An ack that comes before the barrier that it would answer."""

    def answer(backup: IllBackup, hello: formats.Record) -> None:
        backup.send(REPLY, reply(last_epoch=7), session=hello.session)
        backup.send(ACK, session=hello.session, epoch=8, offset=8)
        backup.receive(0)

    primary, _ = made(answer)
    says(primary, "ack of epoch 8")
    with pytest.raises(ReplicationLost):
        primary.postsuspend()


@pytest.mark.parametrize("content", [COMPLETE, CONSISTENT])
def test_a_checkpoint_that_we_never_took_is_not_overwritten(made, content):
    """It is of our generation and session: our state is an older copy, from
    before all numbers that were reserved then."""

    def answer(backup: IllBackup, hello: formats.Record) -> None:
        held = {"held": 5_000_000, "last_epoch": 5_000_000}
        known = {"generation": hello.payload[16:32], "content": content, **held}
        backup.send(REPLY, reply(**known), session=hello.session)
        assert backup.socket is not None
        sent.append(backup.socket.recv(1))

    sent: list[bytes] = []
    primary, _ = made(answer)
    says(primary, "checkpoint 5000000, which this side never took")
    assert primary.status().state is State.SPLIT_BRAIN
    until(lambda: sent)
    assert sent[0] == b""


NASTY = (
    b'x\nstate=Protected\r\x1b[31m\x7f "q" \\ \xff\xc3\xa4\xc3 \xed\xa0\x80\xc2\x9b end'
)


def formatted(primary: Primary, json: int) -> str:
    status = sized("status")
    with primary._call() as raw:
        assert lib.remus_primary_status(raw, status) == 0
    buf = ffi.new("char[8192]")
    length = lib.remus_status_format(status, json, buf, 8192)
    return ffi.buffer(buf, length)[:].decode("utf-8", "strict")


def test_what_the_other_side_says_is_a_text_and_no_more(made):
    """No line of its own in a status or a log, nothing for a terminal."""

    def answer(backup: IllBackup, hello: formats.Record) -> None:
        backup.send(ERROR, NASTY * 20)

    primary, _ = made(answer)
    says(primary, 'x?state=Protected??[31m? "q" \\ ?ä? ?????')
    reason = primary.status().reason
    assert not [c for c in reason if ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0]
    until(lambda: json.loads(formatted(primary, 1))["reason"].count("state=") > 1)
    lines = formatted(primary, 0).splitlines()
    assert [one for one in lines if one.startswith("state=")] == ["state=Connecting"]


def test_the_reason_comes_before_a_reset(made):
    """The backup says why, and closes with our data unread: TCP resets."""

    def answer(backup: IllBackup, hello: formats.Record) -> None:
        backup.send(REPLY, reply(credit=2**40), session=hello.session)
        backup.receive(3)  # the first data of the copy
        time.sleep(0.02)  # the sender is at work, or waits for room
        backup.send(ERROR, b"my disk is gone")

    primary, backup = made(answer, size=16 * SIZE)
    for i in range(16):
        primary.pwrite(0, os.urandom(SIZE), i * SIZE)
    reasons = set()

    def enough() -> bool:
        reasons.add(primary.status().reason)
        return backup.served >= 8

    until(enough)
    heard = [one for one in reasons if "my disk is gone" in one]
    others = reasons.difference(heard)
    assert heard
    assert not [one for one in others if "send" in one or "clos" in one], others


def test_a_refusal_without_listening_is_heard(made):
    """A hello of 64 volumes, of which the backup reads only the beginning."""

    def answer(backup: IllBackup, hello: formats.Record | None) -> None:
        assert hello is None
        backup.send(ERROR, b"go away, says the backup")

    primary, backup = made(answer, volumes=64, listen=False)
    says(primary, "go away")
    reasons = set()

    def enough() -> bool:
        reasons.add(primary.status().reason)
        return backup.served >= 30

    until(enough)
    assert not [one for one in reasons if "go away" not in one], reasons


@pytest.mark.slow
def test_a_reply_in_drips_ends_in_time(made):
    times: list[float] = []

    def answer(backup: IllBackup, hello: formats.Record) -> None:
        start = time.monotonic()
        assert backup.socket is not None
        try:
            for byte in formats.encode(REPLY, reply(), session=hello.session):
                backup.socket.sendall(bytes([byte]))
                time.sleep(0.2)
        finally:
            times.append(time.monotonic() - start)

    primary, _ = made(answer)
    until(lambda: times, 20)
    assert 4 < times[0] < 8
    says(primary, "does not answer our hello")
