# SPDX-License-Identifier: LGPL-2.1-or-later
"""The DRBD engine: a disk that answers protocol D's checkpoint ioctls.

That is a DRBD device of a kernel with protocol D, or a file of our own FUSE
node, which answers the same two ioctls and a third one, commit.
"""

from __future__ import annotations

import errno
import os
import subprocess
from typing import Any

from ._binding import ffi, lib, milliseconds
from .errors import (
    CheckpointTimeout,
    ConfigError,
    DeviceNotReady,
    DeviceNotSupported,
    NotProtocolD,
    PhaseError,
    StateError,
    raise_for,
)
from .replica import Tag

__all__ = ["DrbdDisk"]

PROBE_LIMIT_S = 40  # libxl's


class DrbdDisk:
    """A device of the device layer, driven through ioctl 20 and 30.

    ``path``: /dev/drbdN, or ``<mount>/<volume>`` of a replica.  ``probe``:
    path of ``block-drbd-probe``; if given, `setup` runs it first and says
    what its exit code means.  ``timeout_s`` is the deadline of `preresume`.
    ``cancel_signal``: a signal of the program's own, with a handler that does
    nothing, which `cancel` may send to the waiting thread; without it a wait
    inside the kernel's driver ends only by the driver's own limit.

    Mirrors libxl's disk device, and mends it: an error of ioctl 20 never
    counts as "sent", the result of ioctl 30 is never thrown away, nothing is
    forked to wait, and a signal never looks like a lost backup (signals are
    blocked in the waiting thread).  On a protocol D module every unknown
    ioctl is a checkpoint, so none is ever sent to find out what a device is.
    """

    kind = "disk"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        timeout_s: float = 5.0,
        probe: str | os.PathLike[str] | None = None,
        cancel_signal: int = 0,
    ) -> None:
        self.path = os.fspath(path)
        self.name = name or self.path
        self.timeout_s = timeout_s
        self.probe = None if probe is None else os.fspath(probe)
        self.cancel_signal = cancel_signal
        self._raw: Any = None
        self._waiting = False
        self._acked = False

    def __enter__(self) -> DrbdDisk:
        self.setup()
        return self

    def __exit__(self, *exc: object) -> None:
        self.teardown()

    @property
    def empty(self) -> bool:
        """Whether the newest `postsuspend` found that nothing was written."""
        if self._raw is None:
            return False
        empty = ffi.new("int *")
        lib.remus_drbd_barriers(self._raw, empty)
        return bool(empty[0])

    @property
    def is_node(self) -> bool:
        """Whether it is a file of a replica's FUSE node."""
        return self._raw is not None and bool(lib.remus_drbd_is_node(self._raw))

    def setup(self) -> None:
        """Probe (if asked to) and open the device.

        Raises `DeviceNotSupported` if it is no such device, `NotProtocolD`,
        `DeviceNotReady` (not connected, Secondary, no such minor).
        """
        if self._raw is not None:
            raise PhaseError(f"device {self.name}: setup twice", phase="setup")
        if self.probe is not None:
            self._run_probe(self.probe)
        out = ffi.new("remus_drbd **")
        rc = lib.remus_drbd_open(os.fsencode(self.path), out)
        if rc == -errno.ENXIO:
            try:
                raise_for(rc, volume=self.name, phase="setup")
            except StateError as error:
                raise DeviceNotReady(
                    str(error), errno=error.errno, volume=self.name, phase="setup"
                ) from None
        if rc < 0:
            raise_for(rc, volume=self.name, phase="setup", invalid=ConfigError)
        self._raw = out[0]
        self._waiting = self._acked = False
        if self.cancel_signal:
            rc = lib.remus_drbd_cancel_signal(self._raw, self.cancel_signal)
            if rc < 0:
                try:
                    raise_for(rc, volume=self.name)
                finally:
                    self.teardown()

    _may_block = True  # a node's ioctl goes to another process
    _invalid = NotProtocolD  # what the driver's EINVAL means

    def _join_group(self, group: Any) -> int:
        """Take part in a C group, which then drives the device itself."""
        return int(
            lib.remus_group_add_drbd(
                group.raw, self.name.encode(), self._device("setup")
            )
        )

    def _run_probe(self, probe: str) -> None:
        try:
            result = subprocess.run(
                [probe, self.path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=PROBE_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise CheckpointTimeout(
                f"device {self.name}: {probe} did not end in {PROBE_LIMIT_S} s",
                volume=self.name,
                phase="setup",
            ) from None
        except OSError as error:
            raise StateError(
                f"device {self.name}: probe {probe}: {error.strerror}",
                errno=error.errno,
                volume=self.name,
                phase="setup",
            ) from error
        if result.returncode == 0:
            return
        classes = {1: DeviceNotSupported, 3: NotProtocolD, 4: DeviceNotReady}
        cls = classes.get(result.returncode, StateError)
        said = result.stderr.decode(errors="replace").strip()
        raise cls(
            f"device {self.name}: {said or 'the probe says no'} "
            f"(probe exit code {result.returncode})",
            volume=self.name,
            phase="setup",
        )

    def _device(self, phase: str) -> Any:
        if self._raw is None:
            raise PhaseError(f"device {self.name}: {phase} before setup", phase=phase)
        return self._raw

    def postsuspend(self, tag: Tag | None = None) -> int:
        """Send the barrier; never blocks.  Returns its running number.

        ``tag`` travels as the ioctl's argument, so it must be a number from
        1 to 2**63-1, or its decimal text; None sends none.  Raises
        `ReplicationLost`, `NotProtocolD`, `DeviceNotReady` (a wait failed
        before: the kernel driver must be reconnected).
        """
        raw = self._device("postsuspend")
        rc = lib.remus_drbd_postsuspend(raw, self._tag(tag))
        if rc < 0:
            raise_for(rc, volume=self.name, phase="postsuspend", invalid=NotProtocolD)
        self._waiting = True
        return self._number(raw)

    @staticmethod
    def _number(raw: Any) -> int:
        return int(lib.remus_drbd_barriers(raw, ffi.NULL))

    def _tag(self, tag: Tag | None) -> int:
        if tag is None:
            return 0
        try:
            number = int(tag)
        except (TypeError, ValueError):
            number = 0
        if isinstance(tag, bool) or not 0 < number < 1 << 63:
            raise ConfigError(
                f"device {self.name}: tag {tag!r}: through the ioctl a tag is a "
                "number from 1 to 2**63-1"
            )
        return number

    def preresume(self, timeout_s: float | None = None) -> None:
        """Return only when the backup has the epoch.

        Blocks the calling thread, signals blocked.  Raises
        `ReplicationLost`, or `CheckpointTimeout` (may be called again).  One
        call into the kernel may outlast the deadline by its own limit.
        """
        raw = self._device("preresume")
        if not self._waiting:
            raise PhaseError(
                f"device {self.name}: preresume without a postsuspend",
                phase="preresume",
            )
        limit = self.timeout_s if timeout_s is None else timeout_s
        rc = lib.remus_drbd_preresume(raw, milliseconds(limit))
        if rc < 0:
            if rc not in (-errno.ETIMEDOUT, -errno.ECANCELED):
                self._waiting = False
            raise_for(
                rc,
                volume=self.name,
                phase="preresume",
                epoch=self._number(raw),
                invalid=NotProtocolD,
            )
        self._waiting = False
        self._acked = True

    def commit(self) -> None:
        """Commit on one of our nodes; a no-op on DRBD, which has none."""
        raw = self._device("commit")
        if not self._acked:
            raise PhaseError(
                f"device {self.name}: commit without an acked epoch", phase="commit"
            )
        rc = lib.remus_drbd_commit(raw)
        if rc < 0:
            raise_for(rc, volume=self.name, phase="commit", epoch=self._number(raw))

    def cancel(self) -> None:
        """End the `preresume` that another thread is in.

        It raises `CheckpointCancelled`.  On one of our nodes that takes
        microseconds, unless the node's server hangs (`CheckpointDevices.cancel`
        does not hang with it); inside the kernel's driver see
        ``cancel_signal``.
        """
        raw = self._raw
        if raw is not None:
            lib.remus_drbd_cancel(raw)

    def teardown(self) -> None:
        """Close the device; idempotent."""
        raw, self._raw = self._raw, None
        if raw is not None:
            lib.remus_drbd_close(raw)
