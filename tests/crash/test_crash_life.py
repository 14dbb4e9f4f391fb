# SPDX-License-Identifier: LGPL-2.1-or-later
"""A whole life of a backup, stopped after every single I/O operation.

The first copy, a catch-up that is cut short and one that is not, a copy
straight to the disks that is cut short and mended, a failover that is taken
back with discard_local: each ends in a commit.  Wherever it stops: what is
offered is exactly a checkpoint, what must be offered is, Inconsistent is said
where a copy was begun and no epoch on top of it was acked, and the primary can
go on from there by what the hello reply says.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator

import pytest

from support import formats
from support.crash_checks import ENDS, POWER, telling
from support.crash_model import (
    NAMES,
    SEGMENT,
    SEGMENTS,
    Disks,
    Failed,
    TestBackup,
    World,
)

BLOCK = 4096
NONE, PARTIAL, COMPLETE, CONSISTENT, PROMOTED, FOREIGN = range(6)
CHUNK = 8192


class Life:
    """The primary's side: its disks, and what it was promised."""

    def __init__(self, seed: int = 3) -> None:
        self.rng = random.Random(seed)
        self.now = [bytearray(self.rng.randbytes(2000) * 200)[:size] for size in
                    (256 * 1024, 128 * 1024 + 512)]  # fmt: skip
        self.at: dict[int, Disks] = {}
        #: A barrier that was sent and not acked.
        self.sent: Disks | None = None
        self.acked = 0
        self.newest = 0  # number ever seen
        self.given = self.durable = 0  # commits
        #: May there be none now?  May there be what was before a copy?
        self.may_lack = True
        self.old: dict[int, Disks] | None = None
        self.promoting = 0
        self.promoted = False

    def snapshot(self) -> Disks:
        return tuple(bytes(disk) for disk in self.now)

    def guest(self, writes: int, after: int = 0) -> None:
        """Writes that no backup takes."""
        for _ in range(writes):
            volume = self.rng.randrange(len(NAMES))
            at = self.rng.randrange(after, len(self.now[volume]) - CHUNK)
            data = self.rng.randbytes(self.rng.choice([512, 3000, CHUNK]))
            self.now[volume][at : at + len(data)] = data

    def differing(self, view: Disks) -> Iterator[tuple[int, int, bytes]]:
        """Blocks that a backup with these disks lacks, zero ones as b""."""
        for volume, (mine, theirs) in enumerate(zip(self.now, view, strict=True)):
            for at in range(0, len(mine), BLOCK):
                data = bytes(mine[at : at + BLOCK])
                if data != theirs[at : at + BLOCK]:
                    yield volume, at, data

    # ---- steps; each notes what it tries before, what it got after ----

    def barrier(self, backup: TestBackup) -> None:
        self.sent = self.snapshot()
        self.arrived(backup.barrier())

    def arrived(self, epoch: int) -> None:
        assert epoch > self.newest, "a number was used twice"
        assert self.sent is not None
        self.at[epoch] = self.sent
        self.sent = None
        self.newest = self.acked = epoch

    def commit(self, backup: TestBackup, *, durably: bool = False) -> None:
        self.given = self.acked
        if durably:
            backup.commit_durably(self.given)
        else:
            backup.commit(self.given)
            backup.apply()
        self.durable = self.given
        self.may_lack = False
        self.old = None

    def epoch(self, backup: TestBackup, writes: int = 3) -> None:
        for _ in range(writes):
            self.guest(1)
        self.send(backup, self.at[self.acked])
        self.barrier(backup)

    def send(self, backup: TestBackup, view: Disks, most: int = 10**6) -> None:
        for volume, at, data in list(self.differing(view))[:most]:
            if backup.room() < 2 * BLOCK:
                # The applier's thread makes room, and the credit waits for it.
                backup.apply()
                backup.checkpoint()
            if any(data):
                backup.write(volume, data, at)
            else:
                backup.zero(volume, at, len(data))

    def copy_begin(self, backup: TestBackup, *, keep: bool = False) -> None:
        if not self.may_lack:
            self.old = self.at
        self.may_lack = True
        backup.copy_begin(keep=keep)
        self.at, self.old = {}, None
        self.acked = self.given = self.durable = 0
        self.sent = None

    def copy(self, backup: TestBackup, view: Disks, most: int = 10**6) -> None:
        blocks = list(self.differing(view))[:most]
        for i, (volume, at, data) in enumerate(blocks):
            if i == len(blocks) - 6:
                # What comes behind it is synced at the end.
                backup.copy_flush()
            if any(data):
                backup.copy_write(volume, data, at)
            else:
                backup.copy_zero(volume, at, len(data))

    # ---- the life ----

    def live(self, backup: TestBackup, world: World) -> None:
        """From nothing to a backup that has seen it all but a failover."""
        assert backup.greet() == (NONE, 0)
        self.copy_begin(backup)
        self.copy(backup, world.disks(), most=5)
        assert backup.greet()[0] == PARTIAL
        self.copy_begin(backup)
        self.copy(backup, world.disks())
        backup.copy_end()
        self.guest(3)
        self.send(backup, self.copied(world))
        self.barrier(backup)
        self.commit(backup)
        backup.checkpoint()
        for i in range(4):
            self.epoch(backup)
            if i == 1:
                self.commit(backup, durably=True)
        self.catch_up_twice(backup)
        self.rewrite(backup, world)
        for _ in range(2):
            self.epoch(backup)

    def copied(self, world: World) -> Disks:
        return world.disks()

    def catch_up_twice(self, backup: TestBackup) -> None:
        """Prepared epochs are there, the guest goes on, the link fails."""
        held = self.at[self.acked]
        self.guest(8)
        content, newest = backup.greet()
        assert (content, newest) == (CONSISTENT, self.acked)
        backup.catch_up()
        self.send(backup, held, most=6)
        self.guest(4)
        assert backup.greet() == (CONSISTENT, self.acked)
        backup.catch_up()
        self.send(backup, held)
        self.barrier(backup)
        self.commit(backup)
        self.epoch(backup)

    def rewrite(self, backup: TestBackup, world: World) -> None:
        """Straight to the disks, prepared epochs first; cut short, mended."""
        held = self.at[self.acked]
        self.guest(10)
        assert backup.greet() == (CONSISTENT, self.acked)
        self.copy_begin(backup, keep=True)
        assert world.disks() == held
        self.copy(backup, held, most=6)
        assert backup.greet()[0] == PARTIAL
        self.copy_begin(backup)
        self.copy(backup, world.disks())
        backup.copy_end()
        self.guest(2)
        self.send(backup, world.disks())
        self.barrier(backup)
        self.commit(backup)
        backup.checkpoint()

    # ---- after it stopped ----

    def check(self, world: World) -> None:
        """What is offered is right, down to the bytes."""
        backup = TestBackup(world.clone())
        listed = backup.checkpoints()
        offered = [n for n, _, _ in listed]
        state = backup.state()
        if not offered:
            assert self.may_lack, "checkpoints were forgotten"
            # What was acked on top of a copy is there, committed or not.
            assert self.old is not None or not self.acked
            assert state == "Inconsistent"
            with pytest.raises(Failed) as caught:
                backup.promote()
            assert caught.value.errno == errno.EINVAL
            backup.abandon()
            return
        committed = listed[0][2]
        if not committed:
            # A copy, and epochs on it of which none is committed yet.
            assert self.may_lack and not self.durable
            with pytest.raises(Failed, match="none is committed"):
                backup.promote()
        backup.abandon()
        known = dict(self.at)
        if self.old is not None:
            # A copy was tried, and perhaps not begun.
            known = dict(self.old)
        if self.sent is not None and offered[-1] not in known:
            known[offered[-1]] = self.sent
        assert set(offered) <= set(known), "from nowhere"
        assert offered == [n for n in known if offered[0] <= n <= offered[-1]]
        if committed:
            assert self.durable <= offered[0] <= max(self.given, self.durable)
        assert offered[-1] >= self.acked
        for epoch in offered:
            twin = world.clone()
            backup = TestBackup(twin)
            assert backup.promote(epoch) == epoch
            backup.abandon()
            twin.crash("lose")
            assert twin.disks() == known[epoch]

    def go_on(self, world: World) -> None:
        """The primary comes back to what is left, and brings it up to date."""
        view = held_together(world)
        backup = TestBackup(world)
        content, held = backup.greet()
        if content == CONSISTENT:
            known = self.at if self.old is None else self.old
            if held in known:
                assert view == known[held]
        self.guest(3)
        # The applier's thread makes room, and the credit waits for it.
        backup.apply()
        backup.checkpoint()
        too_much = sum(1 for _ in self.differing(view)) > 2 * SEGMENT // BLOCK
        if content in (NONE, PARTIAL) or too_much:
            backup.copy_begin(keep=content == CONSISTENT)
            self.copy(backup, world.disks())
            backup.copy_end()
        else:
            backup.catch_up()
            self.send(backup, view)
        epoch = backup.barrier()
        assert epoch > self.newest, "a number was used twice"
        backup.commit(epoch)
        backup.apply()
        backup.checkpoint()
        assert [n for n, _, _ in backup.checkpoints()] == [epoch]
        backup.abandon()
        world.crash("lose")
        assert world.disks() == self.snapshot()


