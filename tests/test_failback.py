# SPDX-License-Identifier: LGPL-2.1-or-later
"""Generations: who may go on from what, giving way, fail-back, split brain."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from backup_process import BackupProcess
from conftest import QUIET, SMALL
from test_life import BLOCK, MIB, next_checkpoint, until
from test_replica import checkpoint

from remus_native import (
    Backup,
    Export,
    Primary,
    ReplicationLost,
    State,
    StateError,
)
from remus_native._binding import lib


class Hosts:
    """Two hosts, each with one image and one state directory for any role."""

    def __init__(self, folder: Path, size: int = 4 * MIB) -> None:
        self.folder, self.size = folder, size
        self.opened: list[Primary | Backup] = []
        for host in "ab":
            (folder / host).mkdir()
            with self.image(host).open("wb") as image:
                image.truncate(size)

    def image(self, host: str) -> Path:
        return self.folder / f"{host}.img"

    def data(self, host: str) -> bytes:
        return self.image(host).read_bytes()

    def common(self, host: str) -> dict:
        from remus_native import Volume

        return {
            "state_dir": self.folder / host,
            "volumes": [Volume("xvda", self.image(host))],
        }

    def backup(self, host: str, *, serve: bool = True, **options) -> Backup:
        backup = Backup(
            "guest0",
            **self.common(host),
            **{**SMALL, "journal_bytes": 4 * MIB, **options},
        )
        self.opened.append(backup)
        if serve:
            backup.serve(f"unix:{self.folder}/{host}.sock", loss_ms=1000)
        return backup

    def primary(self, host: str, *, wait: bool = True, **options) -> Primary:
        other = "b" if host == "a" else "a"
        primary = Primary(
            "guest0",
            **self.common(host),
            address=f"unix:{self.folder}/{other}.sock",
            connect_ms=10,
            **{**QUIET, **options},
        )
        self.opened.append(primary)
        if wait:
            primary.wait_protected(timeout_s=30)
        return primary

    def close(self) -> None:
        for side in reversed(self.opened):
            side.close()


@pytest.fixture
def hosts(tmp_path):
    made = Hosts(tmp_path)
    yield made
    made.close()


def fill(primary: Primary, seed: int, at: int = 0, n: int = 256 * 1024) -> None:
    primary.pwrite(0, random.Random(seed).randbytes(n), at)


def promoted_b(hosts: Hosts) -> tuple[Primary, Backup, int]:
    """A ran, B was promoted; A has more than the checkpoint, never alone."""
    b = hosts.backup("b")
    a = hosts.primary("a")
    fill(a, 1)
    m = checkpoint(a)
    fill(a, 2, at=MIB)  # in the open epoch
    b.promote(force=True)
    until(lambda: a.status().state is State.FENCED)
    return a, b, m


# ---- fail-back ---------------------------------------------------------------


def test_the_old_primary_comes_back_as_the_backup(hosts):
    a, b, m = promoted_b(hosts)
    a.close()
    b.close()
    at_m = hosts.data("b")
    back = hosts.backup("a")
    assert back.status().state is State.INCONSISTENT
    assert "was the primary" in back.status().reason
    with pytest.raises(StateError, match="was the primary"):
        back.promote()
    new = hosts.primary("b")
    # What A had written after m, in whole blocks, and nothing else.
    assert new.status().resync_total <= 256 * 1024 + BLOCK
    assert new.pread(0, hosts.size, 0) == at_m
    fill(new, 3, at=2 * MIB)
    epoch = checkpoint(new)
    assert epoch > m
    new.close()
    assert back.promote() == epoch
    assert hosts.data("a") == hosts.data("b")


def test_what_a_plain_guest_wrote_travels_too(hosts):
    """After a promote a guest may run on the images without any engine."""
    a, b, _ = promoted_b(hosts)
    a.close()
    b.close()
    with hosts.image("b").open("r+b") as image:
        image.seek(3 * MIB)
        image.write(b"by a guest on plain images")
    back = hosts.backup("a")
    new = hosts.primary("b")
    epoch = checkpoint(new)
    new.close()
    assert back.promote() == epoch
    assert hosts.data("a") == hosts.data("b")
    assert b"plain images" in hosts.data("a")


def test_until_it_is_committed_the_old_disks_stay_whole(hosts):
    a, b, _ = promoted_b(hosts)
    a.close()
    b.close()
    before = hosts.data("a")
    back = hosts.backup("a")
    new = hosts.primary("b", wait=False, grace_ms=3_600_000)
    new.session_begin()
    next_checkpoint(new)  # prepared, never committed
    new.close()
    back.close()
    assert hosts.data("a") == before


@pytest.mark.parametrize("named", [True, False])
def test_the_first_acked_checkpoint_can_be_failed_over_to(hosts, named):
    """Before its commit: an ack that nobody could use would be none."""
    a, b, _ = promoted_b(hosts)
    a.close()
    b.close()
    back = hosts.backup("a")
    new = hosts.primary("b", wait=False, grace_ms=3_600_000)
    new.session_begin()
    epoch = next_checkpoint(new, "first")
    at_first = hosts.data("b")
    assert new.status().state is State.PROTECTED
    assert back.status().state is State.PROTECTED
    new.pwrite(0, b"and then it died", 0)
    new.close()
    assert [(cp.epoch, cp.committed) for cp in back.checkpoints()] == [(epoch, False)]
    with pytest.raises(StateError, match=f"none is committed.*{epoch}"):
        back.promote()
    back.close()
    back = hosts.backup("a")  # a new process knows it, too
    assert (back.promote(epoch) if named else back.promote(tag="first")) == epoch
    assert hosts.data("a") == at_first


def test_who_gives_way_before_the_first_commit_commits(hosts):
    a, b, _ = promoted_b(hosts)
    a.close()
    b.close()
    back = hosts.backup("a")
    new = hosts.primary("b", wait=False, grace_ms=3_600_000)
    new.session_begin()
    epoch = next_checkpoint(new)
    fill(new, 4, at=3 * MIB)
    new.session_end()
    assert back.promote() > epoch
    assert hosts.data("a") == hosts.data("b")


def test_there_and_back_again(hosts):
    """Roles turn round ten times; each side ends with the same bytes."""
    model = bytearray(hosts.size)
    host, other = "a", "b"
    rng = random.Random(7)
    backup = hosts.backup(other)
    for turn in range(10):
        primary = hosts.primary(host)
        data, at = rng.randbytes(3000), rng.randrange(hosts.size - 3000)
        primary.pwrite(0, data, at)
        model[at : at + 3000] = data
        epoch = checkpoint(primary, f"turn {turn}")
        primary.close()
        assert backup.promote() == epoch
        backup.close()
        host, other = other, host
        backup = hosts.backup(other)
    assert hosts.data(host) == model


def test_a_side_has_one_role_at_a_time(hosts):
    hosts.backup("b").close()
    with pytest.raises(StateError, match="this side is the backup") as caught:
        hosts.primary("b", wait=False)
    assert caught.value.errno == errno.EROFS
    b = hosts.backup("b")
    a = hosts.primary("a")
    checkpoint(a)
    a.close()
    b.promote()
    b.close()
    hosts.primary("b", wait=False).close()
    # A primary since: as a backup it is what that primary left.
    again = hosts.backup("b", serve=False)
    assert "was the primary" in again.status().reason
    with pytest.raises(StateError, match="another process"):
        hosts.primary("b", wait=False)
    again.close()
    # No other primary has brought it up to date: it is what it was.
    generation = again_is_primary(hosts, "b")
    assert again_is_primary(hosts, "b") == generation
    # Once one has, it is not.
    hosts.backup("b", discard_local=True)
    a = hosts.primary("a")
    checkpoint(a)
    hosts.close()
    with pytest.raises(StateError, match="this side is the backup"):
        hosts.primary("b", wait=False)


def test_a_promoted_side_that_restarts_still_fences(hosts):
    b = hosts.backup("b")
    a = hosts.primary("a")
    checkpoint(a)
    b.close()
    until(lambda: not a.status().connected)
    b = hosts.backup("b", serve=False)
    b.promote()
    b.close()
    promoted = hosts.data("b")
    hosts.backup("b")
    until(lambda: a.status().state is State.FENCED)
    with pytest.raises(StateError, match="Fenced"):
        a.pwrite(0, b"x", 0)
    assert hosts.data("b") == promoted


def again_is_primary(hosts: Hosts, host: str) -> str:
    primary = hosts.primary(host, wait=False)
    assert primary.status().state is State.CONNECTING
    generation = primary.status().generation
    primary.close()
    return generation


def test_a_fenced_primary_stays_fenced(hosts):
    a, _, _ = promoted_b(hosts)
    assert a.pread(0, 4, 0)
    a.close()
    with pytest.raises(StateError, match="fenced") as caught:
        hosts.primary("a", wait=False)
    assert caught.value.errno == errno.EROFS


# ---- split brain -------------------------------------------------------------


def split(hosts: Hosts) -> tuple[Primary, Backup]:
    """Both go on from one checkpoint."""
    b = hosts.backup("b")
    a = hosts.primary("a")
    fill(a, 1)
    checkpoint(a)
    b.close()
    until(lambda: not a.status().connected)
    fill(a, 2, at=MIB)  # lets a write pass alone: a generation of its own
    b = hosts.backup("b", serve=False)
    b.promote()
    b.serve(f"unix:{hosts.folder}/b.sock")
    return a, b


def test_split_brain_is_named_and_the_guest_goes_on(hosts):
    a, b = split(hosts)
    until(lambda: a.status().state is State.SPLIT_BRAIN)
    assert "--discard-local" in a.status().reason
    a.pwrite(0, b"still runs", 0)
    with pytest.raises(ReplicationLost, match="SplitBrain"):
        a.postsuspend()
    assert b.status().state is State.SPLIT_BRAIN


@pytest.mark.parametrize("loser", ["a", "b"])
def test_split_brain_ends_where_somebody_chose(hosts, loser):
    a, b = split(hosts)
    until(lambda: a.status().state is State.SPLIT_BRAIN)
    a.close()
    b.close()
    winner = "b" if loser == "a" else "a"
    wanted = hosts.data(winner)
    lost = hosts.backup(loser, discard_local=loser == "b")
    primary = hosts.primary(winner, wait=False)
    if loser == "a":
        until(lambda: lost.status().state is State.SPLIT_BRAIN)
        until(lambda: primary.status().state is State.SPLIT_BRAIN)
        assert "--discard-local" in lost.status().reason
        with pytest.raises(StateError):
            lost.promote()
        untouched = hosts.data(loser)
        lost.close()
        assert hosts.data(loser) == untouched
        lost = hosts.backup(loser, discard_local=True)
    primary.wait_protected(timeout_s=30)
    epoch = checkpoint(primary)
    primary.close()
    assert lost.promote() == epoch
    assert hosts.data(loser) == hosts.data(winner)
    assert hosts.data(loser)[: len(wanted)] == wanted


def test_an_outage_alone_is_no_split(hosts):
    """New generations on one side only: the backup follows them all."""
    b = hosts.backup("b")
    a = hosts.primary("a")
    seen = {a.status().generation}
    for turn in range(20):
        b.close()
        until(lambda: not a.status().connected)
        fill(a, turn, at=turn * 4096, n=4096)
        seen.add(a.status().generation)
        b = hosts.backup("b")
        epoch = next_checkpoint(a)
        a.commit(epoch)
    assert len(seen) == 21
    a.close()
    assert b.promote() == epoch
    assert hosts.data("a") == hosts.data("b")


def test_without_a_write_there_is_no_new_generation(hosts):
    b = hosts.backup("b")
    a = hosts.primary("a")
    before = a.status().generation
    b.close()
    until(lambda: not a.status().connected)
    b = hosts.backup("b")
    a.wait_protected(timeout_s=30)
    assert a.status().generation == before


def test_the_generation_is_durable_before_the_write_is_answered(hosts, tmp_path):
    """Killed at once after its first write alone: the next process knows."""
    backup = BackupProcess(
        f"unix:{tmp_path}/b.sock", tmp_path / "b", {"xvda": hosts.image("b")}
    )
    code = f"""
