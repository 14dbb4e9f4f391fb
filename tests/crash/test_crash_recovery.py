# SPDX-License-Identifier: LGPL-2.1-or-later
"""A backup that dies again and again, and what its next life finds.

Stale records in segments that are used again, recovery that is stopped, a
journal on another disk than its state.
"""

from __future__ import annotations

import errno
import random

import pytest

from support.crash_checks import (
    ENDS,
    POWER,
    WORK,
    again,
    check_everything,
    check_offer,
    checkpoints_of,
    finished,
    promote_steps,
    telling,
    whole,
)
from support.crash_model import (
    SEGMENTS,
    Model,
    TestBackup,
    Workload,
    World,
    run_until_failure,
)


def lives(seed: int, count: int) -> None:
    """The backup is opened and dies, again and again, anywhere."""
    rng = random.Random(seed)
    ack = rng.choice(["durable", "memory"])
    world, model = World(), Model()
    world.drops_cache()
    for life in range(count):
        work = Workload(seed=rng.randrange(2**32), epochs=rng.randrange(1, 30), tail=1)
        # Often early: in recovery, in the first steps of a session.
        limit = rng.choice([20, 40, 80, 300])
        at = rng.randrange(limit)
        failing = rng.random() < 0.2
        if failing:
            world.fail_after(at, rng.choice([errno.EIO, errno.ENOSPC]))
        else:
            world.stop_after(at)
        promote = life == count - 1

        def one(backup: TestBackup, work=work, promote=promote) -> None:
            model.resume(backup)
            if work.seed % 2 and model.acked > model.commit_given:
                # An operator's word, before any primary is back.
                model.commit(backup, model.acked, durably=True)
            work.run(backup, model, promote=promote)

        run_until_failure(world, one, ack=ack, close=rng.random() < 0.5)
        end = rng.choice(ENDS)
        with telling(f"life {life}, {ack}, {at} operations, then {end}"):
            world.crash(end, rng.randrange(2**32))
            model.ended(end, ack=ack, failed=failing)
            check_everything(world, model)
        if model.promoting:
            return


def test_several_lives():
    for seed in range(40):
        with telling(f"seed {seed}"):
            lives(seed, 6)


@pytest.mark.slow
def test_many_lives():
    for seed in range(1000, 2500):
        with telling(f"seed {seed}"):
            lives(seed, 10)


def test_a_life_that_ends_while_opening_takes_nothing_from_the_next():
    """Killed while it opens (no power loss); the next life is a long one."""
    opening = World()
    TestBackup(opening).abandon()
    for k in range(opening.ops):
        world, model = World(), Model()
        world.stop_after(k)
        assert run_until_failure(world, lambda backup: None) is not None
        world.crash("kill")
        assert run_until_failure(world, lambda b, m=model: again(b, m, 8)) is None
        for end in POWER:
            with telling(f"killed after operation {k}; later {end}"):
                after = world.clone()
                after.crash(end, k)
                check_everything(after, model.after(end))


# ---- stale records ---------------------------------------------------------------