def held_together(world: World) -> Disks:
    """What disks and journal hold, by the reader of docs/formats.md."""
    disks = [bytearray(disk) for disk in world.disks()]
    try:
        state = formats.superblock(
            world.read_file(b"/state/backup.state", 8192), "guest0"
        )
    except (Failed, formats.Invalid):
        return world.disks()
    if state["role"] in (2, 3, 8):
        files = [
            world.read_file(b"/state/journal/segment.%04d" % i, SEGMENT)
            for i in range(SEGMENTS)
        ]
        found = formats.recover(state, files, "guest0")
        found.write_to(disks, max(found.closed, default=0))
    return tuple(bytes(disk) for disk in disks)


def lived(stop: int | None = None) -> tuple[World, Life]:
    world, life = World(), Life()
    if stop is not None:
        world.stop_after(stop)
    backup = None
    try:
        backup = TestBackup(world)
        life.live(backup, world)
    except Failed:
        assert stop is not None
    finally:
        if backup:
            backup.abandon()
    return world, life


def sweep(step: int, start: int, end: str, go_on: int) -> None:
    total = lived()[0].ops
    for k in range(start, total + 1, step):
        with telling(f"operation {k} of {total}, {end}"):
            world, life = lived(k)
            world.crash(end, k)
            life.check(world)
            if k // step % go_on == 0:
                life.go_on(world)


