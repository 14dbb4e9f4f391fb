# SPDX-License-Identifier: LGPL-2.1-or-later
"""The backup dies after every single I/O operation; nothing promised is lost.

The world stops after operation k of a fixed workload that ends in a failover.
What was not synced is lost, kept, torn or reordered (or only the process
dies).  Then: recovery works, every acked checkpoint is there, promoting to
each one that is offered gives exactly the model's bytes, and a promote that
was begun can be finished at its own checkpoint only.

A failure prints what makes it happen again.
"""

from __future__ import annotations

import errno
import random

import pytest

from support.crash_checks import (
    ENDS,
    POWER,
    WORK,
    check_everything,
    crashed,
    finished,
    offered_by,
    promote_and_compare,
    promote_steps,
    refused,
    telling,
    whole,
)
from support.crash_model import (
    NAMES,
    SEGMENTS,
    SIZES,
    Failed,
    Model,
    TestBackup,
    World,
    run_until_failure,
)

# ---- the workload --------------------------------------------------------


def test_the_workload_goes_round_the_journal():
    world, model = World(), Model()
    backup = TestBackup(world)
    WORK.run(backup, model)
    assert len(backup.checkpoints()) > WORK.tail
    backup.abandon()
    assert world.segments_begun() > 3 * SEGMENTS
    assert any(model.tags.values())


def sweep(step: int, end: str, seeds: range, start: int = 0, **how: str) -> None:
    total = whole(**how)[0].ops
    for k in range(start, total + 1, step):
        for seed in seeds:
            seed = seed * 1000003 + k
            with telling(f"operation {k} of {total}, {end}, seed {seed}, {how}"):
                world, model = crashed(k, end, seed, **how)
                check_everything(world, model, tags=k % 8 == 0)


@pytest.mark.parametrize("end", ENDS)
def test_crash_after_operations(end):
    sweep(8, end, range(1), start=ENDS.index(end))


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_crash_after_every_operation(end):
    sweep(1, end, range(5 if end in ("tear", "reorder") else 1))


@pytest.mark.parametrize("end", ENDS)
def test_with_acks_from_memory(end):
    """The process may die; after a power loss it is still at a checkpoint."""
    sweep(10, end, range(1), start=ENDS.index(end), ack="memory")


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_with_acks_from_memory_after_every_operation(end):
    sweep(1, end, range(3 if end in ("tear", "reorder") else 1), ack="memory")


# ---- promote ---------------------------------------------------------------


def only_this_one(world: World, model: Model, epoch: int) -> None:
    """A promote was begun: it can be finished here and nowhere else."""
    backup = TestBackup(world.clone())
    assert [n for n, _, _ in backup.checkpoints()] == [epoch]
    refused(backup, [n for n in model.at if n != epoch])
    for refusing in (
        backup.begin,
        lambda: backup.commit(epoch + 1),
        lambda: backup.barrier(b""),
        lambda: backup.write(0, b"late", 0),
    ):
        with pytest.raises(Failed):
            refusing()
    backup.abandon()
    promote_and_compare(world, model, epoch)
    promote_and_compare(world, model, None)


def interrupted_promote(
    world: World, model: Model, epoch: int, j: int, end: str, seed: int
) -> World:
    """Stop a promote behind operation j: what is left, checked."""
    before = offered_by(world)
    twin = world.clone()
    twin.stop_after(j)
    failed = run_until_failure(twin, lambda backup: backup.promote(epoch))
    twin.crash(end, seed)
    backup = TestBackup(twin.clone())
    state = backup.state()
    offered = [n for n, _, _ in backup.checkpoints()]
    backup.abandon()
    # What it leaves behind when it is done is worth no failure.
    assert failed or state == "Promoted", "a failure was hidden"
    if state in ("Promoting", "Promoted"):
        only_this_one(twin, model, epoch)
    else:
        # It was never begun: every checkpoint is still there.
        assert state == "Standby"
        assert offered == before
        for each in offered:
            promote_and_compare(twin, model, each)
    return twin


@pytest.mark.parametrize("end", ENDS)
def test_an_interrupted_promote_is_finished_at_the_same_checkpoint(end):
    world, model, epochs = finished()
    for epoch in (epochs[0], epochs[1], epochs[-1]):
        opened, done = promote_steps(world, epoch)
        for j in range(opened, done):
            with telling(f"promote to {epoch} stopped after {j}, {end}, seed {j}"):
                interrupted_promote(world, model, epoch, j, end, j)


def interrupted_twice(end: str, step: int) -> None:
    world, model, epochs = finished()
    epoch = epochs[-1]
    opened, done = promote_steps(world, epoch)
    for j in range(opened + ENDS.index(end) % step, done, step):
        once = world.clone()
        once.stop_after(j)
        run_until_failure(once, lambda backup: backup.promote(epoch))
        once.crash(end, j)
        _, again = promote_steps(once, epoch)
        for i in range(j % 3, again, 3):
            with telling(f"promote to {epoch}: {j}, then {i} operations, {end}"):
                interrupted_promote(once, model, epoch, i, end, 100 * j + i)


