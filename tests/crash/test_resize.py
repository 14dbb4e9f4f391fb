# SPDX-License-Identifier: LGPL-2.1-or-later
"""The journal gets another size at a start, and nothing is lost by it.

Whatever a start with another size is stopped at, the next one, with either
size, has all that was acked, and goes on.
"""

from __future__ import annotations

from contextlib import suppress

import pytest

from remus_native._binding import ffi
from support.crash_checks import POWER, again, telling
from support.crash_model import SEGMENT, SEGMENTS, Failed, Model, TestBackup, World

Limits = tuple[int, int]
USUAL: Limits = (SEGMENT, SEGMENTS)
CHANGES: dict[str, tuple[Limits, Limits]] = {
    "more segments": (USUAL, (SEGMENT, 11)),
    "fewer segments": (USUAL, (SEGMENT, 4)),
    "larger segments": (USUAL, (2 * SEGMENT, 5)),
    "smaller segments": ((2 * SEGMENT, 5), USUAL),
}


def opened(world: World, limits: Limits, **options: bool) -> TestBackup:
    segment, segments = limits
    return TestBackup(world, segment=segment, segments=segments, **options)


def checkpoint(backup: TestBackup, model: Model, i: int) -> int:
    model.write(backup, 0, b"%d" % (i % 10) * 4096, 4096 * (i % 8))
    model.write(backup, 1, b"%d" % (i % 7) * 8192, 0)
    return model.barrier(backup, b"%d" % i)


def lived(limits: Limits, *, prepared: bool = False) -> tuple[World, Model]:
    """Some checkpoints long, the newest not applied; the machine lost power."""
    world, model = World(), Model()
    backup = opened(world, limits)
    model.begin(backup)
    for i in range(12):
        model.commit(backup, checkpoint(backup, model, i), durably=i == 11)
        if i % 4 == 0:
            model.apply(backup)
            backup.checkpoint()
    if prepared:
        checkpoint(backup, model, 12)
    backup.abandon()
    world.crash("lose")
    return world, model


def size_of(backup: TestBackup) -> int:
    return backup.status().journal_limit


def check(world: World, model: Model, limits: Limits) -> None:
    """Every byte is that of the last checkpoint; and it goes on from there."""
    twin = world.clone()
    backup = opened(twin, limits)
    assert size_of(backup) == limits[0] * limits[1]
    assert [epoch for epoch, _, _ in backup.checkpoints()] == [model.acked]
    assert backup.promote() == model.acked
    backup.abandon()
    assert twin.disks() == model.at[model.acked]
    twin, after = world.clone(), model.after("lose")
    backup = opened(twin, limits)
    again(backup, after)
    backup.abandon()
    twin.crash("lose")
    backup = opened(twin, limits)
    newest = backup.checkpoints()[-1][0]
    assert newest == after.acked
    assert backup.promote(newest) == newest
    backup.abandon()
    assert twin.disks() == after.at[newest]


@pytest.mark.parametrize("change", CHANGES)
def test_another_size_needs_no_new_copy(change: str):
    was, wanted = CHANGES[change]
    world, model = lived(was)
    check(world, model, wanted)
    # And back.
    opened(world, wanted).abandon()
    world.crash("lose")
    check(world, model, was)


def test_no_file_is_left_over():
    world, _ = lived(USUAL)
    opened(world, (SEGMENT, 4)).abandon()
    for i in (4, 5):
        with pytest.raises(Failed):
            world.read_file(b"/state/journal/segment.%04d" % i, 16)


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_prepared_keeps_the_size(change: str):
    was, wanted = CHANGES[change]
    world, model = lived(was, prepared=True)
    backup = opened(world, wanted)
    assert size_of(backup) == was[0] * was[1]
    assert "keeps its size" in ffi.string(backup.status().reason).decode()
    assert backup.checkpoints()[-1][0] == model.acked
    backup.abandon()
    world.crash("kill")
    twin = world.clone()
    backup = opened(twin, wanted)
    assert backup.promote(model.acked) == model.acked
    backup.abandon()
    assert twin.disks() == model.at[model.acked]
    # Until it is committed.
    backup = opened(world, wanted)
    model.resume(backup)
    model.begin(backup)
    model.commit(backup, model.acked)
    backup.close()
    backup = opened(world, wanted)
    assert size_of(backup) == wanted[0] * wanted[1]
    backup.abandon()


@pytest.mark.parametrize("end", [*POWER, "kill"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_start_with_another_size_may_stop_anywhere(change: str, end: str):
    was, wanted = CHANGES[change]
    world, model = lived(was)
    twin = world.clone()
    before = twin.ops
    opened(twin, wanted).abandon()
    steps = twin.ops - before
    assert steps > 10
    for k in range(steps):
        with telling(f"operation {k} of {steps}"):
            twin = world.clone()
            twin.stop_after(k)
            with suppress(Failed):
                opened(twin, wanted).abandon()
            twin.crash(end, k)
            if k % 3 == 0:
                check(twin, model.after(end), wanted)
            elif k % 3 == 1:
                check(twin, model.after(end), was)
            else:
                check(twin, model.after(end), (SEGMENT, 8))


def test_a_read_only_open_changes_nothing():
    world, model = lived(USUAL)
    backup = opened(world, (SEGMENT, 11), read_only=True)
    assert backup.checkpoints()[-1][0] == model.acked
    assert size_of(backup) == SEGMENT * SEGMENTS
    backup.abandon()
