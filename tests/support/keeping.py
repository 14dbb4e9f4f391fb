# SPDX-License-Identifier: LGPL-2.1-or-later
"""A primary with its keeper, and the process that serves below it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

from remus_native.shared.mounts import detach, unguard
from support.host import Host
from support.waiting import wait_for


class Kept:
    """``remus-native primary --keep`` on a `Host`."""

    def __init__(self, host: Host, *arguments: str) -> None:
        self.host = host
        self.mount = host.folder / "p" / "mount"
        host.stack.callback(unguard, str(self.mount))
        host.stack.callback(detach, str(self.mount))
        self.keeper = host.start(*(arguments or ("primary", "--keep")))
        self.keepers = [self.keeper.pid]
        host.stack.callback(self.kill_both)
        wait_for("primary", lambda: self.keeper.poll() is not None or host.runs("p"))
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
        """Has it the descriptor of the mount?"""
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
        wait_for("control", lambda: self.host.runs("p"))

    def kill_both(self) -> None:
        """As if the host died; nothing is left of either."""
        for keeper in self.keepers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(keeper, signal.SIGSTOP)
                for pid in self.children(keeper):
                    os.kill(pid, signal.SIGKILL)
                os.kill(keeper, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.keeper.wait(timeout=10)
