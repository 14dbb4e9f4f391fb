# SPDX-License-Identifier: LGPL-2.1-or-later
"""The DRBD engine: a disk that answers protocol D's checkpoint ioctls.

That is a DRBD device of a kernel with protocol D, or a file of our own FUSE
node, which answers the same two ioctls and a third one, commit.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
from contextlib import suppress
from typing import Any

from ._binding import ffi, lib
from ._checks import (
    encoded,
    instance,
    integer,
    milliseconds,
    path_of,
    seconds,
    shown,
)
from ._handle import Handle
from .errors import (
    ArgumentTypeError,
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


class _Device(Handle):
    """The open device of one session."""

    def __init__(self, raw: Any, what: str) -> None:
        super().__init__()
        self._what = what
        self._raw = raw

    def cancel(self) -> None:
        with self._call() as raw:
            lib.remus_drbd_cancel(raw)

    def close(self) -> None:
        if self._foreign():
            return
        if self._calls:  # not those of a group, which holds the device itself
            with suppress(StateError):  # closed
                self.cancel()  # or who waits would be waited for
        raw = self._take()
        if raw is not None:
            lib.remus_drbd_close(raw)


class DrbdDisk:
    """A device of the device layer, driven through ioctl 20 and 30.

    ``path``: /dev/drbdN, or ``<mount>/<volume>`` of a replica.  ``probe``:
    path of ``block-drbd-probe``; if given, `setup` runs it first and says
    what its exit code means.  ``timeout_s`` is the deadline of `preresume`.
    ``cancel_signal``: a signal of the program's own, with a handler that does
    nothing, which `cancel` may send to the waiting thread; without it a wait
    inside the kernel's driver ends only by the driver's own limit.

    A kernel's device takes its first checkpoint only when both sides are
    Primary and connected and no barrier of an earlier session is left on its
    way (its late ack would count for the new one).  `wait_ready` waits for
    that while the guest runs; the first `postsuspend` of a session, and the
    first after a failure, makes sure of it.

    Mirrors libxl's disk device, and mends it: an error of ioctl 20 never
    counts as "sent", the result of ioctl 30 is never thrown away, nothing is
    forked to wait, and a signal never looks like a lost backup (signals are
    blocked in the waiting thread).  On a protocol D module every unknown
    ioctl is a checkpoint, so none is ever sent to find out what a device is.

    Phases come from one thread at a time; `cancel` and `teardown` from any.  A
    method blocks only where it says so.  All raise `PhaseError` out of order.
    """

    kind = "disk"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        timeout_s: float | None = 5.0,
        probe: str | os.PathLike[str] | None = None,
        cancel_signal: int = 0,
    ) -> None:
        self.path = path_of("path", path)
        self.name = self.path if name is None else instance("name", name, str)
        encoded("name", self.name)
        seconds("timeout_s", timeout_s)
        self.timeout_s = timeout_s
        self.probe = None if probe is None else path_of("probe", probe)
        self.cancel_signal = integer("cancel_signal", cancel_signal, 64)
        self._open: _Device | None = None
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
        device = self._open
        if device is None:
            return False
        empty = ffi.new("int *")
        with device._call() as raw:
            lib.remus_drbd_barriers(raw, empty)
        return bool(empty[0])

    @property
    def is_node(self) -> bool:
        """Whether it is a file of a replica's FUSE node."""
        device = self._open
        if device is None:
            return False
        with device._call() as raw:
            return bool(lib.remus_drbd_is_node(raw))

    def _open_raw(self, out: Any) -> int:
        return int(lib.remus_drbd_open(encoded("path", self.path), out))

    def setup(self) -> None:
        """Probe (if asked to) and open the device; blocks as long as these do.

        Raises `DeviceNotSupported` if it is no such device, `NotProtocolD`,
        `DeviceNotReady` (not connected, Secondary, no such minor).
        """
        if self._open is not None:
            raise PhaseError(f"device {self.name}: setup twice", phase="setup")
        if self.probe is not None:
            self._run_probe(self.probe)
        out = ffi.new("remus_drbd **")
        rc = self._open_raw(out)
        if rc == -errno.ENXIO:
            try:
                raise_for(rc, volume=self.name, phase="setup")
            except StateError as error:
                raise DeviceNotReady(
                    str(error), errno=error.errno, volume=self.name, phase="setup"
                ) from None
        if rc < 0:
            raise_for(rc, volume=self.name, phase="setup", invalid=ConfigError)
        device = _Device(out[0], f"device {self.name}")
        self._waiting = self._acked = False
        if self.cancel_signal:
            rc = lib.remus_drbd_cancel_signal(out[0], self.cancel_signal)
            if rc < 0:
                try:
                    raise_for(rc, volume=self.name)
                finally:
                    device.close()
        self._open = device

    def wait_ready(self, timeout_s: float | None = None) -> None:
        """Block until the first checkpoint of a session can be taken.

        To be called while the guest runs, after `setup`.  For a kernel's
        device that is when it is Connected and Primary/Primary and nothing of
        an earlier session is on its way; a replica's node is ready at once.
        ``timeout_s`` None: that of the device.  Raises `ReplicationLost` (not
        connected by then), `DeviceNotReady` (not Primary/Primary),
        `CheckpointTimeout`, `NotProtocolD`.
        """
        device = self._device("wait_ready")
        limit = milliseconds(self.timeout_s if timeout_s is None else timeout_s)
        with device._call() as raw:
            rc = lib.remus_drbd_wait_ready(raw, limit)
            if rc < 0:
                raise_for(
                    rc, "wait_ready", volume=self.name, phase="setup",
                    invalid=NotProtocolD,
                )  # fmt: skip

    def is_ready(self) -> bool:
        """Whether `postsuspend` may succeed now; for who waits after a loss.

        A node's resource says so itself (``status.json`` beside the node), a
        kernel's device by its state.  True also where nothing can be known,
        for the next `postsuspend` says why it fails.  Blocks for one read of
        the node's file system at most.
        """
        device = self._device("is_ready")
        if not self.is_node:
            waits = (-errno.EPROTO, -errno.ENOTCONN, -errno.ETIMEDOUT)
            with device._call() as raw:
                return lib.remus_drbd_wait_ready(raw, 0) not in waits
        beside = os.path.join(os.path.dirname(self.path), "status.json")
        try:
            with open(beside, encoding="utf-8", errors="replace") as status:
                return bool(json.load(status).get("ready", True))
        except (OSError, ValueError, AttributeError):
            return True

    _may_block = True  # a node's ioctl goes to another process
    _invalid = NotProtocolD  # what the driver's EINVAL means

    def _join_group(self, group: Any) -> int:
        """Take part in a C group, which then drives the device itself."""
        with self._device("setup")._call() as raw:
            return int(
                lib.remus_group_add_drbd(group.raw, encoded("name", self.name), raw)
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

    def _device(self, phase: str) -> _Device:
        if self._open is None:
            raise PhaseError(f"device {self.name}: {phase} before setup", phase=phase)
        return self._open

    def postsuspend(self, tag: Tag | None = None) -> int:
        """Send the barrier; never blocks.  Returns its running number.

        (The first one of a session, and the first after a failure, on a
        kernel's device: at most 2 s, for what `wait_ready` waits for.)

        ``tag`` travels as the ioctl's argument, so it must be a number from
        1 to 2**63-1, or its decimal text; None sends none.  Raises
        `ReplicationLost`, `NotProtocolD`, `DeviceNotReady` (not
        Primary/Primary; or a wait ended in ENOMEM before: set it up again).
        """
        device = self._device("postsuspend")
        number = self._tag(tag)
        with device._call() as raw:
            rc = lib.remus_drbd_postsuspend(raw, number)
            if rc < 0:
                if rc != -errno.EBUSY:
                    self._waiting = False
                raise_for(
                    rc, volume=self.name, phase="postsuspend", invalid=NotProtocolD
                )
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
            kind = (
                ConfigError
                if isinstance(tag, int | str | bytes)
                else (ArgumentTypeError)
            )
            raise kind(
                f"tag: {shown(tag)}: device {self.name}: through the ioctl a tag is "
                "a number from 1 to 2**63-1"
            )
        return number

    def preresume(self, timeout_s: float | None = None) -> None:
        """Block until the backup has the epoch.

        Signals of the calling thread are blocked meanwhile.  Raises
        `ReplicationLost`, `CheckpointTimeout` (may be called again), or
        `CheckpointUnknown` (the ack can't come any more: postsuspend again).
        One call into the kernel may outlast the deadline by its own limit.
        """
        device = self._device("preresume")
        if not self._waiting:
            raise PhaseError(
                f"device {self.name}: preresume without a postsuspend",
                phase="preresume",
            )
        limit = milliseconds(self.timeout_s if timeout_s is None else timeout_s)
        with device._call() as raw:
            rc = lib.remus_drbd_preresume(raw, limit)
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
        device = self._device("commit")
        if not self._acked:
            raise PhaseError(
                f"device {self.name}: commit without an acked epoch", phase="commit"
            )
        with device._call() as raw:
            rc = lib.remus_drbd_commit(raw)
            if rc < 0:
                raise_for(rc, volume=self.name, phase="commit", epoch=self._number(raw))

    def cancel(self) -> None:
        """End the `preresume` or `wait_ready` that another thread is in.

        It raises `CheckpointCancelled`.  On one of our nodes that takes
        microseconds, unless the node's server hangs (`CheckpointDevices.cancel`
        does not hang with it); inside the kernel's driver see
        ``cancel_signal``.
        """
        device = self._open
        if device is not None:
            with suppress(StateError):  # closed just now
                device.cancel()

    def teardown(self) -> None:
        """Close the device; idempotent.

        Cancels a `preresume` in another thread, and blocks until that returns.
        """
        device, self._open = self._open, None
        if device is not None:
            device.close()