def test_stale_records_in_reused_segments():
    """Round and round the journal with the same bytes at the same places."""
    world, model = World(), Model()
    backup = TestBackup(world)
    model.begin(backup)
    for i in range(4 * SEGMENTS * 4):
        for at in range(0, 12000, 4000):
            # The same for a whole lap and more, then another.
            model.write(backup, 0, bytes([i // 31 + 1]) * 4000, at)
        model.barrier(backup, b"same tag")
        if i % 3 == 2:
            model.commit(backup, model.acked)
            model.apply(backup)
            backup.checkpoint()
        if i % 7 == 3:
            # A crash in the middle of an epoch; stale records lie behind.
            backup.write(1, b"unfinished", 0)
            backup.abandon()
            end = ENDS[i % len(ENDS)]
            world.crash(end, i)
            model.ended(end)
            with telling(f"round {i}, {end}"):
                check_everything(world, model, tags=True)
            backup = TestBackup(world)
            model.resume(backup)
            model.begin(backup)
    backup.abandon()
    world.crash("lose", 1)
    model.ended("lose")
    check_everything(world, model)
    assert world.segments_begun() > 3 * SEGMENTS


@pytest.mark.parametrize("end", ENDS)
def test_stale_records_of_the_same_epoch(end):
    """An epoch that was cut off is sent again, its remains beside it.

    Each try writes the same places with other bytes, as many records of the
    same lengths; only the last one gets its barrier.
    """
    world, model = World(), Model()
    backup = TestBackup(world)
    model.begin(backup)
    for i in range(60):
        with telling(f"round {i}, {end}"):
            for attempt in range(3):
                for at in range(0, 20000, 5000):
                    data = bytes([4 * i % 251 + attempt]) * 5000
                    model.write(backup, 0, data, at)
                if attempt == 2:
                    model.barrier(backup, b"")
                backup.abandon()
                world.crash(end, 3 * i + attempt)
                model.ended(end)
                check_everything(world, model)
                backup = TestBackup(world)
                model.resume(backup)
                model.begin(backup)
            if i % 2:
                model.commit(backup, model.acked)
                model.apply(backup)
                backup.checkpoint()
    backup.abandon()
    assert world.segments_begun() > 3 * SEGMENTS


# ---- recovery ---------------------------------------------------------------------


@pytest.mark.parametrize("end", ENDS)
def test_a_crash_during_recovery_changes_nothing(end):
    world, model, epochs = finished()
    opened = checkpoints_of(world.clone())
    for j in range(promote_steps(world, epochs[0])[0]):
        twin = world.clone()
        twin.stop_after(j)
        assert run_until_failure(twin, lambda backup: None) is not None
        twin.crash(end, j)
        assert checkpoints_of(twin) == opened
    check_everything(world, model)


def offered_again(world: World, offered: object, *what: object) -> None:
    for end in POWER:
        with telling(*what, f"recovered, then {end}"):
            after = world.clone()
            after.crash(end, 5)
            assert checkpoints_of(after) == offered


@pytest.mark.parametrize("end", ENDS)
def test_an_epoch_that_a_commit_kept_open_is_not_part_of_the_next(end):
    """The log ends at that commit: what was written before it counts, but the
    epoch has no barrier, and a later session begins it again."""
    world = World()
    backup = TestBackup(world)
    backup.begin()
    backup.write(0, b"one", 0)
    first = backup.barrier()
    backup.write(0, b"of nobody", 100)
    backup.commit_durably(first)
    backup.abandon()
    world.crash("kill")
    backup = TestBackup(world)
    backup.greet()
    backup.catch_up()
    backup.write(0, b"two", 4096)
    second = backup.barrier()
    backup.abandon()
    world.crash(end)
    backup = TestBackup(world)
    assert backup.promote(second) == second
    assert world.read(b"xvda")[:3] == b"one"
    assert world.read(b"xvda")[100:109] == bytes(9)
    assert world.read(b"xvda")[4096:4099] == b"two"
    backup.close()


def test_what_a_recovery_found_is_there_for_good():
    """A process died, the next one offers what it left in the page cache, and
    tells the primary so: no loss of power may take it back."""
    total = whole(promote=False)[0].ops
    for k in range(0, total, 4):
        world, model = World(), Model()
        world.stop_after(k)
        run_until_failure(world, lambda b, m=model: WORK.run(b, m))
        world.crash("kill")
        offered_again(world, checkpoints_of(world), f"killed after operation {k}")


def test_what_a_recovery_found_after_a_failed_sync_is_there_for_good():
    """The page cache may hold what no sync will ever make durable."""
    total = whole(promote=False)[0].ops
    for k in range(0, total, 3):
        world, model = World(), Model()
        world.drops_cache()
        world.fail_after(k, errno.EIO)
        run_until_failure(world, lambda b, m=model: WORK.run(b, m))
        if world.failed_op != "fdatasync":
            continue
        world.crash("kill")
        offered_again(world, checkpoints_of(world), f"sync {k} failed")


@pytest.mark.parametrize("end", POWER)
def test_a_journal_apart_from_its_state(end):
    """Each directory has names of its own to make durable."""
    where = b"/fast/journal"
    for k in range(POWER.index(end), 160, 3):
        with telling(f"a journal elsewhere, operation {k}, {end}"):
            world, model = World(), Model()
            world.stop_after(k)
            run_until_failure(world, lambda b, m=model: WORK.run(b, m), journal=where)
            world.crash(end, k)
            model.ended(end)
            backup = TestBackup(world, journal=where)
            check_offer(backup, model)
            backup.abandon()
