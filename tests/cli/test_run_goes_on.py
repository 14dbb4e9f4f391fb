# SPDX-License-Identifier: LGPL-2.1-or-later
"""`remus-native run` and a backup whose process is restarted: checkpoints go on,
and a restart costs one catch-up."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time

import pytest

from remus_native import CheckpointDevices, Checkpointer, DrbdDisk, NullGuest
from support.host import Host, node, start_primary, status
from support.waiting import DEADLINE_S, until, wait_for

#: From the backup's readiness to the next checkpoint: the primary tries every
#: 2 s at most; the grace of a session would be 60 s, and a first copy is no
#: catch-up.
BOUND_S = 8.0

pytestmark = pytest.mark.fuse


def checkpoints(host: Host) -> int:
    return int(status(host, "p")["epochs"])


def write(host: Host, data: bytes) -> None:
    fd = os.open(node(host), os.O_WRONLY)
    try:
        os.pwrite(fd, data, 4096)
    finally:
        os.close(fd)


def go_on(host: Host, run: subprocess.Popen[str]) -> None:
    """The loop takes checkpoints, and they are the loop's."""
    before = checkpoints(host)
    until(
        lambda: run.poll() is not None or checkpoints(host) > before + 5,
        what=lambda: str(status(host, "p")),
    )
    assert run.poll() is None, run.communicate()
    assert status(host, "p")["ioctl_driven"]


def restart_backup(host: Host, backup: subprocess.Popen[str], number: int):
    """A new process; how long the disk was without protection since then."""
    backup.send_signal(number)
    backup.wait(DEADLINE_S)
    until(lambda: status(host, "p")["state"] == "Unprotected")
    write(host, b"while it was away")
    again = host.start_backup()
    start = time.monotonic()
    until(
        lambda: status(host, "p")["state"] == "Protected",
        what=lambda: str(status(host, "p")),
    )
    return again, time.monotonic() - start


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_of_the_backup_costs_one_catch_up(host: Host, number: int) -> None:
    backup = host.start_backup()
    start_primary(host)
    run = host.start("run", "--interval", "20ms")
    wait_for("checkpoints", lambda: run.poll() is not None or checkpoints(host) > 20)
    for _ in range(2):
        backup, seconds = restart_backup(host, backup, number)
        assert seconds < BOUND_S
        now = status(host, "p")
        assert now["resync_total"] < 1 << 20, "all of the disks was sent"
        go_on(host, run)
    run.send_signal(signal.SIGTERM)
    out, err = run.communicate(timeout=DEADLINE_S)
    assert run.returncode == 0, err
    assert re.search(r"^losses of the backup +2$", out, re.M), out
    assert not re.search(r"^lost ", out, re.M), out
    assert err.count("the guest runs on without them, they go on") == 2
    assert err.count("checkpoints of guest0 go on, after") == 2


def test_the_session_of_a_run_that_ended_is_over_at_once(host: Host) -> None:
    """Nobody's memory waits for its last checkpoint: no grace of a minute."""
    host.start_backup()
    start_primary(host)
    run = host.start("run", "--interval", "20ms")
    wait_for("checkpoints", lambda: run.poll() is not None or checkpoints(host) > 20)
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=DEADLINE_S)
    write(host, b"after the session")
    before = status(host, "p")["committed_epoch"]
    until(lambda: status(host, "p")["committed_epoch"] > before, timeout_s=BOUND_S)
    assert not status(host, "p")["ioctl_driven"]


def test_nor_does_one_that_ended_with_the_backup_hold_up_a_catch_up(
    host: Host,
) -> None:
    backup = host.start_backup()
    start_primary(host)
    run = host.start("run", "--on-loss", "stop", "--interval", "20ms")
    wait_for("checkpoints", lambda: run.poll() is not None or checkpoints(host) > 20)
    backup.kill()
    run.communicate(timeout=DEADLINE_S)
    assert run.returncode == 3
    _, seconds = restart_backup(host, backup, signal.SIGKILL)
    assert seconds < BOUND_S


def test_a_run_that_ends_without_its_backup_says_so(host: Host) -> None:
    backup = host.start_backup()
    start_primary(host)
    run = host.start("run", "--interval", "20ms", "--duration", "3s")
    wait_for("checkpoints", lambda: run.poll() is not None or checkpoints(host) > 20)
    backup.kill()
    out, _ = run.communicate(timeout=DEADLINE_S)
    assert run.returncode == 3
    assert re.search(r"^lost +\S", out, re.M), out


def test_a_toolstack_that_has_a_node_open_keeps_its_session(host: Host) -> None:
    """The end of one loop is not the end of another one's session."""
    host.start_backup()
    start_primary(host)
    disk = DrbdDisk(str(node(host)))
    layer = CheckpointDevices([disk])
    other = Checkpointer(layer, NullGuest(), interval_s=0, on_loss="continue")
    with layer:
        other.run(count=3)
        code, _, err = host.run("run", "--interval", "5ms", "--count", "5")
        assert code == 0, err
        assert disk.is_ready()
        assert status(host, "p")["sessions"] == 1
        committed = status(host, "p")["committed_epoch"]
        write(host, b"in a session")
        time.sleep(2.5)  # twice the engine's interval
        assert status(host, "p")["committed_epoch"] == committed
