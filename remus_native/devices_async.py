# SPDX-License-Identifier: LGPL-2.1-or-later
"""The device layer for asyncio: the same phases, awaited.

A wait is begun in C and its end makes a descriptor readable, which the event
loop watches: no executor, no thread for an epoch.  Other event loops can do
the same with `CheckpointDevices(..., event_loop=True)`; docs/device-layer.md
has the dozen lines for trio.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from ._checks import seconds
from .devices import CheckpointDevices, Subkind
from .epochs import EpochStatistics
from .errors import PhaseError, RemusError
from .replica import Tag
from .replica._async import started

__all__ = ["AsyncCheckpointDevices"]

T = TypeVar("T")


async def _in_thread(
    work: Callable[[], T], undo: Callable[[], object] | None = None
) -> T:
    """Run what may block long and happens once a session.

    It is carried to its end even if the task is cancelled: half a set-up
    helps nobody.  If the loop is gone by then, ``undo`` takes it back.
    """
    done = started("remus-session", work, undo)
    cancelled = False
    while True:
        try:
            result = await asyncio.shield(done)
        except asyncio.CancelledError:
            if done.cancelled():
                raise
            cancelled = True
            continue
        if cancelled:
            raise asyncio.CancelledError
        return result


class AsyncCheckpointDevices:
    """`CheckpointDevices` whose phases are coroutines of the same names.

    One task at a time may be in a phase; another gets `PhaseError`, as does
    one of another event loop than `setup`'s in `preresume`.  A task that is
    cancelled in `preresume` leaves it at once: the epoch's fate is
    unknown then, as after a timeout.  `postsuspend` and `commit` never block,
    so they are over without a turn of the loop.  `setup` and `teardown` may
    run scripts and wait for a backup: they are carried out in a thread of
    their own.

    >>> async with AsyncCheckpointDevices([ReplicaResource(primary)]) as devices:
    ...     await devices.postsuspend()
    ...     await devices.preresume(timeout_s=5)
    ...     await devices.commit()

    No coroutine blocks its loop.  They are for the loop's thread; `cancel` is
    for any.  They raise what `CheckpointDevices` raises.
    """

    def __init__(
        self,
        devices: Iterable[Any],
        *,
        subkinds: Sequence[Subkind] = (),
        name: str = "guest",
        statistics: str | None = None,
    ) -> None:
        self._layer = CheckpointDevices(
            devices,
            subkinds=subkinds,
            event_loop=True,
            name=name,
            statistics=statistics,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._fd = -1
        self._woken: asyncio.Future[None] | None = None

    @property
    def devices(self) -> tuple[Any, ...]:
        """The devices that are set up, in order."""
        return self._layer.devices

    @property
    def epochs(self) -> EpochStatistics | None:
        """As `CheckpointDevices.epochs`."""
        return self._layer.epochs

    @property
    def numbers(self) -> tuple[int | None, ...]:
        """The numbers of the newest epoch, one a device."""
        return self._layer.numbers

    async def __aenter__(self) -> AsyncCheckpointDevices:
        await self.setup()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.teardown()

    async def setup(self) -> None:
        """As `CheckpointDevices.setup`, in a thread of its own."""
        try:
            await _in_thread(self._layer.setup, undo=self._layer.teardown)
        except asyncio.CancelledError:
            await _in_thread(self._layer.teardown)
            raise
        self._loop = asyncio.get_running_loop()
        self._fd = self._layer.fileno()
        # For the whole session: adding it for each epoch would cost two
        # system calls.
        self._loop.add_reader(self._fd, self._on_readable)

    async def teardown(self) -> None:
        """As `CheckpointDevices.teardown`; idempotent, and in any loop."""
        loop, self._loop = self._loop, None
        self._layer.cancel()  # a preresume in another task ends now
        if loop is asyncio.get_running_loop():
            loop.remove_reader(self._fd)
            self._on_readable()
            await asyncio.sleep(0)  # let it see that before all is gone
        elif loop is not None:
            with suppress(RuntimeError):  # closed, and its readers with it
                loop.call_soon_threadsafe(loop.remove_reader, self._fd)
                loop.call_soon_threadsafe(self._on_readable)
        await _in_thread(self._layer.teardown)

    async def wait_ready(self, timeout_s: float | None = None) -> None:
        """As `CheckpointDevices.wait_ready`, in a thread of its own."""
        await _in_thread(lambda: self._layer.wait_ready(timeout_s))

    def _on_readable(self) -> None:
        woken = self._woken
        if woken is not None and not woken.done():
            woken.set_result(None)

    async def postsuspend(self, tag: Tag | None = None) -> tuple[int | None, ...]:
        """As `CheckpointDevices.postsuspend`."""
        return self._layer.postsuspend(tag)

    async def preresume(self, timeout_s: float | None = None) -> None:
        """As `CheckpointDevices.preresume`; other tasks run meanwhile."""
        loop = self._loop
        if loop is None:
            raise PhaseError("preresume before setup", phase="preresume")
        if loop is not asyncio.get_running_loop():
            raise PhaseError(
                "preresume in another event loop than setup's", phase="preresume"
            )
        layer = self._layer
        limit = layer._limit_s if timeout_s is None else seconds("timeout_s", timeout_s)
        end = None if limit is None else time.monotonic() + limit
        layer.preresume_begin(timeout_s)
        timer: asyncio.TimerHandle | None = None
        try:
            while not layer.preresume_finish():
                self._woken = loop.create_future()
                if end is not None:
                    # Not longer than an event loop's clock can tell.
                    left = min(max(0.001, end - time.monotonic()), 86400.0)
                    timer = loop.call_later(left, self._on_readable)
                await self._woken
                if timer is not None:
                    timer.cancel()
        except RemusError:
            raise  # finish has said it
        except BaseException:
            # The task was cancelled, or its loop closed under it.
            if timer is not None:
                timer.cancel()
            layer.preresume_leave()
            raise
        finally:
            self._woken = None

    async def commit(self) -> None:
        """As `CheckpointDevices.commit`."""
        self._layer.commit()

    def cancel(self) -> bool:
        """End the `preresume` that a task is in with `CheckpointCancelled`."""
        return self._layer.cancel()
