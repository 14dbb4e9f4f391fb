# SPDX-License-Identifier: LGPL-2.1-or-later
"""A resource file that changed must not cost an epoch that was acked.

The journal knows volumes by their place in the file.  With other volumes than
it was written for its records would go to the wrong disk, or nowhere.
"""

from __future__ import annotations

import errno

import pytest

from support.crash_model import NAMES, PATHS, SIZES, Failed, Model, TestBackup, World

SWAPPED = dict(reversed(PATHS.items()))


def prepared(*, applied: bool = False) -> tuple[World, Model]:
    world, model = World(), Model()
    backup = TestBackup(world)
    model.begin(backup)
    for volume, name in enumerate(NAMES):
        # At the end, which a smaller disk has not.
        model.write(backup, volume, b"%d" % volume * 4096, SIZES[name] - 4096)
    epoch = model.barrier(backup, b"")
    if applied:
        model.commit(backup, epoch)
        model.apply(backup)
        backup.checkpoint()
    backup.abandon()
    world.crash("lose")
    return world, model


def smaller(world: World) -> dict[bytes, bytes]:
    world.create(b"/disk/small", SIZES[NAMES[0]] // 2)
    return PATHS | {NAMES[0]: b"/disk/small"}


@pytest.mark.parametrize("change", ["swapped", "fewer", "renamed", "smaller", "larger"])
def test_what_is_not_applied_needs_the_volumes_that_it_was_written_for(change):
    world, model = prepared()
    world.create(b"/disk/large", 4 * SIZES[NAMES[0]])
    others = {
        "swapped": SWAPPED,
        "fewer": dict(list(PATHS.items())[:1]),
        "renamed": {b"xvd" + bytes([c]): path for c, path in
                    zip(b"cd", PATHS.values(), strict=True)},
        "smaller": smaller(world),
        "larger": PATHS | {NAMES[0]: b"/disk/large"},
    }[change]  # fmt: skip
    with pytest.raises(Failed, match="volumes") as caught:
        TestBackup(world, paths=others)
    assert caught.value.errno == errno.EINVAL
    world.crash("lose")
    backup = TestBackup(world)
    newest = backup.checkpoints()[-1][0]
    assert newest == model.acked
    assert backup.promote(newest) == newest
    backup.abandon()
    assert world.disks() == model.at[newest]


def test_a_smaller_disk_is_never_taken_for_the_one_that_was_there():
    world, model = prepared(applied=True)
    with pytest.raises(Failed, match="volumes") as caught:
        TestBackup(world, paths=smaller(world))
    assert caught.value.errno == errno.EINVAL
    world.crash("kill")
    backup = TestBackup(world)
    assert backup.promote() == model.acked
    backup.abandon()
    assert world.disks() == model.at[model.acked]


def test_volumes_may_change_once_all_is_applied():
    world, model = prepared(applied=True)
    backup = TestBackup(world, paths=SWAPPED)
    assert backup.promote() == model.acked
    backup.abandon()
    assert world.disks() == model.at[model.acked]


def test_a_read_only_open_needs_no_sizes():
    """Of a stopped backup the checkpoints are told, and nothing is changed."""
    world, model = prepared()
    backup = TestBackup(world, read_only=True)
    assert backup.checkpoints()[-1][0] == model.acked
    with pytest.raises(Failed) as caught:
        backup.promote()
    assert caught.value.errno == errno.EROFS
    backup.close()
