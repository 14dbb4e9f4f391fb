# SPDX-License-Identifier: LGPL-2.1-or-later
"""A disk of the backup fails in a copy: what it lost is sent again.

After a failed sync the page cache holds what the disk does not, and says that
it is clean. A comparison that read it would find no difference.
"""

from __future__ import annotations

import errno
import random
from contextlib import suppress

import pytest

from support.crash_checks import POWER, telling
from support.crash_model import NAMES, SIZES, Disks, Failed, TestBackup, World

NONE, PARTIAL, COMPLETE = 0, 1, 2
BLOCK = 16384


def image(seed: int) -> Disks:
    rng = random.Random(seed)
    return tuple(rng.randbytes(size // 64) * 64 for size in SIZES.values())


def copy(backup: TestBackup, disks: Disks) -> None:
    backup.copy_begin()
    for volume, disk in enumerate(disks):
        for at in range(0, len(disk), BLOCK):
            backup.copy_write(volume, disk[at : at + BLOCK], at)
        backup.copy_flush()
    backup.copy_end()


def mend(backup: TestBackup, disks: Disks) -> int:
    """What a primary does with a copy that was cut: it compares, or copies all
    without that; or the copy was whole."""
    content, _ = backup.greet()
    if content == COMPLETE:
        backup.catch_up()
    else:
        backup.copy_begin()
        for volume, disk in enumerate(disks):
            for at in range(0, len(disk), BLOCK):
                piece = disk[at : at + BLOCK]
                if content == NONE or backup.differs(volume, piece, at):
                    backup.copy_write(volume, piece, at)
        backup.copy_end()
    backup.commit(backup.barrier())
    backup.apply()
    backup.checkpoint()
    return content


def steps() -> int:
    world = World()
    backup = TestBackup(world)
    backup.greet()
    before = world.ops
    copy(backup, image(1))
    backup.abandon()
    return world.ops - before


@pytest.mark.parametrize("drops", [True, False])
@pytest.mark.parametrize("err", [errno.EIO, errno.ENOSPC])
def test_what_a_failed_sync_lost_is_found_by_the_next_process(drops, err):
    """Also where the cache can't be dropped: then nothing is compared."""
    failures = 0
    for k in range(steps()):
        with telling(f"operation {k}, the cache is dropped: {drops}"):
            world = World()
            backup = TestBackup(world)
            backup.greet()
            if drops:
                world.drops_cache()
            world.fail_after(k, err)
            with suppress(Failed):  # it may have been a hint
                copy(backup, image(1))
            backup.abandon()
            failures += world.failed_op == "fdatasync"
            world.crash("kill")
            backup = TestBackup(world)
            mend(backup, image(1))
            [(epoch, _, committed)] = backup.checkpoints()
            assert committed
            backup.abandon()
            for end in POWER:
                after = world.clone()
                after.crash(end, k)
                backup = TestBackup(after)
                assert [n for n, _, _ in backup.checkpoints()] == [epoch]
                assert backup.promote() == epoch
                backup.abandon()
                assert after.disks() == image(1)
    assert failures >= len(NAMES)


def test_after_a_reboot_the_cache_is_empty_and_disks_are_compared():
    world = World()
    backup = TestBackup(world)
    backup.greet()
    backup.copy_begin()
    backup.copy_write(0, b"lost" * 1000, 0)
    world.fail_after(0, errno.EIO)
    with pytest.raises(Failed):
        backup.copy_flush()
    assert world.failed_op == "fdatasync"
    backup.abandon()
    world.crash("kill")
    assert TestBackup(world.clone()).greet()[0] == NONE
    world.crash("lose")
    backup = TestBackup(world)
    assert mend(backup, image(1)) == PARTIAL
    backup.abandon()
    world.crash("lose")
    assert world.disks() == image(1)


def test_a_comparison_counts_what_is_closed_in_the_journal():
    """As if every closed epoch were applied; what is open is not there yet."""
    world = World()
    backup = TestBackup(world)
    backup.begin()
    data = b"closed, and not applied" * 600
    backup.write(0, data, 0)
    backup.zero(0, 100, 50)
    backup.barrier()
    backup.write(0, b"open", 0)
    held = data[:100] + bytes(50) + data[150:]
    assert world.read(NAMES[0])[: len(data)] == bytes(len(data))
    assert backup.differs(0, held, 0) == 0
    assert backup.differs(0, data, 0) == 1
    backup.abandon()


def test_a_comparison_sees_what_the_disk_holds():
    """Whoever asks for one, and whatever is remembered of the failure."""
    world = World()
    world.drops_cache()
    backup = TestBackup(world)
    backup.greet()
    backup.copy_begin()
    data = b"in the page cache only" * 700
    backup.copy_write(0, data, 0)
    assert backup.differs(0, data, 0) == 0
    backup.copy_write(0, data[::-1], 0)
    world.fail_after(0, errno.EIO)
    with pytest.raises(Failed):
        backup.copy_flush()
    backup.abandon()
    world.crash("kill")
    assert world.read(NAMES[0])[: len(data)] == data[::-1]
    backup = TestBackup(world)
    assert backup.differs(0, data[::-1], 0) == 1
    assert backup.differs(0, data, 0) == 0
    backup.abandon()
