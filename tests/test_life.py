# SPDX-License-Identifier: LGPL-2.1-or-later
"""Loss, return, catch-up, and what goes on without a toolstack."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from backup_process import BackupProcess
from test_replica import checkpoint

from remus_native import (
    PhaseError,
    Primary,
    ReplicaResource,
    ReplicationLost,
    State,
    StateError,
    Volume,
)
from remus_native._binding import ffi, lib

BLOCK = 16384
MIB = 1 << 20


def until(true, timeout_s=30.0, what="it did not happen"):
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, what() if callable(what) else what
        time.sleep(0.002)


def lose(pair):
    """The backup ends, and the primary has noticed."""
    pair.backup.close()
    until(lambda: not pair.primary.status().connected)


def next_checkpoint(primary, tag=None):
    """The first checkpoint that a session can take again."""
    end = time.monotonic() + 30
    while True:
        try:
            epoch = primary.postsuspend(tag)
        except ReplicationLost:
            if time.monotonic() > end:
                raise
            time.sleep(0.002)
            continue
        primary.preresume(epoch, timeout_s=30)
        return epoch


def same(pair):
    for i in range(len(pair.sizes)):
        assert pair.image("backup", i) == pair.image("primary", i)


# ---- loss and return ---------------------------------------------------------


def test_only_what_changed_travels(make_pair):
    pair = make_pair([8 * MIB, MIB], journal_bytes=4 * MIB)
    pair.primary.pwrite(0, random.Random(1).randbytes(MIB), 0)
    checkpoint(pair.primary)
    lose(pair)
    pair.primary.pwrite(0, b"while it was away", 3 * MIB + 5)
    pair.primary.pwrite(1, b"here too", MIB - 8)
    assert pair.primary.status().state is State.UNPROTECTED
    assert pair.primary.status().dirty_bytes >= 2 * BLOCK
    pair.open_backup()
    epoch = next_checkpoint(pair.primary, "back")
    status = pair.primary.status()
    assert status.state is State.PROTECTED
    # The epoch before may not have been known to be stable yet.
    assert status.resync_done == status.resync_total <= MIB + 3 * BLOCK
    pair.primary.commit(epoch)
    pair.primary.close()
    assert pair.backup.promote() == epoch
    same(pair)


def test_stable_epochs_do_not_travel_again(make_pair):
    pair = make_pair([8 * MIB], journal_bytes=4 * MIB)
    pair.primary.pwrite(0, random.Random(1).randbytes(MIB), 0)
    checkpoint(pair.primary)
    # The backup says what it holds when it is back, however soon it went.
    lose(pair)
    pair.primary.pwrite(0, b"one block", 4 * MIB)
    pair.open_backup()
    next_checkpoint(pair.primary)
    assert pair.primary.status().resync_total == BLOCK


def test_the_old_checkpoint_stays_until_the_catch_up_is_committed(make_pair):
    pair = make_pair([MIB])
    pair.primary.pwrite(0, b"old", 0)
    old = checkpoint(pair.primary)
    lose(pair)
    pair.primary.pwrite(0, b"new", 0)
    pair.open_backup()
    epoch = next_checkpoint(pair.primary, "new")
    assert [cp.epoch for cp in pair.backup.checkpoints()] == [old, epoch]
    pair.primary.close()
    assert pair.backup.promote() == old
    assert pair.image("backup", 0)[:3] == b"old"


def test_a_prepared_checkpoint_survives_the_outage(make_pair):
    pair = make_pair([MIB])
    pair.primary.pwrite(0, b"one", 0)
    one = checkpoint(pair.primary, "one")
    pair.primary.pwrite(0, b"two", 0)
    two = checkpoint(pair.primary, "two", commit=False)
    lose(pair)
    pair.primary.pwrite(0, b"six", 0)
    pair.open_backup()
    three = next_checkpoint(pair.primary, "three")
    pair.primary.preresume(two)
    assert [cp.epoch for cp in pair.backup.checkpoints()] == [one, two, three]
    pair.primary.commit(two)
    until(lambda: pair.backup.status().committed_epoch == two)
    pair.primary.close()
    assert pair.backup.promote(tag="three") == three
    same(pair)


def test_phases_say_what_is_lost(make_pair):
    pair = make_pair([MIB])
    safe = checkpoint(pair.primary)
    lose(pair)
    with pytest.raises(ReplicationLost, match="Unprotected"):
        pair.primary.postsuspend()
    pair.open_backup()
    later = next_checkpoint(pair.primary)
    pair.primary.preresume(safe)
    assert later > safe
    with pytest.raises((PhaseError, ReplicationLost)):
        pair.primary.commit(later + 1)


def test_a_barrier_that_the_backup_never_got_is_lost_for_good(tmp_path):
    """Sent into a link whose other end is dead already."""
    for name in ("p", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.img").write_bytes(bytes(MIB))
    address = f"unix:{tmp_path}/sock"
    images = {"xvda": tmp_path / "b.img"}
    backup = BackupProcess(address, tmp_path / "b", images)
    try:
        with Primary(
            "guest0",
            state_dir=tmp_path / "p",
            volumes=[Volume("xvda", tmp_path / "p.img")],
            address=address,
            loss_ms=1000,
            idle_ms=3_600_000,
        ) as primary:
            primary.wait_protected(timeout_s=20)
            checkpoint(primary)
            backup.pause()
            primary.pwrite(0, b"lost", 0)
            lost = primary.postsuspend("lost")
            with pytest.raises(ReplicationLost, match="nothing from it for"):
                primary.preresume(lost, timeout_s=20)
            backup.kill()
            backup = BackupProcess(address, tmp_path / "b", images)
            epoch = next_checkpoint(primary)
            assert epoch > lost
            # Also now that a later one is safe: nobody could name this one.
            with pytest.raises(ReplicationLost):
                primary.preresume(lost, timeout_s=5)
            with pytest.raises(ReplicationLost, match="a later one covers it"):
                primary.commit(lost)
            primary.commit(epoch)
    finally:
        backup.kill()


def test_guest_writes_go_on_in_a_catch_up(make_pair):
    """Many outages under writers: in the end both sides are equal."""
    pair = make_pair([4 * MIB, MIB], journal_bytes=16 * MIB, idle_ms=30)
    stop = threading.Event()
    failures = []

    def write(seed):
        rng = random.Random(seed)
        while not stop.is_set():
            volume, length = rng.randrange(2), rng.randrange(1, 9000)
            at = rng.randrange(MIB - length)
            try:
                if rng.random() < 0.1:
                    pair.primary.discard(volume, at, length)
                else:
                    pair.primary.pwrite(volume, rng.randbytes(length), at)
            except Exception as error:
                failures.append(error)
                return

    writers = [threading.Thread(target=write, args=(i,)) for i in range(3)]
    for writer in writers:
        writer.start()
    try:
        for i in range(12):
            pair.backup.close()
            time.sleep(0.01 * (i % 4))
            pair.open_backup()
            if i % 3:  # else it goes at some moment of the catch-up
                until(
                    lambda: pair.primary.status().state is State.PROTECTED,
                    what=lambda: str(pair.primary.status()),
                )
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert not failures
    pair.primary.wait_protected(timeout_s=30)
    epoch = next_checkpoint(pair.primary)
    pair.primary.commit(epoch)
    pair.primary.close()
    assert pair.backup.promote() == epoch
    same(pair)


def test_the_first_copy_can_be_cut_short(make_pair):
    pair = make_pair([MIB])
    pair.close()
    pair.options["resync_rate"] = MIB  # else it would be through
    with (pair.folder / "primary.xvda").open("wb") as image:
        image.write(random.Random(5).randbytes(MIB))
    for name in ("primary", "backup"):
        for file in (pair.folder / name).glob("**/*"):
            if file.is_file():
                file.unlink()
    for _ in range(3):
        pair.open_backup()
        primary = pair.open_primary(wait=False)
        until(lambda: primary.status().resync_total > 0)  # noqa: B023
        pair.close()
    pair.open_backup()
    pair.open_primary()
    pair.primary.close()
    pair.backup.promote()
    same(pair)


# ---- room ------------------------------------------------------------------------


def fill(primary, length, seed=2):
    data = random.Random(seed).randbytes(length)
    for at in range(0, length, 65536):
        primary.pwrite(0, data[at : at + 65536], at)


def test_a_catch_up_beyond_the_journal_waits_and_says_why(make_pair):
    pair = make_pair([4 * MIB], journal_bytes=512 << 10)
    safe = checkpoint(pair.primary)
    lose(pair)
    fill(pair.primary, 4 * MIB)
    pair.open_backup()
    until(
        lambda: "allow_inconsistent = true" in pair.primary.status().reason,
        what=lambda: str(pair.primary.status()),
    )
    assert pair.primary.status().state is State.UNPROTECTED
    with pytest.raises(ReplicationLost, match="does not fit into the backup's journal"):
        pair.primary.postsuspend()
    assert pair.backup.checkpoints()[-1].epoch == safe
    assert pair.backup.status().state is State.STANDBY
    pair.primary.pwrite(0, b"the guest goes on", 0)


def test_allow_inconsistent_writes_it_straight_to_the_disks(make_pair):
    pair = make_pair([4 * MIB], journal_bytes=512 << 10, allow_inconsistent=True)
    pair.primary.pwrite(0, b"prepared", MIB)
    checkpoint(pair.primary, commit=False)
    lose(pair)
    fill(pair.primary, 3 * MIB)
    pair.open_backup()
    pair.primary.wait_protected(timeout_s=30)
    assert pair.primary.status().resync_total < 4 * MIB
    epoch = next_checkpoint(pair.primary)
    pair.primary.commit(epoch)
    pair.primary.close()
    assert pair.backup.promote() == epoch
    same(pair)


def test_writes_that_outgrow_the_journal_end_the_catch_up(make_pair):
    """It began, since it did fit; then the guest wrote too much."""
    pair = make_pair([4 * MIB], journal_bytes=512 << 10)
    pair.primary.session_begin()
    safe = checkpoint(pair.primary)
    lose(pair)
    pair.open_backup()
    until(lambda: pair.primary.status().connected)
    start = time.monotonic()
    fill(pair.primary, 2 * MIB)
    assert time.monotonic() - start < 8  # and did not wait for `stall`
    until(
        lambda: "allow_inconsistent" in pair.primary.status().reason,
        what=lambda: str(pair.primary.status()),
    )
    assert pair.backup.checkpoints()[-1].epoch == safe


# ---- without a session -----------------------------------------------------------


def test_without_a_session_the_engine_takes_checkpoints(make_pair):
    pair = make_pair([MIB], idle_ms=30)
    for i in range(5):
        before = pair.primary.status().committed_epoch
        pair.primary.pwrite(0, b"%d" % i, i * BLOCK)
        until(lambda: pair.primary.status().committed_epoch > before)  # noqa: B023
    [last] = [cp for cp in pair.backup.checkpoints() if cp.committed]
    assert last.disk_only
    pair.primary.close()
    pair.backup.promote()
    same(pair)


def test_nothing_written_needs_no_checkpoint(make_pair):
    pair = make_pair([MIB], idle_ms=10)
    pair.primary.pwrite(0, b"x", 0)
    until(lambda: pair.primary.status().epochs == 2)
    time.sleep(0.3)
    assert pair.primary.status().epochs == 2


def test_in_a_session_it_takes_none_and_teardown_ends_it(make_pair):
    pair = make_pair([MIB], idle_ms=10)
    device = ReplicaResource(pair.primary)
    device.setup()
    pair.primary.pwrite(0, b"x", 0)
    time.sleep(0.3)
    assert pair.primary.status().epochs == 1
    device.teardown()
    until(lambda: pair.primary.status().epochs == 2)


def test_journal_room_is_made_without_a_session(make_pair):
    """More than the journal holds, and nobody takes checkpoints."""
    pair = make_pair([8 * MIB], journal_bytes=512 << 10)
    fill(pair.primary, 8 * MIB)
    assert pair.primary.status().state is State.PROTECTED
    assert pair.primary.status().epochs > 8


def test_a_catch_up_without_a_session_is_committed_by_the_engine(make_pair):
    pair = make_pair([MIB])
    lose(pair)
    pair.primary.pwrite(0, b"changed", 0)
    pair.open_backup()
    pair.primary.wait_protected(timeout_s=30)
    until(lambda: pair.backup.status().state is State.PROTECTED)
    epoch = pair.primary.status().committed_epoch
    pair.primary.close()
    [cp] = pair.backup.checkpoints()
    assert (cp.epoch, cp.disk_only) == (epoch, True)
    pair.backup.promote()
    same(pair)


# ---- whose backup it is ------------------------------------------------------------


def test_another_primary_is_refused(make_pair):
    pair = make_pair([65536])
    safe = checkpoint(pair.primary)
    pair.primary.close()
    other = pair.folder / "other"
    other.mkdir()
    (other / "disk").write_bytes(b"\xff" * 65536)
    with Primary(
        "guest0",
        state_dir=other,
        volumes=[Volume("xvda", other / "disk")],
        address=pair.address,
    ) as stranger:
        until(lambda: "belongs to another primary" in stranger.status().reason)
        assert stranger.status().state is State.CONNECTING
    assert pair.backup.promote() == safe
    assert pair.image("backup", 0) == bytes(65536)


def test_a_promoted_backup_fences_its_old_primary(make_pair):
    pair = make_pair([65536])
    m = checkpoint(pair.primary)
    pair.backup.promote(force=True)
    until(lambda: pair.primary.status().state is State.FENCED)
    assert f"promoted to checkpoint {m}" in pair.primary.status().reason
    with pytest.raises(StateError, match="Fenced"):
        pair.primary.pwrite(0, b"goes on", 0)
    with pytest.raises(StateError):
        pair.backup.promote(1 << 40)


# ---- restarts --------------------------------------------------------------------


def test_a_clean_restart_of_the_primary_copies_nothing(make_pair):
    pair = make_pair([4 * MIB])
    fill(pair.primary, MIB // 2)
    checkpoint(pair.primary)
    pair.primary.pwrite(0, b"not in any checkpoint", 2 * MIB)
    pair.primary.close()
    pair.open_primary()
    assert pair.primary.status().resync_total <= MIB // 2 + BLOCK
    pair.primary.close()
    pair.open_primary()
    assert pair.primary.status().resync_total <= MIB // 2 + BLOCK
    pair.primary.close()
    pair.backup.promote()
    same(pair)


def test_an_image_that_somebody_wrote_to_is_not_trusted(make_pair):
    pair = make_pair([MIB])
    pair.primary.close()
    with (pair.folder / "primary.xvda").open("r+b") as image:
        image.seek(300_000)
        image.write(b"behind its back")
    pair.open_primary()
    pair.primary.close()
    pair.backup.promote()
    same(pair)


PRIMARY = """
import random, sys
from remus_native import Primary, Volume
folder, seed, announce = sys.argv[1], int(sys.argv[2]), sys.argv[3]
rng = random.Random(seed)
with Primary("guest0", state_dir=folder + "/primary", idle_ms=25, connect_ms=20,
             volumes=[Volume("xvda", folder + "/primary.xvda")],
             address="unix:" + folder + "/sock") as primary:
    primary.wait_protected(timeout_s=30)
    print(primary.status().resync_total, flush=True)
    while True:
        length = rng.randrange(1, 30000)
        at = rng.randrange((1 << 20) - length)
        if rng.random() < 0.1:
            primary.discard(0, at, length)
        else:
            primary.pwrite(0, rng.randbytes(length), at)