import os, signal, sys, time
from remus_native import Primary, Volume
p = Primary("guest0", state_dir={str(tmp_path / "a")!r},
            volumes=[Volume("xvda", {str(hosts.image("a"))!r})],
            address="unix:{tmp_path}/b.sock", idle_ms=3600000)
p.wait_protected(30)
p.session_begin()
n = p.postsuspend(); p.preresume(n, 30); p.commit(n)
print(p.status().generation, flush=True)
sys.stdin.readline()
while p.status().connected:
    time.sleep(0.001)
p.pwrite(0, b"alone", 0)
os.kill(os.getpid(), signal.SIGKILL)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        first = process.stdout.readline().strip()
        backup.kill()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(30) == -9
    finally:
        process.kill()
        process.wait()
        backup.kill()
    b = hosts.backup("b", serve=False, segment_bytes=262144)
    b.promote()
    b.serve(f"unix:{tmp_path}/b.sock")
    a = hosts.primary("a", wait=False)
    assert a.status().generation != first
    until(lambda: a.status().state is State.SPLIT_BRAIN)


# ---- going on alone, with leave ----------------------------------------------


def test_writes_wait_for_leave_to_go_on_alone(hosts):
    b = hosts.backup("b")
    a = hosts.primary("a", ask_alone=True, loss_ms=1000)
    checkpoint(a)
    assert not a.status().asks_alone
    b.close()
    until(lambda: not a.status().connected)
    done = threading.Event()

    def write():
        a.pwrite(0, b"waits", 0)
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    until(lambda: a.status().parked_writes == 1)
    assert not a.status().asks_alone  # it may be back at once
    until(lambda: a.status().asks_alone)
    assert not done.wait(0.2)
    assert a.pread(0, 1, 0)  # reads never wait
    a.go_alone()
    assert done.wait(10)
    thread.join()
    assert not a.status().asks_alone
    # The next outage asks again.
    b = hosts.backup("b")
    epoch = next_checkpoint(a)
    a.commit(epoch)
    b.close()
    until(lambda: not a.status().connected)
    done.clear()
    thread = threading.Thread(target=write)
    thread.start()
    until(lambda: a.status().asks_alone)
    assert not done.is_set()
    a.go_alone()
    thread.join()


