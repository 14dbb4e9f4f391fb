# SPDX-License-Identifier: LGPL-2.1-or-later
"""A primary with its keeper, and the process that serves below it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from pathlib import Path

from remus_native.shared.mounts import detach, unguard
from support.host import Host
from support.waiting import wait_for


class Kept:
    """``remus-native up`` for one host of the file of a `Host`."""

    def __init__(self, host: Host, *arguments: str, side: str = "p") -> None:
        self.host = host
        self.side = side
        self.name = {"p": "primary", "b": "backup"}[side]  # at first
        self.mount = host.folder / side / "mount"
        host.stack.callback(unguard, str(self.mount))
        host.stack.callback(detach, str(self.mount))
        self.keeper = host.start("up", "--host", self.name, *arguments)
        self.keepers = [self.keeper.pid]
        host.stack.callback(self.kill_both)
        wait_for("start", lambda: self.keeper.poll() is not None or host.runs(side))
        assert self.keeper.poll() is None, self.keeper.communicate()

    @staticmethod
    def children(pid: int) -> list[int]:
        try:
            text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        except FileNotFoundError:
            return []
        return [int(child) for child in text.split()]

    @staticmethod
    def holds(keeper: int) -> bool:
        """Has it the descriptor of the mount?  (Between fork and exec it has all
        that the server has.)"""
        if b"adopt" not in Path(f"/proc/{keeper}/cmdline").read_bytes():
            return False
        names = Path(f"/proc/{keeper}/fd").iterdir()
        with contextlib.suppress(FileNotFoundError):
            return "/dev/fuse" in {os.readlink(name) for name in names}
        return False

    def server(self) -> int:
        """The process that serves, as the keeper's child."""
        return wait_for("server", lambda: self.children(self.keepers[-1]))[0]

    def kill_server(self) -> int:
        pid = self.server()
        os.kill(pid, signal.SIGKILL)
        self.is_another(pid)
        return pid

    def is_another(self, pid: int) -> None:
        wait_for("server", lambda: self.children(self.keepers[-1]) not in ([], [pid]))
        wait_for("one server", lambda: len(self.children(self.keepers[-1])) == 1)

    def restart_by_kill(self) -> None:
        """... and it serves again."""
        self.kill_server()
        os.statvfs(self.mount)
        wait_for("control", lambda: self.host.runs(self.side))

    def kill_both(self) -> None:
        """As if the host died; nothing is left of either."""
        for keeper in self.keepers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(keeper, signal.SIGSTOP)
                for pid in self.children(keeper):
                    kill(pid)
                os.kill(keeper, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.keeper.wait(timeout=10)


def kill(pid: int) -> None:
    """... and it is wholly gone."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [], 30)
    finally:
        os.close(pidfd)
