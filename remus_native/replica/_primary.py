# SPDX-License-Identifier: LGPL-2.1-or-later
"""The side where the guest runs: `Primary` (csrc/remus.h, same names)."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from .._binding import ffi, lib, sized
from .._checks import boolean, choice, encoded, every, integer, milliseconds
from .._handle import Handle
from .._values import (
    ON_LOSS,
    Ack,
    Buffer,
    CommitBy,
    OnLoss,
    Status,
    Tag,
    Tls,
    Verification,
    Volume,
    encode_tag,
    status_from,
    tls_off,
    verification_from,
)
from ..epochs import EpochSample, EpochStatistics, sample_from
from ..errors import (
    ArgumentRangeError,
    ArgumentTypeError,
    ConfigError,
    PhaseError,
    StateError,
    raise_for,
)
from ._config import Config, PrimaryConfig
from ._side import Side

__all__ = ["Primary"]

EPOCH_MAX = (1 << 64) - 1


class Primary(Side[PrimaryConfig]):
    """The side where the guest runs: serves the disks and replicates them.

    Opening takes the local disks exclusively and returns at once; the engine
    connects, again and again, and brings the backup up to date in threads of
    its own (`wait_protected`): all of the disks the first time, what changed
    after a loss.  Reads and writes work from the start, from any number of
    threads.

    ``address``: "unix:/path" or "tcp:HOST:PORT"; TCP needs ``psk_file``, a
    key file that psktool wrote (TLS 1.3), or ``tls="off"``.
    ``psk_identity``: whose key of it; None: the resource's name.
    ``max_pause_ms``: the send queue holds at most what the link carries in
    this time.  ``loss_ms``: silence that means the backup is lost.
    ``stall_ms``: a write that waited so long for room means loss, too.
    ``idle_ms``: without a session (`session_begin`, or the first
    `postsuspend`) the engine takes a checkpoint so often, ``grace_ms`` after
    a session that ended without teardown at the earliest.
    ``allow_inconsistent``: a catch-up beyond the backup's journal goes
    straight to its disks, instead of waiting for a larger journal.
    ``resync_rate``: copies and catch-ups send at most so many bytes a second.
    ``on_loss``: "hold" lets `preresume` go on waiting when the backup is
    lost, for its return or `resume`.  ``ask_alone``: while no backup takes
    the writes they wait, until `go_alone` is called (``status().asks_alone``
    says that they do).
    ``run_dir``: a directory in memory (tmpfs) for the dirty map; None is
    ``/run/remus-native``, or ``/dev/shm/remus-native`` where /run is on a
    disk.
    ``epochs_file``: where other processes find `epochs`
    (`EpochStatistics.attach`); None keeps them for this process.

    `of` takes the same as one value, a `PrimaryConfig`.

    Raises `ConfigError` for bad settings, `StateError` (errno EBUSY) if
    another process has the state directory or a disk; EPERM if others can
    write to that directory.

    Any thread may call any method.  A method blocks only where it says so.
    All raise `ConfigError` for a bad argument, and `StateError` once this is
    closed or in a forked child.
    """

    def __init__(
        self,
        resource: str,
        *,
        state_dir: str | os.PathLike[str],
        volumes: Sequence[Volume],
        address: str,
        tls: Tls | None = None,
        ack: Ack = "durable",
        commit_by: CommitBy = "primary",
        queue_bytes: int = 0,
        max_pause_ms: int = 0,
        loss_ms: int = 0,
        stall_ms: int = 0,
        connect_ms: int = 0,
        epochs_file: str | os.PathLike[str] | None = None,
        idle_ms: int = 0,
        grace_ms: int = 0,
        allow_inconsistent: bool = False,
        resync_rate: int = 0,
        ask_alone: bool = False,
        on_loss: OnLoss = "continue",
        psk_file: str | os.PathLike[str] | None = None,
        psk_identity: str | None = None,
        run_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self._open(
            PrimaryConfig(
                name=resource,
                state=state_dir,
                volumes=every("volumes", volumes, Volume),
                address=address,
                tls=tls,
                psk_file=psk_file,
                psk_identity=psk_identity,
                ack=ack,
                commit_by=commit_by,
                on_loss=on_loss,
                allow_inconsistent=allow_inconsistent,
                queue_bytes=queue_bytes,
                max_pause_ms=max_pause_ms,
                loss_ms=loss_ms,
                stall_ms=stall_ms,
                connect_ms=connect_ms,
                idle_interval_ms=idle_ms,
                session_grace_ms=grace_ms,
                resync_rate=resync_rate,
                ask_alone=ask_alone,
                epochs_file=epochs_file,
                run_dir=run_dir,
            )
        )

    _kind = "primary"

    def _fill(self, c: Config) -> None:
        config, raw = self.config, c.raw
        raw.address = c.string("address", config.address)
        raw.tls_off = tls_off(config.tls, config.psk_file)
        for name, value in (
            ("queue_bytes", config.queue_bytes),
            ("max_pause_ms", config.max_pause_ms),
            ("loss_ms", config.loss_ms),
            ("stall_ms", config.stall_ms),
            ("connect_ms", config.connect_ms),
            ("idle_ms", config.idle_interval_ms),
            ("grace_ms", config.session_grace_ms),
        ):
            setattr(raw, name, integer(name, value, (1 << 32) - 1))
        if config.epochs_file is not None:
            raw.epochs_file = c.path("epochs_file", config.epochs_file)
        raw.allow_inconsistent = boolean(
            "allow_inconsistent", config.allow_inconsistent
        )
        raw.ask_alone = boolean("ask_alone", config.ask_alone)
        raw.on_loss = choice("on_loss", config.on_loss, ON_LOSS)
        raw.resync_rate = integer("resync_rate", config.resync_rate, 1 << 62)

    def _opened(self, raw: Any) -> None:
        volumes = self.config.volumes
        self._names = {volume.name: i for i, volume in enumerate(volumes)}
        self._epoch = ffi.new("uint64_t *")  # postsuspend, under _epoch_lock
        self._epoch_lock = threading.Lock()
        self._exports: list[Handle] = []  # to close first
        self._groups: list[Any] = []  # sessions that drive it in C
        self.epochs = EpochStatistics.of(
            lib.remus_primary_epochs(raw), self, self._what
        )
        """The statistics of this primary's epochs, for reading."""

    @property
    def volumes(self) -> tuple[str, ...]:
        """The names of the volumes, in order."""
        return tuple(self._names)

    def _index(self, volume: int | str) -> int:
        if isinstance(volume, str):
            if volume not in self._names:
                known = ", ".join(self._names)
                raise ConfigError(
                    f"{self._what}: no volume {volume!r}; there are {known}"
                )
            return self._names[volume]
        return integer("volume", volume, (1 << 32) - 1)

    def _io(self, rc: int, volume: int | str) -> None:
        if rc < 0:
            raise_for(rc, volume=str(volume), invalid=StateError)

    def pread(self, volume: int | str, length: int, offset: int) -> bytes:
        """Read ``length`` bytes; blocks for the local disk only."""
        index = self._index(volume)
        integer("offset", offset, 1 << 62)
        try:
            buf = ffi.new("unsigned char[]", max(1, integer("length", length, 1 << 40)))
        except MemoryError:
            raise ArgumentRangeError(
                f"length: {length}: more than there is memory"
            ) from None
        with self._call() as raw:
            rc = lib.remus_primary_pread(raw, index, buf, length, offset)
            self._io(rc, volume)
        return bytes(ffi.buffer(buf, length))

    def pread_into(self, volume: int | str, buffer: Buffer, offset: int) -> None:
        """Fill ``buffer`` from ``offset`` on: a `pread` without a copy; blocks as it.

        Anything writable with the buffer protocol, and contiguous.
        """
        index = self._index(volume)
        integer("offset", offset, 1 << 62)
        try:
            view = ffi.from_buffer(buffer, require_writable=True)
        except (BufferError, TypeError, ValueError) as error:
            raise ArgumentTypeError(
                f"pread_into: buffer: {self._what}: {error}"
            ) from error
        with self._call() as raw, view:
            rc = lib.remus_primary_pread(raw, index, view, len(view), offset)
            self._io(rc, volume)

    def pwrite(self, volume: int | str, data: Buffer, offset: int) -> None:
        """Write ``data``; when it returns, the data is in the send queue.

        Blocks for the local disk, for overlapping writes, and while queue or
        journal have no room.  A lost backup is no error here: the guest goes
        on.  Raises `StateError` (ENOSPC beyond the end, EIO, ...).
        """
        index = self._index(volume)
        integer("offset", offset, 1 << 62)
        try:
            view = ffi.from_buffer(data)
        except (BufferError, TypeError, ValueError) as error:
            raise ArgumentTypeError(f"data: {self._what}: {error}") from error
        with self._call() as raw:
            rc = lib.remus_primary_pwrite(raw, index, view, len(view), offset)
            self._io(rc, volume)

    def preadv(self, volume: int | str, buffers: Sequence[Buffer], offset: int) -> None:
        """Fill each of ``buffers`` in turn, from ``offset`` on; blocks as `pread`.

        They are as the buffer of `pread_into`; at most 1024 of them.
        """
        index = self._index(volume)
        integer("offset", offset, 1 << 62)
        pieces = self._vector("preadv", buffers, writable=True)
        with pieces as (vector, count), self._call() as raw:
            rc = lib.remus_primary_preadv(raw, index, vector, count, offset)
            self._io(rc, volume)

    def pwritev(
        self, volume: int | str, buffers: Sequence[Buffer], offset: int
    ) -> None:
        """Write ``buffers``, one behind the other: one `pwrite`, without a copy.

        At most 1024 of them.  Blocks and raises as `pwrite`.  No write that
        overlaps comes between, and up to 1 MiB (a quarter of the backup's
        ``segment_bytes``, if that is less) all of it is in one epoch, whatever
        `postsuspend` does in another thread; the same holds of `pwrite`.
        """
        index = self._index(volume)
        integer("offset", offset, 1 << 62)
        pieces = self._vector("pwritev", buffers, writable=False)
        with pieces as (vector, count), self._call() as raw:
            rc = lib.remus_primary_pwritev(raw, index, vector, count, offset)
            self._io(rc, volume)

    @contextlib.contextmanager
    def _vector(
        self, what: str, buffers: Sequence[Buffer], *, writable: bool
    ) -> Iterator[tuple[Any, int]]:
        """Buffers as C's ``struct iovec``; none can be resized meanwhile."""
        with contextlib.ExitStack() as held:
            views = []
            try:
                for buffer in buffers:
                    view = ffi.from_buffer(buffer, require_writable=writable)
                    views.append(held.enter_context(view))
            except (BufferError, TypeError, ValueError) as error:
                raise ArgumentTypeError(
                    f"{what}: buffers: {self._what}: {error}"
                ) from error
            vector = ffi.new("struct iovec[]", max(1, len(views)))
            for piece, view in zip(vector, views, strict=False):
                piece.iov_base, piece.iov_len = view, len(view)
            yield vector, len(views)

    def discard(self, volume: int | str, offset: int, length: int) -> None:
        """Discard a range: zeroes on both sides; blocks and raises as `pwrite`."""
        self.write_zeroes(volume, offset, length)

    def write_zeroes(self, volume: int | str, offset: int, length: int) -> None:
        """Make a range zero on both sides; blocks and raises as `pwrite`."""
        index = self._index(volume)
        integer("offset", offset, 1 << 62)
        integer("length", length, 1 << 62)
        with self._call() as raw:
            self._io(lib.remus_primary_write_zeroes(raw, index, offset, length), volume)

    def flush(self, volume: int | str) -> None:
        """Sync the local disk, as a guest's fsync does; blocks for it.

        Raises `StateError` (EIO, ...).
        """
        index = self._index(volume)
        with self._call() as raw:
            self._io(lib.remus_primary_flush(raw, index), volume)

    def size(self, volume: int | str) -> int:
        """The size of a volume in bytes."""
        index = self._index(volume)
        with self._call() as raw:
            return int(lib.remus_primary_size(raw, index))

    def wait_protected(self, timeout_s: float | None = None) -> None:
        """Block until checkpoints can be taken.

        Raises `CheckpointTimeout`; the text says what is missing.
        """
        with self._call() as raw:
            rc = lib.remus_primary_wait_protected(raw, milliseconds(timeout_s))
            if rc < 0:
                raise_for(rc)

    async def wait_protected_async(self, timeout_s: float | None = None) -> None:
        """`wait_protected` for asyncio: other tasks run meanwhile.

        May be cancelled at any moment; no thread waits, and nothing is asked
        again until something has changed (`event_fd`).
        """
        from . import _async

        await _async.until(self, lambda: self.wait_protected(0), timeout_s)

    @contextlib.contextmanager
    def writer(self) -> Iterator[None]:
        """A guest's disks are written to through this handle, meanwhile.

        As long as somebody writes, or a session is open, a backup that asks
        the primary to step down is told no.  (An open file of a node counts by
        itself.)  Raises `StateError` (EROFS) if it is fenced.
        """
        with self._call() as raw:
            rc = lib.remus_primary_writer_opens(raw)
            if rc < 0:
                raise_for(rc, invalid=StateError)
        try:
            yield
        finally:
            if not self.closed:
                with self._call() as raw:
                    lib.remus_primary_writer_closes(raw)

    def session_begin(self) -> None:
        """A toolstack takes the checkpoints from here on; idempotent."""
        with self._call() as raw:
            lib.remus_primary_session_begin(raw)

    def session_end(self) -> bool:
        """It does not any more: the engine may, at once; idempotent.

        Also of a session through nodes, once its files are closed: else the
        engine waits for ``session_grace`` first, because a memory might still
        be failed over to.  False: such a file is open, and its session goes
        on.
        """
        with self._call() as raw:
            return int(lib.remus_primary_session_end(raw)) == 0

    def verify(self, *, repair: bool = False, rate: int = 0) -> Verification:
        """Compare both sides while the guest runs and checkpoints go on.

        Nothing that is on its way counts as a difference.  ``repair`` sends
        what differs again, as part of the open epoch: the next checkpoint has
        it.  ``rate``: at most so many bytes a second.  Blocks; other threads
        see `verification` and may call `verify_cancel`.  Raises
        `ReplicationLost` if it is not Protected or is lost meanwhile,
        `StateError` (EBUSY) if another one is under way,
        `CheckpointCancelled`.
        """
        out = sized("verify")
        with self._call() as raw:
            rc = lib.remus_primary_verify(
                raw, boolean("repair", repair), integer("rate", rate, 1 << 62), out
            )
            if rc < 0:
                raise_for(rc)
        return verification_from(out, self.volumes)

    async def verify_async(
        self, *, repair: bool = False, rate: int = 0
    ) -> Verification:
        """`verify` for asyncio, in a thread; cancelling the task ends it.

        ``rate``: bytes a second at most; 0 is no limit.
        """
        from . import _async

        return await _async.in_thread(
            lambda: self.verify(repair=repair, rate=rate), self.verify_cancel
        )

    def verification(self) -> Verification:
        """How far `verify` is, or what the last one found; never blocks."""
        out = sized("verify")
        with self._call() as raw:
            lib.remus_primary_verify_status(raw, out)
        return verification_from(out, self.volumes)

    def verify_cancel(self) -> None:
        """End a `verify` that is under way, soon; never blocks."""
        with self._call() as raw:
            lib.remus_primary_verify_cancel(raw)

    def resume(self) -> None:
        """An operator's word: the guest goes on without its backup.

        With ``on_loss="hold"`` whoever waits in `preresume` gets
        `ReplicationLost`, and writes that wait go on (`go_alone`).  It counts
        until the next connection.  Never blocks.
        """
        with self._call() as raw:
            lib.remus_primary_resume(raw)

    def go_alone(self) -> None:
        """Let the guest's writes pass though no backup takes them.

        Only with ``ask_alone``, and only when it is sure that the backup will
        not be promoted: a fence command has succeeded, or an operator says so.
        It counts until the next connection.  Never blocks.
        """
        with self._call() as raw:
            lib.remus_primary_go_alone(raw)

    def name_split(self, reason: str) -> None:
        """Let the status say that both sides went on, as the other one's hello
        at the old address has shown, until a backup takes this side's writes.
        """
        with self._call() as raw:
            lib.remus_primary_name_split(raw, encoded("reason", reason)[:255])

    def refuse_alone(self) -> None:
        """The opposite of `go_alone`: writes that wait fail with EIO."""
        with self._call() as raw:
            lib.remus_primary_refuse_alone(raw)

    def postsuspend(self, tag: Tag | None = None) -> int:
        """Close the open epoch on every volume and return its number.

        Never blocks on network or disk.  Raises `ReplicationLost` if the
        resource is not Protected.  In a catch-up it succeeds again as soon as
        all that changed is queued: this checkpoint then completes it.
        """
        data = encode_tag(tag)
        with self._call() as raw, self._epoch_lock:
            rc = lib.remus_primary_postsuspend(raw, data, len(data), self._epoch)
            if rc < 0:
                raise_for(rc, phase="postsuspend")
            return int(self._epoch[0])

    def preresume(self, epoch: int, timeout_s: float | None = None) -> None:
        """Block until ``epoch`` is safe on the backup.

        Raises `ReplicationLost`, or `CheckpointTimeout` (may be called
        again).  ``timeout_s`` None waits without a limit.
        """
        with self._call() as raw:
            rc = lib.remus_primary_preresume(
                raw, integer("epoch", epoch, EPOCH_MAX), milliseconds(timeout_s)
            )
            if rc < 0:
                raise_for(rc, phase="preresume", epoch=epoch, invalid=PhaseError)

    def preresume_begin(self, epoch: int, timeout_s: float | None = None) -> None:
        """Begin to wait for ``epoch`` without a thread; never blocks.

        `preresume_fd` becomes readable when `preresume_finish` has the result.
        One at a time for a primary: raises `StateError` (EINPROGRESS) for a
        second one.
        """
        with self._call() as raw:
            rc = lib.remus_primary_preresume_begin(
                raw, integer("epoch", epoch, EPOCH_MAX), milliseconds(timeout_s)
            )
            if rc < 0:
                raise_for(rc, phase="preresume", epoch=epoch, invalid=PhaseError)

    def preresume_fd(self) -> int:
        """The descriptor to poll; it stays the primary's."""
        with self._call() as raw:
            fd = int(lib.remus_primary_preresume_fd(raw))
            if fd < 0:
                raise_for(fd)
        return fd

    def preresume_finish(self) -> bool:
        """False: there is no result yet.  True: the epoch is safe.

        Raises what `preresume` raises, `CheckpointCancelled`, and `PhaseError`
        if no wait was begun.
        """
        with self._call() as raw:
            rc = lib.remus_primary_preresume_finish(raw)
            if rc == -errno.EAGAIN:
                return False
            if rc < 0:
                raise_for(rc, phase="preresume", invalid=PhaseError)
        return True

    def preresume_cancel(self) -> bool:
        """End the wait that was begun, with `CheckpointCancelled` as its result.

        False: there is none, or it has its result.  Any thread; never blocks.
        """
        with self._call() as raw:
            return int(lib.remus_primary_preresume_cancel(raw)) == 0

    def commit(self, epoch: int) -> None:
        """Say that the whole checkpoint is complete; never blocks.

        Raises `PhaseError` if ``epoch`` was not acked, `ReplicationLost`.
        """
        with self._call() as raw:
            rc = lib.remus_primary_commit(raw, integer("epoch", epoch, EPOCH_MAX))
            if rc < 0:
                raise_for(rc, phase="commit", epoch=epoch, invalid=PhaseError)

    def epoch(self, number: int) -> EpochSample | None:
        """What is known of one epoch; None if that is nothing (any more).

        Bytes are known when `preresume` returns, extents and coalesced bytes
        some time after `commit`.  Epochs that the engine took by itself are
        not among them.
        """
        out = ffi.new("struct remus_epoch_sample *")
        with self._call() as raw:
            found = lib.remus_primary_epoch(
                raw, integer("number", number, EPOCH_MAX), out
            )
        return sample_from(out) if found else None

    def status(self) -> Status:
        """State and counters now; never blocks."""
        out = sized("status")
        with self._call() as raw:
            lib.remus_primary_status(raw, out)
        return status_from(out)

    def close(self) -> None:
        """End replication cleanly and close the disks; idempotent.

        Blocks while what is queued is sent, at most ``loss_ms``, and for calls
        that other threads are in: one in `preresume` ends with its timeout.
        Its exports are closed first, and the sessions of a device layer that
        drive it end.
        """
        if self._foreign():
            return
        if self.config.ask_alone and not self.closed:
            self.refuse_alone()  # or who waits would be waited for
        for export in list(self._exports):
            export.close()
        if not self.closed:
            self.verify_cancel()
        raw = self._take()
        if raw is not None:
            for group in list(self._groups):
                group.stop(f"{self._what} was closed")
            lib.remus_primary_close(raw)
