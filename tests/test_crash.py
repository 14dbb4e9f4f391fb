# SPDX-License-Identifier: LGPL-2.1-or-later
"""The backup dies after every single I/O operation; nothing promised is lost.

The world stops after operation k of a fixed workload.  What was not synced is
lost, kept, torn or reordered (or only the process dies).  Then: recovery
works, every acked checkpoint is there, promoting to each one that is offered
gives exactly the model's bytes, and an interrupted promote can be finished at
its own checkpoint only.
"""

from __future__ import annotations

import errno

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
LOSSES = ["lose", "keep", "tear", "reorder", "kill"]


def total_ops() -> int:
    world = World()
    model = Model()
    assert run_until_failure(world, lambda backup: WORK.run(backup, model)) is None
    return world.ops


def crashed(k: int, loss: str, seed: int, ack: str = "durable") -> tuple[World, Model]:
    """The world after a crash behind operation k, and what was promised."""
    world, model = World(), Model()
    world.stop_after(k)
    run_until_failure(world, lambda backup: WORK.run(backup, model), ack=ack)
    world.crash(loss, seed)
    return world, model


def check_offer(backup: TestBackup, model: Model, *, promised: bool) -> list[int]:
    """The checkpoints that a recovered backup offers are those it must."""
    offered = backup.checkpoints()
    if not offered:
        assert not model.started, "a started session was lost"
        with pytest.raises(Failed) as caught:
            backup.promote()
        assert caught.value.errno == errno.EINVAL
        return []
    epochs = [epoch for epoch, _, _ in offered]
    committed = epochs[0]
    assert [flag for _, _, flag in offered] == [True] + [False] * (len(offered) - 1)
    assert committed <= max(model.commit_given, 1)
    if promised:
        assert committed >= model.commit_durable
        assert set(epochs) >= {n for n in model.acked if n > committed}
    for epoch, tag, _ in offered:
        assert tag == model.tags[epoch]
    return epochs


def promote_and_compare(world: World, model: Model, epoch: int | None) -> World:
    """Promote a clone; every byte of every volume is the model's."""
    twin = world.clone()
    backup = TestBackup(twin)
    done = backup.promote(epoch)
    assert epoch is None or done == epoch
    assert backup.state() == "Promoted"
    backup.abandon()
    assert twin.disks() == model.at[done]
    return twin


def check_everything(world: World, model: Model, *, promised: bool = True) -> None:
    looking = world.clone()
    backup = TestBackup(looking)
    epochs = check_offer(backup, model, promised=promised)
    backup.abandon()
    for epoch in epochs:
        promote_and_compare(world, model, epoch)
    if epochs:
        promote_and_compare(world, model, None)


def sweep(step: int, losses: list[str], seeds: range, start: int = 0) -> None:
    for k in range(start, total_ops() + 1, step):
        for loss in losses:
            for seed in seeds:
                world, model = crashed(k, loss, seed * 1000003 + k)
                try:
                    check_everything(world, model)
                except BaseException:
                    print(f"after operation {k}, {loss}, seed {seed}")
                    raise


@pytest.mark.parametrize("loss", LOSSES)
def test_crash_after_operations(loss):
    sweep(11, [loss], range(1), start=LOSSES.index(loss))


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_crash_after_every_operation(loss):
    sweep(1, [loss], range(3 if loss in ("tear", "reorder") else 1))


def finished() -> tuple[World, Model]:
    """A world with several prepared epochs beyond the last committed."""
    world, model = World(), Model()
    assert run_until_failure(world, lambda backup: WORK.run(backup, model)) is None
    world.crash("keep", 0)
    return world, model


def promote_steps(world: World, epoch: int) -> tuple[int, int]:
    """Operations of opening, and of opening and promoting."""
    twin = world.clone()
    before = twin.ops
    backup = TestBackup(twin)
    opened = twin.ops - before
    backup.promote(epoch)
    done = twin.ops - before
    backup.abandon()
    return opened, done


def interrupted_promote(
    world: World, model: Model, epoch: int, j: int, loss: str
) -> None:
    twin = world.clone()
    twin.stop_after(j)
    failed = run_until_failure(twin, lambda backup: backup.promote(epoch))
    assert failed is not None
    twin.crash(loss, j)
    looking = twin.clone()
    backup = TestBackup(looking)
    state = backup.state()
    offered = [number for number, _, _ in backup.checkpoints()]
    others = [n for n in model.at if n != epoch]
    if state in ("Promoting", "Promoted"):
        assert offered == [epoch]
        for other in others:
            with pytest.raises(Failed) as caught:
                backup.promote(other)
            assert caught.value.errno == errno.EINVAL
        with pytest.raises(Failed):
            backup.begin()
        backup.abandon()
        promote_and_compare(twin, model, None)
    else:
        # It was never begun: every checkpoint is still there.
        backup.abandon()
        for each in offered:
            promote_and_compare(twin, model, each)
    promote_and_compare(twin, model, epoch)


