# SPDX-License-Identifier: LGPL-2.1-or-later
"""No disk is taken away by a log, a terminal, or a closed descriptor."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from remus_native.cli._process import Watch
from remus_native.control import ControlServer, call
from remus_native.shared.log import LINES_MAX, Log, as_standard_error, emit
from remus_native.shared.mounts import detach
from support.host import Host, end, status
from support.pair import MIB
from support.waiting import DEADLINE_S, wait_for

SIDES = ["backup", pytest.param("primary", marks=pytest.mark.fuse)]


# ---- the log ----------------------------------------------------------------


def drain(reader: int) -> Callable[[], str]:
    """Read ``reader`` to its end in a thread; what was read."""
    parts: list[bytes] = []

    def read() -> None:
        while data := os.read(reader, 1 << 16):
            parts.append(data)

    thread = threading.Thread(target=read)
    thread.start()

    def result() -> str:
        thread.join(DEADLINE_S)
        return b"".join(parts).decode()

    return result


def shut(fd: int) -> None:
    """Close what ``fd`` leads to; the number stays the test's."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, fd)
    os.close(null)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    yield reader, writer
    for fd in (reader, writer):
        os.close(fd)


def test_a_log_without_a_reader_drops_lines_and_counts_them(pipe):
    reader, writer = pipe
    log = Log(writer)
    total = 5 * LINES_MAX
    for i in range(total):
        log.write(f"line {i} {'x' * 60}\n")  # would wait for ever if it waited
    said = drain(reader)
    log.close(DEADLINE_S)
    shut(writer)
    lines = said().splitlines()
    dropped = sum(
        int(match[1])
        for line in lines
        if (match := re.match(r"remus-native: (\d+) lines of this log were dr", line))
    )
    kept = [line for line in lines if line.startswith("line ")]
    assert dropped > 0 and len(kept) + dropped == total
    numbers = [int(line.split()[1]) for line in kept]
    assert numbers == sorted(numbers) and numbers[0] == 0


def let_go(log: Log, reader: int, writer: int) -> None:
    """Its thread must not write into what gets these numbers next."""
    said = drain(reader)
    log._thread.join(DEADLINE_S)
    shut(writer)
    said()


def test_a_log_ends_though_nobody_reads(pipe):
    reader, writer = pipe
    log = Log(writer)
    for _ in range(200):
        log.write("x" * 100 + "\n")
    start = time.monotonic()
    log.close(0.1)
    assert time.monotonic() - start < 5
    let_go(log, reader, writer)


@pytest.mark.parametrize("trouble", ["full", "no reader", "closed"])
def test_lines_that_can_not_be_written_are_counted(pipe, trouble):
    reader, writer = pipe
    target = os.dup(writer)
    if trouble == "full":
        bad = os.open("/dev/full", os.O_WRONLY)
        word = "No space"
    elif trouble == "no reader":
        gone, bad = os.pipe()
        os.close(gone)
        word = "Broken pipe"
    else:  # open for reading only: EBADF, as for one that is closed
        bad = os.open("/dev/null", os.O_RDONLY)
        word = "Bad file"
    os.dup2(bad, target)
    os.close(bad)
    log = Log(target)
    for i in range(3):
        log.write(f"lost {i}\n")
    wait_for("their loss", lambda: log._lost == 3)
    os.dup2(writer, target)
    log.write("again\n")
    log.close(DEADLINE_S)
    said = os.read(reader, 4096).decode()
    os.close(target)
    first, second = said.splitlines()
    assert first.startswith(f"remus-native: 3 lines of this log were lost: {word}")
    assert second == "again"


def test_a_descriptor_that_does_not_block_loses_nothing(pipe):
    reader, writer = pipe
    os.set_blocking(writer, False)
    log = Log(writer)
    for i in range(500):
        log.write(f"{i:>60}\n")
    said = drain(reader)
    log.close(DEADLINE_S)
    shut(writer)
    assert [int(line) for line in said().splitlines()] == list(range(500))


def test_lines_of_many_threads_stay_whole(pipe):
    reader, writer = pipe
    log = Log(writer)
    said = drain(reader)

    def work(name: int) -> None:
        for i in range(50):
            print("thread", name, "says", i, file=log)  # several writes

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close(DEADLINE_S)
    shut(writer)
    lines = said().splitlines()
    assert sorted(lines) == sorted(
        f"thread {n} says {i}" for n in range(4) for i in range(50)
    )


