# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where a log ends, and what may come after.

A start writes nothing where something was: what follows an end begins in a
segment of its own, which names that end. So it does not matter whether the
end lies at a segment's end, in the middle of a page that was torn, or before
records that a loss of power left behind a hole.
"""

from __future__ import annotations

import os
import random
from itertools import count

import pytest

from support.crash_checks import check_everything, offered_by, telling
from support.crash_model import (
    PAGE,
    SEGMENT,
    SEGMENTS,
    Failed,
    Model,
    TestBackup,
    World,
    edge,
)

RECORD = 64  # a record's header
BARRIER = 24  # the least that a barrier has as payload


def session(world: World, model: Model) -> TestBackup:
    backup = TestBackup(world)
    model.resume(backup)
    model.begin(backup)
    return backup


def make_room(backup: TestBackup, model: Model, cost: int = 4 * PAGE) -> None:
    if backup.room() < cost:
        model.make_room(backup)


def until(backup: TestBackup, model: Model, left: int, seed: int = 1) -> None:
    """Epochs, each of a page, until a barrier ends so many bytes before its
    segment does; the segment is not the session's first."""
    rng = random.Random(seed)
    for _ in range(4 * SEGMENT // PAGE):
        make_room(backup, model)
        model.write(backup, 0, rng.randbytes(512), 512 * rng.randrange(300))
        model.barrier(backup, b"")
        if backup.head() == SEGMENT - left:
            return
    raise AssertionError("no barrier ended there")


def ended(world: World, model: Model, end: str, seed: int = 0) -> None:
    world.crash(end, seed)
    model.ended(end)


@pytest.mark.parametrize("left", [0, PAGE])
@pytest.mark.parametrize("end", ["kill", "lose", "tear"])
@pytest.mark.parametrize("commits", [0, 1, 2])
def test_a_start_behind_a_barrier_at_a_segments_end(left, end, commits):
    """Nothing is written over the header of that segment, or of another."""
    world, model = World(), Model()
    backup = session(world, model)
    until(backup, model, left)
    for life in range(3):
        with telling(f"life {life}"):
            backup.abandon()
            ended(world, model, end, life)
            check_everything(world, model)
            backup = session(world, model)
            epochs = [n for n, _, _ in backup.checkpoints()]
            # The primary says again what it said before its link was lost.
            for epoch in epochs[1 : 1 + commits]:
                model.commit(backup, epoch, durably=life == 1)
            make_room(backup, model)
            model.write(backup, 1, b"after a start", 1000 * life)
            model.barrier(backup, b"life")
    backup.abandon()
    ended(world, model, end, 9)
    check_everything(world, model)


def fill(backup: TestBackup, model: Model, up_to: int) -> None:
    """Records of the open epoch, the last of which ends there."""
    while (left := up_to - backup.head() - RECORD) > PAGE:
        length = min(left - 2 * RECORD, 8000)
        model.write(backup, 0, b"w" * length, up_to)
    model.write(backup, 1, b"e" * left, 1000)
    assert backup.head() == up_to


@pytest.mark.parametrize("end", ["kill", "lose"])
@pytest.mark.parametrize("last", ["barrier", "commit", "commit in a page"])
def test_a_record_that_ends_exactly_at_a_segments_end(end, last):
    world, model = World(), Model()
    backup = session(world, model)
    until(backup, model, 5 * PAGE)
    if last == "barrier":
        fill(backup, model, SEGMENT - RECORD - BARRIER)
        model.barrier(backup, b"")
    elif last == "commit":
        fill(backup, model, SEGMENT - RECORD)
        model.commit(backup, model.acked - 1, durably=True)
        model.now = [bytearray(disk) for disk in model.at[model.acked]]
    else:
        until(backup, model, PAGE)
        model.commit(backup, model.acked - 1)
    assert backup.head() == SEGMENT
    for life in range(3):
        backup.abandon()
        ended(world, model, end, life)
        check_everything(world, model)
        backup = session(world, model)
        model.commit(backup, model.acked, durably=True)
        model.write(backup, 1, b"after a start", 1000 * life)
        model.barrier(backup, b"life")
    backup.abandon()
    ended(world, model, end, 9)
    check_everything(world, model)


@pytest.mark.parametrize("how", ["operator", "primary"])
def test_a_lost_page_before_what_was_not_lost(how):
    """A commit's page is lost and the next epoch, behind it, is not."""
    holes = 0
    for seed in range(60):
        with telling(f"seed {seed}, {how}"):
            world, model = World(), Model()
            backup = session(world, model)
            for i in range(3):
                model.write(backup, 0, bytes([i + 1]) * 700, 3000 * i)
                model.barrier(backup, b"n%d" % i)
            model.commit(backup, model.acked)  # its page is not synced
            model.write(backup, 1, b"never acked" * 20, 77)
            world.stop_after(1)  # the barrier is written and not synced
            with pytest.raises(Failed):
                model.barrier(backup, b"never")
            backup.abandon()
            ended(world, model, "tear", seed)
            backup = TestBackup(world)
            holes += backup.checkpoints()[0][0] < model.acked
            model.resume(backup)
            if how == "operator":
                model.commit(backup, model.acked, durably=True)
                model.begin(backup)
            else:
                model.begin(backup)
                model.commit(backup, model.acked)
            for i in range(6):
                make_room(backup, model)
                model.write(backup, 0, bytes([i + 9]) * 900, 2000 * i)
                model.barrier(backup, b"m%d" % i)
            backup.abandon()
            ended(world, model, "lose")
            check_everything(world, model)
            backup = session(world, model)
            model.write(backup, 0, b"and on", 0)
            model.barrier(backup, b"on")
            backup.abandon()
            ended(world, model, "kill")
            check_everything(world, model)
    assert holes > 5


# ---- a superblock that is too old ----------------------------------------------


def newest_slot(world: World) -> int:
    serials = []
    for at in (0, 4096):
        data = world.read_file(b"/state/backup.state", 8192)[at : at + 4096]
        serials.append(int.from_bytes(data[8:16], "little"))
    return serials.index(max(serials))


def opening(world: World) -> str:
    """Why a backup can't be opened; "" if it can."""
    try:
        TestBackup(world).abandon()
    except Failed as error:
        return str(error)
    return ""


@pytest.mark.parametrize("seed", range(4))
def test_a_flipped_bit_in_the_newer_superblock(seed):
    """Believed is only what can still be true; else it is refused by name."""
    rng = random.Random(seed)
    world, model = World(), Model()
    backup = session(world, model)
    refused = believed = 0
    for i in range(90):
        make_room(backup, model, 30000)
        model.write(backup, 0, rng.randbytes(12000), 100 * i)
        model.barrier(backup, b"")
        if rng.random() < 0.05:
            model.commit(backup, model.acked)
            model.apply(backup)
            backup.checkpoint()
        elif rng.random() < 0.05:
            backup.abandon()
            ended(world, model, "lose", i)
            backup = session(world, model)
        twin = world.clone()
        twin.crash("lose", i)
        # Any bit but the serial's, which says which slot is the newer one.
        at = newest_slot(twin) * 4096 + rng.choice([*range(8), *range(16, 480)])
        byte = twin.read_file(b"/state/backup.state", 8192)[at] ^ 1 << i % 8
        twin.poke_file(b"/state/backup.state", bytes([byte]), at)
        with telling(f"seed {seed}, round {i}, byte {at}"):
            if "is older than" in opening(twin.clone()):
                refused += 1
            else:
                believed += 1
                check_everything(twin, model.after("lose"))
    assert refused and believed
    backup.abandon()


def flip(world: World, slot: int, at: int = 100) -> World:
    twin = world.clone()
    twin.crash("lose")
    data = twin.read_file(b"/state/backup.state", 8192)
    byte = bytes([data[slot * 4096 + at] ^ 16])
    twin.poke_file(b"/state/backup.state", byte, slot * 4096 + at)
    return twin


@pytest.mark.parametrize("slot", [0, 1])
def test_a_commit_before_a_session_survives_the_loss_of_a_slot(slot):
    """It stands in the superblock alone, and the disks may be on their way."""
    world, model = World(), Model()
    backup = session(world, model)
    for i in range(4):
        model.write(backup, 0, bytes([i + 1]) * 9000, 5000 * i)
        model.barrier(backup, b"")
    backup.abandon()
    ended(world, model, "lose")
    backup = TestBackup(world)
    model.resume(backup)
    model.commit(backup, model.acked - 1, durably=True)
    check_everything(flip(world, slot), model.after("lose"))
    model.apply(backup)  # and no checkpoint: the disks are ahead of it
    check_everything(flip(world, slot), model.after("lose"))
    backup.abandon()


@pytest.mark.parametrize("slot", [0, 1])
def test_a_promote_survives_the_loss_of_a_slot(slot):
    """Begun it can only be finished, finished it never replays."""
    world, model = World(), Model()
    backup = session(world, model)
    for i in range(4):
        model.write(backup, 0, bytes([i + 1]) * 9000, 5000 * i)
        model.barrier(backup, b"")
    epoch = model.acked - 1
    twin = world.clone()
    model.promote(backup, epoch)
    backup.abandon()
    damaged = TestBackup(flip(world, slot))
    assert damaged.state() == "Promoted"
    damaged.abandon()
    steps, begun = 0, 0
    while True:
        now = twin.clone()
        now.stop_after(steps)
        try:
            TestBackup(now).promote(epoch)
        except Failed:
            steps += 1
        else:
            break
        now.crash("lose")
        state = TestBackup(now.clone()).state()
        for each in (0, 1):
            damaged = TestBackup(flip(now, each))
            if state == "Promoting":
                begun += 1
                # Its second copy may not have been written: then it is not
                # begun, and no disk was touched.
                if damaged.state() != "Promoting":
                    assert now.disks() == twin.disks()
                else:
                    assert damaged.promote() == epoch
            damaged.abandon()
    assert begun > 4


# ---- lives in a small ring -------------------------------------------------------


def step(backup: TestBackup, model: Model, rng: random.Random) -> None:
    what = rng.random()
    if what < 0.55:
        for _ in range(rng.randrange(4)):
            length = edge(backup, rng)
            if backup.room() < length + 1024:
                break
            volume = rng.randrange(2)
            at = rng.randrange(100000)
            if rng.random() < 0.1:
                model.zero(backup, volume, at, length)
            else:
                model.write(backup, volume, rng.randbytes(length), at)
        if backup.room() >= -SEGMENT // 4:
            model.barrier(backup, rng.choice([b"", b"t", b"tag" * 10]))
    elif what < 0.75:
        ready = [n for n in model.at if n > model.commit_given]
        if ready:
            model.commit(backup, rng.choice(ready), durably=rng.random() < 0.3)
    elif what < 0.85:
        model.apply(backup)
    else:
        backup.checkpoint()


def one_life(world: World, model: Model, rng: random.Random) -> None:
    backup = None
    if rng.random() < 0.7:
        world.stop_after(rng.choice([10, 30, 60, 150, 400]) + rng.randrange(30))
    try:
        backup = TestBackup(world)
        model.resume(backup)
        if rng.random() < 0.3 and model.acked > model.commit_given:
            model.commit(backup, model.acked, durably=True)
        model.begin(backup)
        for _ in range(rng.randrange(25)):
            if rng.random() < 0.1:
                model.reconnect(backup)
            step(backup, model, rng)
    except Failed:
        pass
    finally:
        if backup is not None:
            backup.abandon()


def chain(seed: int, lives: int) -> None:
    rng = random.Random(seed)
    world, model = World(), Model()
    for life in range(lives):
        one_life(world, model, rng)
        end = rng.choice(["kill", "lose", "keep", "tear", "tear", "reorder"])
        with telling(f"seed {seed}, life {life}, {end}"):
            ended(world, model, end, rng.randrange(2**32))
            check_everything(world, model)
    backup = TestBackup(world)
    model.resume(backup)
    model.begin(backup)
    model.write(backup, 0, b"the end", 0)
    model.barrier(backup, b"")
    backup.abandon()


def test_chains_of_lives_at_the_edges():
    for seed in range(60):
        chain(seed, 8)


@pytest.mark.slow
def test_many_chains_of_lives_at_the_edges():
    """`make crash STATES=n` lets this go on until there are so many."""
    first = World.crashes
    wanted = int(os.environ.get("REMUS_CRASH_STATES", "24000"))
    for seed in count(10000):
        if World.crashes - first >= wanted:
            break
        chain(seed, 8)


# ---- a full ring -----------------------------------------------------------------


@pytest.mark.parametrize("end", ["kill", "lose", "tear", "reorder"])
def test_restarts_and_commits_in_a_full_ring(end):
    """It is full of prepared epochs; a commit each time is the only way on."""
    world, model = World(), Model()
    backup = session(world, model)
    for life in range(40):
        while backup.room() > 6000:
            model.write(backup, 0, bytes([life]) * 5000, 10)
            model.barrier(backup, b"")
        backup.abandon()
        ended(world, model, end, life)
        with telling(f"life {life}, {end}"):
            check_everything(world, model) if life % 8 == 0 else offered_by(world)
        backup = TestBackup(world)
        model.resume(backup)
        prepared = [n for n in model.at if n > model.commit_given]
        if prepared:
            model.commit(backup, prepared[len(prepared) // 2], durably=True)
        if life % 3 == 0:
            model.apply(backup)
            backup.checkpoint()
        model.begin(backup)
    backup.abandon()


@pytest.mark.parametrize("end", ["kill", "lose", "tear"])
@pytest.mark.parametrize("writes", [0, 3])
def test_starts_eat_no_segments(end, writes):
    """A process, or a link, that comes and goes takes no room."""
    world, model = World(), Model()
    backup = session(world, model)
    for i in range(5):
        model.write(backup, 0, bytes([i + 1]) * 3000, 0)
        model.barrier(backup, b"")
    for life in range(8 * SEGMENTS):
        for _ in range(writes):
            backup.write(0, b"never closed" * 900, 0)
        if life % 2:
            backup.abandon()
            ended(world, model, end, life)
            backup = TestBackup(world)
            model.resume(backup)
        model.begin(backup)
        assert backup.status().journal_bytes <= 3 * SEGMENT
    model.write(backup, 0, b"still", 0)
    model.barrier(backup, b"")
    backup.abandon()
    ended(world, model, end, 99)
    check_everything(world, model)


@pytest.mark.parametrize("end", ["kill", "lose"])
def test_the_tail_lies_in_an_epoch_that_was_never_closed(end):
    """A commit in the middle of an epoch is the log's end, and all before it is
    in the disks: where that epoch began is not kept, and is not needed."""
    world = World()
    backup = TestBackup(world)
    backup.begin()
    backup.write(0, b"one", 0)
    epoch = backup.barrier()
    before = 0
    while backup.head() >= before:
        before = backup.head()
        backup.write(0, bytes([7]) * PAGE, 0)
    backup.commit(epoch)
    backup.apply()
    backup.abandon()
    world.crash("kill")
    backup = TestBackup(world)
    backup.greet()
    backup.catch_up()
    backup.apply()
    backup.checkpoint()  # a primary is there, and has sent nothing yet
    backup.abandon()
    world.crash(end)
    backup = TestBackup(world)
    assert [one for one, _, _ in backup.checkpoints()] == [epoch]
    assert world.read(b"xvda")[:4] == b"one\0"
    # That epoch's records are not taken for those of the next one.
    backup.greet()
    backup.catch_up()
    backup.write(0, b"two", 100)
    later = backup.barrier()
    backup.abandon()
    world.crash(end)
    backup = TestBackup(world)
    assert [one for one, _, _ in backup.checkpoints()] == [epoch, later]
    assert backup.promote(later) == later
    assert world.read(b"xvda")[:4] == b"one\0"
    assert world.read(b"xvda")[100:103] == b"two"
    backup.close()