def test_a_backup_that_returns_ends_the_wait(hosts):
    b = hosts.backup("b")
    a = hosts.primary("a", ask_alone=True)
    checkpoint(a)
    b.close()
    until(lambda: not a.status().connected)
    thread = threading.Thread(target=lambda: a.pwrite(0, b"waits", 0))
    thread.start()
    until(lambda: a.status().parked_writes == 1)
    b = hosts.backup("b")
    thread.join(30)
    assert not thread.is_alive()
    epoch = next_checkpoint(a)
    a.commit(epoch)
    a.close()
    assert b.promote() == epoch
    assert hosts.data("b")[:5] == b"waits"


def test_close_ends_the_wait_with_an_error(hosts):
    b = hosts.backup("b")
    a = hosts.primary("a", ask_alone=True)
    checkpoint(a)
    b.close()
    until(lambda: not a.status().connected)
    errors = []

    def write():
        try:
            a.pwrite(0, b"waits", 0)
        except StateError as error:
            errors.append(error.errno)

    thread = threading.Thread(target=write)
    thread.start()
    until(lambda: a.status().parked_writes == 1)
    a.close()
    thread.join(10)
    assert errors == [errno.EIO]


# ---- promote with a primary that lives ---------------------------------------


def test_an_idle_primary_gives_way_with_all_that_it_has(hosts):
    b = hosts.backup("b")
    a = hosts.primary("a")
    fill(a, 1)
    before = a.status().committed_epoch
    m = b.promote()
    assert m > before  # a last checkpoint
    assert a.status().state is State.FENCED
    assert "gave way" in a.status().reason
    assert hosts.data("a") == hosts.data("b")
    with pytest.raises(StateError, match="Fenced"):
        a.pwrite(0, b"x", 0)
    a.close()
    with pytest.raises(StateError, match="fenced"):
        hosts.primary("a", wait=False)


