# SPDX-License-Identifier: LGPL-2.1-or-later
"""The demo without root: the Python API, and SQLite on plain files.

The backup lives in the demo's own process.  The primary lives in a child
(_guest.py) that inserts rows and copies every page that a transaction
changed into two replicated volumes, the database and its WAL; it is the one
that is killed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

from ..errors import StateError
from ..replica import Backup, Volume
from ..shared.progress import LiveLine, seconds_text
from ._account import Account, Outcome, ProofFailed, prove_database
from ._settings import Settings, cleaning_up

__all__ = ["DATABASE", "NAME", "VOLUME_BYTES", "WAL", "play"]

NAME = "demo"
DATABASE = "rows.db"  # each a file of SQLite and the volume it is copied to
WAL = "rows.db-wal"
VOLUME_BYTES = 64 << 20
START_S = 60.0


def play(settings: Settings) -> Outcome:
    """The whole play; raises `ProofFailed` or what went wrong."""
    print(
        f"SQLite on plain files, copied into replicated volumes, checkpoints every "
        f"{seconds_text(settings.interval_s)} (crash-consistent cuts: nothing is "
        f"suspended), seed {settings.seed}",
        flush=True,
    )
    outcome = Outcome(interval_s=settings.interval_s)
    folder = settings.folder
    state = os.path.join(folder, "backup")
    os.mkdir(state)
    volumes = []
    for name in (DATABASE, WAL):
        volumes.append(Volume(name, os.path.join(folder, f"backup-{name}.img")))
        with open(volumes[-1].path, "xb") as file:
            file.truncate(VOLUME_BYTES)
    with cleaning_up() as stack:
        account = stack.enter_context(Account(os.path.join(folder, "account")))
        backup = stack.enter_context(
            Backup(
                NAME,
                state_dir=state,
                volumes=volumes,
                journal_bytes=128 << 20,
                segment_bytes=4 << 20,
            )
        )
        backup.serve(f"unix:{folder}/link.sock")
        _run_and_kill(settings, account, outcome)
        _promote(backup, account, outcome)
        backup.close()
        _prove(settings, account, outcome)
    return outcome


def _run_and_kill(settings: Settings, account: Account, outcome: Outcome) -> None:
    """The child with the primary, until its SIGKILL."""
    log = os.path.join(settings.folder, "guest.log")
    with open(log, "wb") as output:
        child = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "remus_native.demo._guest",
                settings.folder,
                str(settings.seed),
                str(settings.interval_s),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        with LiveLine() as live:
            start = time.monotonic()
            while not account.taken:
                _check_child(child, log, start + START_S)
                live.update("waiting: the first checkpoint")
                time.sleep(0.005)
            start = time.monotonic()
            while time.monotonic() < start + settings.kill_after_s:
                _check_child(child, log, None)
                live.update(f"{account.taken} checkpoints, {account.rows} rows")
                # To the point: the moment of the kill is the seed's.
                rest = start + settings.kill_after_s - time.monotonic()
                time.sleep(max(0.0, min(0.1, rest)))
            outcome.killed_after_s = time.monotonic() - start
    finally:
        child.kill()
        child.wait()
    outcome.taken = account.taken
    outcome.pauses_s = account.pauses_s()


def _check_child(child: subprocess.Popen[bytes], log: str, end: float | None) -> None:
    late = end is not None and time.monotonic() > end
    if child.poll() is None and not late:
        return
    with open(log, encoding="utf-8", errors="replace") as output:
        said = "; ".join(output.read().splitlines()[-3:]) or "it said nothing"
    what = f"no checkpoint in {seconds_text(START_S)}" if late else "the child ended"
    raise StateError(f"{what}: {said}")


def _promote(backup: Backup, account: Account, outcome: Outcome) -> None:
    end = time.monotonic() + START_S
    while backup.status().connected and time.monotonic() < end:
        time.sleep(0.005)
    tags = {cp.epoch: cp.tag for cp in backup.checkpoints()}
    status = backup.status()
    outcome.bytes_replicated = status.bytes_written + status.bytes_zeroed
    outcome.bytes_coalesced = status.bytes_coalesced
    start = time.monotonic()
    outcome.checkpoint = backup.promote()
    outcome.promote_s = time.monotonic() - start
    tag = tags.get(outcome.checkpoint, b"")
    if not tag:
        raise ProofFailed(
            f"promoted to checkpoint {outcome.checkpoint}, which is not one of the "
            "demo's: it has no tag"
        )
    outcome.tag = int(tag)
    outcome.rows_noted = account.noted(outcome.tag)


def _prove(settings: Settings, account: Account, outcome: Outcome) -> None:
    """The volumes as files of SQLite again; then integrity_check and rows."""
    promoted = os.path.join(settings.folder, "promoted")
    os.mkdir(promoted)
    for name in (DATABASE, WAL):
        shutil.copyfile(
            os.path.join(settings.folder, f"backup-{name}.img"),
            os.path.join(promoted, name),
        )
    outcome.rows_proved = prove_database(
        os.path.join(promoted, DATABASE), settings.seed, outcome.rows_noted
    )
    outcome.fsck = "not part of this play: there is no file system"
    outcome.integrity = "ok"
