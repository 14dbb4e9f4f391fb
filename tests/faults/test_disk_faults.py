# SPDX-License-Identifier: LGPL-2.1-or-later
"""Real file systems that are full, or gone: small ones on loop devices.

Each test ends in a named state whose reason tells how to go on, and with a
comparison of every byte: what was acked is there after the disk was mended.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from remus_native import Primary, ReplicationLost, State, StateError
from support.disks import (
    MIB,
    SIZE,
    Rig,
    exactly,
    fill,
    next_checkpoint,
    run,
    usable,
)
from support.pair import QUIET, checkpoint
from support.side_process import Side
from support.waiting import until

# Alone: a mount namespace that another test makes meanwhile keeps its own copy
# of a mount, and so the file system that was shut down is still there after
# our umount and mount.
pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(bool(usable()), reason=usable()),
]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, SIZE)
    yield made
    made.close()


def write_error(primary: Primary, data: bytes, at: int) -> StateError | None:
    try:
        primary.pwrite(0, data, at)
    except StateError as error:
        return error
    return None


def unprotected(primary: Primary) -> str:
    """The guest goes on, and the state says so; its reason."""
    until(
        lambda: primary.status().state is State.UNPROTECTED,
        what=lambda: str(primary.status()),
    )
    primary.pwrite(0, b"the guest goes on", 3 * MIB)
    assert primary.pread(0, 17, 3 * MIB) == b"the guest goes on"
    return primary.status().reason


def goes_on_to_write(rig: Rig, failed: Callable[[], bool]) -> dict[int, bytes]:
    """Checkpoints, until the fault has been met; those that were acked."""
    acked: dict[int, bytes] = {}

    def one_more() -> bool:
        fill(rig.primary, len(acked), at=(len(acked) % 5) * MIB, n=512 << 10)
        now = rig.data("p")
        with suppress(ReplicationLost):
            acked[checkpoint(rig.primary)] = now
        return failed()

    until(one_more)
    return acked


# ---- full ------------------------------------------------------------------------


def test_no_room_for_the_journal_is_an_error_at_the_start(rig):
    rig.disk("b.state", 4 * MIB)
    with pytest.raises(StateError, match=r"journal: fill .*segment") as caught:
        rig.open_backup()
    assert caught.value.errno == errno.ENOSPC


def test_no_room_for_the_dirty_map_is_an_error_at_the_start(rig):
    disk = rig.disk("p.state", 4 * MIB)
    disk.fill_up()
    with pytest.raises(StateError) as caught:
        rig.open_primary(wait=False)
    assert caught.value.errno == errno.ENOSPC
    assert str(disk.path) in str(caught.value)


def test_full_disks_of_journal_and_states_stop_nothing(rig):
    """All that they need was written when they were made."""
    for part in ("p.state", "b.state"):
        rig.disk(part, 24 * MIB)
    rig.open()
    for disk in rig.disks.values():
        disk.fill_up()
    for i in range(20):
        fill(rig.primary, i, at=(i % 5) * MIB)
        checkpoint(rig.primary)
    # An outage: a new generation is stored, and the map is written to.
    rig.close_backup()
    until(lambda: not rig.primary.status().connected)
    fill(rig.primary, 50, at=5 * MIB)
    # Both sides start again on their full disks.
    rig.close_primary()
    rig.open_backup()
    primary = rig.open_primary()
    assert primary.status().resync_total <= SIZE
    fill(primary, 51)
    epoch = next_checkpoint(primary)
    want = rig.data("p")
    exactly(rig, epoch, want)


def test_a_sparse_image_that_finds_no_room_on_the_primary(rig):
    disk = rig.disk("p.disk", 6 * MIB)
    rig.open()
    model = bytearray(SIZE)
    rng = random.Random(3)
    failed = 0
    for i in range(96):
        data, at = rng.randbytes(65536 + 100), i * 65536 - 100 * (i > 0)
        data = data[: SIZE - at]
        error = write_error(rig.primary, data, at)
        if error is None:
            model[at : at + len(data)] = data
            continue
        assert error.errno == errno.ENOSPC and "xvda" in str(error)
        failed += 1
        # Some of it may have found room: whatever the disk holds now.
        model[at : at + len(data)] = rig.primary.pread(0, len(data), at)
    assert failed
    assert rig.primary.status().state is State.PROTECTED
    epoch = checkpoint(rig.primary)
    # The guest makes room, and goes on.
    rig.primary.discard(0, 0, 2 * MIB)
    model[: 2 * MIB] = bytes(2 * MIB)
    fill(rig.primary, 9, n=MIB)
    model[:MIB] = random.Random(9).randbytes(MIB)
    epoch = checkpoint(rig.primary)
    assert rig.data("p") == model
    exactly(rig, epoch, bytes(model))
    assert disk.path.is_mount()


def test_a_sparse_image_that_finds_no_room_at_apply(rig):
    disk = rig.disk("b.disk", 8 * MIB)
    rig.open()
    fill(rig.primary, 1)
    acked = {checkpoint(rig.primary): rig.data("p")}
    disk.fill_up()
    acked |= goes_on_to_write(rig, lambda: rig.backup.status().state is State.FAILED)
    reason = rig.backup.status().reason
    assert "xvda" in reason and "No space left" in reason and "image" in reason
    assert "repair that and restart" in reason
    assert "No space left" in unprotected(rig.primary)
    with pytest.raises(StateError, match="restart"):
        rig.backup.promote(force=True)
    # Mended and restarted: what was acked is there, and the primary is back.
    rig.close_backup()
    disk.make_room()
    backup = rig.open_backup(serve=False)
    assert max(acked) in {cp.epoch for cp in backup.checkpoints()}
    backup.serve(f"unix:{rig.folder}/sock")
    epoch = next_checkpoint(rig.primary)
    want = rig.data("p")
    exactly(rig, epoch, want)


def test_no_room_for_the_first_copy(rig):
    rig.disk("b.disk", 3 * MIB)
    with rig.image("p").open("r+b") as image:
        image.write(random.Random(1).randbytes(SIZE))
    rig.open_backup()
    primary = rig.open_primary(wait=False)
    until(lambda: rig.backup.status().state is State.FAILED)
    assert "No space left" in rig.backup.status().reason
    until(
        lambda: "No space left" in primary.status().reason,
        what=lambda: str(primary.status()),
    )
    assert primary.status().state is State.CONNECTING
    rig.close_backup()
    backup = rig.open_backup(serve=False)
    assert backup.status().state is State.INCONSISTENT
    with pytest.raises(StateError, match="Inconsistent"):
        backup.promote()
    # With room it is mended: what is there already does not travel again.
    rig.close_backup()
    bigger = rig.folder / "bigger"
    bigger.mkdir()
    shutil.copy(rig.image("b"), bigger / "image")
    rig.disks["b.disk"].unmount()
    shutil.move(bigger / "image", rig.place("b.disk") / "image")
    rig.open_backup()
    primary.wait_protected(timeout_s=30)
    epoch = checkpoint(primary)
    want = rig.data("p")
    exactly(rig, epoch, want)


# ---- gone ------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["b.state", "b.disk"])
def test_a_disk_of_the_backup_disappears(rig, part):
    """Its journal, or the image: what was acked survives on the other one."""
    disk = rig.disk(part, 24 * MIB)
    rig.open()
    fill(rig.primary, 1)
    checkpoint(rig.primary)
    fill(rig.primary, 2, at=MIB)
    # Acked, not committed: it is in the journal only.
    acked = {checkpoint(rig.primary, commit=False): rig.data("p")}
    disk.disappear()
    acked |= goes_on_to_write(rig, lambda: rig.backup.status().state is State.FAILED)
    reason = rig.backup.status().reason
    assert "Input/output error" in reason and str(rig.folder) in reason
    assert "repair that and restart" in reason
    assert "Input/output error" in unprotected(rig.primary)
    with pytest.raises(StateError):
        rig.backup.promote(force=True)
    rig.close_backup()
    disk.again()
    exactly(rig, max(acked), acked[max(acked)])


def loop_device(rig: Rig, side: str) -> str:
    """A block device on the image of a side."""
    made = run("losetup", "--find", "--show", str(rig.image(side)))
    rig.devices[side] = made.strip()
    return rig.devices[side]


def test_a_block_device_of_the_backup_disappears(rig):
    """Writes to it succeed, into the page cache; only its sync fails."""
    disk = rig.disk("b.disk", 24 * MIB)
    loop_device(rig, "b")
    rig.open()
    fill(rig.primary, 1)
    acked = {checkpoint(rig.primary): rig.data("p")}
    disk.disappear()
    acked |= goes_on_to_write(rig, lambda: rig.backup.status().state is State.FAILED)
    reason = rig.backup.status().reason
    assert "Input/output error" in reason and rig.devices["b"] in reason
    assert "Input/output error" in unprotected(rig.primary)
    rig.close_backup()
    rig.detach("b")
    disk.again()
    loop_device(rig, "b")
    exactly(rig, max(acked), acked[max(acked)])


def test_the_guests_block_device_disappears(rig):
    """Its flush fails; what it holds when it is back, both sides hold."""
    disk = rig.disk("p.disk", 24 * MIB)
    loop_device(rig, "p")
    rig.open()
    fill(rig.primary, 1)
    epoch = checkpoint(rig.primary)
    rig.primary.flush(0)
    fill(rig.primary, 2, at=2 * MIB)
    epoch = checkpoint(rig.primary)
    want = rig.data("p")
    disk.disappear()
    fill(rig.primary, 3, at=MIB)
    with pytest.raises(StateError, match="sync") as caught:
        rig.primary.flush(0)
    assert caught.value.errno == errno.EIO
    assert "check that disk" in rig.primary.status().reason
    assert [cp.epoch for cp in rig.backup.checkpoints()][-1] == epoch
    rig.close_primary()
    rig.detach("p")
    disk.again()
    loop_device(rig, "p")
    rig.open_primary()
    epoch = next_checkpoint(rig.primary)
    want = rig.data("p")
    exactly(rig, epoch, want)


def test_the_guests_disk_disappears(rig):
    disk = rig.disk("p.disk", 16 * MIB)
    rig.open()
    fill(rig.primary, 1)
    epoch = checkpoint(rig.primary)
    want = rig.data("p")
    disk.disappear()
    with pytest.raises(StateError, match="xvda") as caught:
        rig.primary.pwrite(0, b"x" * 4096, 0)
    assert caught.value.errno == errno.EIO
    until(lambda: rig.primary.status().state is not State.PROTECTED)
    assert "xvda" in rig.primary.status().reason
    with pytest.raises(ReplicationLost):
        rig.primary.postsuspend()
    exactly(rig, epoch, want)
    disk.again()


def test_the_primarys_state_directory_disappears(rig):
    """Checkpoints go on.  Alone no write passes, for nobody could tell later
    that it did."""
    disk = rig.disk("p.state", 8 * MIB)
    rig.open()
    fill(rig.primary, 1)
    checkpoint(rig.primary)
    disk.disappear()
    for i in range(5):
        fill(rig.primary, i, at=i * MIB)
        epoch = checkpoint(rig.primary)
    want = rig.data("p")
    rig.close_backup()
    until(lambda: not rig.primary.status().connected)
    with pytest.raises(StateError, match=r"alone: .*primary\.state") as caught:
        rig.primary.pwrite(0, b"alone", 0)
    assert caught.value.errno == errno.EIO
    until(
        lambda: "primary.state" in rig.primary.status().reason,
        what=lambda: str(rig.primary.status()),
    )
    assert rig.primary.status().state is State.UNPROTECTED
    rig.open_backup()
    until(lambda: not rig.backup.closed)
    exactly(rig, epoch, want)
    disk.again()


@pytest.mark.parametrize("part", ["p.state", "p.disk"])
def test_a_map_that_lost_marks_or_an_image_that_lost_data_is_not_believed(rig, part):
    """A file system failed and was mounted again, in one run of the host."""
    disk = rig.disk(part, 16 * MIB)
    rig.open_backup()
    common = {**rig.common("p"), "address": f"unix:{rig.folder}/sock", **QUIET}
    side = Side("Primary", "guest0", **common, connect_ms=10)
    try:
        side.wait_protected(timeout_s=30)
        epoch = side.postsuspend()
        side.preresume(epoch, timeout_s=20)
        side.commit(epoch)
        os.sync()
        if part == "p.state":
            disk.disappear()
        # In no checkpoint: only the map, in memory, knows of it; or in one,
        # but not on the primary's disk.
        side.pwrite(0, b"since the last one" * 1000, 2 * MIB)
        if part == "p.disk":
            epoch = side.postsuspend()
            side.preresume(epoch, timeout_s=20)
            side.commit(epoch)
            disk.disappear()
    finally:
        side.kill()
    disk.again()
    rig.open_primary()
    epoch = next_checkpoint(rig.primary)
    want = rig.data("p")
    assert (b"since the last one" in want) == (part == "p.state")
    exactly(rig, epoch, want)
