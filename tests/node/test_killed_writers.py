# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who is killed while its write waits for room dies at once; and what then
becomes of the write."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from support.waiting import until

pytestmark = pytest.mark.fuse

WRITER = """
import ctypes, os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: None)
fd = os.open(sys.argv[1], os.O_RDWR)
data = sys.argv[2].encode() * 4096
print("ready", flush=True)
libc = ctypes.CDLL(None, use_errno=True)
n = libc.pwrite(fd, data, len(data), ctypes.c_long(int(sys.argv[3])))
print(n if n >= 0 else -ctypes.get_errno(), flush=True)
"""


class Writer:
    """A process that writes a block of one letter."""

    def __init__(self, lab, index, letter, at=0):
        before = lab.primary.status().parked_writes
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(lab.node(index)), letter, str(at)],
            stdout=subprocess.PIPE,
            text=True,
        )
        lab.stack.callback(self.process.kill)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        until(lambda: lab.primary.status().parked_writes > before)

    def killed_within(self, seconds):
        self.process.kill()
        assert self.process.wait(seconds) == -signal.SIGKILL

    def result(self):
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return int(line) if line else None


@pytest.fixture
def fenced(lab):
    """The backup is gone, and no write passes before an operator's word."""
    here = lab(ask_alone=True)
    here.lose()
    return here


def test_it_dies_at_once_and_the_write_is_whole(fenced):
    writer = Writer(fenced, 0, "a")
    writer.killed_within(5)
    fenced.primary.go_alone()
    until(lambda: fenced.primary.status().parked_writes == 0)
    assert fenced.primary.pread(0, 4096, 0) in (bytes(4096), b"a" * 4096)
    assert fenced.primary.pread(0, 4096, 4096) == bytes(4096)


def test_what_was_not_begun_never_is(fenced):
    """It waits behind another write of the same block when it is killed."""
    import threading

    first = threading.Thread(target=lambda: fenced.primary.pwrite(0, b"a" * 4096, 0))
    first.start()
    until(lambda: fenced.primary.status().parked_writes == 1)
    Writer(fenced, 0, "b").killed_within(5)
    fenced.primary.go_alone()
    first.join(30)
    until(lambda: fenced.primary.status().parked_writes == 0)
    assert fenced.primary.pread(0, 4096, 0) == b"a" * 4096


def test_any_other_signal_ends_no_write(fenced):
    """A disk has no EINTR: who gets one would take it for a broken disk."""
    writer = Writer(fenced, 0, "a")
    for _ in range(3):
        writer.process.send_signal(signal.SIGUSR1)
        time.sleep(0.3)
    assert fenced.primary.status().parked_writes == 1
    fenced.primary.go_alone()
    assert writer.result() == 4096
    assert fenced.primary.pread(0, 4096, 0) == b"a" * 4096


def test_a_signal_before_does_not_hide_the_kill(fenced):
    """The kernel tells of one signal of a request only."""
    writer = Writer(fenced, 0, "a")
    writer.process.send_signal(signal.SIGUSR1)
    time.sleep(0.3)
    writer.killed_within(5)


def test_a_process_with_asynchronous_writes_dies(fenced):
    """Of these the kernel tells nothing at all."""
    if shutil.which("fio") is None:
        pytest.skip("fio is not installed")
    process = subprocess.Popen(
        [
            "fio", "--name=held", f"--filename={fenced.node(0)}", "--rw=write",
            "--bs=4k", "--ioengine=libaio", "--direct=1", "--iodepth=8",
            "--size=32k", "--thread",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    fenced.stack.callback(process.kill)
    until(lambda: fenced.primary.status().parked_writes == 8)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    fenced.primary.go_alone()
