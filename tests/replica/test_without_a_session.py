# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the engine does by itself: checkpoints, room in the journal."""

from __future__ import annotations

import time

import pytest

from remus_native import (
    ReplicaResource,
    ReplicationLost,
    State,
)
from support.pair import BLOCK, MIB, checkpoint, fill_disk, lose, next_checkpoint, same
from support.waiting import until

# ---- room ------------------------------------------------------------------------


def test_a_catch_up_beyond_the_journal_waits_and_says_why(make_pair):
    pair = make_pair([4 * MIB], journal_bytes=512 << 10)
    safe = checkpoint(pair.primary)
    lose(pair)
    fill_disk(pair.primary, 4 * MIB)
    pair.open_backup()
    until(
        lambda: "allow_inconsistent = true" in pair.primary.status().reason,
        what=lambda: str(pair.primary.status()),
    )
    assert pair.primary.status().state is State.UNPROTECTED
    with pytest.raises(ReplicationLost, match="does not fit into the backup's journal"):
        pair.primary.postsuspend()
    assert pair.backup.checkpoints()[-1].epoch == safe
    assert pair.backup.status().state is State.STANDBY
    pair.primary.pwrite(0, b"the guest goes on", 0)


def test_allow_inconsistent_writes_it_straight_to_the_disks(make_pair):
    pair = make_pair([4 * MIB], journal_bytes=512 << 10, allow_inconsistent=True)
    pair.primary.pwrite(0, b"prepared", MIB)
    checkpoint(pair.primary, commit=False)
    lose(pair)
    fill_disk(pair.primary, 3 * MIB)
    pair.open_backup()
    pair.primary.wait_protected(timeout_s=30)
    assert pair.primary.status().resync_total < 4 * MIB
    epoch = next_checkpoint(pair.primary)
    pair.primary.commit(epoch)
    pair.primary.close()
    assert pair.backup.promote() == epoch
    same(pair)


@pytest.mark.slow
def test_what_is_pinned_is_not_given_up_for_a_copy(make_pair):
    """Who holds its memory would have no disks for it."""
    pair = make_pair([4 * MIB], journal_bytes=512 << 10, allow_inconsistent=True)
    safe = checkpoint(pair.primary)
    pair.backup.pin(safe)
    fill_disk(pair.primary, 3 * MIB)
    until(
        lambda: "pinned" in pair.primary.status().reason,
        what=lambda: str(pair.primary.status()),
    )
    time.sleep(1)  # it has tried again
    assert pair.primary.status().state is State.UNPROTECTED
    assert pair.backup.checkpoints()[-1].epoch == safe
    pair.backup.pin(None)
    pair.primary.wait_protected(timeout_s=30)
    epoch = next_checkpoint(pair.primary)
    pair.primary.commit(epoch)
    pair.primary.close()
    assert pair.backup.promote() == epoch
    same(pair)


def test_writes_that_outgrow_the_journal_end_the_catch_up(make_pair):
    """It began, since it did fit; then the guest wrote too much."""
    pair = make_pair([4 * MIB], journal_bytes=512 << 10)
    pair.primary.session_begin()
    safe = checkpoint(pair.primary)
    lose(pair)
    pair.open_backup()
    until(lambda: pair.primary.status().connected)
    start = time.monotonic()
    fill_disk(pair.primary, 2 * MIB)
    assert time.monotonic() - start < 8  # and did not wait for `stall`
    until(
        lambda: "allow_inconsistent" in pair.primary.status().reason,
        what=lambda: str(pair.primary.status()),
    )
    assert pair.backup.checkpoints()[-1].epoch == safe


# ---- without a session -----------------------------------------------------------


def test_without_a_session_the_engine_takes_checkpoints(make_pair):
    pair = make_pair([MIB], idle_ms=30)
    for i in range(5):
        before = pair.primary.status().committed_epoch
        pair.primary.pwrite(0, b"%d" % i, i * BLOCK)
        until(lambda: pair.primary.status().committed_epoch > before)  # noqa: B023
    [last] = [cp for cp in pair.backup.checkpoints() if cp.committed]
    assert last.disk_only
    pair.primary.close()
    pair.backup.promote()
    same(pair)


def test_nothing_written_needs_no_checkpoint(make_pair):
    pair = make_pair([MIB], idle_ms=10)
    pair.primary.pwrite(0, b"x", 0)
    until(lambda: pair.primary.status().epochs == 2)
    time.sleep(0.3)
    assert pair.primary.status().epochs == 2


def test_in_a_session_it_takes_none_and_teardown_ends_it(make_pair):
    pair = make_pair([MIB], idle_ms=10)
    device = ReplicaResource(pair.primary)
    device.setup()
    pair.primary.pwrite(0, b"x", 0)
    time.sleep(0.3)
    assert pair.primary.status().epochs == 1
    device.teardown()
    until(lambda: pair.primary.status().epochs == 2)


def test_journal_room_is_made_without_a_session(make_pair):
    """More than the journal holds, and nobody takes checkpoints."""
    pair = make_pair([8 * MIB], journal_bytes=512 << 10)
    fill_disk(pair.primary, 8 * MIB)
    assert pair.primary.status().state is State.PROTECTED
    assert pair.primary.status().epochs > 8


def test_a_catch_up_without_a_session_is_committed_by_the_engine(make_pair):
    pair = make_pair([MIB])
    lose(pair)
    pair.primary.pwrite(0, b"changed", 0)
    pair.open_backup()
    pair.primary.wait_protected(timeout_s=30)
    until(lambda: pair.backup.status().state is State.PROTECTED)
    # What the backup took as committed is heard a moment later.
    epoch = pair.primary.status().prepared_epoch
    until(lambda: pair.primary.status().committed_epoch == epoch)
    pair.primary.close()
    [cp] = pair.backup.checkpoints()
    assert (cp.epoch, cp.disk_only) == (epoch, True)
    pair.backup.promote()
    same(pair)
