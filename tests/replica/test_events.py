# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who waits for a change or an ack sleeps: nothing asks again and again."""

from __future__ import annotations

import asyncio
import select
import threading
import time

import pytest

from remus_native import (
    Changes,
    CheckpointCancelled,
    CheckpointTimeout,
    PhaseError,
    State,
    StateError,
)
from support.pair import MIB, Pair, checkpoint, lose, same
from support.waiting import until


@pytest.fixture
def alone(tmp_path):
    """A primary without a backup, and how often it was asked for its state."""
    pair = Pair(tmp_path, [MIB])
    primary = pair.open_primary(wait=False)
    pair.asked = 0
    ask = primary.wait_protected

    def counted(timeout_s=None):
        pair.asked += 1
        ask(timeout_s)

    primary.wait_protected = counted
    yield pair
    pair.close()


def readable(fd, timeout_s=0.0):
    return bool(select.select([fd], [], [], timeout_s)[0])


# ---- asyncio ---------------------------------------------------------------------


def test_a_wait_asks_only_when_something_has_changed(alone):
    async def play():
        waiting = asyncio.ensure_future(alone.primary.wait_protected_async(60))
        await asyncio.sleep(0.5)
        # When it began, and for what had changed until then, if anything.
        assert alone.asked <= 2 and not waiting.done()
        alone.open_backup()
        await asyncio.wait_for(waiting, 30)

    asyncio.run(play())
    # Connected, catching up, Protected, ...
    assert alone.asked <= 12
    assert alone.primary.status().state is State.PROTECTED


def test_a_change_between_the_look_and_the_sleep_is_not_missed(alone):
    """All that there will ever be to hear happens just after the first look."""
    look = alone.primary.wait_protected

    def late(timeout_s=None):
        try:
            look(timeout_s)
        except CheckpointTimeout:
            if alone.backup is None:
                alone.open_backup()
                until(lambda: alone.primary.status().state is State.PROTECTED)
            raise

    alone.primary.wait_protected = late
    asyncio.run(asyncio.wait_for(alone.primary.wait_protected_async(), 30))
    assert alone.asked <= 4


def test_a_limit_is_kept(alone):
    start = time.monotonic()
    with pytest.raises(CheckpointTimeout):
        asyncio.run(alone.primary.wait_protected_async(0.2))
    assert 0.15 < time.monotonic() - start < 5
    assert alone.asked <= 4


def test_all_who_wait_are_woken_in_any_loop(alone):
    """The descriptor's news are taken once; each of them hears of it."""
    woken = []

    def wait():
        async def several():
            waits = [alone.primary.wait_protected_async(60) for _ in range(3)]
            await asyncio.gather(*waits)

        asyncio.run(several())
        woken.append(1)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: alone.asked >= 9)
    alone.open_backup()
    while len(woken) < 3:  # one who asks for himself takes nothing from them
        alone.primary.events()
        time.sleep(0.001)
    for thread in threads:
        thread.join(20)
    assert not alone.primary._listeners


def test_closing_ends_a_wait(alone):
    async def play():
        waiting = asyncio.ensure_future(alone.primary.wait_protected_async())
        await asyncio.sleep(0.02)
        closing = threading.Thread(target=alone.primary.close)
        closing.start()
        with pytest.raises(StateError, match="is closed"):
            await asyncio.wait_for(waiting, 20)
        closing.join()

    asyncio.run(play())


# ---- descriptors -------------------------------------------------------------------


def test_events_tell_what_changed_once(make_pair):
    pair = make_pair()
    primary, backup = pair.primary, pair.backup
    assert primary.events() == Changes.STATE | Changes.LINK
    assert readable(backup.event_fd(), 20)
    checkpoint(primary)
    assert backup.events() == Changes.STATE | Changes.LINK
    for _ in range(3):
        pair.primary.pwrite(0, b"x" * 512, 0)
        checkpoint(primary)
        assert not primary.events() and not backup.events()
    assert not readable(primary.event_fd()) and not readable(backup.event_fd())
    lose(pair)
    assert readable(primary.event_fd(), 20)
    assert primary.events() == Changes.STATE | Changes.LINK
    with pytest.raises(StateError):
        backup.event_fd()


def test_a_promote_is_an_event(make_pair):
    pair = make_pair()
    checkpoint(pair.primary)
    pair.primary.close()
    until(lambda: not pair.backup.status().connected)
    pair.backup.events()
    pair.backup.promote()
    assert pair.backup.events() == Changes.STATE
    assert pair.backup.status().state is State.PROMOTED
    same(pair)


def test_an_ack_is_waited_for_by_a_descriptor(make_pair):
    pair = make_pair()
    primary = pair.primary
    fd = primary.preresume_fd()
    with pytest.raises(PhaseError, match="no wait for an ack was begun"):
        primary.preresume_finish()
    for i in range(20):
        primary.pwrite(0, bytes([i]) * 4096, 0)
        epoch = primary.postsuspend()
        primary.preresume_begin(epoch, 20)
        with pytest.raises(StateError, match="not finished"):
            primary.preresume_begin(epoch)
        assert readable(fd, 20)
        assert primary.preresume_finish()
        assert not readable(fd)
        primary.commit(epoch)
    assert not primary.preresume_cancel()
    primary.close()
    assert pair.backup.promote() == epoch
    same(pair)


def test_a_wait_by_a_descriptor_is_cancelled(make_pair):
    pair = make_pair(on_loss="hold")
    primary = pair.primary
    lost = primary.postsuspend()
    pair.backup.close()
    until(lambda: not primary.status().connected)
    try:
        primary.preresume(lost, 0)
    except CheckpointTimeout:
        primary.preresume_begin(lost)
        assert not primary.preresume_finish()
        assert not readable(primary.preresume_fd())
        assert primary.preresume_cancel()
        with pytest.raises(CheckpointCancelled):
            primary.preresume_finish()