"""


@pytest.mark.parametrize("rounds", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_the_primary_is_killed_again_and_again(make_pair, rounds):
    """SIGKILL while it writes; the map tells what the backup lacks."""
    pair = make_pair([16 * MIB], journal_bytes=8 * MIB)
    pair.primary.close()
    rng = random.Random(rounds)
    print("seed", rounds)
    for i in range(rounds):
        process = subprocess.Popen(
            [sys.executable, "-c", PRIMARY, str(pair.folder), str(i), ""],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            sent = int(process.stdout.readline())
            # Of 16 MiB only the first was ever written to.
            assert sent <= MIB
            time.sleep(rng.random() * 0.1)
            if i % 3 == 1:  # the backup, too
                pair.backup.close()
                if i % 2:
                    pair.open_backup()
                time.sleep(rng.random() * 0.05)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        if pair.backup.closed:
            pair.open_backup()
    pair.open_primary()
    assert pair.primary.status().resync_total <= MIB
    pair.primary.close()
    pair.backup.promote()
    same(pair)


def test_killed_in_the_middle_of_a_catch_up(make_pair):
    """Either side: what is marked stays marked, the old checkpoint stays."""
    pair = make_pair([4 * MIB], journal_bytes=8 * MIB)
    old = checkpoint(pair.primary)
    pair.primary.close()
    before = pair.image("backup", 0)
    (pair.folder / "slow.py").write_text(PRIMARY)
    for i in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", PRIMARY, str(pair.folder), str(i), ""],
            stdout=subprocess.PIPE,
        )
        time.sleep(0.1 + 0.02 * i)
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    first = pair.backup.checkpoints()[0]
    if first.epoch == old:
        assert pair.image("backup", 0) == before
    pair.open_primary()
    pair.primary.close()
    pair.backup.promote()
    same(pair)


# ---- comparing ------------------------------------------------------------------


def lose_the_map(pair):
    """As if the host had lost its power: another boot, and no clean mark."""
    with (pair.folder / "primary" / "dirty.map").open("r+b") as file:
        file.seek(48)
        file.write(b"\x55" * 20)


def test_the_hash_is_blake2b():
    rng = random.Random(4)
    for length in [0, 1, 127, 128, 129, 255, 256, 257, 16384, 16384 - 512, 9999]:
        data = rng.randbytes(length)
        out = ffi.new("unsigned char[16]")
        lib.remus_test_hash(data, length, out)
        assert bytes(out) == hashlib.blake2b(data, digest_size=16).digest()


@pytest.mark.parametrize("prepared", [False, True])
def test_after_a_power_loss_only_what_differs_travels(make_pair, prepared):
    sizes = [9 * MIB + 512, 48 << 10]
    pair = make_pair(sizes, journal_bytes=8 * MIB)
    fill(pair.primary, 2 * MIB)
    checkpoint(pair.primary)
    # What is only prepared lies in the journal and counts as held.
    pair.primary.pwrite(0, random.Random(9).randbytes(300_000), MIB - 77)
    pair.primary.discard(0, 100_000, 50_000)
    pair.primary.pwrite(1, b"end", (48 << 10) - 3)
    last = checkpoint(pair.primary, commit=not prepared)
    pair.primary.close()
    lose_the_map(pair)
    with (pair.folder / "primary.xvda").open("r+b") as image:
        for at in (0, 5 * MIB + 3, 9 * MIB + 510):
            image.seek(at)
            image.write(b"\x99\x99")
    pair.open_primary()
    status = pair.primary.status()
    assert status.resync_total == 3 * BLOCK
    assert status.state is State.PROTECTED
    assert status.committed_epoch > last
    pair.primary.close()
    pair.backup.promote()
    same(pair)


def test_guest_writes_go_on_while_both_sides_compare(make_pair):
    pair = make_pair([16 * MIB], journal_bytes=16 * MIB, idle_ms=20)
    fill(pair.primary, 4 * MIB)
    checkpoint(pair.primary)
    pair.primary.close()
    for i in range(3):
        lose_the_map(pair)
        primary = pair.open_primary(wait=False)
        rng = random.Random(i)
        until(lambda: primary.status().connected)  # noqa: B023
        wrote = 0
        while primary.status().state is not State.PROTECTED:
            at = rng.randrange(16 * MIB - 5000)
            primary.pwrite(0, rng.randbytes(rng.randrange(1, 5000)), at)
            wrote += 1
            time.sleep(0.0005)
        assert wrote
        checkpoint(primary)
        primary.close()
    pair.backup.promote()
    same(pair)


def test_a_backup_that_lost_what_it_had_acked_is_compared(make_pair):
    """Its state and disks are of yesterday: it holds less than it said."""
    pair = make_pair([MIB])
    fill(pair.primary, MIB // 2)
    checkpoint(pair.primary)
    lose(pair)
    old = pair.folder / "old"
    old.mkdir()
    shutil.copytree(pair.folder / "backup", old / "state")
    shutil.copy(pair.folder / "backup.xvda", old / "disk")
    pair.open_backup()
    next_checkpoint(pair.primary)
    for i in range(20):  # forgotten by the map, since stable
        pair.primary.pwrite(0, b"%d" % i, (40 + i) * BLOCK)
        checkpoint(pair.primary)
    until(lambda: pair.backup.status().applied_epoch >= 20)
    time.sleep(0.3)
    lose(pair)
    shutil.rmtree(pair.folder / "backup")
    shutil.copytree(old / "state", pair.folder / "backup")
    shutil.copy(old / "disk", pair.folder / "backup.xvda")
    pair.open_backup()
    epoch = next_checkpoint(pair.primary)
    pair.primary.commit(epoch)
    pair.primary.close()
    assert pair.backup.promote() == epoch
    same(pair)


def test_a_copy_that_was_cut_short_goes_on_where_it_differs(make_pair):
    pair = make_pair([8 * MIB], journal_bytes=2 * MIB)
    pair.close()
    data = random.Random(5).randbytes(8 * MIB)
    (pair.folder / "primary.xvda").write_bytes(data)
    for name in ("primary", "backup"):
        for file in (pair.folder / name).glob("**/*"):
            if file.is_file():
                file.unlink()
    pair.options["resync_rate"] = 8 * MIB
    pair.open_backup()
    primary = pair.open_primary(wait=False)
    until(lambda: pair.backup.status().resync_done >= 4 * MIB)
    pair.close()
    pair.open_backup()
    assert pair.backup.status().state is State.INCONSISTENT
    primary = pair.open_primary(wait=False)
    until(lambda: primary.status().state is State.CATCHING_UP)
    assert "cut short" in primary.status().reason
    primary.wait_protected(timeout_s=30)
    assert pair.backup.status().resync_done < 5 * MIB
    pair.primary.close()
    pair.backup.promote()
    same(pair)


def test_holes_are_not_read_and_stay_holes(make_pair):
    """A disk of 1 GiB that holds 1 MiB, onto one with garbage in it."""
    pair = make_pair([1 << 30])
    pair.close()
    with (pair.folder / "primary.xvda").open("r+b") as image:
        image.truncate(0)
        image.truncate(1 << 30)
        image.seek(700 << 20)
        image.write(random.Random(6).randbytes(MIB))
    with (pair.folder / "backup.xvda").open("r+b") as image:
        image.seek(100 << 20)
        image.write(b"garbage" * 1000)
    for name in ("primary", "backup"):
        for file in (pair.folder / name).glob("**/*"):
            if file.is_file():
                file.unlink()
    pair.open_backup()
    start = time.monotonic()
    pair.open_primary()
    assert time.monotonic() - start < 5
    assert pair.primary.status().resync_done == 1 << 30
    # Only the data travelled; it is all that the backup's disk holds.
    assert pair.primary.status().records < 40
    pair.primary.close()
    pair.backup.promote()
    image = pair.folder / "backup.xvda"
    assert image.stat().st_blocks * 512 <= 2 * MIB
    with image.open("rb") as file:
        file.seek(100 << 20)
        assert file.read(7000) == bytes(7000)
        file.seek(700 << 20)
        assert file.read(MIB) == random.Random(6).randbytes(MIB)


def test_a_copy_keeps_its_rate(make_pair):
    pair = make_pair([4 * MIB], journal_bytes=8 * MIB)
    pair.close()
    pair.options["resync_rate"] = 4 * MIB
    (pair.folder / "primary.xvda").write_bytes(random.Random(1).randbytes(4 * MIB))
    pair.open_backup()
    start = time.monotonic()
    pair.open_primary()
    assert time.monotonic() - start > 0.7
    pair.primary.close()
    pair.backup.promote()
    same(pair)


def test_a_state_directory_of_another_resource_is_no_state(tmp_path):
    (tmp_path / "disk").write_bytes(bytes(65536))
    volumes = [Volume("xvda", tmp_path / "disk")]
    address = f"unix:{tmp_path}/sock"
    Primary("guest0", state_dir=tmp_path, volumes=volumes, address=address).close()
    with pytest.raises(StateError, match="not the state of this resource"):
        Primary("guest1", state_dir=tmp_path, volumes=volumes, address=address)


def test_no_room_for_the_map_is_an_error_at_the_start(tmp_path):
    """Here by a limit of the process, which a full disk looks like."""
    script = """
import resource, sys
from remus_native import Primary, RemusError, Volume
resource.setrlimit(resource.RLIMIT_FSIZE, (5 << 20, 5 << 20))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    Primary("guest0", state_dir=sys.argv[1], address="unix:/nowhere",
            volumes=[Volume("xvda", sys.argv[1] + "/disk")],
            queue_bytes=4 << 20)
except RemusError as error:
    print(error)
"""
    with (tmp_path / "disk").open("wb") as disk:
        disk.truncate(1 << 40)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "dirty map" in done.stdout and "dirty.map" in done.stdout
    assert "too large" in done.stdout


def test_the_map_is_small(make_pair):
    pair = make_pair([65536])
    assert (Path(pair.folder) / "primary" / "dirty.map").stat().st_size <= 5 * 4096