@pytest.mark.parametrize("loss", LOSSES)
def test_interrupted_promote_is_finished_at_the_same_checkpoint(loss):
    world, model = finished()
    backup = TestBackup(world.clone())
    epochs = [epoch for epoch, _, _ in backup.checkpoints()]
    backup.abandon()
    assert len(epochs) >= 2, "the workload must leave prepared epochs"
    for epoch in (epochs[0], epochs[-1]):
        opened, done = promote_steps(world, epoch)
        for j in range(opened, done):
            interrupted_promote(world, model, epoch, j, loss)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_guests_writes_after_promote_survive(loss):
    world, model = finished()
    backup = TestBackup(world)
    epoch = backup.promote()
    backup.abandon()
    want = [bytearray(disk) for disk in model.at[epoch]]
    for i, name in enumerate(NAMES):
        data = b"the guest wrote this" * 100
        for offset in (0, 3000, SIZES[name] - len(data)):
            world.poke(name, data, offset)
            want[i][offset : offset + len(data)] = data
    for seed in range(3):
        world.crash(loss, seed)
        backup = TestBackup(world)
        assert backup.state() == "Promoted"
        assert backup.promote() == epoch
        with pytest.raises(Failed):
            backup.begin()
        with pytest.raises(Failed):
            backup.commit(epoch + 1)
        backup.apply()
        backup.checkpoint()
        backup.abandon()
        assert world.disks() == tuple(bytes(disk) for disk in want)


@pytest.mark.parametrize("k", range(0, 400, 23))
def test_memory_acks_survive_the_process(k):
    world, model = crashed(k, "kill", 0, ack="memory")
    looking = TestBackup(world.clone(), ack="memory")
    check_offer(looking, model, promised=True)
    looking.abandon()


@pytest.mark.parametrize("err", [errno.EIO, errno.ENOSPC])
def test_one_failed_operation_is_final_and_loses_nothing(err):
    for k in range(0, total_ops(), 3):
        world, model = World(), Model()
        world.fail_after(k, err)
        after: list[str] = []

        def work(backup: TestBackup, model: Model = model, after=after) -> None:
            try:
                WORK.run(backup, model)
            except Failed:
                if model.started:
                    after.append(backup.state())
                    sealed = len(model.acked)
                    # A failed sync is final: nothing is ever acked again.
                    if after[-1] == "Failed":
                        with pytest.raises(Failed):
                            backup.barrier()
                    assert len(model.acked) == sealed
                raise

        run_until_failure(world, work)
        # The barrier that failed, and one tried after it, may be there or not.
        model.at.setdefault(max(model.at, default=0) + 1, model.snapshot())
        model.tags.setdefault(max(model.at), b"")
        world.crash("lose", k)
        try:
            check_everything(world, model)
        except BaseException:
            print(f"operation {k} failed with {errno.errorcode[err]}")
            raise


def test_stale_records_in_reused_segments():
    """Round and round the journal with the same bytes at the same places."""
    world, model = World(), Model()
    model.at[1] = model.snapshot()
    model.tags[1] = b""
    backup = TestBackup(world)
    backup.begin()
    model.started = True
    laps = 4 * SEGMENTS * 4
    for i in range(laps):
        for at in range(0, 12000, 4000):
            data = bytes([i % 251]) * 4000
            model.now[0][at : at + 4000] = data
            backup.write(0, data, at)
        epoch = backup.barrier(b"same tag")
        model.at[epoch] = model.snapshot()
        model.tags[epoch] = b"same tag"
        model.acked.append(epoch)
        if i % 3 == 2:
            model.commit_given = epoch
            backup.commit(epoch)
            backup.apply()
            backup.checkpoint()
            model.commit_durable = epoch
        if i % 7 == 3:
            # A crash in the middle of an epoch; stale records lie behind.
            backup.write(1, b"unfinished", 0)
            backup.abandon()
            world.crash("keep" if i % 2 else "lose", i)
            check_everything(world, model)
            backup = TestBackup(world)
            backup.begin()
    backup.abandon()
    world.crash("lose", 1)
    check_everything(world, model)


def test_a_crash_during_recovery_changes_nothing():
    world, model = finished()
    backup = TestBackup(world.clone())
    opened = backup.checkpoints()
    backup.abandon()
    for j in range(60):
        twin = world.clone()
        twin.stop_after(j)
        run_until_failure(twin, lambda backup: None)
        twin.crash("tear", j)
        again = TestBackup(twin)
        assert again.checkpoints() == opened
        again.abandon()
    check_everything(world, model)
