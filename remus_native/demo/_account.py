# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the demo knows about its rows, and how it proves them.

The rows are made from a seed, so that a proof needs no copy of them: row n
has the same payload whenever it is computed.  `Account` is the memory that
the demo's processes share; it survives the SIGKILL of any of them.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import sqlite3
from dataclasses import dataclass, field
from types import TracebackType

from ..checkpointer import percentile
from ..shared.progress import bytes_text, seconds_text, table

__all__ = [
    "Account",
    "Outcome",
    "ProofFailed",
    "create_database",
    "insert_rows",
    "prove_database",
]

CHECKPOINTS_MAX = 1 << 16
SLOTS = 8  # numbers before the arrays
FORMAT_ROWS, FORMAT_TAKEN, FORMAT_READY, FORMAT_STOP = range(4)


class ProofFailed(Exception):
    """Something that must hold after a failover does not."""


class Account:
    """Numbers in shared memory: a file of 64-bit values that is mapped.

    ==================  =====================================================
    rows                committed rows, set after each transaction's commit
    taken               checkpoints whose preresume returned
    ready, stop         flags between the demo and the writer
    noted[n]            rows committed before the suspend of checkpoint n
    pauses_ns[n]        its pause
    ==================  =====================================================

    One process writes each of them; a value of 8 bytes is never seen torn.
    """

    def __init__(self, path: str) -> None:
        size = 8 * (SLOTS + 2 * CHECKPOINTS_MAX)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size)
            self._map = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        self._values = memoryview(self._map).cast("Q")

    def close(self) -> None:
        """Unmap; idempotent."""
        self._values.release()
        self._map.close()

    def __enter__(self) -> Account:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def rows(self) -> int:
        """Committed rows."""
        return self._values[FORMAT_ROWS]

    @rows.setter
    def rows(self, value: int) -> None:
        self._values[FORMAT_ROWS] = value

    @property
    def taken(self) -> int:
        """Checkpoints that are safe on the backup."""
        return self._values[FORMAT_TAKEN]

    @property
    def ready(self) -> bool:
        """The table is there, rows are coming."""
        return bool(self._values[FORMAT_READY])

    @ready.setter
    def ready(self, value: bool) -> None:
        self._values[FORMAT_READY] = value

    @property
    def stop(self) -> bool:
        """The writer shall end."""
        return bool(self._values[FORMAT_STOP])

    @stop.setter
    def stop(self, value: bool) -> None:
        self._values[FORMAT_STOP] = value

    def note(self, number: int) -> None:
        """Checkpoint ``number`` is about to be taken: note the rows."""
        if number >= CHECKPOINTS_MAX:
            raise ProofFailed(f"the demo has room for {CHECKPOINTS_MAX} checkpoints")
        self._values[SLOTS + number] = self.rows

    def noted(self, number: int) -> int:
        """The rows that were committed before the suspend of ``number``."""
        return self._values[SLOTS + number]

    def took(self, number: int, pause_ns: int) -> None:
        """Checkpoint ``number`` is safe on the backup."""
        self._values[SLOTS + CHECKPOINTS_MAX + number] = pause_ns
        self._values[FORMAT_TAKEN] = number

    def pauses_s(self) -> list[float]:
        """The pauses of the checkpoints taken."""
        first = SLOTS + CHECKPOINTS_MAX + 1
        return [ns / 1e9 for ns in self._values[first : first + self.taken]]


class NotingGuest:
    """A guest that is not suspended; each suspend notes the rows.

    It gives each checkpoint its number as its tag, so that the backup can
    say which note belongs to the state that it was promoted to.
    """

    def __init__(self, account: Account) -> None:
        self.account = account
        self.number = 0

    def tag(self, number: int) -> int:
        """For `Checkpointer`: called before suspend."""
        self.number = number
        return number

    def suspend(self) -> None:
        """Note how many rows are committed, right before the barrier."""
        self.account.note(self.number)

    def resume(self) -> None:
        """Nothing to resume."""


# ---- rows ------------------------------------------------------------------


def payload(seed: int, number: int) -> bytes:
    """The payload of row ``number``: 64 to 575 bytes."""
    source = hashlib.shake_128(f"{seed}:{number}".encode())
    return source.digest(64 + source.digest(2)[0] * 2)


