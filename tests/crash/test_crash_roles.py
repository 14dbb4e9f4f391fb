# SPDX-License-Identifier: LGPL-2.1-or-later
"""A side dies after every single I/O operation while its role changes.

A promoted backup goes on as a primary; a primary is fenced, or begins a
generation of its own before a write passes alone; a promoted side is chosen
to lose.  Whatever of it a crash leaves, the side knows who it is, and what it
once said it was it is for good.
"""

from __future__ import annotations

import contextlib
import errno
from dataclasses import dataclass

import pytest

from remus_native._binding import ffi, lib
from support.crash_checks import ENDS, POWER, finished, telling
from support.crash_model import NAMES, Failed, TestBackup, World, check

FOREIGN = 5  # REMUS_CONTENT_FOREIGN

OPEN, FENCE, ALONE = (
    lib.REMUS_TEST_ROLE_OPEN,
    lib.REMUS_TEST_ROLE_FENCE,
    lib.REMUS_TEST_ROLE_ALONE,
)


@dataclass(frozen=True)
class Role:
    """Who a primary is."""

    generation: bytes
    parent: bytes
    ended: int
    ancestors: int
    next_epoch: int


def role(world: World, what: int = OPEN) -> Role:
    """Open a primary, let it do that, and let its process die."""
    out = ffi.new("struct remus_test_role *")
    rc = lib.remus_test_role(world.raw, b"/state", what, out)
    world.crash("kill")
    check(rc)
    return Role(
        bytes(ffi.buffer(out.generation)),
        bytes(ffi.buffer(out.parent)),
        out.ended,
        out.ancestors,
        out.next_epoch,
    )


def steps(world: World, what: int) -> int:
    twin = world.clone()
    before = twin.ops
    role(twin, what)
    return twin.ops - before


def stopped(
    world: World, what: int, k: int, end: str, seed: int
) -> tuple[World, Role | None]:
    """What is left of a copy that ended behind operation k; who it was, if it
    was done all the same (what follows is not needed for it)."""
    twin = world.clone()
    twin.stop_after(k)
    done = None
    with contextlib.suppress(Failed):
        done = role(twin, what)
    twin.crash(end, seed)
    return twin, done


@pytest.fixture(scope="module")
def promoted() -> tuple[World, int]:
    world, _, epochs = finished()
    backup = TestBackup(world)
    epoch = backup.promote(epochs[-2])
    backup.abandon()
    world.crash("lose")
    return world, epoch


@pytest.fixture(scope="module")
def primary(promoted: tuple[World, int]) -> World:
    """A primary that took it over and ended."""
    world = promoted[0].clone()
    role(world)
    world.crash("lose")
    return world


@pytest.mark.parametrize("end", ENDS)
def test_a_take_over_is_finished_by_the_next(promoted, end):
    world, epoch = promoted
    whole = world.clone()
    want = role(whole)
    assert (want.ended, want.ancestors) == (epoch, 1)
    assert want.next_epoch > epoch
    for k in range(steps(world, OPEN)):
        for seed in range(3):
            with telling(f"take-over stopped after {k}, {end}, {seed}"):
                twin, done = stopped(world, OPEN, k, end, seed)
                assert done in (None, want)
                disks = twin.disks()
                assert role(twin.clone()) == want
                # Or it is looked at as the backup first: it is one side of two.
                backup = TestBackup(twin)
                state = backup.state()
                backup.abandon()
                twin.crash("kill")
                assert state in ("Promoted", "Inconsistent")
                assert role(twin) == want
                assert twin.disks() == disks


@pytest.mark.parametrize("end", ENDS)
def test_who_was_fenced_stays_fenced(primary, end):
    whole = primary.clone()
    role(whole, FENCE)
    for loss in POWER:
        twin = whole.clone()
        twin.crash(loss, 1)
        fenced(twin)
        # As the backup it waits for the other one; it is no primary again.
        backup = TestBackup(twin)
        assert backup.state() == "Inconsistent"
        backup.abandon()
        twin.crash(loss, 2)
        fenced(twin)
    for k in range(steps(primary, FENCE)):
        with telling(f"fence stopped after {k}, {end}"):
            twin, done = stopped(primary, FENCE, k, end, k)
            known = is_fenced(twin)  # or it goes on as the primary
            assert known or done is None
            assert is_fenced(twin) == known


