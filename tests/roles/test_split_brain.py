# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two sides that went on from one checkpoint: named, and ended by a choice."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from remus_native import Backup, Primary, ReplicationLost, State, StateError
from support.backup_process import BackupProcess
from support.pair import MIB, checkpoint, next_checkpoint
from support.two_hosts import Hosts, fill
from support.waiting import until

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
