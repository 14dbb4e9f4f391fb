# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a crash must leave of a backup: checks that the crash tests share."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest

from support.crash_model import (
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
    for epoch in epochs:  # by the ten thousand, so without pytest.raises
        number = 0
        try:
            backup.promote(epoch)
        except Failed as error:
            number = error.errno
        assert number == errno.EINVAL, f"checkpoint {epoch} was not refused"


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
    flags = [flag for _, _, flag in offered]
    if model.started or flags[0]:
        assert flags == [True] + [False] * (len(offered) - 1)
    else:
        # The epoch that completes the first copy: safe, but of no commit.
        assert flags == [False]
        with pytest.raises(Failed, match="none is committed") as caught:
            backup.promote()
        assert caught.value.errno == errno.EINVAL
    assert [tag for _, tag, _ in offered] == [model.tags[n] for n in epochs]
    if model.started:
        assert model.commit_durable <= committed <= model.commit_given
        if model.kept in ("written", "acked"):
            assert newest >= model.acked
        if model.kept == "written":
            assert committed >= model.commit_written
    status = backup.status()
    assert status.prepared_epoch == newest
    assert (status.committed_epoch == committed) == flags[0]
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
    if epochs and checkpoints_of(world.clone())[0][2]:
        promote_and_compare(world, model, None)
    if tags:
        check_tags(world, model, epochs)
    return epochs


def checkpoints_of(world: World) -> list[tuple[int, bytes, bool]]:
    """What a backup that is opened now offers."""
    backup = TestBackup(world)
    offered = backup.checkpoints()
    backup.abandon()
    return offered


def offered_by(world: World) -> list[int]:
    return [epoch for epoch, _, _ in checkpoints_of(world.clone())]


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


def again(backup: TestBackup, model: Model, epochs: int = 12) -> None:
    model.resume(backup)
    Workload(seed=11, epochs=epochs).run(backup, model)
