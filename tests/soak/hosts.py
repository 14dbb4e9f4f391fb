# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two hosts in network namespaces, with the processes that a user starts."""

from __future__ import annotations

import contextlib
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from remus_native.control import NotRunning, call
from remus_native.errors import RemusError

T = TypeVar("T")
MIB = 1 << 20
IP = {"a": "10.78.0.1", "b": "10.78.0.2"}
PORT = 7791
SECTION = {"a": "primary", "b": "backup"}  # what they are at first
JOURNAL, QUEUE = 192 * MIB, 64 * MIB
DB_SIZE, RAW_SIZE = 768 * MIB, 64 * MIB
LOSS_S = 1.0
DEADLINE_S = 120.0


def run(*words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False
    )
    if check and done.returncode:
        raise Failed(f"{' '.join(map(str, words))}: {done.stderr.strip()}")
    return done


class Failed(Exception):
    """What must never happen did."""


def until(what: str, true: Callable[[], T], seconds: float = DEADLINE_S) -> T:
    """The first value that is true."""
    end = time.monotonic() + seconds
    while not (value := true()):
        if time.monotonic() > end:
            raise Failed(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.05)
    return value


def children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(word) for word in text.split()]


def kill(pid: int) -> None:
    """... and it is wholly gone."""
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], DEADLINE_S)
        finally:
            os.close(pidfd)


