# SPDX-License-Identifier: LGPL-2.1-or-later
"""Comparing both sides while the guest runs."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remus_native import CheckpointCancelled, ReplicationLost, StateError, control
from remus_native.cli import main
from support.host import Host, node, start_primary
from support.pair import BLOCK, MIB, checkpoint, lose, next_checkpoint
from support.waiting import until


def damage(pair, index: int, offset: int, data: bytes = b"\xff") -> None:
    """Change the backup's image behind its back."""
    path = pair.folder / f"backup.{pair.names[index]}"
    with path.open("r+b", buffering=0) as image:
        os.pwrite(image.fileno(), data, offset)


def applied(pair) -> int:
    """Everything is in the backup's disks."""
    epoch = checkpoint(pair.primary)
    until(lambda: pair.backup.status().applied_epoch >= epoch)
    return epoch


def test_equal_disks(make_pair):
    pair = make_pair([3 * MIB + 512, MIB], journal_bytes=4 * MIB)
    pair.primary.pwrite(0, random.Random(1).randbytes(2 * MIB), 12345)
    for ready in (lambda: None, lambda: checkpoint(pair.primary)):
        ready()
        found = pair.primary.verify()
        assert found.equal and found.complete and not found.different
        assert found.bytes_done == found.bytes_total == 4 * MIB + 512


def test_a_difference_is_found_where_it_is_and_repaired(make_pair):
    size = 3 * MIB + 512
    pair = make_pair([size, MIB], journal_bytes=4 * MIB)
    pair.primary.pwrite(0, random.Random(1).randbytes(MIB), 0)
    applied(pair)
    damage(pair, 0, 5 * BLOCK + 77)
    damage(pair, 0, size - 1)
    damage(pair, 1, 0)
    wanted = (("xvda", 5 * BLOCK), ("xvda", 3 * MIB), ("xvdb", 0))
    found = pair.primary.verify()
    assert not found.equal
    assert (found.different, found.blocks_different) == (wanted, 3)
    found = pair.primary.verify(repair=True)
    assert found.bytes_repaired == 2 * BLOCK + 512
    # It is in the open epoch, and already part of what is compared.
    assert pair.primary.verify().equal
    epoch = checkpoint(pair.primary)
    pair.primary.close()
    assert pair.backup.promote() == epoch
    for i in range(2):
        assert pair.image("backup", i) == pair.image("primary", i)


def test_what_the_journal_covers_is_no_difference(make_pair):
    """Damage under data that is not applied yet is not seen: it will be
    overwritten; beside it, it is."""
    pair = make_pair([MIB], journal_bytes=4 * MIB)
    applied(pair)
    pair.primary.pwrite(0, b"x" * BLOCK, 0)
    checkpoint(pair.primary, commit=False)
    damage(pair, 0, 10)
    damage(pair, 0, BLOCK + 10)
    assert pair.primary.verify().different == (("xvda", BLOCK),)


def hammer(pair, stop: threading.Event, seed: int) -> None:
    rng = random.Random(seed)
    while not stop.is_set():
        volume = rng.randrange(len(pair.sizes))
        length = rng.choice((1, 512, 4096, 60_000))
        at = rng.randrange(pair.sizes[volume] - length)
        if rng.random() < 0.2:
            pair.primary.discard(volume, at, length)
        else:
            pair.primary.pwrite(volume, rng.randbytes(length), at)


def under_load(pair, rounds: int) -> int:
    stop = threading.Event()
    pauses: list[float] = []

    def checkpoints() -> None:
        while not stop.is_set():
            start = time.monotonic()
            epoch = pair.primary.postsuspend()
            pair.primary.preresume(epoch, timeout_s=30)
            pauses.append(time.monotonic() - start)
            pair.primary.commit(epoch)
            time.sleep(0.003)

    threads = [threading.Thread(target=hammer, args=(pair, stop, i)) for i in range(3)]
    threads.append(threading.Thread(target=checkpoints))
    for thread in threads:
        thread.start()
    try:
        for _ in range(rounds):
            found = pair.primary.verify()
            assert found.equal, found
        known = len(pauses)
        until(lambda: len(pauses) > known)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    return len(pauses)