def test_a_session_is_reason_to_stay(hosts):
    b = hosts.backup("b")
    a = hosts.primary("a")
    m = checkpoint(a)
    a.session_begin()
    with pytest.raises(StateError, match="toolstack") as caught:
        b.promote()
    assert caught.value.errno == errno.EBUSY
    a.pwrite(0, b"goes on", 0)
    assert checkpoint(a) > m
    assert a.status().state is State.PROTECTED
    a.session_end()
    b.promote()


def test_a_writer_is_reason_to_stay(hosts):
    """Who uses the library itself has no file that is open."""
    b = hosts.backup("b")
    a = hosts.primary("a")
    with a.writer(), a.writer():
        with pytest.raises(StateError, match="open for writing") as caught:
            b.promote()
        assert caught.value.errno == errno.EBUSY
        fill(a, 1)
    b.promote()
    assert hosts.data("a") == hosts.data("b")
    with pytest.raises(StateError, match="Fenced") as caught, a.writer():
        pass
    assert caught.value.errno == errno.EROFS


def test_a_named_checkpoint_is_not_overtaken(hosts):
    b = hosts.backup("b")
    a = hosts.primary("a")
    m = checkpoint(a)
    a.session_end()
    fill(a, 5)
    assert b.promote(m) == m
    assert a.status().state is State.FENCED
    assert hosts.data("b") == bytes(hosts.size)


