# SPDX-License-Identifier: LGPL-2.1-or-later
"""The side that waits: `Backup` (csrc/remus.h, same names)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from .._binding import ffi, lib, sized, text
from .._checks import boolean, encoded, every, integer
from .._handle import Handle
from .._values import (
    Ack,
    Checkpoint,
    CommitBy,
    Refusal,
    Status,
    Tag,
    Tls,
    Volume,
    encode_tag,
    status_from,
    tls_off,
)
from ..errors import ConfigError, StateError, raise_for
from ._config import BackupConfig, Config
from ._side import Side

__all__ = ["Backup"]


class Backup(Side[BackupConfig]):
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
    of for so long, `promote` wants its checkpoint named.  ``read_only``:
    for `status` and `checkpoints`: nothing is changed, no disk opened.
    `of` takes the same as one value, a `BackupConfig`.

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
        journal_dir: str | os.PathLike[str] | None = None,
        ack: Ack = "durable",
        commit_by: CommitBy = "primary",
        journal_bytes: int = 0,
        segment_bytes: int = 0,
        discard_local: bool = False,
        stale_ms: int = 0,
        read_only: bool = False,
        psk_file: str | os.PathLike[str] | None = None,
        psk_identity: str | None = None,
        run_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self._open(
            BackupConfig(
                name=resource,
                state=state_dir,
                volumes=every("volumes", volumes, Volume),
                journal=journal_dir,
                psk_file=psk_file,
                psk_identity=psk_identity,
                ack=ack,
                commit_by=commit_by,
                journal_bytes=journal_bytes,
                segment_bytes=segment_bytes,
                stale_after_ms=stale_ms,
                discard_local=discard_local,
                read_only=read_only,
                run_dir=run_dir,
            )
        )

    _kind = "backup"

    def _fill(self, c: Config) -> None:
        config, raw = self.config, c.raw
        if config.journal is not None:
            raw.journal_dir = c.path("journal_dir", config.journal)
        raw.journal_bytes = integer("journal_bytes", config.journal_bytes, 1 << 62)
        raw.segment_bytes = integer("segment_bytes", config.segment_bytes, 1 << 62)
        raw.discard_local = boolean("discard_local", config.discard_local)
        raw.read_only = boolean("read_only", config.read_only)
        raw.stale_ms = integer("stale_after_ms", config.stale_after_ms, (1 << 32) - 1)

    def _opened(self, raw: Any) -> None:
        self.volumes = tuple(volume.name for volume in self.config.volumes)
        self._standbys: list[Handle] = []  # to close first

    def serve(
        self, address: str | None = None, *, tls: Tls | None = None, loss_ms: int = 0
    ) -> None:
        """Listen and serve one primary at a time, in threads of the handle.

        What is not given here comes from `config`.  TCP needs ``psk_file`` or
        ``tls="off"``; with "off" whoever can connect can replace the disks.
        ``loss_ms``: a primary that is silent so long is lost.  Raises
        `StateError` (EADDRINUSE, ...).
        """
        address = self.config.address if address is None else address
        if address is None:
            raise ConfigError(f"{self._what}: serve: no address was given")
        data = encoded("address", address)
        integer("loss_ms", loss_ms, (1 << 32) - 1)
        off = tls_off(tls or self.config.tls, self.config.psk_file)
        with self._call() as raw:
            rc = lib.remus_backup_serve(raw, data, off, loss_ms or self.config.loss_ms)
            if rc < 0:
                raise_for(rc)

    def refusals(self) -> tuple[Refusal, ...]:
        """The sources whose connections were refused since `serve`."""
        cap = lib.REMUS_REFUSALS_MAX
        out = sized("refusal", cap)
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
        """Commit ``epoch`` and every prepared one before it, durably.

        Blocks for one sync of the journal.  Raises `StateError` if it is not
        prepared here, or an older one is pinned.
        """
        with self._call() as raw:
            rc = lib.remus_backup_commit(raw, integer("epoch", epoch, 1 << 63))
            if rc < 0:
                raise_for(rc, phase="commit", epoch=epoch, invalid=StateError)

    def pin(self, epoch: int | None) -> None:
        """Commit nothing newer than ``epoch`` until the pin is released (None).

        For the program that holds the checkpoint's complete memory on this
        host.  Raises `StateError` if it is not here, if a newer one is
        committed, or while both sides switch roles.
        """
        with self._call() as raw:
            n = 0 if epoch is None else integer("epoch", epoch, 1 << 63)
            rc = lib.remus_backup_pin(raw, n)
            if rc < 0:
                raise_for(rc, epoch=epoch, invalid=StateError)

    def ask(self, *, keep: bool = False, switch: bool = False) -> bool:
        """Ask the primary to step down, as `promote` does by itself.

        For a caller that has something to do between the answer and the
        promote.  True: the primary stepped down and is permanently fenced;
        False: none is connected, or it fell silent.  ``keep``: the promote
        will name a checkpoint that exists, so the primary takes no last one.
        ``switch``: the primary is to be the backup next, and its status says
        ``switches``; refused while a checkpoint is pinned.  Blocks until it
        answers or is lost.  Raises `StateError` (EBUSY) if it does not step
        down, with the reason.
        """
        with self._call() as raw:
            flags = lib.REMUS_ASK_KEEP if keep else 0
            flags |= lib.REMUS_ASK_SWITCH if switch else 0
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

        Without a name: the last committed one; if the resource is driven
        through ioctls, which have no commit, the newest one that was reported
        safe to an ioctl 30, or was empty.  Blocks for disk I/O.  A connected
        primary is asked first (`ask`), unless ``force`` cuts it off.  Raises
        `StateError` if there is no such checkpoint (the text names those that
        exist), if the primary does not step down (EBUSY), or if none is named
        and the default one was the newest available state longer than
        ``stale_after_ms`` ago (ESTALE).
        """
        by, epoch, name = _promote_by(checkpoint, tag)
        out = ffi.new("uint64_t *")
        with self._call() as raw:
            rc = lib.remus_backup_promote(
                raw, by, epoch, name, len(name), boolean("force", force), out
            )
            if rc < 0:
                raise_for(rc, epoch=checkpoint, invalid=StateError)
        return int(out[0])

    async def promote_async(
        self,
        checkpoint: int | None = None,
        *,
        tag: Tag | None = None,
        force: bool = False,
    ) -> int:
        """`promote` for asyncio, in a thread; the loop does not block.

        A promote that has begun can't be undone: cancelling the task leaves
        it, and it goes on.
        """
        from . import _async

        return await _async.in_thread(
            lambda: self.promote(checkpoint, tag=tag, force=force)
        )

    def target(self, checkpoint: int | None = None, *, tag: Tag | None = None) -> int:
        """The checkpoint to which `promote` would go; never blocks.

        For a caller that has to do something irreversible before it, such as
        fencing the primary.  Raises what `promote` would raise, except EBUSY.
        """
        by, epoch, name = _promote_by(checkpoint, tag)
        out = ffi.new("uint64_t *")
        with self._call() as raw:
            rc = lib.remus_backup_target(raw, by, epoch, name, len(name), out)
            if rc < 0:
                raise_for(rc, epoch=checkpoint, invalid=StateError)
        return int(out[0])

    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The checkpoints that `promote` accepts, oldest first.

        EAGAIN if the journal's disk has stalled for a second.
        """
        cap = 4096
        out = sized("checkpoint", cap)
        with self._call() as raw:
            count = lib.remus_backup_checkpoints(raw, out, cap)
            if count < 0:
                raise_for(count)
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
        out = sized("status")
        with self._call() as raw:
            lib.remus_backup_status(raw, out)
        return status_from(out)

    def close(self) -> None:
        """Stop serving, apply what is committed, sync; idempotent.

        Blocks for disk I/O, and for calls that other threads are in.  Its
        nodes (`Standby`) are closed first.
        """
        if self._foreign():
            return
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
        epoch = integer("checkpoint", checkpoint, 1 << 63)
        return lib.REMUS_PROMOTE_EPOCH, epoch, b""
    return lib.REMUS_PROMOTE_DEFAULT, 0, b""
