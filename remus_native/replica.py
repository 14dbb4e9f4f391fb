# SPDX-License-Identifier: LGPL-2.1-or-later
"""The replica engine: a primary and a backup in user space.

`Primary` and `Backup` are the two sides (csrc/remus.h, same names), `Export`
puts a primary's volumes into the file system as FUSE nodes, and
`ReplicaResource` makes a primary a device of the device layer.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

from ._binding import ffi, lib, milliseconds, text
from ._handle import Handle
from ._values import (
    ACKS,
    COMMIT_BY,
    ON_LOSS,
    Ack,
    Buffer,
    Checkpoint,
    CommitBy,
    Node,
    OnLoss,
    Refusal,
    State,
    Status,
    Tag,
    Tls,
    Verification,
    Volume,
    choice,
    encode_tag,
    number,
    status_from,
    tls_off,
    verification_from,
)
from .epochs import EpochSample, EpochStatistics, sample_from
from .errors import (
    ConfigError,
    DeviceNotReady,
    PhaseError,
    RemusError,
    StateError,
    raise_for,
)

__all__ = [
    "Backup",
    "Checkpoint",
    "Export",
    "Node",
    "Primary",
    "Refusal",
    "ReplicaResource",
    "Standby",
    "State",
    "Status",
    "Tag",
    "Verification",
    "Volume",
    "encode_tag",
]


class _Config:
    """A C configuration with what it points to kept alive."""

    def __init__(
        self,
        kind: str,
        resource: str,
        state_dir: str | os.PathLike[str],
        volumes: Sequence[Volume],
        ack: Ack,
        commit_by: CommitBy,
    ) -> None:
        self._keep: list[Any] = []
        self.raw = ffi.new(f"struct remus_{kind}_config *")
        self.raw.resource = self.string("resource", resource)
        self.raw.state_dir = self.string("state_dir", os.fspath(state_dir))
        if not volumes:
            raise ConfigError(f"resource {resource}: no volumes given")
        self._volumes = ffi.new("struct remus_volume[]", len(volumes))
        for raw, volume in zip(self._volumes, volumes, strict=True):
            raw.name = self.string("volume name", volume.name)
            raw.path = self.string("volume path", os.fspath(volume.path))
            raw.size = number("volume size", volume.size or 0, 1 << 62)
        self.raw.volumes = self._volumes
        self.raw.volume_count = len(volumes)
        self.raw.ack = choice("ack", ack, ACKS)
        self.raw.commit_by = choice("commit_by", commit_by, COMMIT_BY)

    def psk(
        self, psk_file: str | os.PathLike[str] | None, psk_identity: str | None
    ) -> None:
        if psk_file is not None:
            self.raw.psk_file = self.string("psk_file", os.fspath(psk_file))
        if psk_identity is not None:
            self.raw.psk_identity = self.string("psk_identity", psk_identity)

    def string(self, name: str, value: str) -> Any:
        if not isinstance(value, str) or "\0" in value:
            raise ConfigError(f"{name}: {value!r} is not a usable text")
        raw = ffi.new("char[]", os.fsencode(value))
        self._keep.append(raw)
        return raw


class Primary(Handle):
    """The side where the guest runs: serves the disks and replicates them.

    Opening takes the local disks exclusively and returns at once; the engine
    connects, again and again, and brings the backup up to date in threads of
    its own (`wait_protected`): all of the disks the first time, what changed
    after a loss.  Reads and writes work from the start, from any number of
    threads.

    ``address``: "unix:/path" or "tcp:HOST:PORT"; TCP needs ``psk_file``, a
    key file that psktool wrote (TLS 1.3), or ``tls="off"`` in so many words.
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
    ``epochs_file``: where other processes find `epochs`
    (`EpochStatistics.attach`); None keeps them for this process.

    Raises `ConfigError` for bad settings, `StateError` (errno EBUSY) if
    another process has the state directory or a disk.
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
    ) -> None:
        super().__init__()
        self._what = f"primary of {resource}"
        config = _Config("primary", resource, state_dir, volumes, ack, commit_by)
        raw = config.raw
        raw.address = config.string("address", address)
        raw.tls_off = tls_off(tls, psk_file)
        config.psk(psk_file, psk_identity)
        for name, value in (
            ("queue_bytes", queue_bytes),
            ("max_pause_ms", max_pause_ms),
            ("loss_ms", loss_ms),
            ("stall_ms", stall_ms),
            ("connect_ms", connect_ms),
            ("idle_ms", idle_ms),
            ("grace_ms", grace_ms),
        ):
            setattr(raw, name, number(name, value, (1 << 32) - 1))
        if epochs_file is not None:
            raw.epochs_file = config.string("epochs_file", os.fspath(epochs_file))
        raw.allow_inconsistent = int(allow_inconsistent)
        raw.ask_alone = int(ask_alone)
        raw.on_loss = choice("on_loss", on_loss, ON_LOSS)
        raw.resync_rate = number("resync_rate", resync_rate, 1 << 62)
        out = ffi.new("remus_primary **")
        rc = lib.remus_primary_open(raw, out)
        if rc < 0:
            raise_for(rc)
        self.resource = resource
        self._ask_alone = ask_alone
        self._names = {volume.name: i for i, volume in enumerate(volumes)}
        self._epoch = ffi.new("uint64_t *")  # postsuspend, under _epoch_lock
        self._epoch_lock = threading.Lock()
        self._exports: list[Export | Standby] = []
        self._groups: list[Any] = []  # sessions that drive it in C
        self._raw = out[0]
        self.epochs = EpochStatistics.of(
            lib.remus_primary_epochs(self._raw), self, self._what
        )
        """The statistics of this primary's epochs, for reading."""

    def __enter__(self) -> Primary:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

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
        return number("volume", volume, (1 << 32) - 1)

    def _io(self, rc: int, volume: int | str) -> None:
        if rc < 0:
            raise_for(rc, volume=str(volume), invalid=StateError)

    def pread(self, volume: int | str, length: int, offset: int) -> bytes:
        """Read ``length`` bytes; blocks for the local disk only."""
        index = self._index(volume)
        buf = ffi.new("unsigned char[]", max(1, number("length", length, 1 << 40)))
        with self._call() as raw:
            rc = lib.remus_primary_pread(raw, index, buf, length, offset)
            self._io(rc, volume)
        return bytes(ffi.buffer(buf, length))

    def pwrite(self, volume: int | str, data: Buffer, offset: int) -> None:
        """Write ``data``; when it returns, the data is in the send queue.

        Blocks for the local disk, for overlapping writes, and while queue or
        journal have no room.  A lost backup is no error here: the guest goes
        on.  Raises `StateError` (ENOSPC beyond the end, EIO, ...).
        """
        index = self._index(volume)
        number("offset", offset, 1 << 62)
        with self._call() as raw:
            view = ffi.from_buffer(data)
            rc = lib.remus_primary_pwrite(raw, index, view, len(view), offset)
            self._io(rc, volume)

    def discard(self, volume: int | str, offset: int, length: int) -> None:
        """Discard a range: zeroes on both sides."""
        self.write_zeroes(volume, offset, length)

    def write_zeroes(self, volume: int | str, offset: int, length: int) -> None:
        """Make a range zero on both sides."""
        index = self._index(volume)
        number("offset", offset, 1 << 62)
        number("length", length, 1 << 62)
        with self._call() as raw:
            self._io(lib.remus_primary_write_zeroes(raw, index, offset, length), volume)

    def flush(self, volume: int | str) -> None:
        """Sync the local disk; what a guest's fsync reaches."""
        index = self._index(volume)
        with self._call() as raw:
            self._io(lib.remus_primary_flush(raw, index), volume)

    def size(self, volume: int | str) -> int:
        """The size of a volume in bytes."""
        index = self._index(volume)
        with self._call() as raw:
            return int(lib.remus_primary_size(raw, index))

    def wait_protected(self, timeout_s: float | None = None) -> None:
        """Wait until checkpoints can be taken.

        Raises `CheckpointTimeout`; the text says what is missing.
        """
        with self._call() as raw:
            rc = lib.remus_primary_wait_protected(raw, milliseconds(timeout_s))
            if rc < 0:
                raise_for(rc)

    def session_begin(self) -> None:
        """A toolstack takes the checkpoints from here on; idempotent."""
        with self._call() as raw:
            lib.remus_primary_session_begin(raw)

    def session_end(self) -> None:
        """It does not any more: the engine may; idempotent."""
        with self._call() as raw:
            lib.remus_primary_session_end(raw)

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
        out = ffi.new("struct remus_verify *")
        with self._call() as raw:
            rc = lib.remus_primary_verify(
                raw, int(repair), number("rate", rate, 1 << 62), out
            )
            if rc < 0:
                raise_for(rc)
        return verification_from(out, self.volumes)

    def verification(self) -> Verification:
        """How far `verify` is, or what the last one found; never blocks."""
        out = ffi.new("struct remus_verify *")
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
        """Return only when ``epoch`` is safe on the backup.

        Raises `ReplicationLost`, or `CheckpointTimeout` (may be called
        again).  ``timeout_s`` None waits without a limit.
        """
        with self._call() as raw:
            rc = lib.remus_primary_preresume(raw, epoch, milliseconds(timeout_s))
            if rc < 0:
                raise_for(rc, phase="preresume", epoch=epoch, invalid=PhaseError)

    def commit(self, epoch: int) -> None:
        """Say that the whole checkpoint is complete; never blocks.

        Raises `PhaseError` if ``epoch`` was not acked, `ReplicationLost`.
        """
        with self._call() as raw:
            rc = lib.remus_primary_commit(raw, epoch)
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
            found = lib.remus_primary_epoch(raw, number, out)
        return sample_from(out) if found else None

    def status(self) -> Status:
        """State and counters now."""
        out = ffi.new("struct remus_status *")
        with self._call() as raw:
            lib.remus_primary_status(raw, out)
        return status_from(out)

    def close(self) -> None:
        """End replication cleanly and close the disks; idempotent.

        What is queued is sent, for at most ``loss_ms``.  Its exports are
        closed first, and the sessions of a device layer that drive it end.
        Waits for calls that other threads are in: one in `preresume` ends
        with its timeout.
        """
        if self._ask_alone and not self.closed:
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