@pytest.mark.parametrize("end", ENDS)
def test_a_promote_interrupted_twice(end):
    interrupted_twice(end, 8)


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_a_promote_interrupted_twice_after_every_operation(end):
    interrupted_twice(end, 1)


def nested(step: int, inner: int) -> None:
    """Crash, then promote to each checkpoint offered, and stop that too."""
    total = whole(promote=False)[0].ops
    for k in range(step // 2, total, step):
        rng = random.Random(k)
        world, model = crashed(k, rng.choice(ENDS), k)
        epochs = check_everything(world, model)
        for epoch in epochs:
            opened, done = promote_steps(world, epoch)
            for j in range(opened + rng.randrange(inner), done, inner):
                end = rng.choice(ENDS)
                with telling(f"{k}, promote to {epoch} stopped after {j}, {end}"):
                    interrupted_promote(world, model, epoch, j, end, k + j)


def test_interrupted_promotes_after_crashes():
    nested(97, 5)


@pytest.mark.slow
def test_interrupted_promotes_after_many_crashes():
    nested(7, 2)


@pytest.mark.parametrize("err", [errno.EIO, errno.ENOSPC])
def test_a_promote_that_failed_says_so_and_can_be_tried_again(err):
    """Tried again, in this process or the next, it never ends half done."""
    world, model, epochs = finished()
    epoch = epochs[-1]
    opened, done = promote_steps(world, epoch)
    for j in range(opened, done):
        for restart in (False, True):
            with telling(f"operation {j} of the promote to {epoch}, {restart=}"):
                failing_promote(world, model, epoch, j, err, restart=restart)


def failing_promote(
    world: World, model: Model, epoch: int, j: int, err: int, *, restart: bool
) -> None:
    twin = world.clone()
    twin.drops_cache()
    twin.fail_after(j, err)
    backup = TestBackup(twin)
    failed = False
    try:
        backup.promote(epoch)
    except Failed:
        failed = True
    assert failed or twin.failed_hint, f"a failed {twin.failed_op} was hidden"
    if restart:
        backup.abandon()
        twin.crash("kill")
        backup = TestBackup(twin)
    try:
        backup.promote(epoch)
    except Failed:
        assert not restart, "a new process can't finish it"
    else:
        failed = False
    backup.abandon()
    for end in POWER:
        after = twin.clone()
        after.crash(end, j)
        if not failed:
            assert after.disks() == model.at[epoch], f"{twin.failed_op}, {end}"
        promote_and_compare(after, model, epoch)


# ---- after promote -----------------------------------------------------------


@pytest.mark.parametrize("end", ENDS)
def test_the_guests_writes_after_promote_survive(end):
    world, model, epochs = finished()
    backup = TestBackup(world)
    epoch = backup.promote(epochs[-1])
    backup.abandon()
    want = [bytearray(disk) for disk in model.at[epoch]]
    for life in range(12):
        for i, name in enumerate(NAMES):
            data = b"life %d of the guest " % life * 100
            for at in (0, 3000 + 512 * life, SIZES[name] - len(data)):
                world.poke(name, data, at)
                want[i][at : at + len(data)] = data
        guests = tuple(bytes(disk) for disk in want)
        # The backup's process, meanwhile: opened, stopped anywhere, closed.
        world.stop_after(life if life % 2 else 1000)
        run_until_failure(world, lambda backup: backup.promote(epoch))
        world.crash(end, life)
        assert world.disks() == guests
        backup = TestBackup(world)
        assert backup.state() == "Promoted"
        assert backup.status().promoted_epoch == epoch
        assert backup.promote() == epoch
        refused(backup, epochs[:-1])
        for refusing in (
            backup.begin,
            lambda backup=backup: backup.commit(epoch + 1),
            lambda backup=backup: backup.commit_durably(epoch + 1),
            lambda backup=backup: backup.write(0, b"late", 0),
            lambda backup=backup: backup.barrier(b""),
        ):
            with pytest.raises(Failed):
                refusing()
        backup.apply()
        backup.checkpoint()
        if life % 3:
            backup.close()
        else:
            backup.abandon()
        assert world.disks() == guests


def test_a_promote_finished_by_another_process_never_replays():
    """Killed in the middle, finished, given to the guest, power lost."""
    world, model, epochs = finished()
    epoch = epochs[-1]
    opened, done = promote_steps(world, epoch)
    for j in range(opened, done):
        twin = world.clone()
        twin.stop_after(j)
        run_until_failure(twin, lambda backup: backup.promote(epoch))
        twin.crash("kill")
        backup = TestBackup(twin)
        assert backup.promote(epoch) == epoch
        backup.abandon()
        want = []
        for name, disk in zip(NAMES, model.at[epoch], strict=True):
            data = b"the guest's own " * 4000
            twin.poke(name, data, 0)
            want.append(data + disk[len(data) :])
        for end in POWER:
            with telling(f"promote to {epoch} killed after {j}; later {end}"):
                after = twin.clone()
                after.crash(end, j)
                backup = TestBackup(after)
                assert backup.promote() == epoch
                backup.abandon()
                assert after.disks() == tuple(want)