def test_a_wrong_name_does_not_stop_the_primary(hosts):
    b = hosts.backup("b")
    a = hosts.primary("a")
    checkpoint(a)
    a.session_end()
    with pytest.raises(StateError, match="no checkpoint"):
        b.promote(1 << 40)
    assert a.status().state is State.PROTECTED
    a.pwrite(0, b"x", 0)


def test_asking_by_hand(hosts):
    b = hosts.backup("b")
    assert b.ask() is False
    a = hosts.primary("a")
    assert b.ask() is True
    assert b.ask() is True  # its word stands
    a.close()
    b.promote()


def test_a_stopped_primary_counts_as_lost(hosts, tmp_path):
    """It answers nothing: after the loss time a promote does not wait."""
    b = hosts.backup("b")
    code = f"""
import time
from remus_native import Primary, Volume
p = Primary("guest0", state_dir={str(tmp_path / "a")!r},
            volumes=[Volume("xvda", {str(hosts.image("a"))!r})],
            address="unix:{tmp_path}/b.sock")
p.wait_protected(30)
print("ready", flush=True)
time.sleep(600)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, 19)
        start = time.monotonic()
        b.promote()
        assert 0.4 < time.monotonic() - start < 6
    finally:
        process.kill()
        process.wait()


# ---- old news ----------------------------------------------------------------


def test_a_link_lost_long_ago_wants_a_number(hosts):
    b = hosts.backup("b", stale_ms=1000)
    a = hosts.primary("a")
    m = checkpoint(a)
    a.close()
    until(lambda: not b.status().connected)
    time.sleep(2.1)
    with pytest.raises(StateError, match="stale_after") as caught:
        b.promote()
    assert caught.value.errno == errno.ESTALE
    assert str(m) in str(caught.value)
    b.close()
    # A process that never saw the primary knows it, too.
    b = hosts.backup("b", stale_ms=1000, serve=False)
    with pytest.raises(StateError, match="stale_after"):
        b.promote(force=True)
    assert b.promote(m) == m


def test_while_connected_it_is_never_stale(hosts):
    b = hosts.backup("b", stale_ms=1000)
    a = hosts.primary("a")
    checkpoint(a)
    a.session_end()
    time.sleep(2.1)
    b.promote()


# ---- what goes with a memory ---------------------------------------------------


@pytest.mark.fuse
def test_giving_way_keeps_the_disk_that_goes_with_the_memory(hosts, tmp_path):
    """A toolstack's last checkpoint; its guest is destroyed; failover."""
    b = hosts.backup("b")
    a = hosts.primary("a")
    mount = tmp_path / "mount"
    mount.mkdir()
    with Export(a, mount):
        guest = os.open(mount / "xvda", os.O_RDWR)
        toolstack = os.open(mount / "xvda", os.O_RDONLY)
        for i in range(3):
            os.pwrite(guest, b"checkpoint %d" % i, 0)
            fcntl.ioctl(toolstack, 20, 0)
            fcntl.ioctl(toolstack, 30, 0)
        m = a.status().prepared_epoch
        os.pwrite(guest, b"after the memory", 0)
        os.close(guest)
        os.close(toolstack)
        assert promote_once_closed(b) == m
        assert hosts.data("b")[:16] == b"checkpoint 2\0\0\0\0"
        assert a.status().state is State.FENCED


def promote_once_closed(b: Backup) -> int:
    """The kernel tells a node of a close some time after it."""
    end = time.monotonic() + 30
    while True:
        try:
            return b.promote()
        except StateError as error:
            if error.errno != errno.EBUSY or time.monotonic() > end:
                raise
            time.sleep(0.01)


def gives_way(b: Backup) -> bool:
    try:
        return b.ask(turn=True)
    except StateError as error:
        if error.errno != errno.EBUSY:
            raise
        return False


