# SPDX-License-Identifier: LGPL-2.1-or-later
"""The demo on a real disk: FUSE node, loop device, ext4, SQLite, processes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from .. import control
from ..checkpointer import Checkpointer, CheckpointSample
from ..control import NotRunning
from ..devices import CheckpointDevices
from ..drbd import DrbdDisk
from ..errors import RemusError, StateError
from ..replica import State
from ..shared.mounts import detach
from ..shared.progress import LiveLine, seconds_text
from ._account import (
    Account,
    NotingGuest,
    Outcome,
    ProofFailed,
    prove_database,
)
from ._settings import Settings, cleaning_up

__all__ = ["play"]

NAME = "demo"
VOLUME = "disk"
START_S = 60.0  # for each thing that has to come up
RESOURCE_FILE = """\
name = "{name}"
address = "unix:{folder}/link.sock"

[primary]
state = "{folder}/primary"

[backup]
state = "{folder}/backup"

[limits]
journal = "128MiB"
segment = "4MiB"

[[volume]]
name = "{volume}"
size = {size}
primary = "{folder}/primary.img"
backup = "{folder}/backup.img"
"""


def play(settings: Settings) -> Outcome:
    """The whole play; raises `ProofFailed` or what went wrong."""
    print(
        f"SQLite on ext4 on a replicated disk, checkpoints every "
        f"{seconds_text(settings.interval_s)} (crash-consistent cuts: nothing is "
        f"suspended), seed {settings.seed}",
        flush=True,
    )
    with cleaning_up() as stack:
        stage = _Stage(settings, stack)
        stage.start()
        stage.mount_disk()
        stage.checkpoint_and_kill()
        stage.leave_disk()
        stage.promote()
        stage.prove()
        return stage.outcome


class _Once:
    """A way to undo something: runs once, when called or at the end."""

    def __init__(self, stack: contextlib.ExitStack, undo: Callable[[], None]) -> None:
        self._undo: Callable[[], None] | None = undo
        stack.callback(self)

    def __call__(self) -> None:
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()


class _Stage:
    """The processes, devices and mounts of one run, in the order of the play."""

    def __init__(self, settings: Settings, stack: contextlib.ExitStack) -> None:
        self.settings = settings
        self.stack = stack
        self.outcome = Outcome(interval_s=settings.interval_s)
        self.file = self._path("demo.toml")
        self.mounted = self._path("mnt")
        self.leave: list[_Once] = []  # in the order in which they were made
        self.account = stack.enter_context(Account(self._path("account")))

    def _path(self, name: str) -> str:
        return os.path.join(self.settings.folder, name)

    # -- processes ------------------------------------------------------------

    def _spawn(
        self, name: str, module: str, *arguments: str
    ) -> subprocess.Popen[bytes]:
        """A process of its own session: Ctrl-C reaches us alone."""
        with open(self._path(f"{name}.log"), "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return process

    def _log(self, name: str) -> str:
        """The end of what a process said, for an error."""
        with open(self._path(f"{name}.log"), encoding="utf-8", errors="replace") as log:
            lines = log.read().splitlines()
        return "; ".join(lines[-3:]) or "it said nothing"

    def _wait(
        self,
        what: str,
        ready: Callable[[], bool],
        name: str,
        process: subprocess.Popen[bytes],
    ) -> None:
        """Until ``ready``; an error if the process ends or it takes too long."""
        end = time.monotonic() + START_S
        with LiveLine() as live:
            while not ready():
                if process.poll() is not None:
                    raise StateError(
                        f"{name} ended with code {process.returncode}: "
                        f"{self._log(name)}"
                    )
                if time.monotonic() > end:
                    raise StateError(
                        f"{what}: not in {seconds_text(START_S)}: {self._log(name)}"
                    )
                live.update(f"waiting: {what}")
                time.sleep(0.02)

    def _status(self, side: str) -> dict[str, Any] | None:
        try:
            answer: dict[str, Any] = control.call(self._path(side), "status")
        except NotRunning:
            return None
        return answer

    def start(self) -> None:
        """Images, resource file, backup, primary; until Protected."""
        for image in ("primary.img", "backup.img"):
            with open(self._path(image), "xb") as disk:
                disk.truncate(self.settings.size)
        with open(self.file, "x", encoding="utf-8") as file:
            file.write(
                RESOURCE_FILE.format(
                    name=NAME,
                    volume=VOLUME,
                    folder=self.settings.folder,
                    size=self.settings.size,
                )
            )
        backup = self._spawn("backup", "remus_native", "backup", self.file)
        self.stop_backup = _Once(self.stack, lambda: self._stop(backup))
        self._wait("the backup", lambda: bool(self._status("backup")), "backup", backup)
        node = self._path("primary/mount")
        _Once(self.stack, lambda: detach(node))
        primary = self._spawn("primary", "remus_native", "primary", self.file)
        self.primary = primary
        self.stop_primary = _Once(self.stack, lambda: self._stop(primary))

        def protected() -> bool:
            status = self._status("primary")
            return status is not None and status["state"] == State.PROTECTED

        self._wait("the first copy of the disk", protected, "primary", primary)

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        """SIGTERM, and SIGKILL for one that does not listen."""
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()

    # -- the disk ---------------------------------------------------------------

    def _loop(self, path: str) -> tuple[str, _Once]:
        """A loop device on ``path``, with direct I/O where that works."""
        base = ["losetup", "--find", "--show"]
        try:
            device = run([*base, "--direct-io=on", path])
        except StateError:
            device = run([*base, path])

        def drop() -> None:
            quietly(["losetup", "-d", device])

        return device, _Once(self.stack, drop)

    def _mount(self, device: str, directory: str) -> _Once:
        os.makedirs(directory, exist_ok=True)
        run(["mount", "-t", "ext4", device, directory])

        def unmount() -> None:
            if not quietly(["umount", directory]):
                quietly(["umount", "-l", directory])

        return _Once(self.stack, unmount)

    def mount_disk(self) -> None:
        """ext4 on a loop device on the FUSE node, and the writer on it."""
        device, drop_loop = self._loop(self._path(f"primary/mount/{VOLUME}"))
        run(["mkfs.ext4", "-q", "-F", "-N", "1024", "-E", "nodiscard", device])
        unmount = self._mount(device, self.mounted)
        limit = self.settings.size // 3
        writer = self._spawn(
            "writer",
            "remus_native.demo._writer",
            os.path.join(self.mounted, "rows.db"),
            self._path("account"),
            str(self.settings.seed),
            str(limit),
        )

        def kill_writer() -> None:
            writer.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                writer.wait(15)

        self.leave = [drop_loop, unmount, _Once(self.stack, kill_writer)]
        self._wait("the first row", lambda: self.account.rows > 0, "writer", writer)

    def leave_disk(self) -> None:
        """The dead disk: stop the writer, unmount, drop the loop device."""
        for leave in reversed(self.leave):
            leave()
        detach(self._path("primary/mount"))

    # -- checkpoints --------------------------------------------------------------

    def checkpoint_and_kill(self) -> None:
        """Checkpoints until the primary is killed, somewhere in the middle."""
        killed = threading.Event()
        start = time.monotonic()

        def kill() -> None:
            killed.set()
            self.outcome.killed_after_s = time.monotonic() - start
            self.primary.kill()

        timer = threading.Timer(self.settings.kill_after_s, kill)
        guest = NotingGuest(self.account)
        devices = CheckpointDevices([DrbdDisk(self._path(f"primary/mount/{VOLUME}"))])
        with LiveLine() as live:

            def took(stats: CheckpointSample) -> None:
                self.account.took(stats.number, stats.pause_ns)
                if live.due():
                    live.update(
                        f"{stats.number} checkpoints, {self.account.rows} rows, "
                        f"pause {seconds_text(stats.pause_ns / 1e9)}"
                    )

            checkpointer = Checkpointer(
                devices,
                guest,
                interval_s=self.settings.interval_s,
                tag=guest.tag,
                on_checkpoint=took,
            )
            timer.start()
            try:
                checkpointer.run(duration_s=self.settings.kill_after_s + 30)
            except (RemusError, OSError) as error:
                if not killed.is_set():
                    raise StateError(
                        f"replication ended by itself: {error}; the primary says: "
                        f"{self._log('primary')}"
                    ) from error
            finally:
                timer.cancel()
                timer.join()
        if not killed.is_set():
            raise StateError("the primary was not killed")
        self.primary.wait()
        self.outcome.taken = self.account.taken
        self.outcome.pauses_s = self.account.pauses_s()
        if not self.outcome.taken:
            raise ProofFailed("no checkpoint was taken before the kill")

    # -- failover -------------------------------------------------------------------

    def promote(self) -> None:
        """``remus-native promote``, without naming a checkpoint."""
        status = self._status("backup")
        end = time.monotonic() + START_S
        while status is not None and status["connected"] and time.monotonic() < end:
            time.sleep(0.01)
            status = self._status("backup")
        if status is None:
            raise ProofFailed(f"the backup died, too: {self._log('backup')}")
        start = time.monotonic()
        command = [sys.executable, "-m", "remus_native", "promote", "--json", self.file]
        answer = json.loads(run(command))
        self.outcome.command_s = time.monotonic() - start
        self.outcome.promote_s = answer["seconds"]
        self.outcome.checkpoint = answer["checkpoint"]
        self.outcome.bytes_replicated = status["bytes_written"] + status["bytes_zeroed"]
        self.outcome.bytes_coalesced = status["bytes_coalesced"]
        if answer["tag"] is None:
            raise ProofFailed(
                f"promoted to checkpoint {answer['checkpoint']}, which is not one of "
                "the demo's: it has no tag"
            )
        self.outcome.tag = int(answer["tag"])
        if self.outcome.tag < self.outcome.taken:
            raise ProofFailed(
                f"the checkpoint with tag {self.outcome.taken} was acked, but the "
                f"backup was promoted to checkpoint {self.outcome.checkpoint}, whose "
                f"tag is {self.outcome.tag}"
            )
        self.stop_backup()

    def prove(self) -> None:
        """fsck, integrity_check, rows, on the promoted image."""
        device, drop_loop = self._loop(self._path("backup.img"))
        fsck(device)
        self.outcome.fsck = "clean (after the journal's replay)"
        unmount = self._mount(device, self._path("promoted"))
        self.outcome.rows_noted = self.account.noted(self.outcome.tag)
        self.outcome.rows_proved = prove_database(
            self._path("promoted/rows.db"),
            self.settings.seed,
            self.outcome.rows_noted,
        )
        self.outcome.integrity = "ok"
        unmount()
        drop_loop()


def fsck(device: str) -> None:
    """Replay ext4's journal, as mount does; then nothing may be wrong."""
    replay = subprocess.run(
        ["e2fsck", "-p", device], capture_output=True, text=True, check=False
    )
    if replay.returncode not in (0, 1):
        raise ProofFailed(f"e2fsck -p: {(replay.stdout + replay.stderr).strip()}")
    check = subprocess.run(
        ["e2fsck", "-fn", device], capture_output=True, text=True, check=False
    )
    if check.returncode != 0:
        raise ProofFailed(f"e2fsck -fn: {(check.stdout + check.stderr).strip()}")


def run(command: list[str]) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise StateError(f"{' '.join(command)}: {said or f'code {done.returncode}'}")
    return done.stdout.strip()


def quietly(command: list[str]) -> bool:
    """Run a clean-up command; whether it succeeded."""
    try:
        run(command)
    except (StateError, OSError):
        return False
    return True