class Backup(Handle):
    """The side that waits: journals every epoch, applies committed ones.

    Opening recovers what a crash left (blocks for disk I/O); `serve` then
    takes a primary, with ``psk_file`` only one that proves the key of
    ``psk_identity`` (None: the resource's name) with TLS.  Raises
    `ConfigError`, or `StateError` (EBUSY: another process has the state
    directory; EBADMSG: it belongs to something else).

    A state directory whose last user was a primary is taken over: the disks
    are what that primary left, and a primary that went on from a checkpoint
    of its generation may overwrite them; both sides then find out what
    differs.  ``discard_local``: also if this side went on by itself (split
    brain); what it wrote is lost then.  ``stale_ms``: if no primary was heard
    of for so long, `promote` wants its checkpoint named.  ``look``: only
    `status` and `checkpoints` are wanted: nothing is changed, no disk opened.
    """

    def __init__(
        self,
        resource: str,
        *,
        state_dir: str | os.PathLike[str],
        volumes: Sequence[Volume],
        journal_dir: str | os.PathLike[str] | None = None,
        ack: Ack = "durable",
        commit_by: CommitBy = "primary",
        journal_bytes: int = 0,
        segment_bytes: int = 0,
        discard_local: bool = False,
        stale_ms: int = 0,
        look: bool = False,
        psk_file: str | os.PathLike[str] | None = None,
        psk_identity: str | None = None,
    ) -> None:
        super().__init__()
        self._what = f"backup of {resource}"
        config = _Config("backup", resource, state_dir, volumes, ack, commit_by)
        raw = config.raw
        if journal_dir is not None:
            raw.journal_dir = config.string("journal_dir", os.fspath(journal_dir))
        raw.journal_bytes = number("journal_bytes", journal_bytes, 1 << 62)
        raw.segment_bytes = number("segment_bytes", segment_bytes, 1 << 62)
        raw.discard_local = int(discard_local)
        raw.look = int(look)
        raw.stale_ms = number("stale_ms", stale_ms, (1 << 32) - 1)
        config.psk(psk_file, psk_identity)
        out = ffi.new("remus_backup **")
        rc = lib.remus_backup_open(raw, out)
        if rc < 0:
            raise_for(rc)
        self.resource = resource
        self.volumes = tuple(volume.name for volume in volumes)
        self._standbys: list[Standby] = []
        self._psk_file = psk_file
        self._raw = out[0]

    def __enter__(self) -> Backup:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def serve(self, address: str, *, tls: Tls | None = None, loss_ms: int = 0) -> None:
        """Listen and serve one primary at a time, in threads of the handle.

        Over TCP a ``psk_file`` must have been given, or ``tls="off"`` be
        said here: then whoever can connect can replace the disks.
        """
        data = os.fsencode(address)
        off = tls_off(tls, self._psk_file)
        with self._call() as raw:
            rc = lib.remus_backup_serve(raw, data, off, loss_ms)
            if rc < 0:
                raise_for(rc)

    def refusals(self) -> tuple[Refusal, ...]:
        """The sources whose connections were refused since `serve`."""
        cap = lib.REMUS_REFUSALS_MAX
        out = ffi.new("struct remus_refusal[]", cap)
        with self._call() as raw:
            count = lib.remus_backup_refusals(raw, out, cap)
        return tuple(
            Refusal(
                source=text(one.source),
                cause=text(lib.remus_refused_name(one.cause)),
                count=one.count,
                first_ns=one.first_ns,
                last_ns=one.last_ns,
                text=text(one.text),
            )
            for one in out[0:count]
        )

    def commit(self, epoch: int) -> None:
        """Commit ``epoch`` and every prepared one before it, durably."""
        with self._call() as raw:
            rc = lib.remus_backup_commit(raw, number("epoch", epoch, 1 << 63))
            if rc < 0:
                raise_for(rc, phase="commit", epoch=epoch, invalid=StateError)

    def ask(self, *, keep: bool = False, turn: bool = False) -> bool:
        """Ask the primary to give way, as `promote` does by itself.

        For who has something to do between the answer and the promote.  True:
        it did, fenced for good; False: none is connected, or it fell silent.
        ``keep``: a checkpoint that is there will be named, so the primary
        takes no last one.  ``turn``: its status shall say ``turns``, for it is
        to be the backup next.  Blocks until it answers or is lost.  Raises
        `StateError` (EBUSY): it does not, and why.
        """
        with self._call() as raw:
            flags = lib.REMUS_ASK_KEEP if keep else 0
            flags |= lib.REMUS_ASK_TURN if turn else 0
            rc = lib.remus_backup_ask(raw, flags)
            if rc < 0:
                raise_for(rc, invalid=StateError)
        return bool(rc)

    def promote(
        self,
        checkpoint: int | None = None,
        *,
        tag: Tag | None = None,
        force: bool = False,
    ) -> int:
        """Fail over to exactly one checkpoint and return its number.

        Without a name: the last committed one; the last prepared one if the
        resource is driven through ioctls, which know no commit.  Blocks for
        disk I/O.  A connected primary is asked first (`ask`), unless
        ``force`` cuts it off.  Raises `StateError` if there is no such
        checkpoint (the text names what can be had), if the primary does not
        give way (EBUSY), or if no checkpoint is named and no primary was
        heard of for ``stale_ms`` (ESTALE).
        """
        by, epoch, name = _promote_by(checkpoint, tag)
        out = ffi.new("uint64_t *")
        with self._call() as raw:
            rc = lib.remus_backup_promote(
                raw, by, epoch, name, len(name), int(force), out
            )
            if rc < 0:
                raise_for(rc, epoch=checkpoint, invalid=StateError)
        return int(out[0])

    def target(self, checkpoint: int | None = None, *, tag: Tag | None = None) -> int:
        """The checkpoint to which `promote` would go; never blocks.

        For who has something to do before it that can't be undone, such as
        fencing the primary.  Raises what it would raise, but for EBUSY.
        """
        by, epoch, name = _promote_by(checkpoint, tag)
        out = ffi.new("uint64_t *")
        with self._call() as raw:
            rc = lib.remus_backup_target(raw, by, epoch, name, len(name), out)
            if rc < 0:
                raise_for(rc, epoch=checkpoint, invalid=StateError)
        return int(out[0])

    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """What `promote` accepts, oldest first."""
        cap = 4096
        out = ffi.new("struct remus_checkpoint[]", cap)
        with self._call() as raw:
            count = lib.remus_backup_checkpoints(raw, out, cap)
        return tuple(
            Checkpoint(
                epoch=cp.epoch,
                tag=bytes(ffi.buffer(cp.tag, cp.tag_len)),
                committed=bool(cp.flags & lib.REMUS_CP_COMMITTED),
                ioctl=bool(cp.flags & lib.REMUS_CP_IOCTL),
                disk_only=bool(cp.flags & lib.REMUS_CP_DISK_ONLY),
            )
            for cp in out[0 : min(count, cap)]
        )

    def status(self) -> Status:
        """State and counters now."""
        out = ffi.new("struct remus_status *")
        with self._call() as raw:
            lib.remus_backup_status(raw, out)
        return status_from(out)

    def close(self) -> None:
        """Stop serving, apply what is committed, sync; idempotent.

        Its nodes (`Standby`) are closed first.
        """
        for standby in list(self._standbys):
            standby.close()
        raw = self._take()
        if raw is not None:
            lib.remus_backup_close(raw)


