# SPDX-License-Identifier: LGPL-2.1-or-later
"""The doctor's look at the host: clock, fence, hardening, kernel."""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator

from .._binding import lib
from ..errors import RemusError
from ._finding import ERROR, OK, WARNING, Finding, Subject

__all__ = ["clock", "fence", "hardening", "kernel"]

YEAR_2024 = 1_704_067_200
TIMEX_BYTES = 256  # struct timex has 208 on 64-bit Linux
STA_UNSYNC, STATUS_AT = 0x40, 40
HARDENINGS = 3  # see remus_harden_process


# ---- the clock --------------------------------------------------------------------


def clock(subject: Subject) -> Iterator[Finding]:
    """``stale_after`` counts by the wall clock over a restart of the host."""

    def says(level: str, found: str, fix: str = "") -> Finding:
        return subject.says("clock", level, found, fix, of_host=True)

    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    if time.time() < YEAR_2024:
        yield says(ERROR, f"it is {now} here", "set the clock, and run chrony or ntpd")
        return
    synchronised = _synchronised()
    if synchronised is None:
        yield says(WARNING, f"{now}; not known whether it is set by NTP", "check it")
    elif not synchronised:
        yield says(
            WARNING,
            f"{now}; nothing keeps it synchronised",
            "run chrony or systemd-timesyncd on both hosts: a clock that is set back "
            "over a restart makes each checkpoint count as old",
        )
    else:
        yield says(OK, f"{now}; synchronised by NTP")


def _synchronised() -> bool | None:
    timex = ctypes.create_string_buffer(TIMEX_BYTES)
    try:
        if ctypes.CDLL(None, use_errno=True).adjtimex(timex) < 0:
            return None
    except (OSError, AttributeError):
        return None
    status = int.from_bytes(timex.raw[STATUS_AT : STATUS_AT + 4], sys.byteorder)
    return not status & STA_UNSYNC


# ---- the fence command ------------------------------------------------------------


def fence(subject: Subject) -> Iterator[Finding]:
    resource = subject.resource

    def says(level: str, found: str, fix: str = "") -> Finding:
        return subject.says("fence", level, found, fix, of_host=True)

    if not resource.fence:
        if resource.same_host:
            yield says(OK, "none: both sides are on one host")
        else:
            yield says(
                WARNING,
                "none: a partition between the hosts can start two guests",
                'say fence = ["/path", ...] (see the page on the resource file)',
            )
        return
    command = resource.fence[0]
    try:
        found = os.stat(command)
    except OSError as error:
        yield says(ERROR, f"{command}: {error.strerror}", "install it on both hosts")
        return
    if not stat.S_ISREG(found.st_mode) or not os.access(command, os.X_OK):
        yield says(ERROR, f"{command}: can't be run", f"chmod 755 {command}")
        return
    if found.st_uid not in (0, os.geteuid()) or stat.S_IMODE(found.st_mode) & 0o022:
        yield says(
            WARNING,
            f"{command}: users other than root can change it",
            f"chown root {command}; chmod 755 {command}",
        )
        return
    if subject.run_fence is None:
        yield says(
            OK,
            f"{command} is there; not run (--run-fence runs it with "
            "REMUS_REASON=check)",
        )
        return
    started = time.monotonic()
    try:
        subject.run_fence()
    except RemusError as error:
        yield says(
            ERROR, str(error), "repair the command: until then nothing is promoted"
        )
        return
    took = time.monotonic() - started
    limit = resource.limits.fence_ms / 1000
    if took > limit / 2:
        yield says(
            WARNING,
            f"{command} succeeded after {took:.1f} s of at most {limit:g} s",
            "raise fence_timeout",
        )
    else:
        yield says(OK, f"{command} succeeded after {took:.1f} s")


# ---- hardening --------------------------------------------------------------------

_TRY = """
import ctypes, os, re
from remus_native._binding import lib
done = lib.remus_harden_process()
with open("/proc/self/oom_score_adj") as file:
    oom = file.read().strip()
with open("/proc/self/status") as file:
    locked = re.search(r"VmLck:\\s+(\\d+)", file.read())[1]
flusher = ctypes.CDLL(None).prctl(58, 0, 0, 0, 0)
print(done, oom, locked, flusher)
"""


def hardening(subject: Subject) -> Iterator[Finding]:
    """In a process of its own: it can't be taken back."""

    def says(level: str, found: str, fix: str = "") -> Finding:
        return subject.says("hardening", level, found, fix, of_host=True)

    done = subprocess.run(
        [sys.executable, "-c", _TRY],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    words = done.stdout.split()
    if done.returncode or len(words) != 4:
        yield says(
            ERROR,
            f"a process that hardens itself ended with {done.returncode}: "
            f"{done.stderr.strip()[-200:]}",
            "raise LimitMEMLOCK= of the unit (memory is locked)",
        )
        return
    lacks = []
    if int(words[0]) < HARDENINGS:
        if words[1] != "-1000":
            lacks.append("the out-of-memory killer may choose it (CAP_SYS_RESOURCE)")
        if words[3] != "1":
            lacks.append("no PR_SET_IO_FLUSHER (CAP_SYS_RESOURCE, Linux 5.6)")
        if words[2] == "0":
            lacks.append("its memory is not locked (CAP_IPC_LOCK, LimitMEMLOCK=)")
        lacks = lacks or [f"{words[0]} of {HARDENINGS} steps worked"]
    if lacks:
        yield says(
            WARNING,
            "; ".join(lacks),
            "run it as root, or give the unit these capabilities",
        )
    else:
        yield says(OK, "memory locked, spared by the out-of-memory killer, IO flusher")


# ---- the kernel -------------------------------------------------------------------


def kernel(subject: Subject) -> Iterator[Finding]:
    def says(level: str, found: str, fix: str = "") -> Finding:
        return subject.says("kernel", level, found, fix, of_host=True)

    release = os.uname().release
    words = []
    version = _version(release)
    library = _libfuse()
    resend = version >= (6, 9)
    parallel = version >= (6, 6) and library >= (3, 15)
    words.append(f"resend of requests: {'yes' if resend else 'no'}")
    words.append(f"parallel direct writes: {'yes' if parallel else 'no'}")
    shown = ".".join(map(str, library)) if library else "not found"
    found = f"Linux {release}, libfuse {shown}; {', '.join(words)}"
    serves = subject.side == "primary" or subject.resource.backup.serves
    if serves and not os.path.exists("/dev/fuse"):
        yield says(ERROR, f"{found}; no /dev/fuse", "modprobe fuse")
    elif serves and os.geteuid() != 0:
        yield says(ERROR, f"{found}; mounting needs root", "run it as root")
    else:
        yield says(OK, f"{found}; remus-native {_own_version()}")


def _version(release: str) -> tuple[int, ...]:
    numbers = []
    for word in release.split("-")[0].split(".")[:2]:
        numbers.append(int("".join(c for c in word if c.isdigit()) or 0))
    return tuple(numbers)


def _libfuse() -> tuple[int, ...]:
    try:
        library = ctypes.CDLL("libfuse3.so.3")
        library.fuse_pkgversion.restype = ctypes.c_char_p
        return _version(library.fuse_pkgversion().decode())
    except (OSError, AttributeError):
        return ()


def _own_version() -> str:
    from .._binding import text

    return text(lib.remus_version())
