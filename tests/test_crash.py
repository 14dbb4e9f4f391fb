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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest
from crash_model import (
    NAMES,
    SEGMENTS,
    SIZES,
    Failed,
    Model,
    TestBackup,
    Workload,
    World,
    run_until_failure,
)

WORK = Workload()
POWER = ["lose", "keep", "tear", "reorder"]
ENDS = [*POWER, "kill"]
#: Operations that are only hints: what goes wrong there may be passed over.
HINTS = {"writeback", "drop_cache"}


@contextmanager
def telling(*what: object) -> Iterator[None]:
    """Print what leads here, if it fails."""
    try:
        yield
    except BaseException:
        print("to see it again:", *what)
        raise


def whole(*, ack: str = "durable", promote: bool = True) -> tuple[World, Model]:
    """The workload, from end to end."""
    world, model = World(), Model()
    failed = run_until_failure(
        world, lambda backup: WORK.run(backup, model, promote=promote), ack=ack
    )
    assert failed is None
    return world, model


def crashed(
    k: int, end: str, seed: int, *, ack: str = "durable"
) -> tuple[World, Model]:
    """The world after it ended behind operation k, and what was promised."""
    world, model = World(), Model()
    world.stop_after(k)
    run_until_failure(
        world, lambda backup: WORK.run(backup, model, promote=True), ack=ack
    )
    world.crash(end, seed)
    model.ended(end, ack=ack)
    return world, model


def refused(backup: TestBackup, epochs: Iterable[int]) -> None:
    for epoch in epochs:
        with pytest.raises(Failed) as caught:
            backup.promote(epoch)
        assert caught.value.errno == errno.EINVAL


def check_offer(backup: TestBackup, model: Model) -> list[int]:
    """The checkpoints that a recovered backup offers are those it must."""
    offered = backup.checkpoints()
    state = backup.state()
    if state in ("Promoting", "Promoted"):
        [(epoch, tag, committed)] = offered
        assert epoch == model.promoting and committed
        assert tag == model.tags[epoch]
        return [epoch]
    assert not model.promoted, "a promote was forgotten"
    if not offered:
        assert not model.started, "a session was forgotten"
        assert state == "Inconsistent"
        with pytest.raises(Failed) as caught:
            backup.promote()
        assert caught.value.errno == errno.EINVAL
        return []
    assert state == "Standby"
    model.name_pending(offered)
    epochs = [epoch for epoch, _, _ in offered]
    committed, newest = epochs[0], epochs[-1]
    known = sorted(model.at)
    # Without a gap: each is made of the ones before it.
    assert epochs == [n for n in known if committed <= n <= newest]
    assert [flag for _, _, flag in offered] == [True] + [False] * (len(offered) - 1)
    assert [tag for _, tag, _ in offered] == [model.tags[n] for n in epochs]
    if model.started:
        assert model.commit_durable <= committed <= model.commit_given
        if model.kept in ("written", "acked"):
            assert newest >= model.acked
        if model.kept == "written":
            assert committed >= model.commit_written
    status = backup.status()
    assert (status.committed_epoch, status.prepared_epoch) == (committed, newest)
    refused(backup, [*[n for n in known if n not in epochs][-3:], known[-1] + 1])
    assert backup.checkpoints() == offered, "a refused promote changed something"
    return epochs


def promote_and_compare(
    world: World, model: Model, epoch: int | None, tag: bytes | None = None
) -> None:
    """Promote a clone; every byte of every volume is the model's, for good."""
    twin = world.clone()
    backup = TestBackup(twin)
    done = backup.promote(epoch, tag=tag)
    assert epoch is None or done == epoch
    assert backup.state() == "Promoted"
    backup.abandon()
    assert twin.disks() == model.at[done]
    twin.crash("lose")
    assert twin.disks() == model.at[done]
    backup = TestBackup(twin)
    assert backup.state() == "Promoted"
    assert [n for n, _, _ in backup.checkpoints()] == [done]
    refused(backup, [n for n in model.at if n != done][-3:])
    backup.abandon()


