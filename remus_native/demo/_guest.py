# SPDX-License-Identifier: LGPL-2.1-or-later
"""The child of the demo without root: SQLite, and the primary of its pages.

Run as ``python -m remus_native.demo._guest FOLDER SEED INTERVAL_S``; it runs
until it is killed.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import BinaryIO

from ..checkpointer import Checkpointer, CheckpointSample
from ..devices import CheckpointDevices
from ..replica import Primary, ReplicaResource, Volume
from ._account import Account, NotingGuest, create_database, insert_rows
from ._inprocess import DATABASE, NAME, VOLUME_BYTES, WAL

__all__ = ["main"]

CHUNK = 16 << 10
MOVE_EACH = 200  # transactions between two checkpoints of SQLite
LIMIT = VOLUME_BYTES * 3 // 4


class _Mirror:
    """Copies what changed in a file into a volume, in ascending order.

    The order of the copies is the order of SQLite's own writes: the WAL grows,
    a checkpoint of SQLite moves it into the database, and only a later
    transaction begins the WAL anew.  So whatever the moment of a cut, the
    volumes are what a crash at some moment could have left.
    """

    def __init__(self, primary: Primary, volume: str, file: BinaryIO) -> None:
        self._primary = primary
        self._volume = volume
        # Stays open: closing it would drop SQLite's locks on the file.
        self._file = file
        self._seen = bytearray()

    def copy(self) -> None:
        """Write the chunks that differ from the last time."""
        fd = self._file.fileno()
        data = os.pread(fd, os.fstat(fd).st_size, 0)
        for at in range(0, len(data), CHUNK):
            chunk = data[at : at + CHUNK]
            if chunk != self._seen[at : at + CHUNK]:
                self._primary.pwrite(self._volume, chunk, at)
        self._seen[: len(data)] = data


def _checkpoints(
    primary: Primary, account: Account, interval_s: float, done: threading.Event
) -> None:
    """The loop that takes the checkpoints, in a thread of its own."""
    guest = NotingGuest(account)

    def took(stats: CheckpointSample) -> None:
        account.took(stats.number, stats.pause_ns)

    try:
        Checkpointer(
            CheckpointDevices([ReplicaResource(primary)]),
            guest,
            interval_s=interval_s,
            tag=guest.tag,
            on_checkpoint=took,
        ).run()
    except Exception as error:
        print(f"checkpoints ended: {error}", file=sys.stderr, flush=True)
    finally:
        done.set()


def main(folder: str, seed: int, interval_s: float) -> int:
    """Serve the volumes, insert rows, mirror each transaction."""
    state = os.path.join(folder, "primary")
    os.mkdir(state)
    volumes = [
        Volume(name, os.path.join(folder, f"primary-{name}.img"))
        for name in (DATABASE, WAL)
    ]
    for volume in volumes:
        with open(volume.path, "xb") as image:
            image.truncate(VOLUME_BYTES)
    database = os.path.join(folder, DATABASE)
    db = create_database(database)
    db.execute("PRAGMA wal_autocheckpoint = 0")  # we say when
    done = threading.Event()
    with (
        Account(os.path.join(folder, "account")) as account,
        open(database, "rb", buffering=0) as file,
        open(os.path.join(folder, WAL), "rb", buffering=0) as log,
        Primary(
            NAME,
            state_dir=state,
            volumes=volumes,
            address=f"unix:{folder}/link.sock",
        ) as primary,
    ):
        wal, pages = _Mirror(primary, WAL, log), _Mirror(primary, DATABASE, file)
        wal.copy()
        pages.copy()
        primary.wait_protected(60)
        threading.Thread(
            target=_checkpoints,
            args=(primary, account, interval_s, done),
            name="demo-checkpoints",
            daemon=True,
        ).start()
        rows = transactions = 0
        while not done.is_set():
            if os.path.getsize(database) >= LIMIT:
                done.wait(0.01)
                continue
            rows = insert_rows(db, seed, rows)
            transactions += 1
            wal.copy()
            account.rows = rows  # in the volumes: in the next checkpoint
            if transactions % MOVE_EACH == 0:
                db.execute("PRAGMA wal_checkpoint(PASSIVE)")
                pages.copy()
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