@pytest.mark.fuse
def test_a_swap_takes_all_of_it_all_the_same(hosts, tmp_path):
    b = hosts.backup("b")
    a = hosts.primary("a")
    mount = tmp_path / "mount"
    mount.mkdir()
    with Export(a, mount):
        with (mount / "xvda").open("r+b", buffering=0) as guest:
            fcntl.ioctl(guest, 20, 0)
            fcntl.ioctl(guest, 30, 0)
            guest.write(b"the last word")
        until(lambda: gives_way(b))
        assert a.status().turns
        b.promote()
        assert hosts.data("b")[:13] == b"the last word"


@pytest.mark.fuse
def test_what_the_engine_prepared_is_no_reason_to_go_further_back(hosts, tmp_path):
    """Through ioctls nobody commits: the last prepared one with a memory."""
    b = hosts.backup("b", commit_by="backup")
    a = hosts.primary("a", commit_by="backup")
    mount = tmp_path / "mount"
    mount.mkdir()
    with Export(a, mount):
        with (mount / "xvda").open("r+b", buffering=0) as guest:
            guest.write(b"with a memory")
            fcntl.ioctl(guest, 20, 0)
            fcntl.ioctl(guest, 30, 0)
            m = a.status().prepared_epoch
            guest.seek(0)
            guest.write(b"and without: ")
        until(lambda: gives_way(b))  # takes one that no backup commits by itself
        until(lambda: len(b.checkpoints()) > 2)
        a.close()
        until(lambda: not b.status().connected)
        b.close()  # its word is gone with the process
        b = hosts.backup("b", commit_by="backup", serve=False)
        assert [cp.epoch for cp in b.checkpoints() if not cp.disk_only][-1] == m
        assert b.promote() == m
        assert hosts.data("b")[:13] == b"with a memory"


def test_nothing_is_lost_where_only_the_backup_commits(hosts):
    b = hosts.backup("b", commit_by="backup")
    a = hosts.primary("a", commit_by="backup")
    epoch = a.postsuspend()
    a.preresume(epoch, timeout_s=30)
    fill(a, 1)
    a.session_end()
    assert b.ask(turn=True)
    b.promote()
    assert hosts.data("a") == hosts.data("b")


def test_a_second_question_gets_the_same_answer(hosts):
    """The first answer may have been lost, or the one who asked."""
    b = hosts.backup("b")
    a = hosts.primary("a")
    fill(a, 1)
    assert b.ask()
    # As if it had not arrived: nothing is noted, and it is asked again.
    lib.remus_test_backup_forget_answer(b._raw)
    assert b.ask(turn=True)
    assert a.status().turns
    assert "with checkpoint" in a.status().reason
    b.promote()
    assert hosts.data("a") == hosts.data("b")


def test_busy_at_once_in_a_copy(hosts):
    """No answer of an engine that copies is waited for."""
    hosts.image("a").write_bytes(random.Random(1).randbytes(hosts.size))
    b = hosts.backup("b")
    a = hosts.primary("a", wait=False, resync_rate=MIB)
    until(lambda: a.status().state is State.CATCHING_UP)
    start = time.monotonic()
    with pytest.raises(StateError, match="CatchingUp") as caught:
        b.ask()
    assert caught.value.errno == errno.EBUSY
    assert time.monotonic() - start < 0.9


# ---- which side a stranger's disks are -------------------------------------------


def test_a_primary_that_was_failed_away_from_is_told_by_its_successor(hosts):
    """It was dead meanwhile, and the promoted side has been a primary since."""
    b = hosts.backup("b")
    a = hosts.primary("a")
    fill(a, 1)
    checkpoint(a)
    fill(a, 2, at=MIB)
    a.close()
    b.promote()
    b.close()
    hosts.primary("b", wait=False).close()
    b = hosts.backup("b")
    a = hosts.primary("a", wait=False)
    until(lambda: a.status().state is State.FENCED)
    assert b.status().state is State.INCONSISTENT
    with pytest.raises(StateError, match="Fenced"):
        a.pwrite(0, b"x", 0)
    a.close()
    with pytest.raises(StateError, match="fenced"):
        hosts.primary("a", wait=False)
    # The one that was started in the wrong role goes back to its own.
    b.close()
    back = hosts.backup("a")
    b = hosts.primary("b")
    fill(b, 3)
    epoch = checkpoint(b)
    b.close()
    assert back.promote() == epoch
    assert hosts.data("a") == hosts.data("b")


