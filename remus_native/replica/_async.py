# SPDX-License-Identifier: LGPL-2.1-or-later
"""What blocks for long, for asyncio.  Imported when it is called only.

Who waits for a change sleeps until the side's event descriptor is readable.
Its events are told once, so whoever takes them wakes all who wait.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import CheckpointTimeout, StateError

if TYPE_CHECKING:
    from ._side import Side

__all__ = ["in_thread", "started", "until"]

T = TypeVar("T")


def _heard(done: asyncio.Future[Any]) -> None:
    """Nobody waits for its error any more: asyncio need not tell it."""
    if not done.cancelled():
        done.exception()


@contextmanager
def listening(side: Side[Any]) -> Iterator[asyncio.Event]:
    """An event that is set whenever something has changed on ``side``.

    Also if another task, loop or thread takes the side's events, and when it
    is closed.
    """
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()
    key = object()

    def wake() -> None:
        with suppress(RuntimeError):  # that loop was closed
            loop.call_soon_threadsafe(changed.set)

    def readable() -> None:
        try:
            side.events()
        except StateError:  # closed: nothing more will come
            loop.remove_reader(fd)
            changed.set()

    side._listeners[key] = wake
    # A descriptor of our own, for the side's may be closed, and its number be
    # another's, before we let go.
    try:
        fd = os.dup(side.event_fd())
        try:
            loop.add_reader(fd, readable)
            yield changed
        finally:
            loop.remove_reader(fd)
            os.close(fd)
    finally:
        del side._listeners[key]


async def until(
    side: Side[Any], look: Callable[[], None], timeout_s: float | None
) -> None:
    """Look, sleep until something changes on ``side``, look again.

    ``look`` raises `CheckpointTimeout` as long as it is not so yet.
    """
    loop = asyncio.get_running_loop()
    end = None if timeout_s is None else loop.time() + timeout_s
    with listening(side) as changed:
        while True:
            changed.clear()
            try:
                look()
                return
            except CheckpointTimeout:
                left = None if end is None else end - loop.time()
                if left is not None and left <= 0:
                    raise
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(changed.wait(), left)


def started(
    name: str, job: Callable[[], T], orphaned: Callable[[], object] | None = None
) -> asyncio.Future[T]:
    """Start ``job`` in a thread of its own; its result comes with the future.

    Not in the loop's executor, whose threads may all be taken, and whose end
    waits for them.  If the loop is gone by the time of the result there is
    nobody to tell: ``orphaned`` is called.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(result: Any, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    def work() -> None:
        result, failed = None, None
        try:
            result = job()
        except BaseException as error:
            failed = error
        try:
            loop.call_soon_threadsafe(tell, result, failed)
        except RuntimeError:  # the loop was closed meanwhile
            if orphaned is not None:
                orphaned()

    threading.Thread(target=work, name=name, daemon=True).start()
    return done


async def in_thread(
    job: Callable[[], T], cancel: Callable[[], None] | None = None
) -> T:
    """The result of ``job``, in a thread of its own.

    A task that is cancelled calls ``cancel`` and waits until the job has
    ended by that; a job without one goes on alone.
    """
    done = started("remus-async", job)
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        if cancel is not None:
            cancel()
            with suppress(Exception):
                await asyncio.shield(done)
        else:
            done.add_done_callback(_heard)
        raise
