# SPDX-License-Identifier: LGPL-2.1-or-later
"""An epoch that was lost with its link never passes for a safe one, however
many outages ago that was."""

from __future__ import annotations

import pytest

from remus_native import Backup, Primary, ReplicationLost, Volume
from support.backup_process import JOURNAL, SEGMENT, BackupProcess
from support.pair import checkpoint, next_checkpoint

MIB = 1 << 20
OUTAGES = 11  # a primary remembers the newest 8 in detail


def test_epochs_of_more_outages_than_are_remembered(tmp_path):
    for name in ("p", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.img").write_bytes(bytes(MIB))
    address = f"unix:{tmp_path}/sock"
    images = {"xvda": tmp_path / "b.img"}
    backup = BackupProcess(address, tmp_path / "b", images)
    lost = []
    try:
        with Primary(
            "guest0",
            state_dir=tmp_path / "p",
            volumes=[Volume("xvda", tmp_path / "p.img")],
            address=address,
            idle_ms=3_600_000,
            connect_ms=20,
        ) as primary:
            primary.wait_protected(timeout_s=20)
            checkpoint(primary)
            for i in range(OUTAGES):
                backup.pause()
                primary.pwrite(0, b"lost", 4096 * i)
                lost.append(primary.postsuspend())
                backup.kill()
                with pytest.raises(ReplicationLost):
                    primary.preresume(lost[-1], timeout_s=20)
                backup = BackupProcess(address, tmp_path / "b", images)
                safe = next_checkpoint(primary)
                primary.commit(safe)
            for epoch in lost:
                with pytest.raises(ReplicationLost):
                    primary.preresume(epoch, timeout_s=5)
            primary.preresume(safe, timeout_s=5)
    finally:
        backup.kill()
    model = bytearray(MIB)
    for i in range(OUTAGES):
        model[4096 * i : 4096 * i + 4] = b"lost"
    with Backup(
        "guest0",
        state_dir=tmp_path / "b",
        volumes=[Volume("xvda", tmp_path / "b.img")],
        journal_bytes=JOURNAL,
        segment_bytes=SEGMENT,
    ) as promoted:
        assert promoted.promote() == safe
    for side in "pb":
        assert (tmp_path / f"{side}.img").read_bytes() == model
