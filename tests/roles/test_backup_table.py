# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a backup takes in which role and phase: docs/formats.md has the table,
and every record type is sent in every state over a real socket."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remus_native import Backup, Primary, Volume
from support import formats
from support.paths import ROOT
from support.peer import BEGIN, SESSION, SIZE, Peer, barrier, one_epoch, write
from support.waiting import until

BEFORE, AFTER, COPY, STREAM = "before the hello", "after it", "in a copy", "in a stream"
GROUPS = {
    "fresh": {"empty", "copying"},
    "follows": {"synced", "backup", "joined"},
    "foreign": {"foreign"},
}


def rows() -> dict[str, list[str]]:
    """The table of the page: for each record what its four columns say."""
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    part = page.split("### What a backup takes")[1].split("###")[0]
    table: dict[str, list[str]] = {}
    for line in part.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 5 and cells[0] not in ("record", "---"):
            for name in cells[0].split(","):
                table[name.strip()] = cells[1:]
    return table


ROWS = rows()


def expected(record: str, role: str, phase: str) -> str:
    """yes, void or no."""
    cell = ROWS[record][[BEFORE, AFTER, COPY, STREAM].index(phase)]
    words = set(cell.replace(";", ",").replace(",", " ").split())
    if "yes" in words or any(role in GROUPS[word] for word in words & set(GROUPS)):
        return "yes"
    return "void" if "void" in words else "no"


class Stage:
    """A backup in one state, and the primary made of bytes that brought it there."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.generation = b"g" * 16
        self.epoch = self.number = 0
        (folder / "disk").write_bytes(bytes(SIZE))
        (folder / "state").mkdir()
        self.volumes = [Volume("xvda", folder / "disk")]

    def open(self) -> None:
        self.backup = self.stack.enter_context(
            Backup(
                "guest0",
                state_dir=self.folder / "state",
                volumes=self.volumes,
                journal_bytes=1 << 20,
                segment_bytes=65536,
            )
        )
        self.backup.serve(f"unix:{self.folder}/sock", loss_ms=10_000)
        self.connect()

    def connect(self) -> None:
        until(lambda: not self.backup.status().connected)
        self.peer = Peer(f"{self.folder}/sock")
        self.stack.callback(self.peer.socket.close)

    def greet(self) -> None:
        hello = formats.hello("guest0", [("xvda", SIZE)], generation=self.generation)
        while True:
            self.peer.send(formats.HELLO, hello)
            reply = self.peer.receive()
            if reply.type == formats.REPLY:
                break
            assert b"another primary" in reply.payload, reply
            self.connect()
        self.epoch = int.from_bytes(reply.payload[8:16], "little") + 1
        self.number = int.from_bytes(reply.payload[16:24], "little")
        until(lambda: self.backup.status().connected)

    def again(self) -> None:
        """Another connection."""
        self.peer.socket.close()
        self.connect()
        self.greet()

    def copied(self) -> None:
        self.greet()
        self.peer.copy()
        self.epoch = 1

    def catch_up(self) -> None:
        self.peer.send(formats.RESYNC, flags=6, epoch=self.epoch)
        until(lambda: self.backup.status().state == "CatchingUp")

    def stream(self) -> None:
        self.peer.send(
            formats.BARRIER,
            formats.barrier(),
            **barrier([], self.epoch, self.number),
        )
        assert self.peer.receive(8).type == formats.ACK
        self.epoch += 1
        self.number += 1


def empty(stage: Stage) -> None:
    stage.open()
    stage.greet()


def copying(stage: Stage) -> None:
    empty(stage)
    stage.peer.send(formats.RESYNC, flags=BEGIN)
    until(lambda: stage.backup.status().state == "CatchingUp")


def synced(stage: Stage) -> None:
    stage.open()
    stage.copied()


def committed(stage: Stage) -> None:
    stage.open()
    stage.number = one_epoch(stage.peer)
    stage.epoch = 2


def foreign(stage: Stage) -> None:
    with Primary(
        "guest0",
        state_dir=stage.folder / "state",
        volumes=stage.volumes,
        address=f"unix:{stage.folder}/nobody",
    ) as primary:
        stage.generation = bytes.fromhex(primary.status().generation)
    stage.open()
    stage.greet()


def joined(stage: Stage) -> None:
    foreign(stage)
    stage.catch_up()


def then_again(before: Callable[[Stage], None]) -> Callable[[Stage], None]:
    def made(stage: Stage) -> None:
        before(stage)
        stage.again()

    return made


def then(before: Callable[[Stage], None], *steps: str) -> Callable[[Stage], None]:
    def made(stage: Stage) -> None:
        before(stage)
        for step in steps:
            getattr(stage, step)()

    return made


STATES: list[tuple[str, str, Callable[[Stage], None]]] = [
    ("empty", BEFORE, Stage.open),
    ("empty", AFTER, empty),
    ("copying", AFTER, then_again(copying)),
    ("synced", AFTER, then_again(synced)),
    ("backup", AFTER, then_again(committed)),
    ("foreign", AFTER, foreign),
    ("joined", AFTER, then_again(joined)),
    ("copying", COPY, copying),
    ("synced", STREAM, synced),
    ("synced", STREAM, then(synced, "again", "catch_up")),
    ("backup", STREAM, committed),
    ("backup", STREAM, then(committed, "again", "catch_up")),
    ("joined", STREAM, joined),
    ("joined", STREAM, then(joined, "stream")),
]


def records(stage: Stage) -> dict[str, bytes]:
    """One of each, and each as it should be."""
    e, n, last = stage.epoch, stage.number, max(stage.epoch - 1, 0)
    hello = formats.hello("guest0", [("xvda", SIZE)], generation=stage.generation)

    def encode(kind: int, payload: bytes = b"", **fields: int) -> bytes:
        return formats.encode(kind, payload, session=SESSION, **fields)

    def step(number: int, **fields: int) -> bytes:
        return encode(formats.RESYNC, flags=number, **fields)

    return {
        "HELLO": encode(formats.HELLO, hello),
        "WRITE": write(b"x", 0, e, n),
        "ZERO": encode(formats.ZERO, span=512, epoch=e, number=n),
        "DIRECT": encode(formats.WRITE, b"x", flags=1, offset=100),
        "BARRIER": encode(formats.BARRIER, formats.barrier(), **barrier([], e, n)),
        "COMMIT": encode(formats.COMMIT, epoch=last),
        "TOLD": encode(formats.TOLD, epoch=last),
        "BEGIN": step(1, span=SIZE),
        "PARTIAL": step(7, span=SIZE),
        "CATCH_UP": step(6, epoch=e),
        "FLUSH": step(2),
        "END": step(4, epoch=max(e, 1)),
        "HASH": encode(13, bytes(16), span=16384, number=1),
        "STEPPED_DOWN": encode(16, b"no"),
        "PING": encode(10),
        "BYE": encode(formats.BYE),
        "ERROR": encode(formats.ERROR, b"a reason"),
        "HELLO_REPLY": encode(formats.REPLY),
        "ACK": encode(formats.ACK),
        "APPLIED": encode(8),
        "HASH_REPLY": encode(14, bytes(32)),
        "STEP_DOWN": encode(15),
        "FLUSHED": step(3),
        "DONE": step(5),
        "ADOPTED": step(8),
    }


def sent(stage: Stage, record: str) -> str:
    """What the backup made of it: "" or the reason of the connection's end."""
    data = records(stage)[record]
    stage.peer.socket.sendall(data + formats.encode(formats.BYE, session=SESSION))
    with contextlib.suppress(EOFError, ConnectionResetError):
        while True:
            stage.peer.receive()
    until(lambda: not stage.backup.status().connected)
    if refusals := stage.backup.refusals():
        return refusals[-1].text
    return stage.backup.status().reason