def _promote_by(checkpoint: int | None, tag: Tag | None) -> tuple[int, int, bytes]:
    """How C names a checkpoint: by, number, tag."""
    if checkpoint is not None and tag is not None:
        raise ConfigError("promote: give a checkpoint or a tag, not both")
    if tag is not None:
        return lib.REMUS_PROMOTE_TAG, 0, encode_tag(tag)
    if checkpoint is not None:
        epoch = number("checkpoint", checkpoint, 1 << 63)
        return lib.REMUS_PROMOTE_EPOCH, epoch, b""
    return lib.REMUS_PROMOTE_DEFAULT, 0, b""


def raw_nodes_of(
    what: str, nodes: Sequence[Node] | None, names: tuple[str, ...]
) -> Any:
    """One for each volume, as C takes them; NULL for the usual ones."""
    if nodes is None:
        return ffi.NULL
    if len(nodes) != len(names):
        raise ConfigError(f"{what}: {len(nodes)} nodes for {len(names)} volumes")
    raw_nodes = ffi.new("struct remus_node[]", len(nodes))
    for raw, node in zip(raw_nodes, nodes, strict=True):
        raw.uid, raw.gid, raw.mode = node.uid, node.gid, node.mode
    return raw_nodes


class Export(Handle):
    """A primary's volumes as files under ``mountpoint`` (FUSE).

    Each volume is a file of its size that answers the checkpoint ioctls;
    ``status`` and ``status.json`` say what the resource does.  Needs
    /dev/fuse and root (or fusermount3).  The primary's close closes it too.
    """

    def __init__(
        self,
        primary: Primary,
        mountpoint: str | os.PathLike[str],
        *,
        nodes: Sequence[Node] | None = None,
    ) -> None:
        super().__init__()
        self._what = f"export at {os.fspath(mountpoint)}"
        self.mountpoint = os.fspath(mountpoint)
        raw_nodes = raw_nodes_of(self._what, nodes, primary.volumes)
        out = ffi.new("remus_export **")
        self._primary = primary
        raw_primary = primary._enter()  # held until close: order is enforced
        rc = lib.remus_export_open(
            raw_primary, os.fsencode(self.mountpoint), raw_nodes, out
        )
        if rc < 0:
            primary._leave()
            raise_for(rc, invalid=ConfigError)
        self._raw = out[0]
        primary._exports.append(self)

    def __enter__(self) -> Export:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def path(self, volume: str) -> str:
        """Where the node of ``volume`` is."""
        self._primary._index(volume)
        return os.path.join(self.mountpoint, volume)

    @property
    def alive(self) -> bool:
        """False once somebody unmounted it from outside."""
        with self._call() as raw:
            return bool(lib.remus_export_alive(raw))

    def close(self) -> None:
        """Unmount and stop; idempotent.  Open files then fail."""
        raw = self._take()
        if raw is not None:
            lib.remus_export_close(raw)
            self._primary._exports.remove(self)
            self._primary._leave()


