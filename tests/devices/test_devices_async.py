# SPDX-License-Identifier: LGPL-2.1-or-later
"""The layer over real replicas: event loops, cancel, close, and signals."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from contextlib import suppress
from typing import Any

import pytest
import trio

from remus_native import (
    AsyncCheckpointDevices,
    CheckpointCancelled,
    CheckpointDevices,
    CheckpointTimeout,
    PhaseError,
    ReplicationLost,
    StateError,
)
from support.session import in_thread


def kernel_threads() -> set[str]:
    return set(os.listdir("/proc/self/task"))


# ---- asyncio -------------------------------------------------------------------


def test_epochs_in_a_loop_that_does_other_things_too(session):
    async def tick(ticks: list[int]) -> None:
        while True:
            ticks.append(1)
            await asyncio.sleep(0)

    async def main() -> int:
        ticks: list[int] = []
        loop = asyncio.get_running_loop()
        # No executor is asked, and no thread made, for an epoch.
        loop.run_in_executor = None  # type: ignore[assignment, method-assign]
        async with AsyncCheckpointDevices([session.resource]) as devices:
            other = asyncio.create_task(tick(ticks))
            threads = kernel_threads()
            for i in range(100):
                session.primary.pwrite(0, bytes([i]) * 100, i * 100)
                (epoch,) = await devices.postsuspend(i)
                await devices.preresume(timeout_s=20)
                await devices.commit()
                assert kernel_threads() <= threads
            other.cancel()
            assert devices.numbers == (epoch,)
        assert devices.devices == ()
        return len(ticks)

    assert asyncio.run(main()) > 50


def test_a_stalled_backup_is_a_timeout_and_the_wait_can_go_on(session):
    async def main() -> None:
        async with AsyncCheckpointDevices([session.resource]) as devices:
            session.backup.pause()
            await devices.postsuspend()
            start = time.monotonic()
            with pytest.raises(CheckpointTimeout, match="wait again") as caught:
                await devices.preresume(timeout_s=0.2)
            assert 0.19 < time.monotonic() - start < 2
            assert caught.value.volume == "guest0"
            assert caught.value.phase == "preresume"
            assert caught.value.epoch == devices.numbers[0]
            assert caught.value.errno == errno.ETIMEDOUT
            session.backup.go_on()
            await devices.preresume(timeout_s=20)
            await devices.commit()

    asyncio.run(main())


@pytest.mark.alone
def test_a_cancelled_task_leaves_at_once(session):
    async def main() -> None:
        async with AsyncCheckpointDevices([session.resource]) as devices:
            session.backup.pause()
            await devices.postsuspend()
            task = asyncio.create_task(devices.preresume(timeout_s=20))
            await asyncio.sleep(0.05)
            with pytest.raises(PhaseError, match="under way"):
                await devices.preresume()
            start = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert time.monotonic() - start < 0.5
            # Another way to say it, which the waiting task is told.
            task = asyncio.create_task(devices.preresume(timeout_s=20))
            await asyncio.sleep(0.05)
            assert devices.cancel()
            with pytest.raises(CheckpointCancelled):
                await task
            assert not devices.cancel()
            session.backup.go_on()
            await devices.preresume(timeout_s=20)
            await devices.commit()

    asyncio.run(main())


@pytest.mark.alone
def test_teardown_ends_the_wait_of_another_task(session):
    async def main() -> None:
        devices = AsyncCheckpointDevices([session.resource])
        await devices.setup()
        session.backup.pause()
        await devices.postsuspend()
        task = asyncio.create_task(devices.preresume(timeout_s=20))
        await asyncio.sleep(0.05)
        start = time.monotonic()
        await devices.teardown()
        assert time.monotonic() - start < 0.5
        with pytest.raises(CheckpointCancelled):
            await task
        with pytest.raises(PhaseError):
            await devices.postsuspend()
        await devices.teardown()

    asyncio.run(main())


def test_a_dead_backup_is_a_loss(session):
    async def main() -> None:
        async with AsyncCheckpointDevices([session.resource]) as devices:
            session.backup.pause()
            await devices.postsuspend()
            task = asyncio.create_task(devices.preresume(timeout_s=20))
            await asyncio.sleep(0.05)
            session.backup.kill()
            with pytest.raises(ReplicationLost, match="backup lost") as caught:
                await task
            assert caught.value.errno == errno.EPROTO
            assert "unprotected" in caught.value.remedy
            with pytest.raises(ReplicationLost):
                await devices.postsuspend()

    asyncio.run(main())


def test_a_cancelled_setup_tears_down(session):
    class Slow:
        kind, name = "nic", "eth0"
        began = threading.Event()
        go_on = threading.Event()
        torn = 0

        def setup(self) -> None:
            self.began.set()
            assert self.go_on.wait(20)

        def teardown(self) -> None:
            self.torn += 1

    async def main() -> None:
        slow = Slow()
        devices = AsyncCheckpointDevices([slow])
        task = asyncio.create_task(devices.setup())
        await asyncio.to_thread(slow.began.wait, 20)
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()
        slow.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert slow.torn == 1
        assert devices.devices == ()

    asyncio.run(main())


def test_a_task_may_be_cancelled_at_any_moment(session):
    """Also at that of the ack: the layer is never left in a phase."""

    async def main() -> None:
        async with AsyncCheckpointDevices([session.resource]) as devices:
            ended = []
            for turns in range(200):
                await devices.postsuspend()
                task = asyncio.create_task(devices.preresume(timeout_s=20))
                for _ in range(turns % 8):
                    await asyncio.sleep(0.00002 * (turns % 5))
                task.cancel()
                (result,) = await asyncio.gather(task, return_exceptions=True)
                ended.append(result)
                if result is not None:
                    assert isinstance(result, asyncio.CancelledError)
                    with suppress(PhaseError):  # the ack came, and was taken
                        await devices.preresume(timeout_s=20)
            assert {type(end) for end in ended} == {type(None), asyncio.CancelledError}
            await devices.commit()

    asyncio.run(main())


def forget(task: asyncio.Task[Any]) -> None:
    """What becomes of a task whose loop does not go on."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    task.get_coro().close()  # type: ignore[union-attr]