def test_writes_and_checkpoints_go_on(make_pair):
    pair = make_pair([MIB, MIB // 2], journal_bytes=16 * MIB)
    assert under_load(pair, 10) > 10
    pair.primary.close()


@pytest.mark.slow
def test_writes_and_checkpoints_go_on_for_long(make_pair):
    pair = make_pair([MIB, MIB // 2], journal_bytes=16 * MIB)
    assert under_load(pair, 300) > 300


def test_differences_are_found_under_load(make_pair):
    """A block that nobody writes to differs all the time."""
    pair = make_pair([MIB, MIB], journal_bytes=16 * MIB)
    applied(pair)
    damage(pair, 1, 0)
    stop = threading.Event()

    def write() -> None:
        rng = random.Random(3)
        while not stop.is_set():
            pair.primary.pwrite(0, rng.randbytes(5000), rng.randrange(MIB - 5000))
            checkpoint(pair.primary)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(5):
            assert pair.primary.verify().different == (("xvdb", 0),)
    finally:
        stop.set()
        thread.join()


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_history(make_pair_factory, data):
    """Whatever was written, zeroed, closed, committed: only damage differs."""
    with make_pair_factory() as pair:
        model: set[int] = set()
        for _ in range(data.draw(st.integers(1, 12))):
            what = data.draw(st.sampled_from("wwwzcp"))
            if what in "wz":
                at = data.draw(st.integers(0, MIB - 1))
                length = data.draw(st.integers(1, min(100_000, MIB - at)))
                if what == "w":
                    pair.primary.pwrite(0, b"\x5a" * length, at)
                else:
                    pair.primary.discard(0, at, length)
            else:
                checkpoint(pair.primary, commit=what == "c")
        applied(pair)
        for block in data.draw(st.sets(st.integers(0, MIB // BLOCK - 1), max_size=4)):
            damage(
                pair, 0, block * BLOCK + data.draw(st.integers(0, BLOCK - 1)), b"\xa5"
            )
            model.add(block)
        found = pair.primary.verify(repair=True)
        assert {offset // BLOCK for _, offset in found.different} == model
        assert pair.primary.verify().equal


@pytest.fixture(scope="session")
def make_pair_factory(tmp_path_factory):
    from support.pair import Pair

    @contextlib.contextmanager
    def make():
        pair = Pair(tmp_path_factory.mktemp("pair"), [MIB], journal_bytes=8 * MIB)
        try:
            pair.open_backup()
            pair.open_primary()
            yield pair
        finally:
            pair.close()

    return make


# ---- when it can't go on --------------------------------------------------------


def test_only_what_is_protected_can_be_compared(make_pair):
    pair = make_pair([MIB])
    lose(pair)
    with pytest.raises(ReplicationLost, match="only a Protected resource"):
        pair.primary.verify()


def started(pair, **options) -> tuple[threading.Thread, list]:
    result: list = []

    def run() -> None:
        try:
            result.append(pair.primary.verify(**options))
        except Exception as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: pair.primary.verification().bytes_done)
    return thread, result


def test_a_lost_link_ends_it(make_pair):
    pair = make_pair([8 * MIB])
    thread, result = started(pair, rate=MIB)
    pair.backup.close()
    thread.join(30)
    assert isinstance(result[0], ReplicationLost)
    assert not pair.primary.verification().complete
    pair.open_backup()
    pair.primary.commit(next_checkpoint(pair.primary))
    assert pair.primary.verify().equal


def test_a_promote_in_the_middle(make_pair):
    """It ends, and takes no part in what the promote leaves."""
    pair = make_pair([8 * MIB])
    pair.primary.pwrite(0, random.Random(5).randbytes(2 * MIB), 77)
    epoch = applied(pair)
    image = pair.image("primary", 0)
    damage(pair, 0, 100)  # found and repaired at once, in the open epoch
    thread, result = started(pair, rate=MIB, repair=True)
    until(lambda: pair.primary.verification().bytes_repaired)
    assert pair.backup.promote(force=True) == epoch
    thread.join(30)
    assert isinstance(result[0], ReplicationLost)
    damaged = bytearray(image)
    damaged[100] = 0xFF
    assert pair.image("backup", 0) == bytes(damaged)


def test_a_repair_that_is_lost_with_the_link_comes_with_the_catch_up(make_pair):
    pair = make_pair([2 * MIB], journal_bytes=4 * MIB)
    pair.primary.pwrite(0, random.Random(6).randbytes(2 * MIB), 0)
    applied(pair)
    damage(pair, 0, 40 * BLOCK + 1)
    assert pair.primary.verify(repair=True).blocks_different == 1
    pair.backup.close()  # before the checkpoint that would have had it
    until(lambda: not pair.primary.status().connected)
    pair.open_backup()
    epoch = next_checkpoint(pair.primary)
    pair.primary.commit(epoch)
    assert pair.primary.verify().equal
    pair.primary.close()
    assert pair.backup.promote() == epoch
    assert pair.image("backup", 0) == pair.image("primary", 0)


def test_repair_under_load(make_pair):
    """Writers and checkpoints, and a disk that goes bad again and again: what
    was damaged and found is as good as new in the next checkpoint."""
    pair = make_pair([MIB, MIB // 2], journal_bytes=16 * MIB)
    applied(pair)
    stop = threading.Event()
    threads = [threading.Thread(target=hammer, args=(pair, stop, i)) for i in range(2)]

    def checkpoints() -> None:
        while not stop.is_set():
            checkpoint(pair.primary)

    threads.append(threading.Thread(target=checkpoints))
    rng = random.Random(8)
    for thread in threads:
        thread.start()
    try:
        for _ in range(8):
            for _ in range(5):
                index = rng.randrange(2)
                damage(pair, index, rng.randrange(pair.sizes[index]), b"\xee")
            assert pair.primary.verify(repair=True).complete
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert pair.primary.verify().equal
    epoch = checkpoint(pair.primary)
    pair.primary.close()
    assert pair.backup.promote() == epoch
    for index in range(2):
        assert pair.image("backup", index) == pair.image("primary", index)


def test_cancel_one_at_a_time_and_the_rate(make_pair):
    pair = make_pair([8 * MIB])
    thread, result = started(pair, rate=2 * MIB)
    with pytest.raises(StateError, match="under way"):
        pair.primary.verify()
    time.sleep(0.5)
    assert pair.primary.verification().bytes_done <= 2 * MIB
    pair.primary.verify_cancel()
    thread.join(5)
    assert isinstance(result[0], CheckpointCancelled)
    assert pair.primary.verify().equal


def test_close_ends_it(make_pair):
    pair = make_pair([8 * MIB])
    thread, result = started(pair, rate=MIB)
    pair.primary.close()
    thread.join(30)
    assert isinstance(result[0], CheckpointCancelled)


# ---- the command -------------------------------------------------------------------


@pytest.mark.fuse
def test_the_command(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.start_backup()
    primary = start_primary(host)
    with node(host).open("r+b", buffering=0) as disk:
        disk.write(os.urandom(100_000))
    assert main(["verify", str(host.file)]) == 0
    assert "guest0: equal, 2.0 MiB compared" in capsys.readouterr().out
    with (host.folder / "b1").open("r+b", buffering=0) as image:
        image.write(b"\xff")
    assert main(["verify", str(host.file)]) == 5
    assert "1 blocks of 16 KiB differ" in (said := capsys.readouterr().out)
    assert "data: at 0" in said
    assert main(["verify", "--repair", str(host.file)]) == 5
    assert "16.0 KiB were sent again" in capsys.readouterr().out
    assert main(["verify", "--json", str(host.file)]) == 0
    # One that is interrupted is cancelled in the primary, too.
    process = host.start("verify", "--rate", "64KiB")
    state = str(host.folder / "p")

    def begun() -> bool:  # and it is not the one before, which has just ended
        now = control.call(state, "verified")
        return now["running"] and now["bytes_done"] < now["bytes_total"]

    until(begun)
    process.send_signal(2)
    assert process.wait(30) == 130
    until(lambda: main(["verify", str(host.file)]) == 0)
    primary.terminate()
    _, said = primary.communicate(timeout=60)
    assert "event=verify resource=guest0 result=different blocks=1" in said


@pytest.mark.fuse
def test_the_command_when_the_backup_dies(host: Host) -> None:
    backup = host.start_backup()
    start_primary(host)
    process = host.start("verify", "--rate", "64KiB")

    def begun() -> bool:
        try:
            return control.call(str(host.folder / "p"), "verified")["bytes_done"] > 0
        except StateError:
            return False

    until(begun)
    backup.kill()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 3, said
    assert "verify ended" in said
    assert main(["verify", str(host.file)]) == 3


def test_without_a_primary(host: Host) -> None:
    assert main(["verify", str(host.file)]) == 4
