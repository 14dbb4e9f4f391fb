# SPDX-License-Identifier: LGPL-2.1-or-later
"""A toolstack in a process of its own: it opens nodes and sends their ioctls.

``python toolstack_process.py`` takes one command a line, as JSON, and answers
each with one line.  A wait that may be parked runs in a thread, so that the
process goes on listening; `Toolstack` is its other end.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import threading
from typing import Any

SEND, WAIT, COMMIT = 20, 30, 40


def main() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    lock = threading.Lock()

    def tell(**words: Any) -> None:
        with lock:
            sys.stdout.write(json.dumps(words) + "\n")
            sys.stdout.flush()

    def ioctl(fd: int, number: int, arg: int) -> int:
        """Of the C library: fcntl.ioctl would try again after EINTR."""
        rc = libc.ioctl(fd, ctypes.c_ulong(number), ctypes.c_ulong(arg))
        return -ctypes.get_errno() if rc < 0 else rc

    def later(tag: int, fd: int, number: int, arg: int) -> None:
        tell(tag=tag, result=ioctl(fd, number, arg))

    for line in sys.stdin:
        name, *args = json.loads(line)
        if name == "open":
            tell(result=os.open(args[0], os.O_RDWR | os.O_CLOEXEC))
        elif name == "close":
            os.close(args[0])
            tell(result=0)
        elif name == "ioctl":
            tell(result=ioctl(*args))
        elif name == "fork":
            # As libxl waits: in a child, which inherits the open file.
            child = os.fork()
            if child == 0:
                rc = ioctl(*args[1:])
                tell(tag=args[0], result=rc)
                os._exit(0)
            tell(result=child)
        else:
            threading.Thread(target=later, args=args, daemon=True).start()
            tell(result=0)


class Toolstack:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.tags = 0
        self.ended: dict[int, int] = {}
        self.answers: list[int] = []
        self.heard = threading.Condition()
        self.gone = False
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said = json.loads(line)
            with self.heard:
                if "tag" in said:
                    self.ended[said["tag"]] = said["result"]
                else:
                    self.answers.append(said["result"])
                self.heard.notify_all()
        with self.heard:
            self.gone = True
            self.heard.notify_all()

    def _ask(self, *command: Any) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        with self.heard:
            assert self.heard.wait_for(lambda: self.answers or self.gone, 60)
            return self.answers.pop(0)

    def open(self, path: Any) -> int:
        return self._ask("open", str(path))

    def close(self, fd: int) -> None:
        self._ask("close", fd)

    def send(self, fd: int, tag: int = 0) -> int:
        """Ioctl 20: its result, or -errno."""
        return self._ask("ioctl", fd, SEND, tag)

    def wait(self, fd: int, limit_ms: int = 0) -> int:
        return self._ask("ioctl", fd, WAIT, limit_ms)

    def commit(self, fd: int) -> int:
        return self._ask("ioctl", fd, COMMIT, 0)

    def wait_later(self, fd: int, limit_ms: int = 0) -> int:
        """A wait in a thread of the process: a tag for `result`."""
        self.tags += 1
        self._ask("later", self.tags, fd, WAIT, limit_ms)
        return self.tags

    def wait_in_child(self, fd: int) -> tuple[int, int]:
        """A wait in a forked child: tag and pid."""
        self.tags += 1
        return self.tags, self._ask("fork", self.tags, fd, WAIT, 0)

    def result(self, tag: int, seconds: float = 30.0) -> int | None:
        """What the wait ended with; None: it goes on."""
        with self.heard:
            self.heard.wait_for(lambda: tag in self.ended, seconds)
            return self.ended.get(tag)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


if __name__ == "__main__":
    main()