def test_a_loop_that_is_closed_under_a_wait(session):
    devices = AsyncCheckpointDevices([session.resource])
    loop = asyncio.new_event_loop()
    loop.run_until_complete(devices.setup())
    session.backup.pause()
    loop.run_until_complete(devices.postsuspend())
    task = loop.create_task(devices.preresume(timeout_s=20))
    loop.run_until_complete(asyncio.sleep(0.01))
    forget(task)
    loop.close()
    # In another loop, whose tasks can't wait on the first one's descriptor.
    session.backup.go_on()

    async def go_on() -> None:
        with pytest.raises(PhaseError, match="another event loop"):
            await devices.preresume(20)
        await devices.postsuspend()
        await devices.teardown()
        async with devices:
            await devices.postsuspend()
            await devices.preresume(20)
            await devices.commit()

    asyncio.run(go_on())


def test_teardown_from_another_loop_ends_the_wait(session):
    devices = AsyncCheckpointDevices([session.resource])
    waiting = threading.Event()
    ended: list[BaseException] = []

    async def wait() -> None:
        await devices.setup()
        session.backup.pause()
        await devices.postsuspend()
        task = asyncio.create_task(devices.preresume(20))
        await asyncio.sleep(0)
        waiting.set()
        try:
            await task
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=lambda: asyncio.run(wait()))
    thread.start()
    assert waiting.wait(20)
    start = time.monotonic()
    asyncio.run(devices.teardown())
    thread.join(20)
    assert time.monotonic() - start < 1
    assert isinstance(ended[0], (CheckpointCancelled, PhaseError))