def check_tags(world: World, model: Model, epochs: list[int]) -> None:
    """A tag names its checkpoint, unless it names several or none."""
    tags = [model.tags[epoch] for epoch in epochs]
    for tag in {*tags, b"", b"no such tag"}:
        if tag and tags.count(tag) == 1:
            promote_and_compare(world, model, epochs[tags.index(tag)], tag)
            continue
        backup = TestBackup(world.clone())
        if backup.state() == "Standby":
            with pytest.raises(Failed) as caught:
                backup.promote(tag=tag)
            assert caught.value.errno == errno.EINVAL
        backup.abandon()


def check_everything(world: World, model: Model, *, tags: bool = False) -> list[int]:
    backup = TestBackup(world.clone())
    epochs = check_offer(backup, model)
    backup.abandon()
    for epoch in epochs:
        promote_and_compare(world, model, epoch)
    if epochs:
        promote_and_compare(world, model, None)
    if tags:
        check_tags(world, model, epochs)
    return epochs


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
    sweep(3, end, range(1), start=ENDS.index(end) % 3)


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_crash_after_every_operation(end):
    sweep(1, end, range(5 if end in ("tear", "reorder") else 1))


@pytest.mark.parametrize("end", ENDS)
def test_with_acks_from_memory(end):
    """The process may die; after a power loss it is still at a checkpoint."""
    sweep(7, end, range(1), start=ENDS.index(end), ack="memory")


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_with_acks_from_memory_after_every_operation(end):
    sweep(1, end, range(3 if end in ("tear", "reorder") else 1), ack="memory")


# ---- promote ---------------------------------------------------------------


def offered_by(world: World) -> list[int]:
    backup = TestBackup(world.clone())
    epochs = [epoch for epoch, _, _ in backup.checkpoints()]
    backup.abandon()
    return epochs


def finished() -> tuple[World, Model, list[int]]:
    """A world with several prepared epochs beyond the last committed."""
    world, model = whole(promote=False)
    world.crash("keep")
    epochs = offered_by(world)
    assert len(epochs) >= 3, "the workload must leave prepared epochs"
    return world, model, epochs


def promote_steps(world: World, epoch: int | None) -> tuple[int, int]:
    """Operations of opening, and of opening and promoting."""
    twin = world.clone()
    before = twin.ops
    backup = TestBackup(twin)
    opened = twin.ops - before
    backup.promote(epoch)
    done = twin.ops - before
    backup.abandon()
    return opened, done


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
    assert failed is not None
    twin.crash(end, seed)
    backup = TestBackup(twin.clone())
    state = backup.state()
    offered = [n for n, _, _ in backup.checkpoints()]
    backup.abandon()
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


@pytest.mark.parametrize("end", ENDS)
def test_a_promote_interrupted_twice(end):
    world, model, epochs = finished()
    epoch = epochs[-1]
    opened, done = promote_steps(world, epoch)
    for j in range(opened, done, 2):
        once = world.clone()
        once.stop_after(j)
        run_until_failure(once, lambda backup: backup.promote(epoch))
        once.crash(end, j)
        _, again = promote_steps(once, epoch)
        for i in range(j % 3, again, 3):
            with telling(f"promote to {epoch}: {j}, then {i} operations, {end}"):
                interrupted_promote(once, model, epoch, i, end, 100 * j + i)


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
    assert failed or twin.failed_op in HINTS, f"a failed {twin.failed_op} was hidden"
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


# ---- operations that fail --------------------------------------------------------


def go_on(backup: TestBackup, model: Model, failed_op: str) -> None:
    """Use a backup in which something failed; what it still acks must hold."""
    for _ in range(3):
        try:
            model.barrier(backup, b"")
        except Failed:
            pass
        else:
            assert failed_op != "fdatasync", "acked after a failed sync"
        for step in (
            lambda: model.commit(backup, model.acked, durably=True),
            lambda: model.apply(backup),
            backup.checkpoint,
        ):
            try:
                step()
            except Failed:
                continue