@pytest.fixture
def stages() -> Iterator[Callable[[], Stage]]:
    shm = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="remus-table-", dir=shm))
        stack.callback(shutil.rmtree, folder)
        made: list[contextlib.ExitStack] = []

        def make() -> Stage:
            if made:
                made.pop().close()
            one = contextlib.ExitStack()
            made.append(stack.enter_context(one))
            place = Path(tempfile.mkdtemp(dir=folder))
            one.callback(shutil.rmtree, place)
            return Stage(place, one)

        yield make


def test_every_record_of_the_page_has_a_row(stages):
    assert set(records(stages())) == set(ROWS)


@pytest.mark.parametrize(
    ("role", "phase", "make"),
    STATES,
    ids=[f"{i}-{role}-{phase}" for i, (role, phase, _) in enumerate(STATES)],
)
def test_what_is_taken_is_what_the_page_says(stages, role, phase, make):
    for record in ROWS:
        stage = stages()
        make(stage)
        before = [(cp.epoch, cp.committed) for cp in stage.backup.checkpoints()]
        reason = sent(stage, record)
        refused = "refused" in reason or "only a backup" in reason
        if phase == BEFORE:
            refused = "instead of a hello" in reason
        verdict = expected(record, role, phase)
        assert refused == (verdict == "no"), (record, verdict, reason)
        if verdict == "no":
            known = [(cp.epoch, cp.committed) for cp in stage.backup.checkpoints()]
            assert known == before, record
        elif record == "ERROR":
            assert "a reason" in reason
        else:
            # Nothing else ended the connection but our goodbye.
            assert "backup of" not in reason and "primary says" not in reason, (
                record,
                reason,
            )


def test_a_promoted_backup_takes_nothing(stages):
    for record in ROWS:
        stage = stages()
        committed(stage)
        stage.backup.promote(force=True)
        stage.connect()
        data = records(stage)[record]
        stage.peer.socket.sendall(data)
        with contextlib.suppress(ConnectionResetError):
            answer = stage.peer.receive()
            assert answer.type == (
                formats.REPLY if record == "HELLO" else formats.ERROR
            )
        (cp,) = stage.backup.checkpoints()
        assert cp.epoch == 1
