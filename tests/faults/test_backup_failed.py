# SPDX-License-Identifier: LGPL-2.1-or-later
"""A backup whose disk takes no more writes: named, told, and nothing is lost.

Real system calls fail: the backup is a process of its own, with a limit on the
size of its files that is lowered below the end of its disk.
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import pytest

from remus_native import Backup, Primary, RemusError, State, Volume
from support.backup_process import SEGMENT, BackupProcess

SIZE = 1 << 20


def wait_for(primary: Primary, state: State, reason: str) -> str:
    end = time.monotonic() + 20
    while (
        status := primary.status()
    ).state is not state or reason not in status.reason:
        assert time.monotonic() < end, str(status)
        time.sleep(0.005)
    return status.reason


def test_a_disk_that_takes_no_more_writes(tmp_path: Path):
    for side in ("p", "b"):
        (tmp_path / side).write_bytes(os.urandom(SIZE))
        (tmp_path / f"{side}state").mkdir()
    address = f"unix:{tmp_path}/sock"
    disks = {"xvda": tmp_path / "b"}
    other = BackupProcess(address, tmp_path / "bstate", disks)
    primary = Primary(
        "guest0",
        state_dir=tmp_path / "pstate",
        volumes=[Volume("xvda", tmp_path / "p")],
        address=address,
    )
    try:
        primary.wait_protected(timeout_s=20)
        resource.prlimit(other.process.pid, resource.RLIMIT_FSIZE, (SEGMENT, SEGMENT))
        # The journal's files are not larger, so the ack is good.
        primary.pwrite(0, b"in the journal" * 1000, SIZE - 100_000)
        epoch = primary.postsuspend()
        primary.preresume(epoch, timeout_s=20)
        checkpoint = (tmp_path / "p").read_bytes()
        primary.commit(epoch)
        # Nobody writes, no checkpoint is due: it is told all the same.
        reason = wait_for(primary, State.UNPROTECTED, "has failed")
        assert "xvda" in reason and "File too large" in reason, reason
        primary.pwrite(0, b"the guest goes on", 0)
        with pytest.raises(RemusError):
            primary.preresume(primary.postsuspend(), timeout_s=20)
        other.kill()
        # Mended, in a new process: what was acked is there, and all goes on.
        with Backup(
            "guest0",
            state_dir=tmp_path / "bstate",
            volumes=[Volume("xvda", tmp_path / "b")],
            journal_bytes=4 << 20,
            segment_bytes=SEGMENT,
        ) as backup:
            assert backup.status().committed_epoch == epoch
        assert (tmp_path / "b").read_bytes() == checkpoint
        other = BackupProcess(address, tmp_path / "bstate", disks)
        wait_for(primary, State.CATCHING_UP, "all that changed is sent")
        last = primary.postsuspend()
        primary.preresume(last, timeout_s=20)
        primary.commit(last)
        primary.wait_protected(timeout_s=20)
    finally:
        primary.close()
        other.kill()
    with Backup(
        "guest0",
        state_dir=tmp_path / "bstate",
        volumes=[Volume("xvda", tmp_path / "b")],
        journal_bytes=4 << 20,
        segment_bytes=SEGMENT,
    ) as backup:
        assert backup.promote(last) == last
    assert (tmp_path / "b").read_bytes() == (tmp_path / "p").read_bytes()
