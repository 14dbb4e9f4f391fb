# SPDX-License-Identifier: LGPL-2.1-or-later
"""The process that serves a disk dies under its guest, which goes on."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from support.host import Host, is_now, status
from support.keeping import Kept
from support.mounted import close_quietly, fails_with
from support.waiting import DEADLINE_S, wait_for

BLOCK = 4096
BLOCKS = 256

pytestmark = pytest.mark.fuse


@pytest.fixture(autouse=True)
def room(host: Host) -> None:
    """For all that is changed between two checkpoints."""
    text = host.file.read_text().replace('journal = "1MiB"', 'journal = "16MiB"')
    host.file.write_text(text.replace('"64KiB"', '"1MiB"'))


class Guest:
    """Threads that write and read back blocks of their own, without a pause."""

    def __init__(self, path: Path, threads: int = 3, seed: int = 1) -> None:
        self.path = path
        self.model = bytearray(BLOCKS * BLOCK)
        self.errors: list[BaseException] = []
        self.worst_s = 0.0
        self.operations = 0
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(i, threads, seed), daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, index: int, of: int, seed: int) -> None:
        choose = random.Random(f"{seed} {index}")
        try:
            fd = os.open(self.path, os.O_RDWR)
            try:
                while not self._stop.is_set():
                    self._step(fd, choose, index, of)
            finally:
                os.close(fd)
        except BaseException as error:
            self.errors.append(error)

    def _step(self, fd: int, choose: random.Random, index: int, of: int) -> None:
        at = (choose.randrange(BLOCKS // of) * of + index) * BLOCK
        start = time.monotonic()
        if choose.random() < 0.5:
            data = choose.randbytes(BLOCK)
            assert os.pwrite(fd, data, at) == BLOCK
            self.model[at : at + BLOCK] = data
        else:
            assert os.pread(fd, BLOCK, at) == self.model[at : at + BLOCK]
        self.worst_s = max(self.worst_s, time.monotonic() - start)
        self.operations += 1

    def moves_on(self) -> None:
        before = self.operations
        wait_for("I/O", lambda: self.errors or self.operations > before + 20)
        assert not self.errors

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert not self.errors


def same_in_the_end(host: Host, kept: Kept, model: bytes) -> str:
    """A stop is still a stop, and both sides hold what the guest wrote."""
    wait_for("Protected", lambda: is_now(host, "p", "primary", "Protected"))
    with (kept.mount / "root").open("rb") as node:
        assert node.read() == model
    kept.keeper.terminate()
    _, said = kept.keeper.communicate(timeout=DEADLINE_S)
    assert kept.keeper.returncode == 0, said
    assert (host.folder / "p0").read_bytes() == model
    assert not os.path.ismount(kept.mount)
    return said


def test_a_log_that_nobody_reads_keeps_no_guest_waiting(host: Host) -> None:
    """Standard error is a full pipe: the keeper starts the next server."""
    host.start_backup()
    kept = Kept(host)
    pipe = os.open(f"/proc/{kept.keeper.pid}/fd/2", os.O_WRONLY | os.O_NONBLOCK)
    for piece in (4096, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(pipe, bytes(piece))
    os.close(pipe)
    guest = Guest(kept.mount / "root")
    for _ in range(2):
        guest.moves_on()
        kept.kill_server()
    guest.moves_on()
    guest.stop()


def test_a_killed_servers_guest_goes_on(host: Host) -> None:
    host.start_backup()
    kept = Kept(host)
    guest = Guest(kept.mount / "root")
    for _ in range(5):
        guest.moves_on()
        kept.kill_server()
    guest.moves_on()
    guest.stop()
    print(f"worst {guest.worst_s:.3f} s, {guest.operations} operations")
    same_in_the_end(host, kept, guest.model)


def test_a_planned_restart(host: Host) -> None:
    host.start_backup()
    kept = Kept(host)
    wait_for("Protected", lambda: is_now(host, "p", "primary", "Protected"))
    guest = Guest(kept.mount / "root")
    for _ in range(3):
        guest.moves_on()
        pid = kept.server()
        assert host.run("restart", "--host", "primary") == (0, "", "")
        kept.is_another(pid)
    guest.moves_on()
    wait_for("Protected", lambda: is_now(host, "p", "primary", "Protected"))
    guest.stop()
    print(f"worst {guest.worst_s:.3f} s, {guest.operations} operations")
    said = same_in_the_end(host, kept, guest.model)
    # The first start of all compares what it was given.
    assert said.count("comparing") <= 1


def test_a_restart_needs_a_keeper(host: Host) -> None:
    host.start_backup()
    kept = Kept(host, "--no-keeper")
    code, _, said = host.run("restart", "--host", "primary")
    assert code == 1
    assert "no keeper is there to restart it" in said
    assert kept.keeper.poll() is None


def test_open_files_are_counted_once(host: Host) -> None:
    host.start_backup()
    kept = Kept(host)
    readers = [os.open(kept.mount / "root", os.O_RDONLY) for _ in range(2)]
    writers = [os.open(kept.mount / "data", os.O_RDWR) for _ in range(3)]
    text = os.open(kept.mount / "status", os.O_RDONLY)
    for _ in range(2):
        assert status(host, "p")["writers"] == 3
        kept.restart_by_kill()
    os.close(writers.pop())
    kept.restart_by_kill()
    wait_for("release", lambda: status(host, "p")["writers"] == 2)
    assert os.pread(text, 64, 0).startswith(b"remus-native resource=guest0")
    for fd in (*readers, *writers, text):
        os.close(fd)
    wait_for("release", lambda: status(host, "p")["writers"] == 0)


def test_a_killed_keeper_is_started_again(host: Host) -> None:
    host.start_backup()
    kept = Kept(host)
    guest = Guest(kept.mount / "root")
    server = kept.server()
    kept.keeper.kill()
    kept.keeper.wait()
    guest.moves_on()
    [keeper] = wait_for("keeper", lambda: kept.children(server))
    kept.keepers.append(keeper)
    wait_for("hold", lambda: kept.holds(keeper))
    os.kill(server, signal.SIGKILL)
    guest.moves_on()
    guest.stop()
    with (kept.mount / "root").open("rb") as node:
        assert node.read() == guest.model
    os.kill(keeper, signal.SIGTERM)
    wait_for("end", lambda: not os.path.ismount(kept.mount))


def test_with_both_killed_the_guest_sees_an_error_at_once(host: Host) -> None:
    host.start_backup()
    kept = Kept(host)
    fd = os.open(kept.mount / "root", os.O_RDWR)
    host.stack.callback(close_quietly, fd)
    kept.kill_both()
    with fails_with(errno.ENOTCONN, errno.ECONNABORTED):
        os.pread(fd, BLOCK, 0)
    again = Kept(host)
    assert (again.mount / "root").stat().st_size == BLOCKS * BLOCK


def test_without_a_server_that_starts_the_guest_sees_an_error(host: Host) -> None:
    host.start_backup()
    kept = Kept(host)
    fd = os.open(kept.mount / "root", os.O_RDWR)
    host.stack.callback(close_quietly, fd)
    os.rename(host.folder / "p1", host.folder / "moved")
    kept.kill_server()
    with fails_with(errno.ENOTCONN, errno.ECONNABORTED):
        os.pread(fd, BLOCK, 0)
    _, said = kept.keeper.communicate(timeout=DEADLINE_S)
    assert kept.keeper.returncode == 1
    assert "waiting requests get an error" in said
    assert not os.path.ismount(kept.mount)


class Numbers:
    """Threads that write the same range and one that reads it: what each
    wrote may only be followed by what it wrote later."""

    SIZE = 16 * BLOCK

    def __init__(self, path: Path) -> None:
        self.path = path
        self.wrong: list[str] = []
        self.errors: list[BaseException] = []
        self.rounds = 0
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._write, args=(i,), daemon=True) for i in (1, 2)
        ]
        self._threads += [
            threading.Thread(target=self._read, daemon=True) for _ in range(2)
        ]
        for thread in self._threads:
            thread.start()

    def _write(self, who: int) -> None:
        fd, count = os.open(self.path, os.O_RDWR), 0
        try:
            while not self._stop.is_set():
                count += 1
                block = who.to_bytes(8, "little") + count.to_bytes(8, "little")
                data = block.ljust(BLOCK, b".") * 16
                assert os.pwrite(fd, data, 0) == len(data)
        except BaseException as error:
            self.errors.append(error)
        finally:
            os.close(fd)

    def _read(self) -> None:
        seen: dict[tuple[int, int], int] = {}
        fd = os.open(self.path, os.O_RDONLY)
        try:
            while not self._stop.is_set():
                self._look(os.pread(fd, self.SIZE, 0), seen)
                self.rounds += 1
        except BaseException as error:
            self.errors.append(error)
        finally:
            os.close(fd)

    def _look(self, data: bytes, seen: dict[tuple[int, int], int]) -> None:
        for at in range(0, self.SIZE, BLOCK):
            who = int.from_bytes(data[at : at + 8], "little")
            count = int.from_bytes(data[at + 8 : at + 16], "little")
            if seen.get((at, who), 0) > count:
                self.wrong.append(f"{at}: {count} of {who} after {seen[at, who]}")
            seen[at, who] = count

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert not self.errors
        assert not self.wrong
        data = self.path.read_bytes()[: self.SIZE]
        assert data == data[:BLOCK] * 16  # no write is there in part


def test_nobody_sees_what_was_overwritten(host: Host) -> None:
    host.start_backup()
    kept = Kept(host)
    numbers = Numbers(kept.mount / "root")
    for _ in range(6):
        before = numbers.rounds
        wait_for("reads", lambda n=before: numbers.errors or numbers.rounds > n + 20)
        kept.kill_server()
    before = numbers.rounds
    wait_for("reads", lambda n=before: numbers.errors or numbers.rounds > n + 20)
    numbers.stop()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_kills(host: Host) -> None:
    """Soon after its start, or later.  Not twenty times in a row within a
    second: that is where a keeper gives up."""
    host.start_backup()
    kept = Kept(host)
    guest = Guest(kept.mount / "root")
    choose = random.Random(17)
    for i in range(150):
        guest.moves_on()
        time.sleep(choose.choice((0.0, 0.1, 0.3)) if i % 10 else 3.0)
        kept.kill_server()
    guest.moves_on()
    guest.stop()
    print(f"worst {guest.worst_s:.3f} s, {guest.operations} operations")
    same_in_the_end(host, kept, guest.model)
