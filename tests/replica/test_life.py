# SPDX-License-Identifier: LGPL-2.1-or-later
"""Loss, return and catch-up."""

from __future__ import annotations

import random
import threading
import time

import pytest

from remus_native import (
    PhaseError,
    Primary,
    ReplicationLost,
    State,
    Volume,
)
from support.backup_process import BackupProcess
from support.pair import BLOCK, MIB, checkpoint, lose, next_checkpoint, same
from support.waiting import until

# ---- loss and return ---------------------------------------------------------


def test_only_what_changed_travels(make_pair):
    pair = make_pair([8 * MIB, MIB], journal_bytes=4 * MIB)
    pair.primary.pwrite(0, random.Random(1).randbytes(MIB), 0)
    checkpoint(pair.primary)
    lose(pair)
    pair.primary.pwrite(0, b"while it was away", 3 * MIB + 5)
    pair.primary.pwrite(1, b"here too", MIB - 8)
    assert pair.primary.status().state is State.UNPROTECTED
    assert pair.primary.status().dirty_bytes >= 2 * BLOCK
    pair.open_backup()
    epoch = next_checkpoint(pair.primary, "back")
    status = pair.primary.status()
    assert status.state is State.PROTECTED
    # The epoch before may not have been known to be stable yet.
    assert status.resync_done == status.resync_total <= MIB + 3 * BLOCK
    pair.primary.commit(epoch)
    pair.primary.close()
    assert pair.backup.promote() == epoch
    same(pair)


def test_stable_epochs_do_not_travel_again(make_pair):
    pair = make_pair([8 * MIB], journal_bytes=4 * MIB)
    pair.primary.pwrite(0, random.Random(1).randbytes(MIB), 0)
    checkpoint(pair.primary)
    # The backup says what it holds when it is back, however soon it went.
    lose(pair)
    pair.primary.pwrite(0, b"one block", 4 * MIB)
    pair.open_backup()
    next_checkpoint(pair.primary)
    assert pair.primary.status().resync_total == BLOCK


def test_the_old_checkpoint_stays_until_the_catch_up_is_committed(make_pair):
    pair = make_pair([MIB])
    pair.primary.pwrite(0, b"old", 0)
    old = checkpoint(pair.primary)
    lose(pair)
    pair.primary.pwrite(0, b"new", 0)
    pair.open_backup()
    epoch = next_checkpoint(pair.primary, "new")
    assert [cp.epoch for cp in pair.backup.checkpoints()] == [old, epoch]
    pair.primary.close()
    assert pair.backup.promote() == old
    assert pair.image("backup", 0)[:3] == b"old"


def test_a_prepared_checkpoint_survives_the_outage(make_pair):
    pair = make_pair([MIB])
    pair.primary.pwrite(0, b"one", 0)
    one = checkpoint(pair.primary, "one")
    pair.primary.pwrite(0, b"two", 0)
    two = checkpoint(pair.primary, "two", commit=False)
    lose(pair)
    pair.primary.pwrite(0, b"six", 0)
    pair.open_backup()
    three = next_checkpoint(pair.primary, "three")
    pair.primary.preresume(two)
    assert [cp.epoch for cp in pair.backup.checkpoints()] == [one, two, three]
    pair.primary.commit(two)
    until(lambda: pair.backup.status().committed_epoch == two)
    pair.primary.close()
    assert pair.backup.promote(tag="three") == three
    same(pair)


def test_phases_say_what_is_lost(make_pair):
    pair = make_pair([MIB])
    safe = checkpoint(pair.primary)
    lose(pair)
    with pytest.raises(ReplicationLost, match="Unprotected"):
        pair.primary.postsuspend()
    pair.open_backup()
    later = next_checkpoint(pair.primary)
    pair.primary.preresume(safe)
    assert later > safe
    with pytest.raises((PhaseError, ReplicationLost)):
        pair.primary.commit(later + 1)


def test_a_barrier_that_the_backup_never_got_is_lost_for_good(tmp_path):
    """Sent into a link whose other end is dead already."""
    for name in ("p", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.img").write_bytes(bytes(MIB))
    address = f"unix:{tmp_path}/sock"
    images = {"xvda": tmp_path / "b.img"}
    backup = BackupProcess(address, tmp_path / "b", images)
    try:
        with Primary(
            "guest0",
            state_dir=tmp_path / "p",
            volumes=[Volume("xvda", tmp_path / "p.img")],
            address=address,
            loss_ms=1000,
            idle_ms=3_600_000,
        ) as primary:
            primary.wait_protected(timeout_s=20)
            checkpoint(primary)
            backup.pause()
            primary.pwrite(0, b"lost", 0)
            lost = primary.postsuspend("lost")
            with pytest.raises(ReplicationLost, match="nothing from it for"):
                primary.preresume(lost, timeout_s=20)
            backup.kill()
            backup = BackupProcess(address, tmp_path / "b", images)
            epoch = next_checkpoint(primary)
            assert epoch > lost
            # Also now that a later one is safe: nobody could name this one.
            with pytest.raises(ReplicationLost):
                primary.preresume(lost, timeout_s=5)
            with pytest.raises(ReplicationLost, match="a later one covers it"):
                primary.commit(lost)
            primary.commit(epoch)
    finally:
        backup.kill()


def test_guest_writes_go_on_in_a_catch_up(make_pair):
    """Many outages under writers: in the end both sides are equal."""
    pair = make_pair([4 * MIB, MIB], journal_bytes=16 * MIB, idle_ms=30)
    stop = threading.Event()
    failures = []

    def write(seed):
        rng = random.Random(seed)
        while not stop.is_set():
            volume, length = rng.randrange(2), rng.randrange(1, 9000)
            at = rng.randrange(MIB - length)
            try:
                if rng.random() < 0.1:
                    pair.primary.discard(volume, at, length)
                else:
                    pair.primary.pwrite(volume, rng.randbytes(length), at)
            except Exception as error:
                failures.append(error)
                return
            time.sleep(0.0005)  # the other threads need the interpreter too

    writers = [threading.Thread(target=write, args=(i,)) for i in range(3)]
    for writer in writers:
        writer.start()
    try:
        for i in range(12):
            pair.backup.close()
            time.sleep(0.01 * (i % 4))
            pair.open_backup()
            if i % 3:  # else it goes at some moment of the catch-up
                until(
                    lambda: pair.primary.status().state is State.PROTECTED,
                    what=lambda: str(pair.primary.status()),
                )
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert not failures
    pair.primary.wait_protected(timeout_s=30)
    epoch = next_checkpoint(pair.primary)
    pair.primary.commit(epoch)
    pair.primary.close()
    assert pair.backup.promote() == epoch
    same(pair)


def test_the_first_copy_can_be_cut_short(make_pair):
    pair = make_pair([MIB])
    pair.close()
    pair.options["resync_rate"] = MIB  # else it would be through
    with (pair.folder / "primary.xvda").open("wb") as image:
        image.write(random.Random(5).randbytes(MIB))
    for name in ("primary", "backup"):
        for file in (pair.folder / name).glob("**/*"):
            if file.is_file():
                file.unlink()
    for _ in range(3):
        pair.open_backup()
        primary = pair.open_primary(wait=False)
        until(lambda: primary.status().resync_total > 0)  # noqa: B023
        pair.close()
    pair.open_backup()
    pair.open_primary()
    pair.primary.close()
    pair.backup.promote()
    same(pair)
