# SPDX-License-Identifier: LGPL-2.1-or-later
"""on_loss = "hold": waits for an ack outlive the backup."""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
import time

import pytest

from remus_native import (
    AsyncCheckpointDevices,
    CheckpointTimeout,
    Primary,
    ReplicaResource,
    ReplicationLost,
    State,
    Volume,
)
from remus_native.cli import main
from support.backup_process import BackupProcess
from support.host import Host, node, start_primary, status
from support.pair import checkpoint, lose
from support.waiting import until, wait_for


class Waiting(threading.Thread):
    """A preresume in a thread of its own."""

    def __init__(self, primary, epoch, timeout_s=60.0):
        super().__init__()
        self.result = None
        self.call = lambda: primary.preresume(epoch, timeout_s=timeout_s)
        self.start()

    def run(self):
        try:
            self.call()
            self.result = "safe"
        except Exception as error:
            self.result = error

    def ends(self, seconds=30.0):
        self.join(seconds)
        assert not self.is_alive()
        return self.result


@pytest.fixture
def held(tmp_path):
    """A primary that holds, and a backup that is a process."""
    for side in "pb":
        (tmp_path / side).mkdir()
        (tmp_path / f"{side}.img").write_bytes(bytes(65536))

    def start():
        return BackupProcess(
            f"unix:{tmp_path}/sock", tmp_path / "b", {"xvda": tmp_path / "b.img"}
        )

    backup = start()
    primary = Primary(
        "guest0", state_dir=tmp_path / "p", idle_ms=3_600_000, connect_ms=10,
        volumes=[Volume("xvda", tmp_path / "p.img")], address=f"unix:{tmp_path}/sock",
        on_loss="hold",
    )  # fmt: skip
    try:
        primary.wait_protected(30)
        checkpoint(primary)
        yield primary, backup, start
    finally:
        primary.close()
        backup.kill()


def a_barrier_without_ack(primary, backup, *, arrives: bool) -> int:
    """The backup dies before its ack; with the barrier or without it."""
    backup.pause()
    primary.pwrite(0, b"x" * 4096, 0)
    epoch = primary.postsuspend()
    if arrives:
        backup.go_on()
        until(lambda: primary.status().prepared_epoch >= epoch)
    backup.kill()
    until(lambda: not primary.status().connected)
    return epoch


def test_it_waits_for_the_backups_return_and_tells_what_is_lost(held):
    primary, backup, start = held
    epoch = a_barrier_without_ack(primary, backup, arrives=False)
    waiting = Waiting(primary, epoch)
    until(lambda: primary.status().holds)
    time.sleep(0.3)
    assert waiting.is_alive()
    assert primary.status().state is State.UNPROTECTED
    with pytest.raises(ReplicationLost):  # never waits
        primary.postsuspend()
    again = start()
    try:
        assert isinstance(waiting.ends(), ReplicationLost)
        anew(primary)
        assert not primary.status().holds
    finally:
        again.kill()


def anew(primary) -> None:
    """A checkpoint, whatever was lost before."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            epoch = primary.postsuspend()
            primary.preresume(epoch, timeout_s=30)
            primary.commit(epoch)
            return
        except ReplicationLost:
            time.sleep(0.005)
    pytest.fail("no checkpoint in 30 s")


def test_what_the_backup_has_is_safe(held):
    """Its ack was lost, its barrier was not: the journal has it."""
    primary, backup, start = held
    safe = False
    for _ in range(50):
        epoch = primary.postsuspend()
        backup.kill()
        waiting = Waiting(primary, epoch)
        backup = start()
        try:
            safe = waiting.ends() == "safe"
            anew(primary)
        finally:
            if safe:
                backup.kill()
        if safe:
            return
    backup.kill()
    pytest.fail("in none of 50 rounds the barrier had arrived")


def test_an_operators_word_ends_it(held):
    primary, backup, start = held
    epoch = a_barrier_without_ack(primary, backup, arrives=False)
    waiting = [Waiting(primary, epoch) for _ in range(5)]
    primary.resume()
    assert all(isinstance(one.ends(), ReplicationLost) for one in waiting)
    assert not primary.status().holds
    with pytest.raises(ReplicationLost):  # and none begins
        primary.preresume(epoch, timeout_s=30)
    # Armed again with the next connection.
    again = start()
    try:
        anew(primary)
        epoch = a_barrier_without_ack(primary, again, arrives=False)
        one = Waiting(primary, epoch)
        time.sleep(0.2)
        assert one.is_alive()
        primary.resume()
        one.ends()
    finally:
        again.kill()


def test_deadlines_and_close(held):
    primary, backup, _ = held
    epoch = a_barrier_without_ack(primary, backup, arrives=False)
    with pytest.raises(CheckpointTimeout):
        primary.preresume(epoch, timeout_s=0.2)


def test_groups_and_event_loops(held):
    primary, backup, _ = held

    async def run():
        async with AsyncCheckpointDevices(
            [ReplicaResource(primary, timeout_s=60)]
        ) as devices:
            await devices.postsuspend()
            await devices.preresume()
            backup.pause()
            await devices.postsuspend()
            task = asyncio.ensure_future(devices.preresume())
            backup.kill()
            until(lambda: not primary.status().connected)
            await asyncio.sleep(0.2)
            assert not task.done()
            primary.resume()
            with pytest.raises(ReplicationLost):
                await task

    asyncio.run(run())


def test_without_it_the_loss_is_told_at_once(make_pair):
    pair = make_pair([65536])
    checkpoint(pair.primary)
    epoch = pair.primary.status().prepared_epoch
    lose(pair)
    assert not pair.primary.status().holds
    pair.primary.preresume(epoch)  # that one was safe
    with pytest.raises(ReplicationLost):
        pair.primary.postsuspend()


@pytest.mark.fuse
def test_ioctl_30_on_a_node_and_the_command(host: Host) -> None:
    text = host.file.read_text().replace("[primary]", 'on_loss = "hold"\n[primary]')
    host.file.write_text(text)
    backup = host.start_backup()
    start_primary(host)
    files = [os.open(node(host), os.O_RDONLY) for _ in range(12)]  # > workers
    results: list[int] = []

    def wait(fd: int) -> None:
        try:
            results.append(fcntl.ioctl(fd, 30, 0))
        except OSError as error:
            results.append(-(error.errno or 0))

    threads: list[threading.Thread] = []
    try:
        backup.send_signal(19)
        for fd in files:
            fcntl.ioctl(fd, 20, 0)
        threads = [threading.Thread(target=wait, args=(fd,)) for fd in files]
        for thread in threads:
            thread.start()
        backup.kill()
        backup.wait()
        wait_for("the loss", lambda: status(host, "p")["holds"])
        time.sleep(0.3)
        assert not results
        assert node(host).stat().st_size  # no worker is held up
        with node(host).open("rb", buffering=0) as disk:
            assert disk.read(512)
        assert main(["resume", str(host.file)]) == 0
        for thread in threads:
            thread.join(30)
        assert results and set(results) == {-71}
    finally:
        if len(results) < len(threads):
            main(["resume", str(host.file)])
        for thread in threads:
            thread.join(30)
        for fd in files:
            os.close(fd)