def is_fenced(world: World) -> bool:
    try:
        role(world)
    except Failed as error:
        if error.errno != errno.EROFS:
            raise
        return True
    return False


def fenced(world: World) -> None:
    assert is_fenced(world)


@pytest.mark.parametrize("end", ENDS)
def test_before_a_write_passes_alone_its_generation_is_there(primary, end):
    old = role(primary.clone())
    new = role(whole := primary.clone(), ALONE)
    assert new.parent == old.generation != new.generation
    assert new.ancestors == old.ancestors + 1
    for loss in POWER:
        twin = whole.clone()
        twin.crash(loss, 3)
        assert role(twin).generation == new.generation
    for k in range(steps(primary, ALONE)):
        with telling(f"a new generation, stopped after {k}, {end}"):
            twin, done = stopped(primary, ALONE, k, end, k)
            now = role(twin)
            assert done is None or now.generation == done.generation
            assert now.generation in (old.generation, new.generation)
            # No write passed: the next process begins one of its own.
            if now.generation == old.generation:
                assert role(twin, ALONE).parent == old.generation


@pytest.mark.parametrize("err", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("what", [FENCE, ALONE])
def test_what_could_not_be_stored_is_not_said(primary, what, err):
    old = role(primary.clone())
    for k in range(steps(primary, what)):
        twin = primary.clone()
        twin.fail_after(k, err)
        try:
            now = role(twin, what)
        except Failed:
            continue
        with telling(f"{twin.failed_op} {k} failed"):
            twin.crash("lose")
            if what == FENCE:
                fenced(twin)
            else:
                assert now.parent == old.generation
                assert role(twin).generation == now.generation


@pytest.mark.parametrize("end", ENDS)
def test_a_side_chosen_to_lose(promoted, end):
    """Its disks stay until another primary overwrites them."""
    world, epoch = promoted
    twin = world.clone()
    before = twin.ops
    TestBackup(twin, discard_local=True).abandon()
    total = twin.ops - before
    for k in range(total + 1):
        with telling(f"--discard-local stopped after {k} of {total}, {end}"):
            twin = world.clone()
            twin.stop_after(k)
            with contextlib.suppress(Failed):
                TestBackup(twin, discard_local=True).abandon()
            twin.crash(end, k)
            backup = TestBackup(twin)
            state, known = backup.state(), backup.checkpoints()
            backup.abandon()
            twin.crash("kill")
            if state == "Promoted":
                assert [n for n, _, _ in known] == [epoch]
            else:
                assert state == "Inconsistent" and not known
            backup = TestBackup(twin, discard_local=True)
            assert backup.state() == "Inconsistent"
            backup.abandon()
            assert twin.disks() == world.disks()


@pytest.fixture(scope="module")
def killed(promoted: tuple[World, int]) -> World:
    """The promoted side was a primary, and is killed: what its guest wrote is
    in the page cache."""
    world = promoted[0].clone()
    role(world)
    for i, name in enumerate(NAMES):
        world.write(name, b"of its guest" * 2000, 5000 * (i + 1))
    world.crash("kill")
    return world


def adopt(world: World) -> int:
    """It follows another primary, whose catch-up begins; what it was before."""
    backup = TestBackup(world, discard_local=True)
    try:
        content, _ = backup.greet()
        backup.catch_up()
        return content
    finally:
        backup.abandon()


@pytest.mark.parametrize("end", POWER)
def test_what_is_adopted_is_on_the_medium(killed, end):
    """The catch-up sends what differs now, and that is all that it sends."""
    left, twin = killed.disks(), killed.clone()
    assert adopt(twin) == FOREIGN
    total = twin.ops - killed.ops
    adopted = 0
    for k in range(total + 1):
        with telling(f"adopted, stopped after {k} of {total}, {end}"):
            twin = killed.clone()
            twin.stop_after(k)
            with contextlib.suppress(Failed):
                adopt(twin)
            twin.crash(end, k)
            found = twin.disks()
            if adopt(twin) != FOREIGN:  # then they would be compared
                assert found == left
                adopted += 1
    assert adopted
