# SPDX-License-Identifier: LGPL-2.1-or-later
"""A state machine over a real primary and a real backup process.

Whatever the order of writes, discards, phases, kills, returns, catch-ups that
are cut short, restarts and checkpoints of the engine: every checkpoint that
the backup offers holds exactly what a plain Python model held at that
barrier, every byte of every volume, and every acked checkpoint is offered
until a later one was committed.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from remus_native import (
    Backup,
    PhaseError,
    Primary,
    ReplicationLost,
    State,
    StateError,
    Volume,
)
from support.backup_process import JOURNAL, SEGMENT, BackupProcess

SIZES = {"xvda": 96 * 1024, "xvdb": 33 * 1024}
NAMES = list(SIZES)
# What may be written since the last commit: more would wait for a commit that
# this single thread can't give.
ROOM = JOURNAL // 2


class ReplicaMachine(RuleBasedStateMachine):
    """One resource with two volumes, and its model."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="remus-model-"))
        for side in ("p", "b"):
            (self.folder / side).mkdir()
            for name, size in SIZES.items():
                (self.folder / f"{side}.{name}").write_bytes(bytes(size))
        self.address = f"unix:{self.folder}/sock"
        self.now = {name: bytearray(size) for name, size in SIZES.items()}
        self.snapshots: dict[int, dict[str, bytes]] = {}
        self.tags: dict[int, bytes] = {}
        self.closed: int | None = None  # postsuspend done, preresume not
        self.acked: list[int] = []
        self.committed = 0
        self.unsure: int | None = None  # closed when the backup was lost
        self.lost = False
        self.wrote = False  # in the open epoch
        self.spent = 0  # journal bytes of this session, about
        self.spent_at: dict[int, int] = {}
        self.backup: BackupProcess | None = None
        self.primary: Primary | None = None

    # -- helpers -----------------------------------------------------------------

    def volumes(self, side: str, folder: Path | None = None) -> list[Volume]:
        where = folder or self.folder
        return [Volume(name, where / f"{side}.{name}") for name in NAMES]

    def start_backup(self) -> None:
        paths = {name: self.folder / f"b.{name}" for name in NAMES}
        self.backup = BackupProcess(self.address, self.folder / "b", paths)

    def start_primary(self) -> None:
        self.primary = Primary(
            "guest0",
            state_dir=self.folder / "p",
            volumes=self.volumes("p"),
            address=self.address,
            idle_ms=20,
            connect_ms=10,
        )
        self.primary.wait_protected(timeout_s=30)
        self.primary.session_begin()
        # The engine's checkpoint: all that was there when it was taken.
        self.engine_took(self.primary.status().committed_epoch)
        self.lost = False
        self.unsure = None

    def engine_took(self, epoch: int) -> None:
        assert epoch > max(self.snapshots, default=0)
        self.snapshots[epoch] = self.frozen()
        self.tags[epoch] = b""
        self.committed = epoch
        self.acked = []
        self.closed = None
        self.wrote = False
        self.spent = 0
        self.spent_at = {epoch: 0}

    def until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not true():
            assert time.monotonic() < deadline, str(self.primary.status())
            time.sleep(0.002)

    def has_room(self) -> bool:
        return self.spent - self.spent_at[self.committed] < ROOM

    def frozen(self) -> dict[str, bytes]:
        return {name: bytes(data) for name, data in self.now.items()}

    @initialize()
    def start(self) -> None:
        self.start_backup()
        self.start_primary()

    # -- the guest ---------------------------------------------------------------

    # What a backup had when it was killed differs from run to run: a
    # precondition asks only for what the rules themselves decide, and a rule
    # that finds nothing to do does nothing.  Else no failure can be replayed.

    @rule(
        name=st.sampled_from(NAMES),
        at=st.integers(0, 2**20),
        data=st.binary(min_size=1, max_size=200),
        repeat=st.integers(1, 200),
    )
    def write(self, name: str, at: int, data: bytes, repeat: int) -> None:
        if not self.lost and not self.has_room():
            return
        data = (data * repeat)[: SIZES[name] // 2]
        at %= SIZES[name] - len(data) + 1
        self.primary.pwrite(name, data, at)
        self.now[name][at : at + len(data)] = data
        self.wrote = True
        self.spent += len(data) + 1024
        assert self.primary.pread(name, len(data), at) == data

    @rule(
        name=st.sampled_from(NAMES),
        at=st.integers(0, 2**20),
        length=st.integers(1, 40000),
    )
    def discard(self, name: str, at: int, length: int) -> None:
        length = min(length, SIZES[name])
        at %= SIZES[name] - length + 1
        self.primary.discard(name, at, length)
        self.now[name][at : at + length] = bytes(length)
        self.wrote = True

    # -- the toolstack -----------------------------------------------------------

    @precondition(lambda self: not self.lost)
    @rule(tagged=st.booleans())
    def postsuspend(self, tagged: bool) -> None:
        if not self.has_room():
            return
        tag = f"t{len(self.snapshots)}".encode() if tagged else b""
        epoch = self.primary.postsuspend(tag)
        assert epoch > max(self.snapshots)
        self.snapshots[epoch] = self.frozen()
        self.tags[epoch] = tag
        self.closed = epoch
        self.wrote = False
        self.spent += 16384
        self.spent_at[epoch] = self.spent

    @precondition(lambda self: not self.lost)
    @rule()
    def preresume(self) -> None:
        if self.closed is None:
            return
        self.primary.preresume(self.closed, timeout_s=30)
        self.acked.append(self.closed)
        self.closed = None

    @precondition(lambda self: not self.lost)
    @rule(back=st.integers(0, 5))
    def commit(self, back: int) -> None:
        if not self.acked:
            return
        epoch = self.acked[-1 - back % len(self.acked)]
        self.primary.commit(epoch)
        self.committed = max(self.committed, epoch)

    @precondition(lambda self: not self.lost)
    @rule()
    def commit_too_early(self) -> None:
        if self.closed is None:
            return
        with pytest.raises(PhaseError):
            self.primary.commit(self.closed + 1)

    # -- faults ------------------------------------------------------------------

    @precondition(lambda self: not self.lost)
    @rule()
    def kill_backup(self) -> None:
        self.backup.kill()
        self.lost = True
        self.unsure, self.closed = self.closed, None
        self.check_all()

    @precondition(lambda self: self.lost)
    @rule()
    def backup_returns(self) -> None:
        """The session's next checkpoint completes the catch-up."""
        self.start_backup()
        epoch = 0

        def checkpoint() -> bool:
            nonlocal epoch
            try:
                epoch = self.primary.postsuspend(b"back")
                assert epoch > max(self.snapshots)
                self.snapshots[epoch] = self.frozen()
                self.tags[epoch] = b"back"
                # The loss may not have been noticed at postsuspend.
                self.primary.preresume(epoch, timeout_s=30)
            except ReplicationLost:
                return False
            except StateError as error:
                if error.errno != errno.EAGAIN:
                    raise
                return False  # its own applies are about to make room
            return True

        self.until(checkpoint)
        if self.unsure is not None:
            # It arrived, or it never will: no third, and always the same.
            try:
                self.primary.preresume(self.unsure, timeout_s=30)
            except ReplicationLost:
                with pytest.raises(ReplicationLost):
                    self.primary.commit(self.unsure)
            else:
                self.acked.append(self.unsure)
        self.unsure = None
        assert self.primary.status().state is State.PROTECTED
        self.acked.append(epoch)
        self.closed = None
        self.wrote = False
        self.lost = False
        self.spent = 0
        self.spent_at = dict.fromkeys((self.committed, *self.acked), 0)
        # Each session begins a segment of the journal; prepared epochs keep it.
        if len(self.acked) > 5:
            self.primary.commit(epoch)
            self.committed = epoch
            self.acked = [epoch]

    @precondition(lambda self: self.lost)
    @rule(wait=st.integers(0, 12))
    def catch_up_is_cut_short(self, wait: int) -> None:
        """It comes back and dies at some moment of it; what it had stays."""
        self.start_backup()
        end = time.monotonic() + wait / 1000
        while time.monotonic() < end:
            time.sleep(0.0005)
        self.backup.kill()
        self.check_all()

    @rule()
    def restart(self) -> None:
        """The primary ends cleanly; what is not there yet travels later."""
        self.primary.close()
        if self.lost:
            self.start_backup()
        self.start_primary()

    @precondition(lambda self: not self.lost)
    @rule()
    def without_a_session(self) -> None:
        """The engine takes a checkpoint; all prepared ones are covered."""
        before = self.primary.status()
        self.primary.session_end()
        uncommitted = [e for e in self.acked if e > self.committed]
        if self.wrote or uncommitted or self.closed is not None:
            self.until(
                lambda: self.primary.status().committed_epoch >= before.open_epoch
            )
            self.primary.session_begin()
            self.engine_took(self.primary.status().committed_epoch)
        else:
            self.primary.session_begin()

    @precondition(lambda self: not self.lost)
    @rule()
    def look(self) -> None:
        assert self.primary.status().state is State.PROTECTED

    # -- the proof ---------------------------------------------------------------

    def open_copy(self, folder: Path) -> Backup:
        return Backup(
            "guest0",
            state_dir=folder / "b",
            volumes=self.volumes("b", folder),
            journal_bytes=JOURNAL,
            segment_bytes=SEGMENT,
        )

    def copy(self) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="remus-copy-"))
        shutil.copytree(self.folder / "b", folder / "b")
        for name in NAMES:
            shutil.copy(self.folder / f"b.{name}", folder / f"b.{name}")
        return folder

    def check_all(self) -> None:
        """Promote a copy of the killed backup to each checkpoint it has."""
        folder = self.copy()
        try:
            with self.open_copy(folder) as backup:
                offered = {cp.epoch: cp for cp in backup.checkpoints()}
        finally:
            shutil.rmtree(folder)
        first = min(offered)
        assert set(offered) <= set(self.snapshots)
        # A commit is not acked: it may be lost, but never invented.
        assert first <= self.committed
        assert {epoch for epoch in self.acked if epoch >= first} <= set(offered)
        for epoch, checkpoint in offered.items():
            assert checkpoint.tag == self.tags[epoch]
            assert checkpoint.committed == (epoch == first)
            self.check_one(epoch)

    def check_one(self, epoch: int) -> None:
        folder = self.copy()
        try:
            with self.open_copy(folder) as backup:
                with pytest.raises(StateError):
                    backup.promote(max(self.snapshots) + 1)
                assert backup.promote(epoch) == epoch
                assert backup.status().state is State.PROMOTED
            for name, want in self.snapshots[epoch].items():
                got = (folder / f"b.{name}").read_bytes()
                assert got == want, f"{name} differs at checkpoint {epoch}"
        finally:
            shutil.rmtree(folder)

    def teardown(self) -> None:
        try:
            if self.backup is not None and not self.lost:
                self.backup.kill()
                self.check_all()
        finally:
            if self.primary is not None:
                self.primary.close()
            if self.backup is not None:
                self.backup.kill()
            shutil.rmtree(self.folder, ignore_errors=True)


def run(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        ReplicaMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_every_checkpoint_is_exact():
    run(6, 20)


@pytest.mark.slow
def test_every_checkpoint_is_exact_at_length():
    run(80, 60)