def test_both_sides_name_a_split_also_the_promoted_one(hosts):
    a, b = split(hosts)
    until(lambda: a.status().state is State.SPLIT_BRAIN)
    assert b.status().state is State.SPLIT_BRAIN
    assert "--discard-local" in b.status().reason
    assert b.status().promoted_epoch
    b.promote()  # it is, for good


def test_a_backup_that_follows_another_branch_can_be_chosen_to_lose(hosts, tmp_path):
    """The primary's state directory comes from an old copy."""
    b = hosts.backup("b")
    a = hosts.primary("a")
    checkpoint(a)
    a.close()
    shutil.copytree(hosts.folder / "a", tmp_path / "copy")
    b.close()
    a = hosts.primary("a", wait=False)
    fill(a, 2)  # a generation of its own
    b = hosts.backup("b")
    a.wait_protected(timeout_s=30)
    checkpoint(a)
    a.close()
    shutil.rmtree(hosts.folder / "a")
    (tmp_path / "copy").rename(hosts.folder / "a")
    a = hosts.primary("a", wait=False)
    until(lambda: a.status().state is State.SPLIT_BRAIN)
    until(lambda: b.status().state is State.SPLIT_BRAIN)
    assert "--discard-local" in b.status().reason
    b.close()
    fill(a, 4, at=2 * MIB)
    b = hosts.backup("b", discard_local=True)
    a.wait_protected(timeout_s=30)
    epoch = checkpoint(a)
    a.close()
    assert b.promote() == epoch
    assert hosts.data("a") == hosts.data("b")


# ---- leave, once more ------------------------------------------------------------


def test_no_leave_is_asked_for_while_the_backup_is_there(hosts):
    """It compares its disks for long; the guest writes, nothing is fenced."""
    b = hosts.backup("b")
    a = hosts.primary("a")
    checkpoint(a)
    a.close()
    (hosts.folder / "a" / "dirty.map").unlink()
    a = hosts.primary("a", wait=False, ask_alone=True, resync_rate=MIB, loss_ms=1000)
    until(lambda: a.status().state is State.CATCHING_UP)
    start = time.monotonic()
    a.pwrite(0, b"goes on", 0)
    assert time.monotonic() - start < 2  # it compares for 4 s
    while a.status().state is State.CATCHING_UP:
        assert not a.status().asks_alone
        time.sleep(0.01)
    a.wait_protected(timeout_s=60)
    epoch = next_checkpoint(a)
    a.commit(epoch)
    # What passed then gives no leave for a later outage.
    b.close()
    until(lambda: not a.status().connected)
    a.go_alone()
    until(lambda: a.status().parked_writes == 0)


def test_leave_that_comes_too_late_is_none(hosts):
    b = hosts.backup("b")
    a = hosts.primary("a", ask_alone=True, loss_ms=1000)
    checkpoint(a)
    a.go_alone()  # the outage that it was about is over
    b.close()
    until(lambda: not a.status().connected)
    thread = threading.Thread(target=lambda: a.pwrite(0, b"waits", 0))
    thread.start()
    until(lambda: a.status().asks_alone)
    assert thread.is_alive()
    a.go_alone()
    thread.join(30)
    assert not thread.is_alive()


# ---- when a link counts as lost --------------------------------------------------


def test_a_link_that_is_down_for_a_moment_is_no_loss(hosts):
    """Its primary is asked when it is back; nobody is promoted beside it."""
    b = hosts.backup("b")
    a = hosts.primary("a", loss_ms=1000)
    checkpoint(a)
    b.close()
    until(lambda: not a.status().connected)
    # The backup's process has just begun: the primary had no time to come.
    b = hosts.backup("b")
    with pytest.raises(StateError) as caught:
        b.ask()
    assert caught.value.errno == errno.EBUSY
    assert a.status().state is not State.FENCED


def test_who_ended_on_purpose_is_not_waited_for(hosts):
    b = hosts.backup("b")
    a = hosts.primary("a")
    checkpoint(a)
    a.close()
    until(lambda: not b.status().connected)
    start = time.monotonic()
    assert not b.ask()
    assert time.monotonic() - start < 0.5