class Standby(Handle):
    """A backup's volumes as files under ``mountpoint`` (FUSE).

    They have place, size and mode as they will have on the primary; reading
    gives the applied state.  Opening one for writing fails (EROFS), or, with
    ``auto_promote``, waits: `wanted` says so, and the owner promotes the
    backup, calls `release`, closes it, opens a `Primary` on its state and
    disks, and calls `turn`; or it calls `refuse`.  From the turn on this is
    that primary's export, and closed by its close.
    """

    def __init__(
        self,
        backup: Backup,
        mountpoint: str | os.PathLike[str],
        *,
        nodes: Sequence[Node] | None = None,
        auto_promote: bool = False,
    ) -> None:
        super().__init__()
        self._what = f"standby at {os.fspath(mountpoint)}"
        self.mountpoint = os.fspath(mountpoint)
        raw_nodes = raw_nodes_of(self._what, nodes, backup.volumes)
        out = ffi.new("remus_export **")
        self._side: Backup | Primary | None = backup
        raw_backup = backup._enter()  # held until release: order is enforced
        rc = lib.remus_standby_open(
            raw_backup, os.fsencode(self.mountpoint), raw_nodes, int(auto_promote), out
        )
        if rc < 0:
            backup._leave()
            raise_for(rc, invalid=ConfigError)
        self._raw = out[0]
        backup._standbys.append(self)

    @property
    def wanted(self) -> bool:
        """Does somebody wait with an open for writing?"""
        with self._call() as raw:
            return bool(lib.remus_standby_wanted(raw))

    @property
    def alive(self) -> bool:
        """False once somebody unmounted it from outside."""
        with self._call() as raw:
            return bool(lib.remus_export_alive(raw))

    def release(self) -> None:
        """Use the backup no more, so that it can be closed; idempotent."""
        with self._call() as raw:
            lib.remus_standby_release(raw)
        if isinstance(self._side, Backup):
            self._side._standbys.remove(self)
            self._side._leave()
            self._side = None

    def turn(self, primary: Primary) -> None:
        """``primary`` serves the nodes from here on; who waits is let in.

        Raises `ConfigError` if it has other volumes.
        """
        self.release()
        raw_primary = primary._enter()  # held until close
        with self._call() as raw:
            rc = lib.remus_standby_turn(raw, raw_primary)
        if rc < 0:
            primary._leave()
            raise_for(rc)
        self._side = primary
        primary._exports.append(self)

    def refuse(self, error: int = 0) -> None:
        """Who waits with an open gets the errno ``error`` (EIO)."""
        with self._call() as raw:
            lib.remus_standby_refuse(raw, error)

    def close(self) -> None:
        """Unmount and stop; idempotent.  Open files then fail."""
        raw = self._take()
        if raw is not None:
            lib.remus_export_close(raw)
            if isinstance(self._side, Primary):
                self._side._exports.remove(self)
            elif self._side is not None:
                self._side._standbys.remove(self)
            if self._side is not None:
                self._side._leave()
            self._side = None