class Hosts:
    """`a` and `b`; which of them is the primary changes as the soak goes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.primary = "a"
        self.stack = contextlib.ExitStack()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.log = (folder / "log").open("wb")
        self.stack.callback(self.log.close)
        tag = f"{os.getpid() % 100000:05d}{random.randrange(100):02d}"
        self.names = {side: f"soak{side}{tag}" for side in "ab"}
        self.file = folder / "guest0.toml"
        self.file.write_text(self._text())
        for side in "ab":
            (folder / side).mkdir(mode=0o700)
            for name, size in (("db", DB_SIZE), ("raw", RAW_SIZE)):
                with (folder / f"{side}.{name}").open("wb") as image:
                    image.truncate(size)
        for name in self.names.values():
            run("ip", "netns", "add", name)
            self.stack.callback(run, "ip", "netns", "del", name, check=False)
        a, b = self.names["a"], self.names["b"]
        run("ip", "link", "add", "ve", "netns", a, "type", "veth",
            "peer", "name", "ve", "netns", b)  # fmt: skip
        for side, name in self.names.items():
            run("ip", "-n", name, "addr", "add", f"{IP[side]}/24", "dev", "ve")
            run("ip", "-n", name, "link", "set", "lo", "up")
            run("ip", "-n", name, "link", "set", "ve", "up")

    def _text(self) -> str:
        volumes = "".join(
            f'[[volume]]\nname = "{name}"\nprimary = "{self.folder}/a.{name}"\n'
            f'backup = "{self.folder}/b.{name}"\n'
            for name in ("db", "raw")
        )
        return (
            f'name = "guest0"\naddress = "tcp:{IP["b"]}:{PORT}"\n'
            f'address_swapped = "tcp:{IP["a"]}:{PORT}"\ntls = "off"\n'
            f'[primary]\nstate = "{self.folder}/a"\n'
            f'[backup]\nstate = "{self.folder}/b"\n'
            f'[limits]\njournal = "{JOURNAL // MIB}MiB"\nsegment = "4MiB"\n'
            f'queue = "{QUEUE // MIB}MiB"\n'
            f'loss = "{int(LOSS_S * 1000)}ms"\n{volumes}'
        )

    @property
    def backup(self) -> str:
        return "b" if self.primary == "a" else "a"

    @property
    def swapped(self) -> list[str]:
        return ["--swapped"] if self.primary == "b" else []

    def mount(self) -> Path:
        return self.folder / self.primary / "mount"

    # ---- processes ------------------------------------------------------------

    def command(self, side: str, *words: str) -> list[str]:
        # Not `ip netns exec`: that makes a mount namespace as well, and the
        # guest would not see its disk.
        return [
            "nsenter", f"--net=/run/netns/{self.names[side]}",
            sys.executable, "-m", "remus_native", *words,
        ]  # fmt: skip

    def start(self, side: str) -> None:
        """What this host is stands in its state."""
        role = "primary" if side == self.primary else "backup"
        words = ["up", "--host", SECTION[side], "--create", str(self.file)]
        process = subprocess.Popen(
            self.command(side, *words),
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )
        self.processes[side] = process
        self.stack.callback(self.kill, side, process)

        def there() -> bool:
            if process.poll() is not None:
                raise Failed(f"{role} on {side} ended with {process.returncode}")
            return bool(self.status(side))

        until(f"the {role} on {side} runs", there)

    def server(self, side: str) -> int:
        """The process that serves, below its keeper."""
        return until("a server", lambda: children(self.processes[side].pid))[0]

    def kill(self, side: str, process: subprocess.Popen[bytes] | None = None) -> None:
        """Keeper and server, as if the host died."""
        process = process or self.processes[side]
        if process.poll() is None:
            process.send_signal(signal.SIGSTOP)  # or it would start another one
            for pid in children(process.pid):
                kill(pid)
            process.kill()
        process.wait()

    def kill_server(self, side: str) -> None:
        """Its keeper starts another one, which goes on with the same mount."""
        pid = self.server(side)
        kill(pid)
        until("another server", lambda: children(self.processes[side].pid) != [pid])

    def freeze(self, side: str, *, on: bool) -> None:
        process = self.processes[side]
        for pid in (process.pid, *children(process.pid)):
            os.kill(pid, signal.SIGSTOP if on else signal.SIGCONT)

    def stop(self, side: str) -> None:
        self.processes[side].terminate()
        try:
            code = self.processes[side].wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise Failed(f"the process on {side} does not end") from None
        if code:
            raise Failed(f"the process on {side} ended with {code}")

    def remus(self, side: str, *words: str) -> None:
        done = run(*self.command(side, *words), check=False)
        if done.returncode:
            raise Failed(f"remus-native {' '.join(words)}: {done.stderr.strip()}")

    def status(self, side: str) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = call(
                str(self.folder / side), "status", timeout_s=3.0
            )
        except NotRunning:
            return {}
        except RemusError:
            return {}  # stopped just now
        return answer

    def protected(self) -> bool:
        return self.status(self.primary).get("state") == "Protected"

    def cable(self, *, up: bool) -> None:
        run("ip", "-n", self.names[self.backup], "link", "set", "ve",
            "up" if up else "down")  # fmt: skip

    # ---- the guest's disk -------------------------------------------------------

    def attach(self) -> Path:
        """The primary's disk `db`, mounted."""
        where = self.folder / "guest"
        where.mkdir(exist_ok=True)
        until("the disks are there", (self.mount() / "db").exists)
        loop = run("losetup", "-f", "--show", "--direct-io=on",
                   self.mount() / "db").stdout.strip()  # fmt: skip
        self.stack.callback(self.detach)
        (self.folder / "loop").write_text(loop)
        if run("blkid", "-p", loop, check=False).returncode:
            run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0", loop)
        run("mount", loop, where)
        return where

    def detach(self) -> None:
        """Also from a server that is dead: nothing of it is left behind."""
        where, note = self.folder / "guest", self.folder / "loop"
        if not note.exists():
            return
        loop = note.read_text()
        end = time.monotonic() + 20  # what was killed lets go of it soon
        while run("umount", where, check=False).returncode:
            if time.monotonic() > end or not os.path.ismount(where):
                run("umount", "-l", where, check=False)
                break
            time.sleep(0.1)
        run("losetup", "-d", loop, check=False)
        note.unlink()

    def check_fs(self) -> None:
        """The file system of the disk that was failed over to: as after a crash."""
        until("the disks are there", (self.mount() / "db").exists)
        loop = run("losetup", "-f", "--show", self.mount() / "db").stdout.strip()
        try:
            run("e2fsck", "-p", loop, check=False)  # the file system's own log
            done = run("e2fsck", "-fn", loop, check=False)
            if done.returncode:
                raise Failed(f"e2fsck: {done.stdout.strip()[-500:]}")
        finally:
            run("losetup", "-d", loop)

    def clear_mount(self, side: str) -> None:
        run("umount", "-l", self.folder / side / "mount", check=False)

    def close(self) -> None:
        self.stack.close()
        for side in "ab":
            self.clear_mount(side)
            mount = self.folder / side / "mount"
            run("chattr", "-i", mount, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[Hosts]:
    hosts = Hosts(folder)
    try:
        yield hosts
    finally:
        hosts.close()