def checksum(number: int, data: bytes) -> str:
    """What stands beside the payload of row ``number``."""
    return hashlib.blake2b(data, digest_size=16, salt=number.to_bytes(8, "little")
                           ).hexdigest()  # fmt: skip


def create_database(path: str) -> sqlite3.Connection:
    """An empty table in a database in WAL mode, synced at each commit."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode = WAL")
    # FULL: a commit returns when the WAL is synced.  A counted row is on the
    # disk, so it must be in the checkpoint that is taken next.
    db.execute("PRAGMA synchronous = FULL")
    db.execute(
        "CREATE TABLE rows (id INTEGER PRIMARY KEY, payload BLOB NOT NULL, "
        "checksum TEXT NOT NULL)"
    )
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return db


def insert_rows(db: sqlite3.Connection, seed: int, after: int) -> int:
    """One transaction of 1 to 8 rows; the number of the last one."""
    last = after + 1 + payload(seed, after + 1)[0] % 8
    db.execute("BEGIN")
    for number in range(after + 1, last + 1):
        data = payload(seed, number)
        db.execute(
            "INSERT INTO rows VALUES (?, ?, ?)", (number, data, checksum(number, data))
        )
    db.execute("COMMIT")
    return last


def prove_database(path: str, seed: int, at_least: int) -> int:
    """integrity_check, and every row from 1 on; how many there are.

    Raises `ProofFailed`: damage, a gap, a row with other contents, or less
    than ``at_least`` rows.
    """
    db = sqlite3.connect(path, isolation_level=None)
    try:
        verdict = [row[0] for row in db.execute("PRAGMA integrity_check")]
        if verdict != ["ok"]:
            raise ProofFailed(f"integrity_check: {'; '.join(verdict[:3])}")
        count = 0
        query = "SELECT id, payload, checksum FROM rows ORDER BY id"
        for number, data, check in db.execute(query):
            count += 1
            if number != count:
                raise ProofFailed(f"row {count} is missing (the next is {number})")
            if data != payload(seed, number) or check != checksum(number, data):
                raise ProofFailed(f"row {number} has other contents than were written")
    except sqlite3.Error as error:
        raise ProofFailed(f"SQLite: {error}") from error
    finally:
        db.close()
    if count < at_least:
        raise ProofFailed(
            f"{at_least} rows were committed before the checkpoint, {count} are there"
        )
    return count


# ---- the account of a run -----------------------------------------------------


@dataclass
class Outcome:
    """What a run of the demo found, for the account at its end."""

    interval_s: float
    killed_after_s: float = 0.0
    taken: int = 0
    pauses_s: list[float] = field(default_factory=list)
    bytes_replicated: int = 0
    bytes_coalesced: int = 0
    checkpoint: int = 0
    tag: int = 0
    promote_s: float = 0.0
    command_s: float | None = None
    rows_noted: int = 0
    rows_proved: int = 0
    fsck: str = ""
    integrity: str = ""

    def text(self) -> str:
        """Two columns for a person."""
        promote = seconds_text(self.promote_s)
        if self.command_s is not None:
            promote += (
                f" ({seconds_text(self.command_s)} for the whole command, which "
                "first waits until the primary is lost)"
            )
        rows = [
            (
                "checkpoints taken",
                f"{self.taken}, one every {seconds_text(self.interval_s)}",
            ),
            ("pause median", seconds_text(percentile(self.pauses_s, 0.5))),
            ("pause p99", seconds_text(percentile(self.pauses_s, 0.99))),
            ("bytes replicated", bytes_text(self.bytes_replicated)),
            ("bytes coalesced", bytes_text(self.bytes_coalesced)),
            ("primary killed", f"after {seconds_text(self.killed_after_s)}"),
            ("promoted to", f"checkpoint {self.checkpoint} (tag {self.tag})"),
            ("time to promote", promote),
            ("fsck", self.fsck),
            ("integrity_check", self.integrity),
            ("rows noted", f"{self.rows_noted} committed before that checkpoint"),
            ("rows proved", f"{self.rows_proved}, each with its checksum"),
        ]
        return table(rows)