class ReplicaResource:
    """A primary as a device of the device layer (all its volumes at once).

    The order of phases is enforced: setup, then postsuspend, preresume,
    commit again and again, then teardown.  `postsuspend` of n+1 may come
    before `commit` of n, not before the end of `preresume` of n.  After a
    failed preresume n is unknown: preresume may be retried, and the commit
    of the next epoch covers it.
    """

    kind = "disk"

    def __init__(
        self, primary: Primary, *, name: str | None = None, timeout_s: float = 5.0,
        setup_timeout_s: float = 60.0,
    ) -> None:  # fmt: skip
        self.name = name or primary.resource
        self.primary = primary
        self.timeout_s = timeout_s
        self.setup_timeout_s = setup_timeout_s
        self._ready = False
        self._waiting: int | None = None  # epoch whose ack is not in
        self._acked: int | None = None  # epoch that may be committed

    def setup(self) -> None:
        """Wait until Protected; raises `DeviceNotReady` with the reason."""
        try:
            self.primary.wait_protected(self.setup_timeout_s)
        except RemusError as error:
            raise DeviceNotReady(
                f"resource {self.name}: {error}", errno=error.errno, phase="setup"
            ) from error
        self.primary.session_begin()
        self._ready = True
        self._waiting = self._acked = None

    _may_block = False
    _invalid = PhaseError  # what EINVAL means in a phase

    def _join_group(self, group: Any) -> int:
        """Take part in a C group, which then drives the primary itself."""
        with self.primary._call() as raw:
            self.primary._groups.append(group)
            return int(lib.remus_group_add_primary(group.raw, self.name.encode(), raw))

    def _leave_group(self, group: Any) -> None:
        if group in self.primary._groups:
            self.primary._groups.remove(group)

    def _check(self, phase: str) -> None:
        if not self._ready:
            raise PhaseError(f"resource {self.name}: {phase} before setup",
                             phase=phase)  # fmt: skip

    def postsuspend(self, tag: Tag | None = None) -> int:
        """Close epoch n and return n."""
        self._check("postsuspend")
        epoch = self.primary.postsuspend(tag)
        self._waiting = epoch
        return epoch

    def preresume(self, timeout_s: float | None = None) -> None:
        """Wait for the ack of the epoch that postsuspend closed."""
        self._check("preresume")
        if self._waiting is None:
            raise PhaseError(
                f"resource {self.name}: preresume without a postsuspend",
                phase="preresume",
            )
        self.primary.preresume(
            self._waiting, self.timeout_s if timeout_s is None else timeout_s
        )
        self._acked, self._waiting = self._waiting, None

    def commit(self) -> None:
        """Commit the newest epoch whose preresume succeeded."""
        self._check("commit")
        if self._acked is None:
            raise PhaseError(
                f"resource {self.name}: commit without an acked epoch",
                phase="commit",
            )
        self.primary.commit(self._acked)

    def epoch(self, number: int) -> EpochSample | None:
        """What is known of one epoch; see `Primary.epoch`."""
        return self.primary.epoch(number)

    def teardown(self) -> None:
        """End the session.  The primary stays open; it is its owner's."""
        if self._ready and not self.primary.closed:
            self.primary.session_end()
        self._ready = False
        self._waiting = self._acked = None
