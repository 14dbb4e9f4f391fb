# SPDX-License-Identifier: LGPL-2.1-or-later
"""A backup in a process of its own, so that it can be killed for real.

``python backup_process.py ADDRESS STATE_DIR NAME=PATH...`` opens it, prints
"ready", and serves until its standard input ends.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

SEGMENT = 256 << 10
JOURNAL = 4 << 20


def main(address: str, state_dir: str, *volumes: str) -> None:
    from remus_native import Backup, Volume

    pairs = [volume.split("=", 1) for volume in volumes]
    with Backup(
        "guest0",
        state_dir=state_dir,
        volumes=[Volume(name, path) for name, path in pairs],
        journal_bytes=JOURNAL,
        segment_bytes=SEGMENT,
    ) as backup:
        backup.serve(address)
        print("ready", flush=True)
        sys.stdin.read()


class BackupProcess:
    """Starts `main` and waits until it is ready."""

    def __init__(self, address: str, state_dir: Path, volumes: dict[str, Path]):
        self.process = subprocess.Popen(
            [sys.executable, __file__, address, str(state_dir)]
            + [f"{name}={path}" for name, path in volumes.items()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line != "ready\n":
            self.kill()
            raise RuntimeError(f"the backup process said {line!r}")

    def pause(self) -> None:
        """SIGSTOP, and wait until every thread has stopped."""
        self.process.send_signal(signal.SIGSTOP)
        tasks = Path(f"/proc/{self.process.pid}/task")
        while any(
            (task / "stat").read_text().rpartition(")")[2].split()[0] != "T"
            for task in tasks.iterdir()
        ):
            time.sleep(0.001)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