@pytest.mark.parametrize("end", ENDS)
def test_a_life_that_stops_anywhere(end):
    sweep(5, ENDS.index(end), end, go_on=4)


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_a_life_that_stops_after_every_operation(end):
    sweep(1, 0, end, go_on=1)


def test_the_life_goes_to_its_end():
    world, life = lived()
    world.crash("lose")
    assert not life.may_lack and life.acked - life.durable == 2
    life.check(world)
    life.go_on(world)


# ---- discard_local ------------------------------------------------------------


class Discarded:
    """Promoted, used by a guest, then given up for the other side."""

    def __init__(self) -> None:
        self.world, self.life = lived()
        self.world.crash("keep")
        backup = TestBackup(self.world)
        self.target = backup.promote()
        backup.abandon()
        self.life.newest = self.life.acked
        for i, name in enumerate(NAMES):
            self.world.poke(name, b"the guest that is lost" * 500, 7000 * (i + 1))
        self.left = self.world.disks()
        self.life.guest(6)

    def run(self, world: World, life: Life) -> None:
        backup = TestBackup(world, discard_local=True)
        try:
            content, _ = backup.greet()
            assert content in (FOREIGN, COMPLETE)
            backup.catch_up()
            # The primary compares hashes.
            life.send(backup, self.left)
            life.barrier(backup)
            assert world.disks() == self.left
            life.commit(backup)
            backup.checkpoint()
            life.epoch(backup)
        finally:
            backup.abandon()


def discard(end: str, step: int, start: int, err: int = 0) -> None:
    made = Discarded()
    twin = made.world.clone()
    before = twin.ops
    made.run(twin, fresh(made.life))
    total = twin.ops - before
    for k in range(start, total + 1, step):
        with telling(f"discard_local, operation {k} of {total}, {end}, {err}"):
            world, life = made.world.clone(), fresh(made.life)
            if err:
                world.fail_after(k, err)
            else:
                world.stop_after(k)
            try:
                made.run(world, life)
            except Failed:
                pass
            else:
                assert k == total or not world.failed_op or world.failed_hint
            world.crash(end, k)
            check_discarded(made, world, life)


def fresh(life: Life) -> Life:
    copy = Life()
    copy.now = [bytearray(disk) for disk in life.now]
    copy.newest = life.newest
    copy.rng.seed(9)
    return copy


def check_discarded(made: Discarded, world: World, life: Life) -> None:
    backup = TestBackup(world.clone())
    state = backup.state()
    content, _ = backup.greet()
    backup.abandon()
    if state == "Promoted" or content == PROMOTED:
        # It was not begun: the guest's disks are as they were, and whoever
        # wants to lose them has to say so again.
        assert life.may_lack and not life.at
        assert world.disks() == made.left
        made.run(world, fresh(made.life))
        return
    life.check(world)
    if not life.given:
        assert world.disks() == made.left
    life.go_on(world)


@pytest.mark.parametrize("end", ENDS)
def test_discard_local_that_stops_anywhere(end):
    discard(end, 4, ENDS.index(end) % 4)


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_discard_local_that_stops_after_every_operation(end):
    discard(end, 1, 0)


@pytest.mark.parametrize("end", ["lose", "tear", "kill"])
def test_discard_local_in_which_an_operation_fails(end):
    discard(end, 6, POWER.index(end) if end in POWER else 5, errno.EIO)
