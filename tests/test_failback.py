# SPDX-License-Identifier: LGPL-2.1-or-later
"""Generations: who may go on from what, giving way, fail-back, split brain."""

from __future__ import annotations

import errno
import os
import random
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

from remus_native import Backup, Primary, ReplicationLost, State, StateError


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
    again.close()
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
    assert b.status().state is State.PROMOTED


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
    a = hosts.primary("a", ask_alone=True)
    checkpoint(a)
    assert not a.status().asks_alone
    b.close()
    until(lambda: a.status().asks_alone)
    done = threading.Event()

    def write():
        a.pwrite(0, b"waits", 0)
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    until(lambda: a.status().parked_writes == 1)
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
    until(lambda: a.status().asks_alone)


def test_a_backup_that_returns_ends_the_wait(hosts):
    b = hosts.backup("b")
    a = hosts.primary("a", ask_alone=True)
    checkpoint(a)
    b.close()
    until(lambda: a.status().asks_alone)
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
    until(lambda: a.status().asks_alone)
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
