# SPDX-License-Identifier: LGPL-2.1-or-later
"""A backup or a primary that comes back: whose it is, restarts, comparing."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from remus_native import (
    Primary,
    State,
    StateError,
    Volume,
)
from remus_native._binding import ffi, lib
from support.pair import BLOCK, MIB, checkpoint, fill_disk, lose, next_checkpoint, same
from support.waiting import until

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
    fill_disk(pair.primary, MIB // 2)
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


def test_the_hash_is_half_of_sha256():
    rng = random.Random(4)
    for length in [0, 1, 127, 128, 129, 255, 256, 257, 16384, 16384 - 512, 9999]:
        data = rng.randbytes(length)
        out = ffi.new("unsigned char[16]")
        assert lib.remus_test_hash(data, length, out) == 0
        assert bytes(out) == hashlib.sha256(data).digest()[:16]


@pytest.mark.parametrize("prepared", [False, True])
def test_after_a_power_loss_only_what_differs_travels(make_pair, prepared):
    sizes = [9 * MIB + 512, 48 << 10]
    pair = make_pair(sizes, journal_bytes=8 * MIB)
    fill_disk(pair.primary, 2 * MIB)
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
    until(lambda: pair.primary.status().committed_epoch > last)
    pair.primary.close()
    pair.backup.promote()
    same(pair)


def test_guest_writes_go_on_while_both_sides_compare(make_pair):
    pair = make_pair([16 * MIB], journal_bytes=16 * MIB, idle_ms=20)
    fill_disk(pair.primary, 4 * MIB)
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
    fill_disk(pair.primary, MIB // 2)
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


def test_the_state_of_another_release_is_named(tmp_path):
    (tmp_path / "disk").write_bytes(bytes(65536))
    volumes = [Volume("xvda", tmp_path / "disk")]
    address = f"unix:{tmp_path}/sock"
    Primary("guest0", state_dir=tmp_path, volumes=volumes, address=address).close()
    state = tmp_path / "primary.state"
    old = bytearray(state.read_bytes())
    for slot in range(0, len(old), 4096):
        old[slot + 4 : slot + 8] = (3).to_bytes(4, "little")
    state.write_bytes(old)
    with pytest.raises(StateError, match=r"format version 3, this release reads 4"):
        Primary("guest0", state_dir=tmp_path, volumes=volumes, address=address)


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
    pair.primary.close()
    assert (Path(pair.folder) / "primary" / "dirty.map").stat().st_size <= 2 * 4096