def test_a_progress_line_never_takes_a_lines_place(pipe):
    reader, writer = pipe
    log = Log(writer)
    for _ in range(100):
        log.write("x" * 100 + "\n")
    before = len(log._lines)
    for _ in range(2 * LINES_MAX):
        log.write("\rcopying 1 %")
    assert len(log._lines) <= before
    assert log._dropped == 0
    log.close(0)
    let_go(log, reader, writer)


def test_a_stream_that_fails_is_silent_from_then_on():
    gone, writer = os.pipe()
    os.close(gone)
    stream = os.fdopen(writer, "w")
    assert not emit(stream, "to nobody\n")
    assert emit(stream, "to /dev/null\n")
    stream.close()
    assert not emit(None, "no stream at all\n")


def test_what_python_says_by_itself_goes_through_the_log():
    code = (
        "import sys, threading, warnings\n"
        "from remus_native.shared.log import Log, as_standard_error\n"
        "with as_standard_error():\n"
        "    assert isinstance(sys.stderr, Log)\n"
        "    warnings.warn('a warning')\n"
        "    t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()\n"
        "assert not isinstance(sys.stderr, Log)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "a warning" in done.stderr and "ZeroDivisionError" in done.stderr


# ---- processes that serve ------------------------------------------------------


def serve(host: Host, side: str, **options: Any) -> subprocess.Popen[bytes]:
    if side == "primary":
        host.start_backup()
        host.stack.callback(detach, str(host.folder / "p/mount"))
    create = ["--create"] if side == "backup" else []
    process = subprocess.Popen(
        [sys.executable, "-m", "remus_native", side, *create, str(host.file)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        **options,
    )
    host.stack.callback(end, process)
    wait_for(side, lambda: process.poll() is not None or host.runs(side[0]))
    assert process.poll() is None
    return process


def use(host: Host, side: str) -> None:
    """Much to log, and the main thread must go on after each of it."""
    if side == "backup":
        for _ in range(3):
            primary = host.open_primary()
            primary.pwrite("root", b"x" * 512, 0)
            epoch = primary.postsuspend()
            primary.preresume(epoch, 30)
            primary.commit(epoch)
            primary.close()
            # Carried out by the main thread, which is the one that logs.
            call(str(host.folder / "b"), "commit", timeout_s=DEADLINE_S, epoch=epoch)
        return
    node = host.folder / "p/mount/root"
    wait_for(
        "protection",
        lambda: call(str(host.folder / "p"), "status")["state"] == "Protected",
    )
    with node.open("r+b") as disk:
        disk.write(b"y" * 4096)
        os.fsync(disk.fileno())
    assert node.read_bytes() == b"y" * 4096 + bytes(MIB - 4096)
    call(str(host.folder / "b"), "stop")
    wait_for(
        "the loss",
        lambda: call(str(host.folder / "p"), "status")["state"] == "Unprotected",
    )
    time.sleep(0.3)  # the main thread looks at it and logs
    with node.open("r+b") as disk:
        disk.write(b"z" * 4096)
        os.fsync(disk.fileno())


def stop(host: Host, process: subprocess.Popen[bytes], side: str) -> None:
    call(str(host.folder / side[0]), "stop")
    assert process.wait(DEADLINE_S) == 0
    assert not os.path.ismount(host.folder / "p/mount")


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("trouble", ["reader gone", "disk full", "reader stalls"])
def test_a_log_that_can_not_be_written_ends_nothing(host, side, trouble):
    reader = -1
    if trouble == "disk full":
        target = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, target = os.pipe()
        fcntl.fcntl(target, fcntl.F_SETPIPE_SZ, 4096)
        if trouble == "reader gone":
            os.close(reader)
        else:
            os.write(target, b"-" * 4096)
    process = serve(host, side, stderr=target)
    os.close(target)
    use(host, side)
    stop(host, process, side)
    if trouble == "reader stalls":
        os.close(reader)


@pytest.mark.parametrize("side", SIDES)
def test_closed_descriptors_are_not_given_to_disks(host, side):
    """`remus-native primary FILE >&- 2>&- <&-`."""
    if side == "primary":
        host.start_backup()
        host.stack.callback(detach, str(host.folder / "p/mount"))
    create = "--create" if side == "backup" else ""
    process = subprocess.Popen(
        [
            "/bin/sh",
            "-c",
            f'exec "$0" -m remus_native {side} {create} "$1" <&- >&- 2>&-',
            sys.executable,
            str(host.file),
        ],
    )
    host.stack.callback(end, process)
    wait_for(side, lambda: process.poll() is not None or host.runs(side[0]))
    for fd in (0, 1, 2):
        assert os.readlink(f"/proc/{process.pid}/fd/{fd}") == "/dev/null"
    use(host, side)
    stop(host, process, side)


@pytest.mark.parametrize("side", SIDES)
def test_a_terminal_that_hangs_up_ends_nothing(host, side):
    master, slave = pty.openpty()

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    if side == "primary":
        host.start_backup()
        host.stack.callback(detach, str(host.folder / "p/mount"))
    create = ["--create"] if side == "backup" else []
    process = subprocess.Popen(
        [sys.executable, "-m", "remus_native", side, *create, str(host.file)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        preexec_fn=take_terminal,
    )
    host.stack.callback(end, process)
    os.close(slave)
    wait_for(side, lambda: process.poll() is not None or host.runs(side[0]))
    os.close(master)  # SIGHUP to the whole session; then each write is EIO
    use(host, side)
    assert process.poll() is None
    stop(host, process, side)


def test_stray_signals_end_nothing(host):
    process = serve(host, "backup", stderr=subprocess.DEVNULL)
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTOU):
        process.send_signal(number)
        assert status(host, "b")["state"], number
        assert process.poll() is None, number
    use(host, "backup")
    stop(host, process, "backup")


def test_an_interrupt_that_was_ignored_before_stays_ignored(host):
    """As a shell script sets it for what it starts with &."""
    process = serve(
        host,
        "backup",
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    process.send_signal(signal.SIGINT)
    use(host, "backup")
    process.terminate()
    assert process.wait(DEADLINE_S) == 0


def test_a_step_that_fails_does_not_end_the_loop(tmp_path, capsys):
    """As where no thread can be started to run a fence command."""
    calls: list[str] = []

    def failing() -> Any:
        calls.append("status")
        raise MemoryError("none left")

    def alive() -> bool:
        calls.append("alive")
        if len(calls) < 10:
            raise RuntimeError("can't start new thread")
        return False

    ours, theirs = socket.socketpair()
    with ours, theirs, ControlServer(str(tmp_path), quick={}) as server:
        watch = Watch(SimpleNamespace(name="guest0"), failing, ours)  # type: ignore[arg-type]
        assert watch.run(server, alive=alive) is False
    assert len(calls) >= 10
    said = capsys.readouterr().err
    assert "guest0: RuntimeError: can't start new thread; the process goes on" in said


# ---- commands ----------------------------------------------------------------


@pytest.mark.parametrize("descriptor", ["stdout", "stderr"])
@pytest.mark.parametrize("trouble", ["full", "gone", "closed"])
def test_a_command_whose_output_fails_has_a_code_of_ours(host, descriptor, trouble):
    if trouble == "closed":
        redirect = {"stdout": ">&-", "stderr": "2>&-"}[descriptor]
        command = ["/bin/sh", "-c", f'exec "$0" -m remus_native "$@" {redirect}']
    else:
        command = []
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if trouble == "full":
        options[descriptor] = os.open("/dev/full", os.O_WRONLY)
    elif trouble == "gone":
        reader, options[descriptor] = os.pipe()
        os.close(reader)
    arguments = ["status", str(host.file)]
    done = subprocess.run(
        [*command, sys.executable, *arguments]
        if command
        else [sys.executable, "-m", "remus_native", *arguments],
        text=True,
        check=False,
        **options,
    )
    assert done.returncode == 4 if descriptor == "stderr" else done.returncode in (1, 4)
    for said in (done.stdout, done.stderr):
        assert "Traceback" not in (said or "") and "Exception" not in (said or "")
    if trouble != "closed":
        os.close(options[descriptor])
    if (descriptor, trouble) == ("stdout", "full"):
        assert os.strerror(errno.ENOSPC) in done.stderr


def test_in_tests_standard_error_stays():
    with as_standard_error(), warnings.catch_warnings():
        assert not isinstance(sys.stderr, Log)


def test_the_folder_of_a_demo_is_removed_after_a_hang_up(tmp_path: Path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "remus_native", "demo", "--in-process",
         "--seconds", "60"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for("its folder", lambda: list(tmp_path.glob("remus-demo-*/*")))
        process.send_signal(signal.SIGHUP)
        assert process.wait(DEADLINE_S) == 130
    finally:
        end(process)  # type: ignore[arg-type]
    assert not list(tmp_path.glob("remus-demo-*"))
