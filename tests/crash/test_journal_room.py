# SPDX-License-Identifier: LGPL-2.1-or-later
"""A journal that is full, or was: there is always room for the commit.

What is prepared keeps its segments until it is committed, so a full journal
of prepared epochs has one way out: a commit.  No link that comes and goes, no
process that comes and goes, may take its room.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from support import formats
from support.crash_checks import checkpoints_of
from support.crash_model import (
    PAYLOAD_MAX,
    SEGMENT,
    SEGMENTS,
    Failed,
    Model,
    TestBackup,
    World,
)

ENDS = ["kill", "lose", "tear", "reorder"]


def fill_by_sessions(backup: TestBackup, model: Model) -> None:
    """A session for each epoch, and no commit, until none is accepted."""
    with pytest.raises(Failed, match="journal is full") as caught:
        come_and_go(backup, model)
    assert caught.value.errno == errno.ENOSPC


def come_and_go(backup: TestBackup, model: Model) -> None:
    for i in range(10 * SEGMENTS):
        backup.begin()
        model.now = [bytearray(disk) for disk in model.at[model.acked]]
        model.write(backup, 0, b"%4d" % i * 1000, 4096 * (i % 40))
        model.barrier(backup, b"")


def fill_an_epoch(backup: TestBackup, length: int = 12000) -> None:
    for _ in range(10 * SEGMENTS):
        backup.write(0, b"x" * length, 0)


def prepared(epochs: int = 1) -> tuple[World, Model, TestBackup]:
    world, model = World(), Model()
    backup = TestBackup(world)
    model.begin(backup)
    for i in range(epochs):
        model.write(backup, 1, b"first" * 1000, 5000 * i)
        model.barrier(backup, b"")
    return world, model, backup


@pytest.mark.parametrize("end", [None, *ENDS])
def test_a_journal_full_of_prepared_epochs_takes_a_commit(end):
    world, model, backup = prepared()
    fill_by_sessions(backup, model)
    if end:
        backup.abandon()
        world.crash(end, 1)
        backup = TestBackup(world)
        model.resume(backup)
        assert model.acked == backup.checkpoints()[-1][0]
    newest = model.acked
    model.commit(backup, newest, durably=True)
    for loss in ENDS:
        twin = world.clone()
        twin.crash(loss, 2)
        assert checkpoints_of(twin) == [(newest, b"", True)]
    model.apply(backup)
    backup.checkpoint()
    assert world.disks() == model.at[newest]
    # And all goes on.
    model.begin(backup)
    for i in range(3 * SEGMENTS):
        model.write(backup, 0, bytes([i]) * (PAYLOAD_MAX - 1000), 0)
        epoch = model.barrier(backup, b"")
        model.commit(backup, epoch)
        model.apply(backup)
        backup.checkpoint()
    assert world.disks() == model.snapshot()
    backup.abandon()


def test_prepared_epochs_are_committed_one_by_one_in_a_full_journal():
    world, model, backup = prepared()
    fill_by_sessions(backup, model)
    for epoch in [n for n, _, _ in backup.checkpoints()][1:]:
        model.commit(backup, epoch, durably=True)
        twin = world.clone()
        twin.crash("lose")
        again = TestBackup(twin)
        assert again.checkpoints()[0][0] == epoch
        again.apply()
        assert twin.disks() == model.at[epoch]
        again.abandon()
    backup.abandon()


@pytest.mark.parametrize("end", ENDS)
def test_commits_in_a_full_journal_each_by_a_process_of_its_own(end):
    """None of them takes a segment: there is none to take."""
    world, model, backup = prepared()
    fill_by_sessions(backup, model)
    epochs = [n for n, _, _ in backup.checkpoints()][1:]
    assert len(epochs) > 3
    for epoch in epochs:
        backup.abandon()
        world.crash(end, epoch)
        backup = TestBackup(world)
        model.resume(backup)
        used = backup.status().journal_bytes
        model.commit(backup, epoch, durably=True)
        assert backup.status().journal_bytes == used
    backup.abandon()
    world.crash(end, 1)
    assert checkpoints_of(world) == [(epochs[-1], b"", True)]


@pytest.mark.parametrize("end", ENDS)
def test_an_epoch_that_was_never_closed_keeps_no_room_over_a_restart(end):
    """Prepared epochs before it are all that stays."""
    world, model, backup = prepared()
    for life in range(6):
        before = backup.status().journal_bytes
        with pytest.raises(Failed) as caught:
            fill_an_epoch(backup)
        assert caught.value.errno == errno.ENOSPC
        # All but the reserve, which stays whole.
        assert backup.status().journal_bytes == SEGMENT * (SEGMENTS - 1)
        backup.abandon()
        world.crash(end, life)
        backup = TestBackup(world)
        assert backup.status().journal_bytes <= before
        backup.begin()
        model.now = [bytearray(disk) for disk in model.at[model.acked]]
    model.write(backup, 0, b"closed" * 1000, 0)
    epoch = model.barrier(backup, b"")
    model.commit(backup, epoch)
    model.apply(backup)
    assert world.disks() == model.snapshot()
    backup.abandon()


def test_who_spends_more_than_its_credit_is_refused_and_the_reserve_is_whole():
    """What is left takes a barrier and every commit, whatever was tried."""
    _, model, backup = prepared(3)
    for length in (12000, 512, 1):
        with pytest.raises(Failed, match="more than its credit") as caught:
            fill_an_epoch(backup, length)
        assert caught.value.errno == errno.ENOSPC
    with pytest.raises(Failed, match="more than its credit"):
        backup.write(0, b"x", 0)
    model.pending.append((model.snapshot(), b""))
    epoch = backup.barrier()
    for each in (2, 3, epoch):
        backup.commit_durably(each)
    backup.apply()
    backup.checkpoint()
    model.reconnect(backup)
    model.write(backup, 0, b"and on", 0)
    model.barrier(backup, b"")
    backup.abandon()


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_memory_does_not_grow_with_the_number_of_epochs():
    """Many empty epochs, and each time another one among them is large."""
    world = World()
    world.create(b"/disk/big", 8 << 20)
    backup = TestBackup(
        world, paths={b"big": b"/disk/big"}, segment=1 << 20, segments=16
    )
    backup.begin()
    many, large = 60, 5000
    start = 0
    for round_ in range(many):
        for i in range(many):
            for k in range(large if i == round_ else 0):
                backup.zero(0, 1024 * k, 512)
            epoch = backup.barrier()
        backup.commit(epoch)
        backup.apply()
        backup.checkpoint()
        if round_ == 3:
            start = resident()
    grown = resident() - start
    backup.abandon()
    assert grown < 4 << 20, f"{grown >> 20} MiB"


# ---- a journal with nothing left in it -----------------------------------------


def emptied() -> tuple[World, Model]:
    """All is applied, and no segment is left that a recovery would read."""
    world, model, backup = prepared(3)
    model.commit(backup, model.acked)
    model.apply(backup)
    backup.close()
    TestBackup(world).close()
    world.crash("lose")
    state = formats.superblock(world.read_file(b"/state/backup.state", 8192), "guest0")
    assert state["applied"] == state["last_epoch"] == model.acked
    # The copy's barrier, and three epochs of a write and a barrier.
    assert (state["tail_salt"], state["next_number"]) == (0, 8)
    return world, model


def test_numbers_go_on_where_nothing_is_left_to_read():
    world, model = emptied()
    backup = TestBackup(world)
    model.begin(backup)
    model.write(backup, 0, b"next", 0)
    model.barrier(backup, b"")  # it checks the number
    backup.abandon()


@pytest.mark.parametrize("end", ENDS)
def test_a_session_that_follows_one_without_a_barrier(end):
    """The barrier that the second one names is in the superblock alone."""
    world, model = emptied()
    backup = TestBackup(world)
    model.begin(backup)
    backup.write(0, b"never closed", 0)
    backup.checkpoint()
    model.reconnect(backup)
    model.write(backup, 0, b"closed", 0)
    epoch = model.barrier(backup, b"")
    backup.abandon()
    world.crash(end, 1)
    assert checkpoints_of(world.clone())[-1][0] == epoch
    backup = TestBackup(world)
    assert backup.promote(epoch) == epoch
    backup.abandon()
    assert world.disks() == model.at[epoch]