def one_failure(k: int, err: int, then: str, *, drops_cache: bool = True) -> None:
    """Operation k fails; use the backup further, end it, look."""
    world, model = World(), Model()
    if drops_cache:
        world.drops_cache()
    world.fail_after(k, err)

    def work(backup: TestBackup) -> None:
        try:
            WORK.run(backup, model)
        except Failed:
            if model.started:
                go_on(backup, model, world.failed_op)
            raise

    failed = run_until_failure(world, work, close=k % 2 == 1)
    assert world.failed_op, "the operation never came"
    assert failed or world.failed_op in HINTS, f"a failed {world.failed_op} was hidden"
    model.ended(then, failed=True)
    if then != "kill":
        world.crash(then, k)
        check_everything(world, model)
        return
    # The machine goes on: a new process recovers, works on, loses power.
    world.crash("kill")
    run = run_until_failure(world, lambda backup: again(backup, model))
    assert run is None, f"after a failed {world.failed_op}: {run}"
    for end in POWER:
        with telling(f"a failed {world.failed_op}; later {end}"):
            after = world.clone()
            after.crash(end, k)
            check_everything(after, model.after(end))


def again(backup: TestBackup, model: Model, epochs: int = 12) -> None:
    model.resume(backup)
    Workload(seed=11, epochs=epochs).run(backup, model)


def every_failure(step: int, err: int, then: str) -> None:
    total = whole(promote=False)[0].ops
    for k in range(0, total, step):
        with telling(f"operation {k} fails with {errno.errorcode[err]}, {then}"):
            one_failure(k, err, then)


@pytest.mark.parametrize("err", [errno.EIO, errno.ENOSPC])
def test_a_failure_while_everything_is_made(err):
    """The next process opens what is half made, and lives long."""
    opening = World()
    TestBackup(opening).abandon()
    for k in range(opening.ops):
        with telling(f"operation {k} fails with {errno.errorcode[err]}"):
            one_failure(k, err, "kill")


@pytest.mark.parametrize("err", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("then", ["lose", "tear", "kill"])
def test_a_failed_operation_is_final_and_loses_nothing(err, then):
    every_failure(11 if then == "kill" else 5, err, then)


@pytest.mark.slow
@pytest.mark.parametrize("err", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("then", ["lose", "keep", "tear", "reorder", "kill"])
def test_every_failed_operation_is_final_and_loses_nothing(err, then):
    every_failure(1, err, then)


# ---- several lives -----------------------------------------------------------


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
    backup = TestBackup(world.clone())
    opened = backup.checkpoints()
    backup.abandon()
    for j in range(promote_steps(world, epochs[0])[0]):
        twin = world.clone()
        twin.stop_after(j)
        assert run_until_failure(twin, lambda backup: None) is not None
        twin.crash(end, j)
        backup = TestBackup(twin)
        assert backup.checkpoints() == opened
        backup.abandon()
    check_everything(world, model)


@pytest.mark.parametrize("err", [errno.EIO, errno.ENOSPC])
def test_an_open_that_fails_takes_nothing(err):
    """Whatever goes wrong while opening: the next one finds it all."""
    world, model, epochs = finished()
    backup = TestBackup(world.clone())
    opened = backup.checkpoints()
    backup.abandon()
    for j in range(promote_steps(world, epochs[0])[0]):
        twin = world.clone()
        twin.drops_cache()
        twin.fail_after(j, err)
        failed = run_until_failure(twin, lambda backup: None)
        assert failed or twin.failed_op in HINTS
        for end in ENDS:
            with telling(f"operation {j} ({twin.failed_op}) failed, then {end}"):
                after = twin.clone()
                after.crash(end, j)
                backup = TestBackup(after)
                assert backup.checkpoints() == opened
                backup.abandon()
                promote_and_compare(after, model, epochs[-1])
