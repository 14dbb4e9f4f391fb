# SPDX-License-Identifier: LGPL-2.1-or-later
"""Operations of the backup that fail, are short or are interrupted.

A failure is final and loses nothing; what is passed over are hints.
"""

from __future__ import annotations

import errno

import pytest

from support.crash_checks import (
    ENDS,
    POWER,
    WORK,
    again,
    check_everything,
    checkpoints_of,
    finished,
    promote_and_compare,
    promote_steps,
    telling,
    whole,
)
from support.crash_model import (
    Failed,
    Model,
    TestBackup,
    World,
    run_until_failure,
)


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
    assert failed or world.failed_hint, f"a failed {world.failed_op} was hidden"
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
    every_failure(13 if then == "kill" else 7, err, then)


@pytest.mark.slow
@pytest.mark.parametrize("err", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("then", ["lose", "keep", "tear", "reorder", "kill"])
def test_every_failed_operation_is_final_and_loses_nothing(err, then):
    every_failure(1, err, then)


def interrupted(k: int | None) -> tuple[World, Model]:
    world, model = World(), Model()
    world.interrupts()
    if k is not None:
        world.stop_after(k)
    failed = run_until_failure(
        world, lambda backup: WORK.run(backup, model, promote=True)
    )
    # What stops behind the promote may stop no more than its dirty map.
    assert bool(failed) == (k is not None) or model.promoted
    return world, model


@pytest.mark.parametrize("end", ENDS)
def test_with_short_and_interrupted_operations(end):
    total = interrupted(None)[0].ops
    for k in range(ENDS.index(end), total, 31):
        with telling(f"operation {k} of {total}, interrupted, {end}"):
            world, model = interrupted(k)
            world.crash(end, k)
            model.ended(end)
            check_everything(world, model)


@pytest.mark.parametrize("err", [errno.EIO, errno.ENOSPC])
def test_an_open_that_fails_takes_nothing(err):
    """Whatever goes wrong while opening: the next one finds it all."""
    world, model, epochs = finished()
    opened = checkpoints_of(world.clone())
    for j in range(promote_steps(world, epochs[0])[0]):
        twin = world.clone()
        twin.drops_cache()
        twin.fail_after(j, err)
        failed = run_until_failure(twin, lambda backup: None)
        assert failed or twin.failed_hint
        for end in ENDS:
            with telling(f"operation {j} ({twin.failed_op}) failed, then {end}"):
                after = twin.clone()
                after.crash(end, j)
                assert checkpoints_of(after) == opened
                promote_and_compare(after, model, epochs[-1])
