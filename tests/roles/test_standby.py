# SPDX-License-Identifier: LGPL-2.1-or-later
"""Nodes on the backup's host: there before the promote, and after it."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from remus_native import Node, Standby, State
from remus_native.cli import main
from support.host import (
    Host,
    is_now,
    mounts_of,
    node,
    start_primary,
    status,
    with_fence,
)
from support.pair import checkpoint
from support.two_hosts import Hosts, fill
from support.waiting import DEADLINE_S, wait_for

pytestmark = pytest.mark.fuse


@contextlib.contextmanager
def standby_of(hosts: Hosts, backup, **options):
    mount = hosts.folder / "mount"
    mount.mkdir(exist_ok=True)
    made = Standby(backup, mount, **options)
    try:
        yield made
    finally:
        made.close()
        subprocess.run(["umount", "-l", mount], capture_output=True, check=False)


def opener(path: Path, results: list, flags: int = os.O_RDWR) -> threading.Thread:
    """A thread that opens for writing and notes a file or an errno."""

    def run() -> None:
        try:
            results.append(os.open(path, flags))
        except OSError as error:
            results.append(-error.errno)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


# ---- the nodes ------------------------------------------------------------------


def test_reading_gives_the_applied_state(hosts):
    backup = hosts.backup("b")
    primary = hosts.primary("a")
    fill(primary, 1)
    with standby_of(hosts, backup, nodes=[Node(7, 8, 0o640)]) as standby:
        disk = Path(standby.mountpoint) / "xvda"
        assert disk.stat().st_size == hosts.size
        assert (disk.stat().st_uid, disk.stat().st_gid) == (7, 8)
        assert disk.stat().st_mode & 0o777 == 0o640
        assert disk.read_bytes() == bytes(hosts.size)  # nothing is committed
        epoch = checkpoint(primary)
        wait_for("apply", lambda: backup.status().applied_epoch >= epoch)
        assert disk.read_bytes() == hosts.data("a")
        assert "Protected" in (disk.parent / "status").read_text()
        for flags in (os.O_WRONLY, os.O_RDWR):
            with pytest.raises(OSError, match="Read-only") as caught:
                os.open(disk, flags)
            assert caught.value.errno == errno.EROFS
        assert not standby.wanted


def test_checkpoint_ioctls_say_that_it_is_no_primary(hosts):
    import fcntl

    backup = hosts.backup("b")
    with standby_of(hosts, backup) as standby:
        fd = os.open(f"{standby.mountpoint}/xvda", os.O_RDONLY)
        try:
            for number in (20, 30, 40):
                with pytest.raises(OSError, match="Protocol") as caught:
                    fcntl.ioctl(fd, number, 0)
                assert caught.value.errno == errno.EPROTO
            with pytest.raises(OSError, match="Inappropriate") as caught:
                fcntl.ioctl(fd, 21, 0)
            assert caught.value.errno == errno.ENOTTY
        finally:
            os.close(fd)


def test_an_open_waits_for_the_switch(hosts):
    backup = hosts.backup("b")
    primary = hosts.primary("a")
    fill(primary, 1)
    first = checkpoint(primary)
    primary.close()
    wait_for("apply", lambda: backup.status().applied_epoch >= first)
    with standby_of(hosts, backup, auto_promote=True) as standby:
        disk = Path(standby.mountpoint) / "xvda"
        reader = os.open(disk, os.O_RDONLY)
        opened: list = []
        threads = [opener(disk, opened) for _ in range(20)]  # more than workers
        wait_for("the wish", lambda: standby.wanted)
        assert os.pread(reader, 4, 0) == hosts.data("a")[:4]  # nobody else waits
        assert disk.stat().st_size == hosts.size
        assert not opened
        backup.promote()
        standby.release()
        backup.close()
        assert os.pread(reader, 4, 0) == hosts.data("a")[:4]
        new = hosts.primary("b", wait=False)
        standby.switch(new)
        for thread in threads:
            thread.join(30)
        assert len(opened) == 20 and all(fd >= 0 for fd in opened)
        assert new.status().writers == 20
        os.pwrite(opened[0], b"a new life", 0)
        assert os.pread(reader, 10, 0) == b"a new life"
        assert new.pread(0, 10, 0) == b"a new life"
        # The old host follows, through the very same nodes.
        back = hosts.backup("a")
        new.wait_protected(30)
        os.pwrite(opened[1], b"replicated", 8192)
        epoch = checkpoint(new)
        for fd in [*opened, reader]:
            os.close(fd)
        wait_for("the closes", lambda: new.status().writers == 0)
        new.close()  # and with it the nodes
        assert back.promote() == epoch
        assert hosts.data("a") == hosts.data("b")


def test_a_refusal_reaches_who_waits(hosts):
    backup = hosts.backup("b")
    with standby_of(hosts, backup, auto_promote=True) as standby:
        opened: list = []
        thread = opener(Path(standby.mountpoint) / "xvda", opened)
        wait_for("the wish", lambda: standby.wanted)
        standby.refuse(errno.EBUSY)
        thread.join(30)
        assert opened == [-errno.EBUSY]
        assert not standby.wanted


def test_close_ends_the_wait(hosts):
    backup = hosts.backup("b")
    with standby_of(hosts, backup, auto_promote=True) as standby:
        opened: list = []
        thread = opener(Path(standby.mountpoint) / "xvda", opened)
        wait_for("the wish", lambda: standby.wanted)
        backup.close()  # closes its nodes first
        thread.join(30)
        assert opened and opened[0] < 0


def test_an_opener_that_is_killed_leaves_nothing(hosts):
    backup = hosts.backup("b")
    primary = hosts.primary("a")
    checkpoint(primary)
    primary.close()
    with standby_of(hosts, backup, auto_promote=True) as standby:
        disk = f"{standby.mountpoint}/xvda"
        process = subprocess.Popen(["dd", "if=/dev/zero", f"of={disk}", "count=1"],
                                   stderr=subprocess.DEVNULL)  # fmt: skip
        wait_for("the wish", lambda: standby.wanted)
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL  # it waits for no promote
        assert not standby.wanted  # and nothing is promoted for it
        # One that goes on waiting is let in all the same.
        opened: list = []
        thread = opener(Path(disk), opened)
        wait_for("the wish", lambda: standby.wanted)
        backup.promote()
        standby.release()
        backup.close()
        new = hosts.primary("b", wait=False)
        standby.switch(new)
        thread.join(30)
        assert new.status().writers == 1
        os.close(opened[0])
        wait_for("its end", lambda: new.status().writers == 0)


def test_an_open_is_interrupted_by_a_signal(hosts):
    """As on a slow device; who tries again waits again."""
    backup = hosts.backup("b")
    code = (
        "import os, signal, sys\n"
        "def stop(*_): raise InterruptedError\n"
        "signal.signal(signal.SIGUSR1, stop)\n"
        "print('ready', flush=True)\n"
        "try: os.open(sys.argv[1], os.O_RDWR)\n"
        "except InterruptedError: print('interrupted', flush=True)\n"
        "os.open(sys.argv[1], os.O_RDWR)\n"
        "print('open', flush=True)\n"
    )
    with standby_of(hosts, backup, auto_promote=True) as standby:
        disk = f"{standby.mountpoint}/xvda"
        process = subprocess.Popen(
            [sys.executable, "-c", code, disk], stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            wait_for("the wish", lambda: standby.wanted)
            process.send_signal(signal.SIGUSR1)
            assert process.stdout.readline() == "interrupted\n"
            wait_for("the next wish", lambda: standby.wanted)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        wait_for("its end", lambda: not standby.wanted)


def test_what_else_a_toolstack_does_while_an_open_waits(hosts):
    """stat, chown, chmod, a truncate to its size; many readers."""
    backup = hosts.backup("b")
    primary = hosts.primary("a")
    fill(primary, 1)
    first = checkpoint(primary)
    primary.close()
    wait_for("apply", lambda: backup.status().applied_epoch >= first)
    with standby_of(hosts, backup, auto_promote=True) as standby:
        disk = Path(standby.mountpoint) / "xvda"
        opened: list = []
        thread = opener(disk, opened, os.O_RDWR | os.O_TRUNC)
        wait_for("the wish", lambda: standby.wanted)
        os.chown(disk, 1234, 99)
        disk.chmod(0o640)
        os.truncate(disk, hosts.size)
        with pytest.raises(OSError, match="Invalid"):
            os.truncate(disk, 4096)
        for _ in range(30):
            assert disk.read_bytes() == hosts.data("a")
        backup.promote()
        standby.release()
        backup.close()
        new = hosts.primary("b", wait=False)
        standby.switch(new)
        thread.join(30)
        st = disk.stat()
        assert (st.st_uid, st.st_gid, st.st_mode & 0o777) == (1234, 99, 0o640)
        assert st.st_size == hosts.size
        assert disk.read_bytes() == hosts.data("a")  # O_TRUNC: as on a disk
        os.close(opened[0])


# ---- the process ------------------------------------------------------------------


def with_nodes(host: Host, fence: str = '"none"') -> None:
    text = host.file.read_text()
    text = text.replace("[primary]", f"auto_promote = true\nfence = {fence}\n[primary]")
    text = text.replace("[backup]\n", f'[backup]\nmount = "{host.folder}/b/mount"\n')
    host.file.write_text(text)
    mounts_of(host, "p", "b")


def mounted(host: Host, side: str) -> bool:
    return os.path.ismount(host.folder / side / "mount")


def test_opening_the_disk_promotes_and_it_stays_protected(host: Host) -> None:
    with_nodes(host)
    host.start_backup()
    wait_for("nodes", lambda: mounted(host, "b"))
    primary = start_primary(host)
    with node(host).open("r+b", buffering=0) as disk:
        disk.write(b"before")
        # It is in use there: whoever opens it here is told so.
        with pytest.raises(OSError, match="busy") as caught:
            os.open(node(host, "b"), os.O_RDWR)
        assert caught.value.errno == errno.EBUSY
    wait_for(
        "a checkpoint",
        lambda: Path(node(host, "b")).read_bytes()[:6] == b"before",
    )
    primary.kill()
    primary.wait()
    start = time.monotonic()
    with node(host, "b").open("r+b", buffering=0) as disk:
        assert time.monotonic() - start < 9  # libxl waits 10 s
        assert disk.read(6) == b"before"
        disk.seek(0)
        disk.write(b"after!")
        assert status(host, "b")["role"] == "primary"
        # The old host comes back as the backup, with nodes of its own.
        old = host.start("backup", "--swapped")
        wait_for("protection", lambda: is_now(host, "b", "primary", "Protected"))
        assert is_now(host, "p", "backup", "Protected")
        disk.seek(4096)
        disk.write(b"replicated")
    wait_for(
        "it over there",
        lambda: Path(node(host)).read_bytes()[4096:4106] == b"replicated",
    )
    assert old.poll() is None


def test_without_the_fence_no_open_promotes(host: Host) -> None:
    with_fence(host, "exit 1")
    text = host.file.read_text()
    text = text.replace("[primary]", "auto_promote = true\n[primary]")
    text = text.replace("[backup]\n", f'[backup]\nmount = "{host.folder}/b/mount"\n')
    host.file.write_text(text)
    mounts_of(host, "p", "b")
    host.start_backup()
    wait_for("nodes", lambda: mounted(host, "b"))
    primary = host.open_primary()
    epoch = primary.postsuspend()
    primary.preresume(epoch, 30)
    primary.commit(epoch)
    primary.close()
    wait_for("its end", lambda: not status(host, "b")["connected"])
    with pytest.raises(OSError, match="Input/output") as caught:
        os.open(node(host, "b"), os.O_RDWR)
    assert caught.value.errno == errno.EIO
    assert status(host, "b")["state"] == State.STANDBY
    # An operator's word: the nodes switch with it.
    assert main(["promote", "--fenced", str(host.file)]) == 0
    wait_for("the switch", lambda: is_now(host, "b", "primary", "Connecting"))
    with node(host, "b").open("r+b", buffering=0) as disk:
        disk.write(b"x")


def test_a_backup_with_nodes_ends_cleanly(host: Host) -> None:
    with_nodes(host)
    backup = host.start_backup()
    wait_for("nodes", lambda: mounted(host, "b"))
    backup.terminate()
    assert backup.wait(DEADLINE_S) == 0
    assert not mounted(host, "b")


def test_a_backup_goes_on_without_its_nodes(host: Host) -> None:
    with_nodes(host)
    host.start_backup()
    wait_for("nodes", lambda: mounted(host, "b"))
    subprocess.run(["umount", "-l", host.folder / "b/mount"], check=True)
    primary = host.open_primary()
    epoch = primary.postsuspend()
    primary.preresume(epoch, 30)
    assert status(host, "b")["state"] == State.PROTECTED


def test_openers_that_come_and_are_killed_during_the_switch(hosts):
    """Whoever lives is let in, whoever does not leaves nothing behind."""
    rng = random.Random(11)
    backup = hosts.backup("b")
    primary = hosts.primary("a")
    checkpoint(primary)
    primary.close()
    code = (
        "import os, sys, time\n"
        "try: fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "except OSError as error: sys.exit(error.errno)\n"
        "os.pwrite(fd, b'in', 0)\n"
    )
    with standby_of(hosts, backup, auto_promote=True) as standby:
        disk = f"{standby.mountpoint}/xvda"
        processes = [
            subprocess.Popen([sys.executable, "-S", "-c", code, disk])
            for _ in range(24)
        ]
        killed = set(rng.sample(range(len(processes)), 12))

        def kill() -> None:
            for i in sorted(killed, key=lambda _: rng.random()):
                processes[i].kill()
                time.sleep(rng.random() * 0.004)

        killer = threading.Thread(target=kill)
        try:
            wait_for("the wish", lambda: standby.wanted)
            killer.start()
            backup.promote()
            standby.release()
            backup.close()
            new = hosts.primary("b", wait=False)
            standby.switch(new)
        finally:
            killer.join(30)
            codes = [process.wait(30) for process in processes]
        for i, code_of in enumerate(codes):
            assert code_of == 0 or (i in killed and code_of == -signal.SIGKILL)
        wait_for("the closes", lambda: new.status().writers == 0)
        assert new.pread(0, 2, 0) == b"in"