def test_a_loop_that_is_closed_under_setup():
    class Slow:
        kind, name = "nic", "eth0"
        began, go_on, torn = threading.Event(), threading.Event(), threading.Event()

        def setup(self) -> None:
            self.began.set()
            assert self.go_on.wait(20)

        def teardown(self) -> None:
            self.torn.set()

    slow = Slow()
    devices = AsyncCheckpointDevices([slow])
    loop = asyncio.new_event_loop()
    task = loop.create_task(devices.setup())
    loop.run_until_complete(asyncio.sleep(0))
    assert slow.began.wait(20)
    forget(task)
    loop.close()
    slow.go_on.set()
    assert slow.torn.wait(20)


# What docs/device-layer.md shows.
async def preresume_in_trio(devices: CheckpointDevices, timeout_s: float) -> None:
    deadline = trio.current_time() + timeout_s
    devices.preresume_begin(timeout_s)
    try:
        while not devices.preresume_finish():
            with trio.move_on_at(max(deadline, trio.current_time()) + 0.001):
                await trio.lowlevel.wait_readable(devices.fileno())
    finally:
        devices.preresume_leave()  # nothing, if the wait is over


def test_trio_by_hand(session):
    async def main() -> None:
        layer = CheckpointDevices([session.resource], event_loop=True)
        with layer as devices:
            for _ in range(20):
                devices.postsuspend()
                await preresume_in_trio(devices, 20)
                devices.commit()
            session.backup.pause()
            devices.postsuspend()
            start = trio.current_time()
            with pytest.raises(CheckpointTimeout):
                await preresume_in_trio(devices, 0.1)
            assert 0.1 <= trio.current_time() - start < 1
            with trio.move_on_after(0.05) as scope:
                await preresume_in_trio(devices, 20)
            assert scope.cancelled_caught
            session.backup.go_on()
            await preresume_in_trio(devices, 20)
            devices.commit()

    trio.run(main)


def test_begin_needs_a_layer_made_for_it(session):
    with CheckpointDevices([session.resource]) as devices:
        devices.postsuspend()
        with pytest.raises(PhaseError, match="without the threads"):
            devices.preresume_begin()


# ---- cancel and close from other threads -----------------------------------------


@pytest.mark.alone
def test_cancel_ends_a_wait_in_the_calling_thread(session):
    with CheckpointDevices([session.resource]) as devices:
        for _ in range(10):
            session.backup.pause()
            devices.postsuspend()
            thread, ended = in_thread(lambda: devices.preresume(20))
            time.sleep(0.02)
            with pytest.raises(PhaseError, match="under way"):
                devices.postsuspend()
            start = time.monotonic()
            assert devices.cancel()
            thread.join(20)
            assert time.monotonic() - start < 0.5
            assert isinstance(ended[0], CheckpointCancelled)
            assert ended[0].errno == errno.ECANCELED
            session.backup.go_on()
            devices.preresume(20)
            devices.commit()


def test_a_primary_that_is_closed_ends_the_session(session):
    with CheckpointDevices([session.resource]) as devices:
        devices.postsuspend()
        devices.preresume(20)
        session.backup.pause()
        devices.postsuspend()
        thread, ended = in_thread(lambda: devices.preresume(20))
        time.sleep(0.02)
        session.backup.kill()
        session.primary.close()
        thread.join(20)
        assert isinstance(ended[0], (CheckpointCancelled, ReplicationLost))
        with pytest.raises(StateError, match="primary of guest0 was closed") as caught:
            devices.postsuspend()
        assert caught.value.errno == errno.EBADF


def test_teardown_ends_a_wait_in_another_thread(session):
    devices = CheckpointDevices([session.resource])
    devices.setup()
    session.backup.pause()
    devices.postsuspend()
    thread, ended = in_thread(lambda: devices.preresume(20))
    time.sleep(0.02)
    devices.teardown()
    thread.join(20)
    assert isinstance(ended[0], (CheckpointCancelled, PhaseError))
    # The session is over, the primary is not.
    session.backup.go_on()
    with CheckpointDevices([session.resource]) as again:
        again.postsuspend()
        again.preresume(20)
