# SPDX-License-Identifier: LGPL-2.1-or-later
"""Taking mounts away, for the command and the demo."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess

__all__ = ["detach", "unguard"]

_GETFLAGS, _SETFLAGS, _IMMUTABLE = 0x80086601, 0x40086602, 0x10


def detach(mount: str) -> None:
    """Unmount, also what is dead or busy; errors are left to who comes next."""
    for command in (["umount", "-l", mount], ["fusermount3", "-u", "-z", mount]):
        with contextlib.suppress(OSError):
            done = subprocess.run(
                command, capture_output=True, stdin=subprocess.DEVNULL, check=False
            )
            if done.returncode == 0:
                return


def unguard(directory: str) -> None:
    """Make what was a mount point a directory that can be removed again."""
    with contextlib.suppress(OSError):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            flags = bytearray(8)
            fcntl.ioctl(fd, _GETFLAGS, flags)
            (before,) = struct.unpack_from("i", flags)
            struct.pack_into("i", flags, 0, before & ~_IMMUTABLE)
            fcntl.ioctl(fd, _SETFLAGS, flags)
        finally:
            os.fchmod(fd, 0o755)
            os.close(fd)
